"""What cannot be written, in one line that says what to do about it."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

import jax

from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.utils import os_errors


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


def part(place: pathlib.Path, step: int) -> pathlib.Path:
  """Where orbax writes a checkpoint, before it gets its name."""
  return place / f'{step}.orbax-checkpoint-tmp'


def probe(place: pathlib.Path) -> None:
  """Makes and removes a folder there.

  Where the first host can make none, orbax lets the others wait for it.

  Raises:
    UserError: it cannot be done.
  """
  # Of one name for ever, so that one that could not be removed does not stay.
  trial = place / f'.probe-{processes.index()}'
  with guarded(place):
    trial.mkdir(exist_ok=True)
    trial.rmdir()


def _line(place: pathlib.Path, error: BaseException) -> str:
  # Not Path.exists, which raises where the disk does not answer.
  existing = next(p for p in (place, *place.parents) if os.path.exists(p))
  reason, number = os_errors.said(error)
  line = f'No checkpoint can be written to {place}: {reason}'
  if not os.access(existing, os.W_OK):
    return f'{line} (no permission). Those that are there are untouched.'
  free = shutil.disk_usage(existing).free / 1e9
  what = 'when the disk answers,' if number == errno.EIO else 'make room, and'
  return (
    f'{line} ({free:.1f} GB are free). Those that are there are untouched: '
    f'{what} the same command goes on.'
  )
