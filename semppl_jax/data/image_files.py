"""Folders of image files: finding, labelling and reading them."""

import os
from collections.abc import Sequence

from absl import logging

from semppl_jax import config
from semppl_jax.data import images, patience
from semppl_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff')


def read(path: str) -> bytes:
  """A file's bytes.

  Raises:
    Unreadable: if it is gone, or may not be read.
    UserError: the disk does not give it, see `patience`.
  """

  def once():
    with open(path, 'rb') as file:
      return file.read()

  try:
    return patience.read(once, path)
  except OSError as e:
    raise images.Unreadable(e.strerror or type(e).__name__) from e


def subfolders(folder: str) -> list[str]:
  """Sorted names of a folder's subfolders; none if there is no folder."""
  if not os.path.isdir(folder):
    return []
  return sorted(
    e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != '.'
  )


def by_class(folder: str, names: Sequence[str]) -> tuple[list[str], list[int]]:
  """Image files and labels of folder/CLASS/*; none if there is no folder."""
  paths, labels = [], []
  if stray := find(folder, deep=False):
    raise UserError(f'{stray[0]} is in no class; it belongs in {folder}/CLASS/')
  for name in subfolders(folder):
    if name not in names:
      raise UserError(
        f'{os.path.join(folder, name)} is no class of train/'
        f'{config.nearest_name(name, names)}'
      )
    found = find(os.path.join(folder, name))
    if not found:
      logging.warning('%s has no images.', os.path.join(folder, name))
    paths += found
    labels += [list(names).index(name)] * len(found)
  return paths, labels


def find(folder: str, deep: bool = True) -> list[str]:
  """Sorted paths of the image files below a folder, or directly in it."""
  paths = []
  for parent, children, names in os.walk(folder):
    children[:] = [c for c in sorted(children) if deep and c[0] != '.']
    found = [n for n in sorted(names) if n.lower().endswith(SUFFIXES)]
    paths += [os.path.join(parent, n) for n in found if n[0] != '.']
  return paths
