"""The loop of every training: next batch, mapped step, log, save, stop."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from semppl_jax import checkpoint, metrics, parallel, run_log, signals


class Job(NamedTuple):
  """What a training needs besides its state and its input."""

  cfg: (
    Any  # seed, batch_size, log_every_steps, checkpoint_every_steps, progress
  )
  total_steps: int
  devices: list[jax.Device]
  workdir: str
  saver: checkpoint.Checkpointer


def fit(
  job: Job,
  step_fn: Callable[..., tuple],
  state: Any,
  inputs: Iterable[tuple[Any, Any]],
  *,
  to_portable: Callable[[Any], Any],
  describe: Callable[..., run_log.Describe] | None = None,
  elapsed: float = 0.0,
) -> tuple[Any, float]:
  """Takes all steps that are left.

  Args:
    job: where and how long.
    step_fn: (state, batch, key) -> (state, metrics, ...), not yet mapped.
    state: with a field `step`; leaves [D, ...] on the host.
    inputs: (batch of NumPy arrays [B, ...], what stays on the host), from the
      state's step on.
    to_portable: the state as it is saved.
    describe: (batch, what stays on the host, the step's further outputs) -> how
      its metrics are written; None: as they are.
    elapsed: seconds of training before.

  Returns:
    The last state, on the devices, and the seconds of training in all.

  Raises:
    NotFiniteError: nothing is saved of a state that led to it.
    Interrupted: SIGINT or SIGTERM; the step was finished and saved.
  """
  cfg, num_devices = job.cfg, len(job.devices)
  state = parallel.place(state, job.devices)
  start = int(state.step[0])
  mapped = parallel.map_step(step_fn, job.devices)
  base_key = jax.random.key(cfg.seed)
  begun = time.monotonic()
  clock = lambda: elapsed + time.monotonic() - begun
  writer = metrics.MetricsWriter(job.workdir, step=start)
  log = run_log.Log(writer, cfg, job.total_steps, start, clock)

  def save(step, state):
    log.flush()  # no checkpoint of a state whose loss was not looked at
    info = {'position': step, 'elapsed_seconds': clock()}
    job.saver.save(step, to_portable(state), info)

  def update(state, batch, truth):
    batch_on_devices = parallel.shard(batch, num_devices)
    state, scalars, *outputs = mapped(state, batch_on_devices, base_key)
    how = describe and describe(batch, truth, *outputs)
    return state, log.add(scalars, how or run_log.plainly)

  with signals.StopSignal() as stop:
    for batch, truth in inputs:
      state, step = update(state, batch, truth)
      if stop.received:
        save(step, state)
        _leave(job.saver, step, stop.received)
      if step % cfg.checkpoint_every_steps == 0 or step == job.total_steps:
        save(step, state)
  log.close()
  return state, clock()


def saved(
  workdir: str, keep: int, train: Callable[[checkpoint.Checkpointer], Any]
) -> Any:
  """Calls `train` with the checkpoints of a folder, and closes them.

  A checkpoint of a state whose next loss is not finite is taken away again.
  """
  saver = checkpoint.Checkpointer(workdir, keep=keep)
  try:
    return train(saver)
  except run_log.NotFiniteError as e:
    # The update before made this loss: a state saved after it is no good one.
    saver.discard(e.step - 1)
    raise
  finally:
    saver.close()


def restore(
  saver: checkpoint.Checkpointer,
  fresh: Any,
  *,
  to_portable: Callable[[Any], Any],
  from_portable: Callable[[Any], Any],
) -> tuple[Any, float]:
  """The newest checkpoint's state or a fresh one, and the seconds behind it.

  Args:
    saver: the checkpoints.
    fresh: the state before the first step, leaves [D, ...].
    to_portable: the state as it is saved.
    from_portable: its inverse, for these devices.
  """
  if saver.latest_step() is None:
    return fresh, 0.0
  portable, info, step = saver.restore(to_portable(fresh))
  run_log.say(f'Going on from the checkpoint of step {step}.')
  return from_portable(portable), info['elapsed_seconds']


def _leave(saver: checkpoint.Checkpointer, step: int, signal: int) -> None:
  saver.close()  # first: a disk that is full is an error, not a goodbye
  run_log.say(f'Stopped at step {step}, which is saved. Same command: goes on.')
  raise signals.Interrupted(128 + signal)
