"""Data sets that tensorflow-datasets has prepared: finding and reading them.

They are read as array_record, which has random access and needs no TensorFlow.
Images stay encoded. All labels and names of a split are read once and kept in
an index file beside the data (or in the user's cache, if that is read-only).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm

from semppl_jax import config, files
from semppl_jax.data import images, patience, sources
from semppl_jax.data.sources import Record, Source
from semppl_jax.errors import UserError

_INFO = 'dataset_info.json'
_BLOCK = 1024  # records at a time for the index
_NAMES = ('file_name', 'image/file_name', 'id')  # features that name an image
_MANY = 20_000  # records whose reading deserves a progress bar
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
      self._builder = tfds.builder_from_directory(str(folder))
    except Exception as e:  # tfds raises one of many for a damaged folder
      raise UserError(
        f'{folder} is not a data set that tfds can read: {_line(e)}'
      ) from e
    self._info = self._builder.info
    formats = [f.value for f in self._info.available_file_formats()]
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
    return next((name for name in names if name in self._info.splits), None)

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
      known = list(self._info.splits)
      raise UserError(
        f'{self} has no split {split!r} ({_line(e)}); its splits: '
        f'{", ".join(known)}{config.nearest_name(split, known)}'
      ) from e
    features = self._info.features
    keys = _keys(features, str(self), tfds.features)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
      data = self._builder.as_data_source(split, deserialize_method=raw)
    except Exception as e:
      raise UserError(f'{self._folder}: {split} is damaged: {_line(e)}') from e
    labels, names = _index(self._folder, split, data, keys)
    known = features[keys.label].names if keys.label else ()
    return Split(_Records(data, keys.image, labels, names), tuple(known))


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
  told = json.loads(info.read_text(encoding='utf-8'))
  above = 2 if told.get('configName') else 1
  return str(info.parent.resolve().parents[above])


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
      once = lambda: patience.record(self._data, index)
      data = patience.read(once, sources.name(self, index))
      image = _example(data)[self._image].bytes_list.value[0]
    except UserError:
      raise
    except Exception as e:  # a damaged file: array_record raises one of many
      raise images.Unreadable(_line(e)) from e
    label = int(self.labels[index])
    return {'image': image, 'label': label, 'id': index}


def _index(
  folder: pathlib.Path, split: str, data: Any, keys: _Keys
) -> tuple[np.ndarray, list[str] | None]:
  """Labels and names of all records, from the index file or read anew."""
  for path in _index_files(folder, split):
    # What a damaged file raises.
    with contextlib.suppress(
      OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile
    ):
      with np.load(path, allow_pickle=False) as kept:
        labels, names = kept['labels'], kept['names']
      if len(labels) == len(data):
        return labels, names.tolist() if keys.name else None
  labels, names = _read_index(data, keys, f'{folder}: {split}')
  for path in _index_files(folder, split):
    # The next run reads everything again where nothing can be written.
    with contextlib.suppress(OSError):
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_arrays(path, labels=labels, names=np.array(names, str))
      break
  return labels, names if keys.name else None


def _index_files(folder: pathlib.Path, split: str) -> Iterator[pathlib.Path]:
  """Beside the data; and in the cache, told apart by the data's folder."""
  # Another preparation of the same version may have another order.
  stamp = int((folder / _INFO).stat().st_mtime)
  plain = re.sub(r'\W', '_', split)
  if plain != split:  # 'train[:80%]' is not 'train[-80:]'
    plain += hashlib.sha256(split.encode()).hexdigest()[:8]
  yield folder / f'semppl_jax_index_{plain}_{stamp}.npz'
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
  name = f'{place}_{plain}_{stamp}.npz'
  yield cache.expanduser() / 'semppl_jax' / name


def _read_index(
  data: Any, keys: _Keys, what: str
) -> tuple[np.ndarray, list[str]]:
  labels = np.full(len(data), -1, np.int32)
  names: list[str] = []
  bar = tqdm.tqdm(
    total=len(data),
    desc=f'Labels of {what} (once)',
    unit='image',
    disable=len(data) < _MANY,
  )
  for start in range(0, len(data), _BLOCK):
    rows = list(range(start, min(start + _BLOCK, len(data))))
    try:
      block = data.__getitems__(rows)
    except Exception as e:
      raise UserError(f'{what} is damaged: {_line(e)}') from e
    parsed = [_example(record) for record in block]
    if keys.label:
      labels[rows] = [x[keys.label].int64_list.value[0] for x in parsed]
    if keys.name:
      names += [x[keys.name].bytes_list.value[0].decode() for x in parsed]
    bar.update(len(rows))
  bar.close()
  return labels, names


def _example(record: bytes) -> Any:
  """The features of a tf.train.Example, by name."""
  # tfds's own decoding takes most of as long as the JPEG's.
  from tensorflow_datasets.proto import tf_example_pb2

  return tf_example_pb2.Example.FromString(record).features.feature


def _line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
