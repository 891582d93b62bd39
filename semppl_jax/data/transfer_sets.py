"""The data sets of transfer: where they are, how they are split and scored.

Sizes of the splits and measures are BYOL's (arXiv 2006.07733, appendix D, table
10); which training images are held out for validation is drawn by a seed of
ours. Birdsnap and Aircraft are not in tfds: they are folders of images,
PATH/birdsnap/{train,validation,test}/CLASS/*, of which validation may be
missing.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from semppl_jax import storage
from semppl_jax.data import image_files, listing, sources, tfds_files
from semppl_jax.errors import UserError

_PER_CLASS = 'mean per class'


class Spec(NamedTuple):
  """A line of BYOL's table."""

  tfds: str  # the data set's name in tfds; '': it is a folder
  # Training images that are held out for validation: an int, so many of each
  # class, or a float, this share of all, alike in each class [ours]. None:
  # there is a split of its own.
  held_out: int | float | None
  measure: str = 'top-1'  # a name in probes.MEASURES
  test_split: str = 'test'


SETS = {
  'food101': Spec('food101', 7_575 / 75_750, test_split='validation'),
  'cifar10': Spec('cifar10', 5_000 / 50_000),
  'cifar100': Spec('cifar100', 5_067 / 50_000),
  'birdsnap': Spec('', 4_981 / 47_386),
  'sun397': Spec('sun397/standard-part1-120k', 10),
  'cars': Spec('cars196', 1_650 / 8_144),
  # Has validation images of its own; the share is for a folder without them.
  'aircraft': Spec('', 3_333 / 6_667, _PER_CLASS),
  'dtd': Spec('dtd', None),
  'pets': Spec('oxford_iiit_pet', 20, _PER_CLASS),
  'caltech101': Spec('caltech101', 5, _PER_CLASS),
  'flowers': Spec('oxford_flowers102', None, _PER_CLASS),
}


class NotThereError(UserError):
  """A data set that is not there; the message says what would bring it."""


class TransferSet(NamedTuple):
  """A data set, opened."""

  data: sources.Dataset  # train: all that may be trained on, validation too
  validation: np.ndarray  # [M] sorted rows of data.train: they choose settings


class _Parts(NamedTuple):
  train: sources.Source
  validation: sources.Source | None
  test: sources.Source
  class_names: tuple[str, ...]


def load(name: str, cfg: Any) -> TransferSet:
  """Opens a data set.

  Args:
    name: a key of SETS.
    cfg: the `dataset` section of the config: path (tfds's data_dir, which has
      the folders, too), image_size, seed (of the images that are held out).

  Raises:
    NotThereError: it is not there.
    UserError: it is damaged, or lacks a part.
  """
  spec = SETS[name]
  if spec.tfds:
    parts = _of_tfds(spec, cfg.path)
  else:
    parts = _of_folder(name, cfg.path)
  # Names of their own for all images of all data sets, for messages.
  train = _named(parts.train, f'{name}/train')
  if parts.validation is not None:
    more = _named(parts.validation, f'{name}/validation')
    rows = np.arange(len(train), len(train) + len(more))
    train = sources.Joined([train, more])
  else:
    rows = _hold_out(train.labels, spec.held_out, cfg.seed)
  if not 0 < len(rows) < len(train):
    raise UserError(
      f'{name} has {len(train)} training images, of which {len(rows)} would '
      'choose the settings: it is not whole.'
    )
  data = sources.Dataset(
    train=train,
    test=_named(parts.test, f'{name}/test'),
    num_classes=len(parts.class_names),
    class_names=parts.class_names,
    image_shape=(cfg.image_size, cfg.image_size, 3),
    fingerprint=name,
  )
  return TransferSet(data, rows)


def _of_tfds(spec: Spec, path: str) -> _Parts:
  try:
    folder = tfds_files.locate(spec.tfds, tfds_files.data_dir(path))
  except UserError as e:
    raise NotThereError(str(e)) from None
  found = tfds_files.Prepared(folder)
  train, test = found.open('train'), found.open(spec.test_split)
  own = found.open('validation').source if spec.held_out is None else None
  return _Parts(train.source, own, test.source, train.class_names)


def _of_folder(name: str, path: str) -> _Parts:
  if not path:
    raise NotThereError(
      f'{name} is not in tfds, but a folder PATH/{name}: set '
      '--config.dataset.path=PATH.'
    )
  folder = (storage.path(path) / name).expanduser()
  with listing.once(str(folder)):
    classes = image_files.subfolders(str(folder / 'train'))
    parts = {
      split: _files(folder / split, classes)
      for split in ('train', 'validation', 'test')
    }
  if not folder.is_dir():
    raise NotThereError(
      f'There is no {folder}: {name} is not in tfds, but a folder with images '
      'in train/CLASS/, test/CLASS/ and, if you like, validation/CLASS/.'
    )
  for split in ('train', 'test'):
    if parts[split] is None:
      raise UserError(
        f'{folder} has no images in {split}/CLASS/, where they belong.'
      )
  return _Parts(**parts, class_names=tuple(classes))


def _files(
  folder: pathlib.Path | storage.RemotePath, classes: Sequence[str]
) -> sources.Records | None:
  """The images of folder/CLASS/*; None if there are none."""
  paths, labels = image_files.by_class(str(folder), classes)
  if not paths:
    return None
  names = [os.path.relpath(path, folder) for path in paths]
  read = functools.partial(_read_file, paths)
  remote = storage.is_remote(paths[0])
  return sources.Records(labels, read, encoded=True, names=names, remote=remote)


def _named(source: sources.Source, part: str) -> sources.Records:
  """The same images, called by their part of the data set and their row."""
  own = [f' {name}' for name in source.names] if source.names else ['']
  names = [f'{part}[{i}]{own[i % len(own)]}' for i in range(len(source))]
  return sources.Records(
    source.labels,
    functools.partial(_image, source),
    source.encoded,
    names,
    source.remote,
  )


def _hold_out(labels: np.ndarray, rule: int | float, seed: int) -> np.ndarray:
  """Sorted rows: so many of each class (at most half), or a share of all."""
  if isinstance(rule, float):
    return sources.split(labels, round(rule * len(labels)), seed)[1]
  random = np.random.RandomState(seed % 2**32)  # as in sources.split
  parts = []
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    parts.append(random.permutation(rows)[: min(rule, len(rows) // 2)])
  return np.sort(np.concatenate(parts))


def _read_file(paths: Sequence[str], index: int) -> bytes:
  return image_files.read(paths[index])


def _image(source: sources.Source, index: int) -> bytes | np.ndarray:
  return source[index]['image']
