"""Addresses of objects that are used as paths are."""

import errno
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from semppl_jax.errors import UserError
from semppl_jax.storage import objects
from semppl_jax.storage.address import Address, has_secrets, is_remote

_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+)://')


def path(given: str | os.PathLike) -> 'pathlib.Path | RemotePath':
  """A path on the disk, or an address; both have the methods used here.

  Raises:
    UserError: an address with credentials in it, or without a bucket.
  """
  if isinstance(given, RemotePath):
    return given
  return RemotePath(given) if is_remote(given) else pathlib.Path(given)


def on_disk(given: str | os.PathLike, setting: str) -> pathlib.Path:
  """A path of something that is written on disks only.

  Args:
    given: the path.
    setting: that gives it.

  Raises:
    UserError: an address.
  """
  if is_remote(given):
    raise UserError(
      f'{setting} is {path(given)}: it is written on a disk, and may be copied '
      'from there.'
    )
  return pathlib.Path(given)


def exists(given: str | os.PathLike) -> bool:
  """os.path.exists, and the same of a bucket."""
  if is_remote(given):
    return path(given).exists()
  return os.path.exists(given)


def is_dir(given: str | os.PathLike) -> bool:
  """os.path.isdir, and the same of a bucket."""
  return path(given).is_dir() if is_remote(given) else os.path.isdir(given)


def check_address(given: str) -> None:
  """Refuses what looks like an address, and is none that can be used.

  Raises:
    UserError: one line, without what must not be told.
  """
  if is_remote(given):
    if '?' in given:  # a key may have one, what a user writes has no reason to
      raise has_secrets(given.partition('://')[0])
    path(given)
  elif found := _SCHEME.match(given):
    raise UserError(
      f'{found[1]}:// is no storage that is known: s3://BUCKET/PATH, '
      'gs://BUCKET/PATH, or a path on the disk.'
    )


class Stat(NamedTuple):
  """Of an object, as os.stat says it."""

  st_size: int
  st_mtime: float  # seconds since 1970


class RemotePath(Address):
  """An address s3://BUCKET/KEY or gs://BUCKET/KEY, with pathlib's methods.

  There are no folders in a bucket: one is there while objects are below it,
  and `mkdir` does nothing. Where pathlib raises an OSError, this raises
  FileNotFoundError for what is not there, and a StorageError for the rest.
  """

  def exists(self) -> bool:
    """Whether it is an object or a folder."""
    return self.is_file() or self.is_dir()

  def is_file(self) -> bool:
    """Whether it is an object."""
    return objects.stat(self) is not None

  def is_dir(self) -> bool:
    """Whether objects are below it."""
    return objects.is_folder(self)

  def stat(self) -> Stat:
    """Size and time of an object."""
    if found := objects.stat(self):
      return Stat(found.size, found.changed)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

  def read_bytes(self) -> bytes:
    """All of an object."""
    return objects.read(self)

  def read_text(self, encoding: str = 'utf-8', errors: str = 'strict') -> str:
    """All of an object, decoded."""
    return self.read_bytes().decode(encoding, errors)

  def write_bytes(self, data: bytes) -> int:
    """Replaces the object, as a whole."""
    objects.write(self, data)
    return len(data)

  def write_text(self, text: str, encoding: str = 'utf-8') -> int:
    """Replaces the object, as a whole."""
    return self.write_bytes(text.encode(encoding))

  def open(self, mode: str = 'r', **options: Any) -> io.IOBase:
    """Of a small object, to read; all of it is read at once."""
    if mode == 'rb':
      return io.BytesIO(self.read_bytes())
    if mode == 'r':
      encoding = options.get('encoding') or 'utf-8'
      return io.StringIO(self.read_text(encoding), options.get('newline'))
    raise ValueError(f'{mode!r}: an object is written as a whole')

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes an object; nothing happens where there is none."""
    del missing_ok  # nobody can tell
    objects.remove([self])

  def mkdir(self, **unused: Any) -> None:
    """Nothing: a folder is there when something is in it."""

  def iterdir(self) -> Iterator[Self]:
    """What is directly below, sorted by name."""
    for name in objects.names(self):
      yield self / name
