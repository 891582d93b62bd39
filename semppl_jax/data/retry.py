"""Reading again what a disk or a network did not give at first.

A file that is gone, or may not be read, is so at the next try: it counts as an
image that cannot be decoded. Any other error of the system (EIO, ESTALE,
ETIMEDOUT, too many open files) says nothing of the image. To replace it would
train on other images than the next run does, and nobody would know; so it is
tried again, and then the run ends, to go on when the disk does.

So it is with object storage that does not answer, or breaks off. Whatever else
it says (no permission, credentials that have expired) holds for all images, and
ends the run at once; but an object that is gone is a file that is gone.
"""

import copy
import errno
import time
from collections.abc import Callable
from typing import Any

from semppl_jax import storage
from semppl_jax.errors import UserError
from semppl_jax.storage import objects
from semppl_jax.utils import os_errors
from semppl_jax.utils.text import first_line

_PAUSES = (0.5, 2.0, 8.0)  # seconds between the tries
_OF_THE_FILE = {
  errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
  errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip


def read(once: Callable[[], Any], what: str) -> Any:
  """Reads, up to four times in some ten seconds.

  Args:
    once: reads, or raises an OSError or a StorageError; has no side effect.
    what: is read, for the message.

  Returns:
    What `once` returned.

  Raises:
    OSError: one of the file itself, at once.
    UserError: any other, after the last try.
    StorageError: from object storage.
  """
  pauses = list(_PAUSES)
  while True:
    try:
      return once()
    except OSError as error:
      if error.errno in _OF_THE_FILE:
        raise
      if not pauses:
        raise UserError(_line(what, error)) from error
    except storage.NoAnswerError:
      if not pauses:
        raise
    time.sleep(pauses.pop(0))


def remote(
  address: str, begin: int | None = None, end: int | None = None
) -> bytes:
  """An object's bytes, from `begin` to before `end`; likewise.

  Raises:
    FileNotFoundError: it is gone.
    StorageError: all else.
  """
  place = storage.path(address)
  return read(lambda: objects.read_once(place, begin, end), address)


def record(data: Any, index: int) -> bytes:
  """A record of a tfds data source of array_record files.

  Raises:
    OSError: the system's.
    RuntimeError: a damaged file.
  """
  try:
    return data[index]
  except RuntimeError as error:
    _, number = os_errors.said(error)
    if number is None:
      raise
    # A file that could not be opened stays so, for all of its images, in the
    # source that tried. A copy opens its files anew.
    data.data_source = copy.copy(data.data_source)
    raise OSError(number, first_line(error)) from error


def _line(what: str, error: OSError) -> str:
  return (
    f'{what} cannot be read: {error.strerror or type(error).__name__}, '
    f'{len(_PAUSES) + 1} times in {sum(_PAUSES):.0f} s. When the disk answers, '
    'the same command goes on. If this file alone is lost, an empty one in its '
    'place counts as an image that cannot be decoded.'
  )
