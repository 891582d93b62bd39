"""Folders of image files: finding, labelling and reading them.

They are on a disk or in a bucket: s3://BUCKET/PATH, gs://BUCKET/PATH.
"""

import collections
import os
from collections.abc import Sequence

from absl import logging

from semppl_jax import storage
from semppl_jax.data import images, listing, retry
from semppl_jax.errors import UserError
from semppl_jax.utils.text import nearest_name

SUFFIXES = (
  '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif',
  '.tiff',
)  # fmt: skip
# What operating systems leave behind, beside names that begin with a dot.
_JUNK = (
  '__macosx', '@eadir', '$recycle.bin', 'lost+found', 'desktop.ini',
  'system volume information', 'thumbs.db',
)  # fmt: skip


def read(path: str) -> bytes:
  """A file's bytes.

  Raises:
    Unreadable: if it is gone, or may not be read.
    UserError: the disk, or the bucket, does not give it, see `retry`.
  """

  def once():
    with open(path, 'rb') as file:
      return file.read()

  try:
    if storage.is_remote(path):
      return retry.remote(path)
    return retry.read(once, path)
  except OSError as e:
    raise images.Unreadable(e.strerror or type(e).__name__) from e


def subfolders(folder: str) -> list[str]:
  """Sorted names of a folder's subfolders; none if there is no folder."""
  return sorted(n for n in listing.folders(folder) if not _is_junk(n))


def by_class(
  folder: str,
  names: Sequence[str],
  others: collections.Counter[str] | None = None,
) -> tuple[list[str], list[int]]:
  """Image files and labels of folder/CLASS/*; none if there is no folder.

  Args:
    folder: with a subfolder for each class, or for some of them.
    names: of all classes, in the order of their labels.
    others: see `find`.

  Raises:
    UserError: an image outside of the classes, or a folder that is none.
  """
  if stray := find(folder, deep=False, others=others):
    raise UserError(f'{stray[0]} is in no class; it belongs in {folder}/CLASS/')
  inside = subfolders(folder)
  for name in inside:
    if name not in names:
      raise UserError(
        f'{os.path.join(folder, name)} is no class of train/'
        f'{nearest_name(name, names)}'
      )
  return of_classes(folder, inside, names, others)


def of_classes(
  folder: str,
  inside: Sequence[str],
  names: Sequence[str],
  others: collections.Counter[str] | None = None,
) -> tuple[list[str], list[int]]:
  """Image files and labels of some classes' folders in `folder`."""
  numbers = {name: label for label, name in enumerate(names)}
  paths, labels = [], []
  for name in inside:
    found = find(os.path.join(folder, name), others=others)
    if not found:
      logging.warning('%s has no images.', os.path.join(folder, name))
    paths += found
    labels += [numbers[name]] * len(found)
  return paths, labels


def find(
  folder: str,
  deep: bool = True,
  others: collections.Counter[str] | None = None,
) -> list[str]:
  """Sorted paths of the image files below a folder, or directly in it.

  Args:
    folder: one that is not there has none.
    deep: whether its subfolders are searched, too.
    others: counts the suffixes of the files that are no images.
  """
  paths = []
  for parent, children, names in listing.walk(folder):
    children[:] = [c for c in sorted(children) if deep and not _is_junk(c)]
    for name in sorted(n for n in names if not _is_junk(n)):
      if name.lower().endswith(SUFFIXES):
        paths.append(os.path.join(parent, name))
      elif others is not None:
        others[os.path.splitext(name)[1].lower() or 'no suffix'] += 1
  return paths


def _is_junk(name: str) -> bool:
  return name[0] == '.' or name.lower() in _JUNK
