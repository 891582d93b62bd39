"""What is in a folder: on a disk, or in a bucket, where keys pass for paths.

A disk is asked as ever. Of a bucket all keys below a folder are asked for at
once, a thousand a request: to ask for each folder would take as many requests
as there are classes.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator

from semppl_jax import storage
from semppl_jax.storage import objects

Level = tuple[str, list[str], list[str]]  # a folder, its folders, its files


@contextlib.contextmanager
def once(folder: str) -> Iterator[None]:
  """Within the block, what is below a folder in a bucket is asked for once.

  Raises:
    StorageError: see `storage.objects`.
  """
  token = _kept.set(_Tree(folder)) if storage.is_remote(folder) else None
  try:
    yield
  finally:
    if token is not None:
      _kept.reset(token)


def walk(folder: str) -> Iterator[Level]:
  """As os.walk: from the top; taking folders off a list leaves them out."""
  if storage.is_remote(folder):
    return _tree(folder).walk(folder)
  return os.walk(folder)


def folders(folder: str) -> list[str]:
  """Names of the folders in a folder, in any order; none if it is none."""
  if storage.is_remote(folder):
    return _tree(folder).level(folder)[0]
  if not os.path.isdir(folder):
    return []
  return [entry.name for entry in os.scandir(folder) if entry.is_dir()]


def is_folder(path: str) -> bool:
  """Whether it is one; in a bucket, whether something is below it."""
  if storage.is_remote(path):
    return any(_tree(path).level(path))
  return os.path.isdir(path)


def is_file(path: str) -> bool:
  """Whether it is a file, or an object."""
  if storage.is_remote(path):
    folder, _, name = path.rpartition('/')
    kept = _kept.get()
    if kept is not None and kept.holds(folder):
      return name in kept.level(folder)[1]
    return objects.stat(storage.path(path)) is not None
  return os.path.isfile(path)


class _Tree:
  """All that is below a folder in a bucket, as it was when asked for."""

  def __init__(self, folder: str):
    self._root = _plain(folder)
    # {path below the root, '' or with a slash: names of folders, of files}
    self._levels: dict[str, tuple[list[str], list[str]]] = {}
    for path in objects.tree(storage.path(folder)):
      parts = path.split('/')
      if all(part not in ('', '.', '..') for part in parts):  # else: no path
        parent, _, name = path.rpartition('/')
        self._level(parent)[1].append(name)

  def _level(self, path: str) -> tuple[list[str], list[str]]:
    if path not in self._levels:
      self._levels[path] = [], []
      if path:
        parent, _, name = path.rpartition('/')
        self._level(parent)[0].append(name)
    return self._levels[path]

  def holds(self, folder: str) -> bool:
    """Whether a folder is the root or below it."""
    return f'{_plain(folder)}/'.startswith(f'{self._root}/')

  def level(self, folder: str) -> tuple[list[str], list[str]]:
    """Names of a folder's folders and files; none if it is not there."""
    below = _plain(folder)[len(self._root) + 1 :]
    folders, files = self._levels.get(below, ([], []))
    return list(folders), list(files)

  def walk(self, folder: str) -> Iterator[Level]:
    """See above."""
    folders, files = self.level(folder)
    if not folders and not files:
      return
    yield folder, folders, files
    for name in folders:
      yield from self.walk(os.path.join(folder, name))


_kept: contextvars.ContextVar[_Tree | None] = contextvars.ContextVar(
  'kept', default=None
)


def _tree(folder: str) -> _Tree:
  kept = _kept.get()
  return kept if kept is not None and kept.holds(folder) else _Tree(folder)


def _plain(folder: str) -> str:
  return os.fspath(storage.path(folder))
