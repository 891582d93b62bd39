"""All labels and names of a split that tensorflow-datasets has prepared.

They are read once and kept in an index file beside the data (or in the user's
cache, if that is read-only), in a bucket as well.
"""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm

from semppl_jax import storage
from semppl_jax.errors import UserError
from semppl_jax.utils import files
from semppl_jax.utils.text import first_line

Folder = pathlib.Path | storage.RemotePath

PREFIX = 'semppl_jax_index_'  # of an index file's name
_BLOCK = 1024  # records at a time
_MANY = 20_000  # records whose reading deserves a progress bar
_STAMP = 'dataset_info.json'  # of another preparation, it is a newer one


def of(
  folder: Folder,
  split: str,
  data: Any,
  keys: tuple[str | None, str | None],
  num_classes: int,
) -> tuple[np.ndarray, list[str] | None]:
  """Labels and names of all records, from the index file or read anew.

  Args:
    folder: of the data set's version.
    split: its name, which may be sliced.
    data: the split's records by index.
    keys: the features that hold label and name; None: there is none.
    num_classes: labels are smaller.

  Returns:
    [N] int32, -1: unknown; and N names, or None.

  Raises:
    UserError: a damaged record, or what a bucket does not give.
  """
  for path in _files(folder, split):
    # A damaged one raises one of many.
    with contextlib.suppress(Exception):
      labels, names = _kept(path, len(data), num_classes)
      return labels, names if keys[1] else None
  labels, names = _read(data, keys, num_classes, f'{folder}: {split}')
  for path in _files(folder, split):
    # The next run reads everything again where nothing can be written.
    with contextlib.suppress(OSError, storage.StorageError):
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_arrays(path, labels=labels, names=np.array(names, str))
      break
  return labels, names if keys[1] else None


def example(record: bytes) -> Any:
  """The features of a tf.train.Example, by name."""
  # tfds's own decoding takes most of as long as the JPEG's.
  from tensorflow_datasets.proto import tf_example_pb2

  return tf_example_pb2.Example.FromString(record).features.feature


def _kept(
  path: Folder, count: int, num_classes: int
) -> tuple[np.ndarray, list[str]]:
  with path.open('rb') as file, np.load(file, allow_pickle=False) as kept:
    labels, names = kept['labels'], kept['names']
  fitting = labels.shape == (count,) and names.shape in ((count,), (0,))
  if not fitting or labels.dtype != np.int32 or names.dtype.kind != 'U':
    raise ValueError('it is of other data')
  _check(labels, num_classes)
  return labels, names.tolist()


def _check(labels: np.ndarray, num_classes: int) -> None:
  lowest, highest = labels.min(initial=-1), labels.max(initial=-1)
  if lowest < -1 or highest >= max(num_classes, 1):
    wrong = lowest if lowest < -1 else highest
    raise ValueError(f'a label is {wrong}, of {num_classes} classes')


def _files(folder: Folder, split: str) -> Iterator[Folder]:
  """Beside the data; and in the cache, told apart by the data's folder."""
  # Another preparation of the same version may have another order.
  stamp = int((folder / _STAMP).stat().st_mtime)
  plain = re.sub(r'\W', '_', split)
  if plain != split:  # 'train[:80%]' is not 'train[-80:]'
    plain += hashlib.sha256(split.encode()).hexdigest()[:8]
  yield folder / f'{PREFIX}{plain}_{stamp}.npz'
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
  name = f'{place}_{plain}_{stamp}.npz'
  yield cache.expanduser() / 'semppl_jax' / name


def _read(
  data: Any, keys: tuple[str | None, str | None], num_classes: int, what: str
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
      own, called = _read_block(data, rows, keys)
      labels[rows] = own
      _check(labels[rows], num_classes)
    except UserError:
      raise
    except Exception as e:
      raise UserError(f'{what} is damaged: {first_line(e)}') from e
    names += called
    bar.update(len(rows))
  bar.close()
  return labels, names


def _read_block(
  data: Any, rows: list[int], keys: tuple[str | None, str | None]
) -> tuple[list[int], list[str]]:
  label, name = keys
  parsed = [example(record) for record in data.__getitems__(rows)]
  labels, names = [-1] * len(rows), []
  if label:
    labels = [x[label].int64_list.value[0] for x in parsed]
  if name:
    names = [x[name].bytes_list.value[0].decode() for x in parsed]
  return labels, names
