"""stopped.json: what a run's folder says of the alarm that ended the run."""

import contextlib
import json
import os
from typing import NamedTuple

from semppl_jax import storage
from semppl_jax.utils import files

_NAME = 'stopped.json'
_CANNOT = (OSError, storage.StorageError)


class Stop(NamedTuple):
  """The alarm that ended a run."""

  step: int  # of the alarm
  good: int  # checkpoints up to this step are trusted
  what: str  # was wrong

  def __str__(self) -> str:
    return f'stopped by an alarm at step {self.step:,}'

  def note(self, step: int) -> str:
    """What is to be known of one of the run's checkpoints."""
    suspect = f', which makes step {step:,} suspect' if step > self.good else ''
    return f'{self}{suspect}'


def write(workdir: str | os.PathLike, stop: Stop) -> None:
  """Into the run's folder, for those who read it."""
  path = storage.path(workdir) / _NAME
  with contextlib.suppress(*_CANNOT):  # the alarm is told in any case
    files.write_text(path, json.dumps(stop._asdict()) + '\n')


def remove(workdir: str | os.PathLike) -> None:
  """A run that goes on is not a stopped one."""
  with contextlib.suppress(*_CANNOT):  # what is wrong with the disk shows later
    (storage.path(workdir) / _NAME).unlink(missing_ok=True)


def read(workdir: str | os.PathLike) -> Stop | None:
  """Of a run's folder; None: no alarm ended the run."""
  try:
    found = json.loads((storage.path(workdir) / _NAME).read_text('utf-8'))
    what = ' '.join(str(found['what']).split())[:500]
    return Stop(int(found['step']), int(found['good']), what)
  except storage.StorageError:
    raise  # nobody knows
  except (
    OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError,
  ):  # fmt: skip
    return None
