"""The loop of every training: next batch, mapped step, log, save, stop."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from semppl_jax import (
  checkpoint,
  hosts,
  memory,
  metrics,
  parallel,
  profiling,
  run_log,
  signals,
)
from semppl_jax.errors import UserError


class Job(NamedTuple):
  """What a training needs besides its state and its input."""

  cfg: (
    Any  # seed, batch_size, log_every_steps, checkpoint_every_steps, progress
  )
  total_steps: int
  devices: list[jax.Device]  # of all hosts
  workdir: str
  saver: checkpoint.Checkpointer
  parts: int = 1  # in which a batch is taken, see parallel.shard
  profile_steps: tuple[int, int] = (0, 0)  # see profiling.Profile


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
    state: with a field `step`; leaves [D, ...].
    inputs: (batch of NumPy arrays [B, ...], what stays on the host), from the
      state's step on; this host's slice of them.
    to_portable: the state as it is saved.
    describe: (batch, what stays on the host, the step's further outputs) -> how
      its metrics are written; None: as they are.
    elapsed: seconds of training before.

  Returns:
    The last state, on the devices, and the seconds of training in all.

  Raises:
    NotFiniteError: nothing is saved of a state that led to it.
    UserError: the devices' memory is too small.
    Interrupted: SIGINT or SIGTERM, here or on another host; the step was
      finished and saved, the same one on all hosts.
  """
  cfg = job.cfg
  state = parallel.place(state, job.devices)
  start = int(state.step[0])
  take = _stepper(job, step_fn)
  begun = time.monotonic()
  clock = lambda: elapsed + time.monotonic() - begun
  first = hosts.is_first()
  writer = metrics.MetricsWriter(job.workdir, step=start) if first else None
  log = run_log.Log(writer, cfg, job.total_steps, start, clock)

  def save(step, state):
    log.flush()  # no checkpoint of a state whose loss was not looked at
    info = {'position': step, 'elapsed_seconds': clock()}
    job.saver.save(step, to_portable(state), info)

  def update(state, on_devices, batch, truth):
    state, scalars, *outputs = take(state, on_devices, stop.received)
    how = describe and describe(batch, truth, *outputs)
    return state, scalars, log.add(scalars, how or run_log.plainly)

  profile = profiling.Profile(job.workdir, job.profile_steps)
  with signals.StopSignal() as stop, profile:
    step = start
    for batch_and_truth in parallel.prefetch(inputs, _sender(job)):
      profile.before(step + 1)
      state, scalars, step = update(state, *batch_and_truth)
      profile.after(step, scalars)
      wanted = stop.received if hosts.count() == 1 else log.stop
      if wanted:
        save(step, state)
        _leave(job.saver, step, wanted)
      if step % cfg.checkpoint_every_steps == 0 or step == job.total_steps:
        save(step, state)
  log.close()
  return state, clock()


def _sender(job: Job) -> Callable[[Any], Any]:
  """This host's part of a batch -> the same on its devices."""
  number = len(parallel.here(job.devices))

  def put(batch):
    shards = parallel.shard(batch, number, job.parts)
    return parallel.place(shards, job.devices)

  return put


def _stepper(job: Job, step_fn: Callable[..., tuple]) -> Callable[..., tuple]:
  """(state, batch on the devices, signal received here) -> a step's results."""
  mapped = parallel.map_step(_with_wish(step_fn), job.devices)
  number = len(parallel.here(job.devices))
  base_key = jax.random.key(job.cfg.seed)

  def take(state, batch, received):
    wish = np.full(number, received, np.int32)
    return _guarded(mapped, (state, (batch, wish), base_key), job)

  return take


def _with_wish(step_fn: Callable[..., tuple]) -> Callable[..., tuple]:
  """A step that also tells every host which signal one of them has received.

  Its input is (batch, wish [] int32, 0: none); all hosts read the same number
  from the same step's metrics, and so stop after the same step.
  """

  def step(state, inputs, key):
    batch, wish = inputs
    state, metrics, *outputs = step_fn(state, batch, key)
    return state, metrics | {run_log.STOP: parallel.largest(wish)}, *outputs

  return step


def _guarded(mapped: Any, arguments: tuple, job: Job) -> tuple:
  """A step; in one line what is wrong, if it does not fit into memory."""
  try:
    return mapped(*arguments)
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_exhausted(error):
      raise
    # Only here: what is compiled at the first step cannot be asked.
    kinds = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments
    )
    try:
      compiled = mapped.lower(*kinds).compile()
    except jax.errors.JaxRuntimeError:
      compiled = None  # where memory is given out at compile time: TPUs
    line = memory.advice(job.cfg.batch_size, job.parts, job.devices, compiled)
    raise UserError(line) from error


def saved(
  workdir: str, cfg: Any, train: Callable[[checkpoint.Checkpointer], Any]
) -> Any:
  """Calls `train` with the checkpoints of a folder, and closes them.

  A checkpoint of a state whose next loss is not finite is taken away again.

  Args:
    workdir: of the run.
    cfg: keep_checkpoints and keep_checkpoints_every, see Checkpointer.
    train: takes the Checkpointer.
  """
  saver = checkpoint.Checkpointer(
    workdir,
    keep=cfg.keep_checkpoints,
    keep_every=cfg.keep_checkpoints_every,
    tell=run_log.say,
  )
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
  like: Any,
  from_portable: Callable[[Any], Any],
) -> tuple[Any, float]:
  """The newest checkpoint's state or a fresh one, and the seconds behind it.

  Args:
    saver: the checkpoints.
    fresh: the state before the first step, leaves [D, ...].
    like: shapes and dtypes of the state as it is saved.
    from_portable: makes of it one for these devices.
  """
  if saver.latest_step() is None:
    return fresh, 0.0
  portable, info, step = saver.restore(like)
  run_log.say(f'Going on from the checkpoint of step {step}.')
  return from_portable(portable), info['elapsed_seconds']


def _leave(saver: checkpoint.Checkpointer, step: int, signal: int) -> None:
  saver.close()  # first: a disk that is full is an error, not a goodbye
  run_log.say(f'Stopped at step {step}, which is saved. Same command: goes on.')
  raise signals.Interrupted(128 + signal)
