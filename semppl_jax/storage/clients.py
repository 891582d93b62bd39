"""The two clients, s3fs and gcsfs, behind the same few methods.

Listings rather than HEAD requests: their errors say what is wrong.
"""

import contextlib
import datetime
import functools
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from semppl_jax.storage.address import Address
from semppl_jax.storage.errors import missing_extra, told

_CONNECTIONS = 64  # of a hasty client, at once
Found = tuple[str, int, float, str]  # key, bytes, seconds since 1970, tag


def of(place: Address, hasty: bool = False) -> Any:
  """The client of an address; made once in a process.

  Args:
    place: the address.
    hasty: of one that tries once, and many things at the same time.

  Raises:
    StorageError: its package is not installed.
  """
  return _client(place.scheme, hasty, os.getpid())


@functools.cache
def _client(scheme: str, hasty: bool, process: int) -> Any:
  # A client that a forked process inherits is of no use there.
  del process
  # They log what they retry, with addresses.
  for name in ('gcsfs', 's3fs', 'botocore', 'aiobotocore', 'fsspec'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  with told(f'{scheme}://', 'read'):
    return {'s3': S3, 'gs': GS}[scheme](hasty)


class S3:
  """Amazon's S3, and servers that speak as it does."""

  def __init__(self, hasty: bool = False):
    try:
      import s3fs
    except ImportError:
      raise missing_extra('s3') from None
    # A key of ours that is not there is no reason to look for a folder.
    settings = {
      'max_pool_connections': _CONNECTIONS,
      'retries': {'max_attempts': 0},
    }
    self._fs = s3fs.S3FileSystem(
      use_listings_cache=False,
      skip_instance_cache=True,
      config_kwargs=settings if hasty else None,
    )
    if hasty:
      self._fs.retries = 1

  def first(self, bucket: str, prefix: str) -> Found | None:
    """The first object whose key begins so."""
    page = self._fs.call_s3(
      'list_objects_v2', Bucket=bucket, Prefix=prefix, MaxKeys=1
    )
    return next(map(_of_s3, page.get('Contents', ())), None)

  def listed(self, bucket: str, prefix: str, deep: bool) -> list[Found]:
    """All whose keys begin so; if not deep, folders end in a slash."""
    found: list[Found] = []
    more: dict[str, str] = {} if deep else {'Delimiter': '/'}
    while True:
      page = self._fs.call_s3(
        'list_objects_v2', Bucket=bucket, Prefix=prefix, **more
      )
      found += map(_of_s3, page.get('Contents', ()))
      folders = page.get('CommonPrefixes', ())
      found += [(one['Prefix'], 0, 0.0, '') for one in folders]
      if not page.get('IsTruncated'):
        return found
      more['ContinuationToken'] = page['NextContinuationToken']

  def read(
    self, bucket: str, key: str, begin: int | None, end: int | None
  ) -> bytes:
    """An object's bytes."""
    if begin is not None and begin == end:
      return b''
    return self._fs.cat_file(
      f'{bucket}/{key}', start=begin, end=end, max_concurrency=1
    )

  def write(self, bucket: str, key: str, data: bytes) -> None:
    """Puts an object."""
    self._fs.pipe_file(f'{bucket}/{key}', data)

  def write_if(self, bucket: str, key: str, data: bytes, tag: str) -> str:
    """Puts an object if the one there has this tag; '': if none is there."""
    condition = {'IfMatch': tag} if tag else {'IfNoneMatch': '*'}
    try:
      done = self._fs.call_s3(
        'put_object', Bucket=bucket, Key=key, Body=data, **condition
      )
    except OSError as error:
      code = _code(error)
      if code in ('PreconditionFailed', 'ConditionalRequestConflict', '412'):
        raise FileExistsError(f's3://{bucket}/{key}') from None
      raise
    return done['ETag']

  def remove(self, bucket: str, key: str) -> None:
    """Deletes an object."""
    self._fs.call_s3('delete_object', Bucket=bucket, Key=key)

  def copy(self, bucket: str, key: str, to: str) -> None:
    """Within a bucket."""
    self._fs.copy(f'{bucket}/{key}', f'{bucket}/{to}')

  def put(self, file: pathlib.Path, bucket: str, key: str) -> None:
    """Of a file on the disk."""
    self._fs.put_file(str(file), f'{bucket}/{key}')

  def get(self, bucket: str, key: str, file: pathlib.Path) -> None:
    """To a file on the disk."""
    self._fs.get_file(f'{bucket}/{key}', str(file))


def _of_s3(one: dict[str, Any]) -> Found:
  return one['Key'], one['Size'], one['LastModified'].timestamp(), one['ETag']


def _code(error: BaseException) -> str:
  response = getattr(error.__cause__ or error, 'response', None) or {}
  return response.get('Error', {}).get('Code', '')


class NoSuchBucket(Exception):
  """Where Google says 404 of a bucket, as it does of an object."""


class GS:
  """Google's Cloud Storage."""

  def __init__(self, hasty: bool = False):
    del hasty  # it opens as many connections as it is asked for
    try:
      # Not the package's own name for it, which asks at every write whether a
      # bucket is of another kind, by gRPC.
      from gcsfs.core import GCSFileSystem
    except ImportError:
      raise missing_extra('gs') from None
    self._fs = GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)

  def first(self, bucket: str, prefix: str) -> Found | None:
    """The first object whose key begins so."""
    page = self._page(bucket, prefix=prefix, maxResults=1)
    return next(map(_of_gs, page.get('items', ())), None)

  def listed(self, bucket: str, prefix: str, deep: bool) -> list[Found]:
    """All whose keys begin so; if not deep, folders end in a slash."""
    found: list[Found] = []
    more: dict[str, str] = {} if deep else {'delimiter': '/'}
    while True:
      page = self._page(bucket, prefix=prefix, **more)
      found += map(_of_gs, page.get('items', ()))
      found += [(one, 0, 0.0, '') for one in page.get('prefixes', ())]
      if not page.get('nextPageToken'):
        return found
      more['pageToken'] = page['nextPageToken']

  def _page(self, bucket: str, **what: Any) -> dict[str, Any]:
    try:
      return self._fs.call('GET', 'b/{}/o', bucket, json_out=True, **what)
    except FileNotFoundError:
      raise NoSuchBucket from None

  def read(
    self, bucket: str, key: str, begin: int | None, end: int | None
  ) -> bytes:
    """An object's bytes."""
    return self._fs.cat_file(f'{bucket}/{key}', start=begin, end=end)

  def write(self, bucket: str, key: str, data: bytes) -> None:
    """Puts an object."""
    with _no_bucket():
      self._fs.pipe_file(f'{bucket}/{key}', data)

  def write_if(self, bucket: str, key: str, data: bytes, tag: str) -> str:
    """Puts an object if the one there has this tag; '': if none is there."""
    place = f'{self._fs._location}/upload/storage/v1/b/{quote(bucket)}/o'
    with _no_bucket():
      done = self._fs.call(
        'POST',
        place,
        uploadType='media',
        name=key,
        ifGenerationMatch=tag or '0',
        headers={'Content-Type': 'application/octet-stream'},
        data=data,
        json_out=True,
      )
    return str(done['generation'])

  def remove(self, bucket: str, key: str) -> None:
    """Deletes an object."""
    with contextlib.suppress(FileNotFoundError):
      self._fs.call('DELETE', 'b/{}/o/{}', bucket, key)

  def copy(self, bucket: str, key: str, to: str) -> None:
    """Within a bucket."""
    self._fs.cp_file(f'{bucket}/{key}', f'{bucket}/{to}')

  def put(self, file: pathlib.Path, bucket: str, key: str) -> None:
    """Of a file on the disk."""
    with _no_bucket():
      self._fs.put_file(str(file), f'{bucket}/{key}')

  def get(self, bucket: str, key: str, file: pathlib.Path) -> None:
    """To a file on the disk."""
    self._fs.get_file(f'{bucket}/{key}', str(file))


@contextlib.contextmanager
def _no_bucket() -> Iterator[None]:
  """Of a write: what is not there is the bucket."""
  try:
    yield
  except FileNotFoundError:
    raise NoSuchBucket from None


def _of_gs(one: dict[str, Any]) -> Found:
  changed = datetime.datetime.fromisoformat(one['updated']).timestamp()
  return one['name'], int(one['size']), changed, str(one['generation'])
