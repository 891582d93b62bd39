"""Data sets as records by index.

A source is a sequence of {'image': [H, W, 3] uint8, 'label': int, 'id': int},
all images of one size; label -1: unknown; id: the image's number in its data
set. `load` turns the `dataset` section of a config into a training and a test
source. Reading a record has no side effect, so threads and worker processes may
share a source.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from semppl_jax import config
from semppl_jax.data import array_files, image_files
from semppl_jax.errors import UserError

Record = dict[str, Any]


class Source(Protocol):
  """Records by index, and all labels at once."""

  labels: np.ndarray  # [N] int32, -1: unknown
  reads_files: bool  # whether several readers at a time are worth their cost
  names: Sequence[str] | None  # [N] 'CLASS/FILE' or 'FILE'; None: no names

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


class Dataset(NamedTuple):
  """What `load` returns."""

  train: Source
  test: Source | None  # None: the data set has none
  num_classes: int  # K; 0: no image has a label
  class_names: tuple[str, ...]  # K names
  image_shape: tuple[int, int, int]  # (H, W, 3)


def load(cfg: Any) -> Dataset:
  """Reads a data set.

  Args:
    cfg: name (digits, arrays, folder or synthetic), path, image_size,
      num_examples, num_classes, validation, seed. With validation above 0, so
      many training images with a known label are held out, in equal shares of
      each class, and take the test images' place; these are not touched.

  Returns:
    The data set.

  Raises:
    UserError: one line that names the setting or the file and what would do.
  """
  if cfg.name not in _LOADERS:
    raise UserError(
      f'dataset.name is {cfg.name!r}; known: {", ".join(_LOADERS)}'
      f'{config.nearest_name(cfg.name, _LOADERS)}'
    )
  data = _LOADERS[cfg.name](cfg)
  if not cfg.validation:
    return data
  known = int(np.sum(data.train.labels >= 0))
  if not 0 <= cfg.validation < max(known, 1):
    raise UserError(
      f'dataset.validation is {cfg.validation}; it must be at least 0 and '
      f'less than the {known} training images with a label.'
    )
  rest, held_out = split(data.train.labels, cfg.validation, cfg.seed)
  return data._replace(
    train=Rows(data.train, rest), test=Rows(data.train, held_out)
  )


class Records:
  """A source made of labels and a function from index to image."""

  def __init__(
    self,
    labels: Sequence[int] | np.ndarray,
    read: Callable[[int], np.ndarray],
    reads_files: bool = False,
    names: Sequence[str] | None = None,
  ):
    self.labels = np.asarray(labels, np.int32)
    self.reads_files = reads_files
    self.names = names
    self._read = read

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    label = int(self.labels[index])
    return {'image': self._read(index), 'label': label, 'id': index}


class Rows:
  """Some rows of another source; an image keeps its id."""

  def __init__(self, source: Source, rows: np.ndarray):
    self.labels = source.labels[rows]
    self.reads_files = source.reads_files
    self.names = source.names and [source.names[i] for i in rows]
    self._source, self._rows = source, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return self._source[int(self._rows[index])]


def _digits(unused_cfg: Any) -> Dataset:
  """scikit-learn's 1,797 handwritten digits: 1,500 to train, 297 to test."""
  from sklearn import datasets  # late: a second that other data sets save

  digits = datasets.load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0 .. 16 grey
  source = Records(
    digits.target, array_files.three_channels(images).__getitem__
  )
  # The split is part of the data set: dataset.seed does not change it.
  train, test = split(source.labels, 297, seed=0)
  names = _numbers(10)
  return Dataset(Rows(source, train), Rows(source, test), 10, names, (8, 8, 3))


def _synthetic(cfg: Any) -> Dataset:
  """Noise, for trials of speed: there is nothing to learn.

  A quarter as many test images as training images, at least one.
  """
  for key in ('num_examples', 'num_classes', 'image_size'):
    _check_positive(cfg, key)
  shape = (cfg.image_size, cfg.image_size, 3)

  def make(split: int, count: int) -> Records:
    read = functools.partial(_noise, (cfg.seed % 2**64, split), shape)
    return Records(np.arange(count) % cfg.num_classes, read)

  train, test = make(0, cfg.num_examples), make(1, cfg.num_examples // 4 or 1)
  names = _numbers(cfg.num_classes)
  return Dataset(train, test, cfg.num_classes, names, shape)


def _arrays(cfg: Any) -> Dataset:
  """An .npz file as `array_files.read` describes it."""
  splits = array_files.read(_path(cfg))
  make = lambda images, labels: Records(labels, images.__getitem__)
  train = make(*splits['train'])
  test = make(*splits['test']) if 'test' in splits else None
  top = max(int(labels.max()) for _, labels in splits.values())
  shape = splits['train'][0].shape[1:]
  return Dataset(train, test, top + 1, _numbers(top + 1), shape)


def _folder(cfg: Any) -> Dataset:
  """DIR/train/CLASS/*, DIR/test/CLASS/* and DIR/unlabelled/*.

  Test and unlabelled images may be missing. Without DIR/train, the images
  directly in DIR count as unlabelled too.
  """
  folder = _path(cfg)
  _check_positive(cfg, 'image_size')
  if not os.path.isdir(folder):
    raise UserError(f'dataset.path {folder!r} is not a folder.')
  train_folder = os.path.join(folder, 'train')
  names = image_files.subfolders(train_folder)
  paths, labels = image_files.by_class(train_folder, names)
  loose = image_files.find(os.path.join(folder, 'unlabelled'))
  if not os.path.isdir(train_folder):
    loose = image_files.find(folder, deep=False) + loose
  if not paths and not loose:
    raise UserError(
      f'dataset.path {folder!r} has no images: they belong in '
      'train/CLASS/, unlabelled/, or directly in it.'
    )
  make = lambda paths, labels: Records(
    labels,
    functools.partial(_read_file, paths, cfg.image_size),
    reads_files=True,
    names=['/'.join(path.split(os.sep)[-2:]) for path in paths],
  )
  train = make(paths + loose, labels + [-1] * len(loose))
  test_folder = os.path.join(folder, 'test')
  test_paths, test_labels = image_files.by_class(test_folder, names)
  test = make(test_paths, test_labels) if test_paths else None
  shape = (cfg.image_size, cfg.image_size, 3)
  return Dataset(train, test, len(names), tuple(names), shape)


_LOADERS = {
  'digits': _digits,
  'arrays': _arrays,
  'folder': _folder,
  'synthetic': _synthetic,
}


def split(
  labels: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Sorted rows (rest, part): `part` has `count` rows, stratified by label.

  Rows without a label stay in `rest`. Each class gives its share, rounded so
  that the shares add up (largest remainders first).
  """
  # RandomState's numbers are frozen for ever, a split must be so too.
  random = np.random.RandomState(seed % 2**32)
  classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
  shares = sizes * count / sizes.sum()
  take = np.floor(shares).astype(int)
  most = np.argsort(take - shares, kind='stable')[: count - take.sum()]
  take[most] += 1
  part = [
    random.permutation(np.flatnonzero(labels == c))[:n]
    for c, n in zip(classes, take)
  ]
  part = np.sort(np.concatenate(part))
  return np.setdiff1d(np.arange(len(labels)), part), part


def _read_file(paths: Sequence[str], size: int, index: int) -> np.ndarray:
  return image_files.decode(paths[index], size)


def _noise(
  key: tuple[int, int], shape: tuple[int, int, int], index: int
) -> np.ndarray:
  random = np.random.default_rng((*key, index))
  return random.integers(0, 256, shape, np.uint8)


def _numbers(count: int) -> tuple[str, ...]:
  """Class names for classes that have none."""
  return tuple(str(i) for i in range(count))


def _path(cfg: Any) -> str:
  if not cfg.path:
    raise UserError(f'dataset.path is empty; dataset.name={cfg.name} needs it.')
  return os.path.expanduser(cfg.path)


def _check_positive(cfg: Any, key: str) -> None:
  if not cfg[key] >= 1:
    raise UserError(f'dataset.{key} is {cfg[key]}; it must be at least 1.')
