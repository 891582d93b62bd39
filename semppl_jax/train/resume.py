"""How a run is taken up again, and what it remembers beside its state."""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from semppl_jax import checkpoint, storage
from semppl_jax.distributed import processes
from semppl_jax.train import watchdog
from semppl_jax.utils import files
from semppl_jax.workdir import run_log, stop_file

ROLLBACKS = 'rollbacks.jsonl'  # in the work directory, a line for each


class History(NamedTuple):
  """What a run remembers beside its state. It is saved with it, so: JSON."""

  seconds: float = 0.0  # of training
  # {'step', 'back_to', 'what'} of each alarm that the run went back for
  rollbacks: tuple[dict[str, Any], ...] = ()
  watch: dict[str, Any] | None = None  # the watchdog's memory
  # {'step', 'metric', 'value'} of the best checkpoint, if one is kept
  best: dict[str, Any] | None = None

  @property
  def skipped(self) -> int:
    """Batches that are left out: those between a good state and an alarm."""
    return sum(one['step'] - one['back_to'] for one in self.rollbacks)


def with_checkpointer(
  workdir: str, cfg: Any, train: Callable[[checkpoint.Checkpointer], Any]
) -> Any:
  """Calls `train` with the checkpoints of a folder, and closes them.

  Args:
    workdir: of the run.
    cfg: of the run.
    train: takes the Checkpointer.

  Raises:
    AlarmError: `train`'s, which now names the last good checkpoint. Those of
      states that led to what is not finite are deleted; the folder notes the
      alarm, so that readers leave later ones alone.
  """
  in_bucket = storage.is_remote(workdir)
  saver = (checkpoint.InBucket if in_bucket else checkpoint.Checkpointer)(
    workdir,
    keep=cfg.keep_checkpoints,
    keep_every=cfg.keep_checkpoints_every,
    tell=run_log.info,
  )
  try:
    return train(saver)
  except watchdog.AlarmError as alarm:
    if isinstance(alarm, watchdog.NotFiniteError):
      saver.discard_after(alarm.good)
    stop = stop_file.Stop(alarm.step, alarm.good, alarm.what)
    note = functools.partial(stop_file.write, workdir, stop)
    processes.run_on_all(note, first_only=True)
    last_good = saver.latest_step(alarm.good)
    raise watchdog.stopped(alarm, last_good, cfg) from alarm
  finally:
    saver.close()


def restore(
  saver: checkpoint.Checkpointer,
  fresh: Any,
  *,
  like: Any,
  from_host: Callable[[Any], Any],
) -> tuple[Any, History]:
  """The newest checkpoint's state or a fresh one, and the run's past.

  Args:
    saver: the checkpoints.
    fresh: the state before the first step, leaves [D, ...].
    like: shapes and dtypes of the state as it is saved.
    from_host: makes of it one for these devices.
  """
  if saver.latest_step() is None:
    return fresh, History()
  portable, info, step = saver.restore(like)
  run_log.info(f'Going on from the checkpoint of step {step}.')
  # Runs of before knew of no best one.
  best = info.get('best')
  if best and saver.latest_step(best['step']) != best['step']:
    best = None  # it made way for a better one, which was discarded
  past = History(info['seconds'], tuple(info['rollbacks']), info['watch'], best)
  return from_host(portable), past


def roll_back(
  saver: checkpoint.Checkpointer,
  workdir: str,
  limits: Any,
  alarm: watchdog.AlarmError,
  past: History,
) -> History:
  """Makes way for another try from the last good checkpoint.

  The batches up to the alarm are skipped and the keys change: the same ones
  would only lead there again. Nothing is saved of this before the next
  checkpoint is; a run that is killed until then repeats it, exactly.

  Args:
    saver: the checkpoints; those after the last good one are deleted.
    workdir: gets rollbacks.jsonl.
    limits: the `watchdog` section of the config: whether, and how often.
    alarm: what happened.
    past: of the run until then.

  Returns:
    What has to be remembered; restore the newest checkpoint now.

  Raises:
    AlarmError: this one, if the run is to stop.
  """
  if limits.action != 'roll_back' or len(past.rollbacks) >= limits.rollbacks:
    raise alarm
  saver.discard_after(alarm.good)
  back_to = saver.latest_step() or 0
  one = {'step': alarm.step, 'back_to': back_to, 'what': alarm.what}
  past = past._replace(rollbacks=(*past.rollbacks, one))
  run_log.info(
    f'{alarm.what}: back to step {back_to}, without the batches until then and '
    f'with other keys (roll-back {len(past.rollbacks)} of {limits.rollbacks}).'
  )
  if processes.is_first():
    lines = [json.dumps(one) + '\n' for one in past.rollbacks]
    files.write_text(storage.path(workdir) / ROLLBACKS, ''.join(lines))
  return past
