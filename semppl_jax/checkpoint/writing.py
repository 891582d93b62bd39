"""What cannot be written, in one line that says what to do about it."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax

from semppl_jax.checkpoint import folder
from semppl_jax.errors import UserError


@contextlib.contextmanager
def guarded(place: pathlib.Path) -> Iterator[None]:
  """Makes a UserError of a disk's or a permission's error.

  Args:
    place: the folder of the checkpoints.
  """
  try:
    yield
  except (UserError, jax.errors.JaxRuntimeError):
    raise  # the latter is a device's or another process's, not the disk's
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(_line(place, error)) from error


def probe(place: pathlib.Path) -> None:
  """Makes and removes a folder there.

  Where none can be made, orbax's threads wait for one another.

  Raises:
    UserError: it cannot be done.
  """
  with (
    guarded(place),
    tempfile.TemporaryDirectory(dir=place, prefix='.probe'),
  ):
    pass


def _line(place: pathlib.Path, error: BaseException) -> str:
  existing = next(p for p in (place, *place.parents) if p.exists())
  reason = folder.system_error(error)[0]
  line = f'No checkpoint can be written to {place}: {reason}'
  if not os.access(existing, os.W_OK):
    return f'{line} (no permission). Those that are there are untouched.'
  free = shutil.disk_usage(existing).free / 1e9
  return (
    f'{line} ({free:.1f} GB are free). Those that are there are untouched: '
    'make room, and the same command goes on.'
  )
