"""Data sets by name: `load` makes the `dataset` section of a config one."""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from semppl_jax import storage
from semppl_jax.data import (
  array_files,
  duplicates,
  folders,
  image_files,
  tfds_files,
)
from semppl_jax.data.sources import (
  Dataset,
  Joined,
  Records,
  Relabelled,
  Rows,
  Source,
)
from semppl_jax.data.sources import split as stratified
from semppl_jax.errors import UserError
from semppl_jax.utils.text import nearest_name

# Where str.splitlines begins another line.
_LINE_BREAK = re.compile(r'[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]')
_TFDS = 'tfds:'  # before the name of any data set of tensorflow-datasets


def load(cfg: Any) -> Dataset:
  """Opens a data set.

  Args:
    cfg: name (digits, arrays, folder, imagenet2012, tfds:NAME or synthetic),
      path, image_size, num_examples, num_classes, train_split, test_split,
      unlabelled_split, validation, validation_rule, seed, drop_duplicates. With
      validation above 0, so many training images with a known label are held
      out (the first ones, or equal shares of each class), and take the test
      images' place; these are not touched. With drop_duplicates, training
      images are left out that have a copy among the test images, or those in
      their place; all images are read for that.

  Returns:
    The data set.

  Raises:
    UserError: one line that names the setting or the file and what would do.
  """
  data = _held_out(cfg, _loader(cfg.name)(cfg))
  return _less_duplicates(cfg, data) if cfg.drop_duplicates else data


def _held_out(cfg: Any, data: Dataset) -> Dataset:
  """With validation images in the place of the test images, if so set."""
  if not cfg.validation:
    return data
  labels = data.train.labels
  known = int(np.sum(labels >= 0))
  if not 0 <= cfg.validation < max(known, 1):
    raise UserError(
      f'dataset.validation is {cfg.validation}; it must be at least 0 and '
      f'less than the {known} training images with a label.'
    )
  if cfg.validation_rule == 'first':
    held_out = np.flatnonzero(labels >= 0)[: cfg.validation]
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
  else:
    rest, held_out = stratified(labels, cfg.validation, cfg.seed)
  test = Rows(data.train, held_out)
  return data._replace(
    train=Rows(data.train, rest), test=test, held_out=test.names or ()
  )


# What was found, for a data set is opened more than once.
_found: dict[tuple[Any, ...], np.ndarray] = {}
_CHOOSE_IMAGES = (
  'name', 'path', 'train_split', 'test_split', 'unlabelled_split',
  'num_examples', 'num_classes', 'validation', 'validation_rule', 'seed',
)  # fmt: skip


def _less_duplicates(cfg: Any, data: Dataset) -> Dataset:
  if data.test is None:
    return data
  settings = tuple(cfg[name] for name in _CHOOSE_IMAGES)
  key = (settings, data.fingerprint, len(data.train), len(data.test))
  if key not in _found:
    _found[key] = duplicates.of_test(data.train, data.test)
  return duplicates.leave_out(data, _found[key])


def _loader(name: str) -> Callable[[Any], Dataset]:
  if name.startswith(_TFDS):
    return _tfds
  if name not in _LOADERS:
    raise UserError(
      f'dataset.name is {name!r}; known: {", ".join(_LOADERS)}, '
      f'tfds:NAME{nearest_name(name, _LOADERS)}'
    )
  return _LOADERS[name]


def _digits(unused_cfg: Any) -> Dataset:
  """scikit-learn's 1,797 handwritten digits: 1,500 to train, 297 to test."""
  from sklearn import datasets  # late: a second that other data sets save

  digits = datasets.load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0 .. 16 grey
  source = Records(
    digits.target,
    array_files.three_channels(images).__getitem__,
    names=_numbers(len(images)),
  )
  # The split is part of the data set: dataset.seed does not change it.
  train, test = stratified(source.labels, 297, seed=0)
  return Dataset(
    Rows(source, train), Rows(source, test), 10, _numbers(10), (8, 8, 3),
    'digits',
  )  # fmt: skip


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
  return Dataset(
    train,
    test,
    cfg.num_classes,
    names,
    shape,
    f'synthetic {cfg.seed} {shape} {cfg.num_examples}',
  )


def _arrays(cfg: Any) -> Dataset:
  """An .npz file as `array_files.read` describes it."""
  splits = array_files.read(_path(cfg))
  make = lambda images, labels: Records(
    labels, images.__getitem__, names=_numbers(len(labels))
  )
  train = make(*splits['train'])
  test = make(*splits['test']) if 'test' in splits else None
  top = max(int(labels.max()) for _, labels in splits.values())
  images = splits['train'][0]
  return Dataset(
    train, test, top + 1, _numbers(top + 1), images.shape[1:],
    hashlib.sha256(images).hexdigest(),
  )  # fmt: skip


def _folder(cfg: Any) -> Dataset:
  """Folders of files; see `folders`."""
  path = _path(cfg)
  found = folders.search(path)
  test = files(found.test, found.test_labels) if found.test else None
  relative = [os.path.relpath(name, path) for name in found.train]
  # Of names that are not UTF-8, the bytes as they are.
  fingerprint = hashlib.sha256(os.fsencode('\n'.join(relative))).hexdigest()
  return Dataset(
    files(found.train, found.labels),
    test,
    len(found.class_names),
    tuple(map(printable, found.class_names)),
    _canvas(cfg),
    fingerprint,
    notes=tuple(printable(f'{path}: {note}') for note in found.notes),
  )


def printable(name: str) -> str:
  """A file's name, on one line: a sign for line breaks and what is not UTF-8.

  Lists and tables of names have a line for each.
  """
  text = os.fsencode(name).decode('utf-8', 'replace')
  return _LINE_BREAK.sub('\N{REPLACEMENT CHARACTER}', text)


def files(paths: Sequence[str], labels: Sequence[int]) -> Records:
  """Image files as a source.

  Args:
    paths: N files, which are read when they are asked for.
    labels: [N] int, -1: unknown.

  Returns:
    N records, called by the last two parts of their paths.
  """
  return Records(
    labels,
    functools.partial(_read_file, paths),
    encoded=True,
    names=[printable('/'.join(path.split(os.sep)[-2:])) for path in paths],
    remote=bool(paths) and storage.is_remote(paths[0]),
  )


def _imagenet(cfg: Any) -> Dataset:
  """ImageNet 2012 as tfds stores it: its validation set is the test set."""
  return _tfds(cfg, name='imagenet2012')


def _tfds(cfg: Any, name: str = '') -> Dataset:
  """Any image data set of tensorflow-datasets, stored as array_record."""
  found = tfds_files.find(name or cfg.name.removeprefix(_TFDS), cfg.path)
  train_split = cfg.train_split or 'train'
  train = found.open(train_split)
  # ImageNet's own test split has no labels.
  preferred = ('validation',) if str(found).startswith('imagenet2012') else ()
  test_split = cfg.test_split or found.first_of(
    *preferred, 'test', 'validation'
  )
  test = found.open(test_split).source if test_split else None
  unlabelled = cfg.unlabelled_split or found.first_of('unlabelled')
  source, described = train.source, train_split
  if unlabelled:
    more = found.open(unlabelled).source
    hidden = Relabelled(more, np.full(len(more), -1))
    source, described = Joined([source, hidden]), f'{train_split}+{unlabelled}'
  names = train.class_names
  return Dataset(
    source,
    test,
    len(names),
    names,
    _canvas(cfg),
    f'{found}/{described}: {_digest(source)}',
  )


_LOADERS = {
  'digits': _digits,
  'arrays': _arrays,
  'folder': _folder,
  'imagenet2012': _imagenet,
  'synthetic': _synthetic,
}


def _read_file(paths: Sequence[str], index: int) -> bytes:
  return image_files.read(paths[index])


def _noise(
  key: tuple[int, int], shape: tuple[int, int, int], index: int
) -> np.ndarray:
  random = np.random.default_rng((*key, index))
  return random.integers(0, 256, shape, np.uint8)


def _digest(source: Source) -> str:
  """Of all labels and names, in their order: another order, other masks."""
  text = source.labels.tobytes() + '\n'.join(source.names or ()).encode()
  return f'{len(source)} images, {hashlib.sha256(text).hexdigest()}'


def _numbers(count: int) -> tuple[str, ...]:
  """Names for classes, or images, that have none."""
  return tuple(str(i) for i in range(count))


def _canvas(cfg: Any) -> tuple[int, int, int]:
  """The shape of arrays that hold an encoded image, whole, in a corner."""
  _check_positive(cfg, 'image_size')
  return (cfg.image_size, cfg.image_size, 3)


def _path(cfg: Any) -> str:
  if not cfg.path:
    raise UserError(f'dataset.path is empty; dataset.name={cfg.name} needs it.')
  storage.check_address(cfg.path)
  return os.path.expanduser(cfg.path)


def _check_positive(cfg: Any, key: str) -> None:
  if not cfg[key] >= 1:
    raise UserError(f'dataset.{key} is {cfg[key]}; it must be at least 1.')
