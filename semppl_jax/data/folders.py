"""The images of a folder: what they are for, and what is left out.

DIR/train/CLASS/**, DIR/test/CLASS/** and DIR/unlabelled/**, or whatever these
three are usually called. Test and unlabelled images may be missing. Without a
train folder, the folders in DIR are the classes, and images directly in DIR
count as unlabelled.
"""

import collections
import os
from typing import NamedTuple

from semppl_jax.data import image_files, listing
from semppl_jax.errors import UserError

# Of each, what others call it, small or capital letters. Of several training or
# test folders the first one counts; all unlabelled ones do.
_TRAIN = ('train', 'training')
_TEST = ('test', 'testing', 'val', 'valid', 'validation')
_UNLABELLED = ('unlabelled', 'unlabeled')
_OURS = ('masks.json', 'metrics.jsonl')
# Files that people keep for images, but nobody here decodes.
_TO_CONVERT = ('.avif', '.heic', '.heif', '.jp2', '.jxl', '.svg')


class Found(NamedTuple):
  """Image files by what they are for, and lines about the rest."""

  train: list[str]  # paths, those with a label first
  labels: list[int]  # of them, -1: none
  test: list[str]
  test_labels: list[int]
  class_names: list[str]
  notes: list[str]  # what a user might not expect; empty: nothing


def search(folder: str) -> Found:
  """Finds a folder's images.

  Raises:
    UserError: no folder, no image in it, or an image whose class is not clear.
  """
  with listing.once(folder):
    return _search(folder)


def _search(folder: str) -> Found:
  if not listing.is_folder(folder):
    raise UserError(f'dataset.path {folder!r} is not a folder.')
  at = lambda name: os.path.join(folder, name)
  inside = [n for n in image_files.subfolders(folder) if not _is_ours(at(n))]
  train, test = _called(inside, _TRAIN)[:1], _called(inside, _TEST)[:1]
  unlabelled = _called(inside, _UNLABELLED)
  rest = [n for n in inside if n not in (*train, *test, *unlabelled)]
  others: collections.Counter[str] = collections.Counter()
  directly = image_files.find(folder, deep=False, others=others)
  if train:
    classes, left = image_files.subfolders(at(train[0])), rest
    paths, labels = image_files.by_class(at(train[0]), classes, others)
    loose = []
  else:
    classes = [n for n in rest if image_files.find(at(n))]
    left = [n for n in rest if n not in classes]
    paths, labels = image_files.of_classes(folder, classes, classes, others)
    loose, directly = directly, []
  for name in unlabelled:
    loose += image_files.find(at(name), others=others)
  if not paths and not loose:
    raise UserError(
      f'dataset.path {folder!r} has no images: they belong in '
      'train/CLASS/, unlabelled/, or directly in it.'
      f'{_kinds(others)}'
    )
  tests, test_labels = (
    image_files.by_class(at(test[0]), classes, others) if test else ([], [])
  )
  notes = _renamed(train=train, test=test, unlabelled=unlabelled)
  if not train and classes:
    notes.append(f'there is no train/: {_some(classes)} are taken for classes')
  numbers = {name: len(image_files.find(at(name))) for name in left}
  notes += [_left_out(name, n, test) for name, n in numbers.items() if n]
  if directly:
    notes.append(
      f'{_number(len(directly))} directly in it left out (they may go to '
      'unlabelled/)'
    )
  if others:
    notes.append(_kinds(others).strip())
  labels += [-1] * len(loose)
  return Found(paths + loose, labels, tests, test_labels, classes, notes)


def _is_ours(folder: str) -> bool:
  """Whether it holds masks, or a run, whose pictures are no images of data."""
  return any(listing.is_file(os.path.join(folder, name)) for name in _OURS)


def _called(inside: list[str], spellings: tuple[str, ...]) -> list[str]:
  """The folders of these names, in the order of the spellings."""
  return [n for s in spellings for n in inside if n.lower() == s]


def _renamed(**folders: list[str]) -> list[str]:
  return [
    f'{name}/ is taken for {ours}/'
    for ours, names in folders.items()
    for name in names
    if name != ours
  ]


def _left_out(name: str, number: int, test: list[str]) -> str:
  if name.lower() in _TEST:
    why = f'{test[0]}/ is there'
  elif name.lower() in _TRAIN:
    why = 'train/ is there'
  else:
    why = 'they may go to train/CLASS/, test/CLASS/ or unlabelled/'
  return f'{name}/ with {_number(number)} left out ({why})'


def _kinds(others: collections.Counter[str]) -> str:
  """' 3 files of other kinds left out (.heic 2, .txt 1)', or ''."""
  if not others:
    return ''
  kinds = ', '.join(f'{kind} {number}' for kind, number in others.most_common())
  files = 'file' if others.total() == 1 else 'files'
  advice = ''
  if any(kind in _TO_CONVERT for kind in others):
    advice = '; convert images to JPEG or PNG'
  return (
    f' {others.total():,} {files} of other kinds left out ({kinds}){advice}'
  )


def _number(images: int) -> str:
  return '1 image' if images == 1 else f'{images:,} images'


def _some(names: list[str], most: int = 5) -> str:
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(f'{name}/' for name in names[:most]) + more
