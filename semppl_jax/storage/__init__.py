"""Object storage: files in a bucket, s3://BUCKET/KEY and gs://BUCKET/KEY.

What takes a path of a user's asks `is_remote`, or takes `path`, which is a
pathlib.Path for what lies on a disk: nothing changes there, and no client of
any cloud is imported. Each client finds its credentials by its own ways; no
message names them.
"""

from semppl_jax.storage.address import is_remote
from semppl_jax.storage.errors import NoAnswerError, StorageError
from semppl_jax.storage.paths import (
  RemotePath,
  check_address,
  exists,
  is_dir,
  on_disk,
  path,
)

__all__ = [
  'NoAnswerError',
  'RemotePath',
  'StorageError',
  'check_address',
  'exists',
  'is_dir',
  'is_remote',
  'on_disk',
  'path',
]
