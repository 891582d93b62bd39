"""Addresses of objects, s3://BUCKET/KEY and gs://BUCKET/KEY."""

import os
import pathlib
from typing import Any, Self

from semppl_jax.errors import UserError

SCHEMES = ('s3', 'gs')
_BEGINNINGS = tuple(f'{scheme}://' for scheme in SCHEMES)


def is_remote(given: Any) -> bool:
  """Whether a path is the address of an object, or of a folder of them."""
  if isinstance(given, Address):
    return True
  return isinstance(given, str) and given.startswith(_BEGINNINGS)


def has_secrets(scheme: str) -> UserError:
  """Of an address that must not be told."""
  return UserError(
    f'An address {scheme}://.. has a user, a password or a query in it: leave '
    'them out; the client finds its credentials by itself, see '
    'docs/object_storage.md.'
  )


class Address(os.PathLike):
  """Where an object or a folder of them is, with pathlib's pure methods.

  Raises:
    UserError: credentials in it, or no bucket.
  """

  def __init__(self, url: str | os.PathLike):
    scheme, _, rest = os.fspath(url).partition('://')
    bucket, _, key = rest.partition('/')
    if set('@:') & set(bucket):  # a password may have a slash in it
      raise has_secrets(scheme)
    if not bucket:
      raise UserError(f'{scheme}:// names no bucket: {scheme}://BUCKET/PATH.')
    parts = [part for part in key.split('/') if part not in ('', '.')]
    if '..' in parts:
      raise UserError(f'{scheme}://{bucket}/..: there is no .. in a bucket.')
    self.scheme, self.bucket, self.key = scheme, bucket, '/'.join(parts)

  def __fspath__(self) -> str:
    return f'{self.scheme}://{self.bucket}/{self.key}'.rstrip('/')

  __str__ = __fspath__

  def __repr__(self) -> str:
    return f'{type(self).__name__}({str(self)!r})'

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Address) and str(self) == str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def __lt__(self, other: 'Address') -> bool:
    return str(self) < str(other)

  def __truediv__(self, more: str | os.PathLike) -> Self:
    return type(self)(f'{self}/{os.fspath(more)}')

  def joinpath(self, *more: str) -> Self:
    """Below this one."""
    return type(self)('/'.join((str(self), *more)))

  @property
  def name(self) -> str:
    """The last part; '' of a bucket."""
    return self.key.rpartition('/')[2]

  @property
  def stem(self) -> str:
    """The name without its suffix."""
    return pathlib.PurePosixPath(self.name).stem

  @property
  def suffix(self) -> str:
    """The name's ending, with its dot."""
    return pathlib.PurePosixPath(self.name).suffix

  @property
  def parent(self) -> Self:
    """One up; of a bucket itself."""
    up = self.key.rpartition('/')[0]
    return type(self)(f'{self.scheme}://{self.bucket}/{up}')

  def with_name(self, name: str) -> Self:
    """Beside this one."""
    return self.parent / name

  def with_suffix(self, suffix: str) -> Self:
    """With another ending."""
    return self.with_name(self.stem + suffix)

  def expanduser(self) -> Self:
    """Itself, as the next two are."""
    return self

  absolute = resolve = expanduser
