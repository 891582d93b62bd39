"""Data sets that tensorflow-datasets has prepared: finding and reading them.

They are read as array_record, which has random access and needs no TensorFlow.
Images stay encoded. Of a data set in a bucket, s3:// or gs://, the small files
that describe it are copied for tfds, and its records are read where they are.
"""

import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from semppl_jax import storage
from semppl_jax.data import array_records, images, retry, sources, tfds_index
from semppl_jax.data.sources import Record, Source
from semppl_jax.errors import UserError
from semppl_jax.storage import objects
from semppl_jax.utils.text import first_line, nearest_name

_INFO = 'dataset_info.json'
_FEATURES = 'features.json'
_NAMES = ('file_name', 'image/file_name', 'id')  # features that name an image
_CLASS_KEYS = ('pythonClassName', 'python_class_name', 'type')
_SHARD = re.compile(r'-\d{5,}-of-\d{5,}$')
_NAME = re.compile(r'(?P<path>[\w./-]+?)(:(?P<version>\d+\.\d+\.\d+))?')

Folder = pathlib.Path | storage.RemotePath


class Split(NamedTuple):
  """One split, opened."""

  source: Source
  class_names: tuple[str, ...]  # empty if images have no label


class Prepared:
  """A data set on the disk or in a bucket.

  Args:
    folder: of one version, with dataset_info.json.

  Raises:
    UserError: if it cannot be read, or is stored without random access.
  """

  def __init__(self, folder: Folder):
    import tensorflow_datasets as tfds  # late: it takes most of a second

    self._folder = folder
    self._remote = None
    local = folder
    if storage.is_remote(folder):
      self._remote = _Remote(folder)
      local = self._remote.local
    try:
      _check_classes(local / _FEATURES)
      self._builder = tfds.builder_from_directory(str(local))
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
        f'access; {"copy it to a disk; there " if self._remote else ""}this '
        'makes an array_record copy beside it: python -m '
        f'semppl_jax.to_array_record {"DIR" if self._remote else folder}'
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
      if self._remote:
        data = self._remote.records(data, split)
      known = tuple(self._features[keys.label].names if keys.label else ())
    except UserError:
      raise
    except Exception as e:
      raise UserError(
        f'{self._folder}: {split} is damaged: {first_line(e)}'
      ) from e
    labels, names = tfds_index.of(
      self._folder, split, data, (keys.label, keys.name), len(known)
    )
    remote = self._remote is not None
    return Split(
      _Records(data, keys.image, labels, names, remote=remote), known
    )


class _Remote:
  """What a bucket holds of a data set: its shards, and copies of the rest.

  Args:
    folder: of one version.
  """

  def __init__(self, folder: storage.RemotePath):
    self._folder = folder
    self._kept = tempfile.TemporaryDirectory(prefix='semppl_jax_')
    self.local = pathlib.Path(self._kept.name)
    self._sizes: dict[str, int] = {}
    for name, info in objects.tree(folder).items():
      if _SHARD.search(name):
        self._sizes[name] = info.size
      elif '/' not in name and not name.startswith(tfds_index.PREFIX):
        (self.local / name).write_bytes((folder / name).read_bytes())

  def records(self, data: Any, split: str) -> array_records.Records:
    """The records of a split, of which tfds has opened the copy's.

    Raises:
      UserError: a file of them is not there.
    """
    from tensorflow_datasets.core.data_sources import base

    parts = []
    for one in base.file_instructions(data.dataset_info, split):
      name = os.path.basename(one.filename)
      if name not in self._sizes:
        raise UserError(f'{self._folder} has no {name}, a part of {split}.')
      path = f'{self._folder}/{name}'
      size = self._sizes[name]
      parts.append(array_records.Part(path, size, one.skip, one.take))
    return array_records.Records(parts, retry.remote)


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


def locate(name: str, path: str = '') -> Folder:
  """The folder of a data set's version; see `find`."""
  path = path or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  storage.check_address(path)
  root = storage.path(path).expanduser()
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
  if not path:
    return path
  info = storage.path(path).expanduser() / _INFO
  if not info.is_file():
    return path
  folder = info.parent.resolve()
  for _ in range(3 if _read_json(info).get('configName') else 2):
    folder = folder.parent
  return str(folder)


def _read_json(path: Folder) -> dict[str, Any]:
  try:
    return dict(json.loads(path.read_text(encoding='utf-8')))
  except storage.StorageError:
    raise
  except (OSError, ValueError, TypeError, RecursionError) as e:
    raise UserError(f'{path} cannot be read as JSON: {first_line(e)}') from e


def _check_classes(path: Folder) -> None:
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


def _versions(folder: Folder) -> list[str]:
  """Versions in a folder, the newest last."""
  found = [inside.name for inside in _described(folder)]
  numbers = lambda version: [int(n) for n in version.split('.')]
  return sorted(
    (v for v in found if re.fullmatch(r'\d+\.\d+\.\d+', v)), key=numbers
  )


def _described(folder: Folder) -> list[Folder]:
  """The folders in a folder that have a description."""
  if not storage.is_remote(folder):
    return [path.parent for path in folder.glob(f'*/{_INFO}')]
  return [inside for inside in folder.iterdir() if (inside / _INFO).is_file()]


def _missing(root: Folder, name: str, folder: Folder) -> str:
  if storage.is_remote(folder):
    inside = [x.name for x in folder.iterdir() if _described(x)]
  else:
    inside = [path.parent.parent.name for path in folder.glob(f'*/*/{_INFO}')]
  configs = sorted(set(inside))
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
  remote: bool = False

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    try:
      data = self._record(index)
      image = tfds_index.example(data)[self._image].bytes_list.value[0]
    except UserError:
      raise
    except Exception as e:  # a damaged file: array_record raises one of many
      raise images.Unreadable(first_line(e)) from e
    label = int(self.labels[index])
    return {'image': image, 'label': label, 'id': index}

  def _record(self, index: int) -> bytes:
    if self.remote:  # each range is read until it is there
      return self._data[index]
    once = lambda: retry.record(self._data, index)
    return retry.read(once, sources.name(self, index))
