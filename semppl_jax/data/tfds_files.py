"""Data sets that tensorflow-datasets has prepared: finding and reading them.

They are read as array_record, which has random access and needs no TensorFlow.
Images stay encoded.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from semppl_jax.data import images, retry, sources, tfds_index
from semppl_jax.data.sources import Record, Source
from semppl_jax.errors import UserError
from semppl_jax.utils.text import first_line, nearest_name

_INFO = 'dataset_info.json'
_FEATURES = 'features.json'
_NAMES = ('file_name', 'image/file_name', 'id')  # features that name an image
_CLASS_KEYS = ('pythonClassName', 'python_class_name', 'type')
_NAME = re.compile(r'(?P<path>[\w./-]+?)(:(?P<version>\d+\.\d+\.\d+))?')


class Split(NamedTuple):
  """One split, opened."""

  source: Source
  class_names: tuple[str, ...]  # empty if images have no label


class Prepared:
  """A data set on the disk.

  Args:
    folder: of one version, with dataset_info.json.

  Raises:
    UserError: if it cannot be read, or is stored without random access.
  """

  def __init__(self, folder: pathlib.Path):
    import tensorflow_datasets as tfds  # late: it takes most of a second

    self._folder = folder
    try:
      _check_classes(folder / _FEATURES)
      self._builder = tfds.builder_from_directory(str(folder))
      self._info = self._builder.info
      self._features = dict(self._info.features)
      self._splits = dict(self._info.splits)
      formats = [f.value for f in self._info.available_file_formats()]
    except Exception as e:  # tfds raises one of many for a damaged folder
      raise UserError(
        f'{folder} is not a data set that tfds can read: {first_line(e)}'
      ) from e
    if 'array_record' not in formats:
      raise UserError(
        f'{folder} is stored as {", ".join(formats)}, which has no random '
        'access; this makes an array_record copy beside it: '
        f'python -m semppl_jax.to_array_record {folder}'
      )

  def __str__(self) -> str:
    return self._info.full_name

  def first_of(self, *names: str) -> str | None:
    """The first of some splits that the data set has."""
    return next((name for name in names if name in self._splits), None)

  def open(self, split: str) -> Split:
    """A split's records; `split` may be sliced: 'train[:80%]'.

    Raises:
      UserError: an unknown split, or a data set without images.
    """
    import tensorflow_datasets as tfds

    try:
      size = self._info.splits[split].num_examples
      if not size:
        raise ValueError('it is empty')
    except (KeyError, ValueError) as e:
      known = list(self._splits)
      raise UserError(
        f'{self} has no split {split!r} ({first_line(e)}); its splits: '
        f'{", ".join(known)}{nearest_name(split, known)}'
      ) from e
    keys = _keys(self._features, str(self), tfds.features)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
      data = self._builder.as_data_source(split, deserialize_method=raw)
      known = tuple(self._features[keys.label].names if keys.label else ())
    except Exception as e:
      raise UserError(
        f'{self._folder}: {split} is damaged: {first_line(e)}'
      ) from e
    labels, names = tfds_index.of(
      self._folder, split, data, (keys.label, keys.name), len(known)
    )
    return Split(_Records(data, keys.image, labels, names), known)


def find(name: str, path: str = '') -> Prepared:
  """Finds a data set where tfds keeps them.

  Args:
    name: NAME, NAME/CONFIG, or either with :VERSION; without one the newest.
    path: tfds's data_dir, or the folder of one version; '': $TFDS_DATA_DIR,
      else ~/tensorflow_datasets.

  Raises:
    UserError: says where it looked, and the command that prepares it.
  """
  return Prepared(locate(name, path))


def locate(name: str, path: str = '') -> pathlib.Path:
  """The folder of a data set's version; see `find`."""
  root = pathlib.Path(
    path or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()
  if (root / _INFO).is_file():
    return root
  match = _NAME.fullmatch(name)
  if not match:
    raise UserError(f'{name!r} is no name of tfds: NAME[/CONFIG][:VERSION].')
  folder, version = root / match['path'], match['version']
  versions = _versions(folder)
  if not versions:
    raise UserError(_missing(root, match['path'], folder))
  if version and version not in versions:
    raise UserError(
      f'{folder} has no version {version}, but {", ".join(versions)}.'
    )
  return folder / (version or versions[-1])


def data_dir(path: str) -> str:
  """tfds's data_dir, of it or of the folder of a version in it."""
  info = pathlib.Path(path, _INFO).expanduser()
  if not path or not info.is_file():
    return path
  above = 2 if _read_json(info).get('configName') else 1
  return str(info.parent.resolve().parents[above])


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return dict(json.loads(path.read_text(encoding='utf-8')))
  except (OSError, ValueError, TypeError, RecursionError) as e:
    raise UserError(f'{path} cannot be read as JSON: {first_line(e)}') from e


def _check_classes(path: pathlib.Path) -> None:
  """Refuses features of other modules: tfds would import what a file names."""
  if not path.exists():
    return
  for name in _classes(_read_json(path)):
    if not name.startswith('tensorflow_datasets.'):
      raise ValueError(f'{_FEATURES} names {name[:100]!r}, no class of tfds')


def _classes(value: Any, key: str = '') -> Iterator[str]:
  """The classes that a description of features names."""
  if isinstance(value, dict):
    for own, inner in value.items():
      yield from _classes(inner, own)
  elif isinstance(value, list):
    for inner in value:
      yield from _classes(inner)
  elif isinstance(value, str) and key in _CLASS_KEYS:
    yield value
  elif isinstance(value, str) and key == 'json':  # some lie in a text
    yield from _classes(json.loads(value))


def _versions(folder: pathlib.Path) -> list[str]:
  """Versions in a folder, the newest last."""
  found = [path.parent.name for path in folder.glob(f'*/{_INFO}')]
  numbers = lambda version: [int(n) for n in version.split('.')]
  return sorted(
    (v for v in found if re.fullmatch(r'\d+\.\d+\.\d+', v)), key=numbers
  )


def _missing(root: pathlib.Path, name: str, folder: pathlib.Path) -> str:
  configs = sorted(
    {path.parent.parent.name for path in folder.glob(f'*/*/{_INFO}')}
  )
  if configs:
    return (
      f'{name} has configs, and none was named: {", ".join(configs[:20])} '
      f'are in {folder}.'
    )
  return (
    f'There is no data set {name} in {root} (looked for '
    f'{folder}/VERSION/{_INFO}). With TensorFlow installed, this prepares it: '
    f'tfds build {name} --data_dir={root} --file_format=array_record'
  )


class _Keys(NamedTuple):
  """Which features are which."""

  image: str
  label: str | None
  name: str | None


def _keys(features: Any, described: str, kinds: Any) -> _Keys:
  def one(kind, first):
    of_kind = [k for k, v in features.items() if isinstance(v, kind)]
    return first if first in of_kind else next(iter(of_kind), None)

  image = one(kinds.Image, 'image')
  if image is None:
    raise UserError(
      f'{described} has no images: its features are {", ".join(features)}.'
    )
  name = next((n for n in _NAMES if n in features), None)
  return _Keys(image, one(kinds.ClassLabel, 'label'), name)


@dataclasses.dataclass
class _Records:
  """A split as a source."""

  _data: Any
  _image: str
  labels: np.ndarray  # [N] int32
  names: list[str] | None
  encoded: bool = True

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    try:
      once = lambda: retry.record(self._data, index)
      data = retry.read(once, sources.name(self, index))
      image = tfds_index.example(data)[self._image].bytes_list.value[0]
    except UserError:
      raise
    except Exception as e:  # a damaged file: array_record raises one of many
      raise images.Unreadable(first_line(e)) from e
    label = int(self.labels[index])
    return {'image': image, 'label': label, 'id': index}
