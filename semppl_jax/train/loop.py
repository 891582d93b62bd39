"""The loop of every training: next batch, mapped step, log, save, stop."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from semppl_jax import checkpoint
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import UserError
from semppl_jax.train import device_memory, resume, watchdog
from semppl_jax.train import profile as profile_lib
from semppl_jax.train import stop as stop_lib
from semppl_jax.workdir import metrics, run_log, stop_file


class LoopSettings(NamedTuple):
  """What a training needs besides its state and its input."""

  cfg: (
    Any  # seed, batch_size, log_every_steps, checkpoint_every_steps, progress
  )
  total_steps: int
  devices: list[jax.Device]  # of all hosts
  workdir: str
  saver: checkpoint.Checkpointer
  parts: int = 1  # in which a batch is taken, see parallel.shard
  profile_steps: tuple[int, int] = (0, 0)  # see profile_lib.Profile
  support: int = 0  # images beside the batch, over all hosts


class Quality(NamedTuple):
  """What is measured of the state now and then. It changes nothing."""

  every: int  # steps; and after the last one
  measure: Callable[[Any], Mapping[str, float | None]]  # alike on all hosts
  best: str = ''  # of these: the largest one's checkpoint is kept; '': none is

  def is_due(self, step: int, last: int) -> bool:
    """Whether it is measured after this step, of a training of `last`."""
    return step % self.every == 0 or step == last

  def better(
    self,
    step: int,
    measured: Mapping[str, float | None],
    best: dict[str, Any] | None,
  ) -> dict[str, Any] | None:
    """The best checkpoint so far; of equals the later one, which has seen more.

    Args:
      step: the number of steps done.
      measured: after them.
      best: until then, see `resume.History`.
    """
    value = measured.get(self.best)
    if value is None or (best and value < best['value']):
      return best
    return {'step': step, 'metric': self.best, 'value': value}


def fit(
  job: LoopSettings,
  run_step: Callable[..., tuple],
  state: Any,
  inputs: Iterable[tuple[Any, Any]],
  *,
  to_host: Callable[[Any], Any],
  describe: Callable[..., run_log.MetricsFormatter] | None = None,
  past: resume.History = resume.History(),  # noqa: B008, a tuple
  watch: watchdog.Watchdog | None = None,
  quality: Quality | None = None,
) -> tuple[Any, resume.History]:
  """Takes all steps that are left.

  Args:
    job: where and how long.
    run_step: see `mapped`.
    state: with a field `step`; leaves [D, ...].
    inputs: (batch of NumPy arrays [B, ...], what stays on the host), from the
      state's step on; this host's slice of them.
    to_host: the state as it is saved.
    describe: (batch, what stays on the host, the step's further outputs) -> how
      its metrics are written; None: as they are.
    past: of the run.
    watch: looks at every step's metrics; None: at NaN and infinity only.
    quality: what else is measured; None: nothing.

  Returns:
    The last state, on the devices, and what the run remembers.

  Raises:
    AlarmError: the watchdog's. No state is saved that is not finite.
    UserError: the devices' memory is too small.
    Interrupted: SIGINT or SIGTERM, here or on another host; the step was
      finished and saved, the same one on all hosts.
  """
  cfg = job.cfg
  state = parallel.put_sharded(state, job.devices)
  start = int(state.step[0])
  watch = watch or watchdog.Watchdog()
  key = _key(cfg.seed, len(past.rollbacks))
  begun = time.monotonic()
  clock = lambda: past.seconds + time.monotonic() - begun
  first = processes.is_first()
  writer = metrics.MetricsWriter(job.workdir, step=start) if first else None
  log = run_log.Log(writer, cfg, job.total_steps, start, clock, watch.check)
  best = past.best if quality and quality.best else None
  job.saver.keep_also(best and best['step'])

  def now():
    log.flush()  # no state counts whose loss was not looked at
    return past._replace(seconds=clock(), watch=watch.memory(), best=best)

  def save(step, state):
    remembered, portable = now(), to_host(state)
    watchdog.check_state(step, portable)
    if writer:
      writer.flush()  # what the checkpoint knows of must not be lost
    job.saver.save(step, portable, remembered._asdict())
    if first:
      stop_file.remove(job.workdir)  # it went on

  def update(state, on_devices, batch, truth):
    state, scalars, *outputs = run_step(state, on_devices, stop.received, key)
    how = describe and describe(batch, truth, *outputs)
    return state, scalars, log.add(scalars, how or run_log.identity)

  profile = profile_lib.Profile(job.workdir, job.profile_steps)
  ready = contextlib.closing(parallel.prefetch(inputs, _sender(job)))
  enough = _explain_memory(job)
  with enough, log, stop_lib.StopSignal() as stop, profile, ready as batches:
    step = start
    for batch_and_truth in batches:
      profile.before(step + 1)
      state, scalars, step = update(state, *batch_and_truth)
      profile.after(step, scalars)
      if quality and quality.is_due(step, job.total_steps):
        measured = quality.measure(state)
        log.attach(measured)
        best = quality.better(step, measured, best)
      is_best = best is not None and best['step'] == step
      if is_best:
        job.saver.keep_also(step)
      wanted = stop.received if processes.count() == 1 else log.stop
      if wanted:
        save(step, state)
        _save_and_exit(job.saver, step, wanted)
      is_due = step % cfg.checkpoint_every_steps == 0
      if is_due or is_best or step == job.total_steps:
        save(step, state)
    return state, now()


def _sender(job: LoopSettings) -> Callable[[Any], Any]:
  """This host's part of a batch -> the same on its devices."""
  number = len(parallel.local_devices(job.devices))

  def put(batch):
    shards = parallel.shard(batch, number, job.parts)
    return parallel.put_sharded(shards, job.devices)

  return put


def mapped(
  job: LoopSettings, step_fn: Callable[..., tuple], *constants: Any
) -> Callable[..., tuple]:
  """A step on all devices, compiled once, at its first call.

  Args:
    job: on which devices.
    step_fn: (state, batch, key, *constants) -> (state, metrics, ...) on one of
      them.
    *constants: trees of leaves [D, ...] that lie on the devices, the same at
      every step. Arguments, so that they are no part of the program; they are
      not donated.

  Returns:
    (state, batch on the devices, signal received here, key) -> its results.
  """
  on_all = parallel.map_step(_with_stop_signal(step_fn), job.devices)
  number = len(parallel.local_devices(job.devices))

  def run_step(state, batch, received, key):
    stop_request = np.full(number, received, np.int32)
    inputs = (batch, stop_request, constants)
    return _guarded(on_all, (state, inputs, key), job)

  return run_step


def _key(seed: int, rollbacks: int) -> jax.Array:
  """The run's key; after a roll-back another one, or it would only repeat."""
  key = jax.random.key(seed)
  return jax.random.fold_in(key, rollbacks) if rollbacks else key


def _with_stop_signal(step_fn: Callable[..., tuple]) -> Callable[..., tuple]:
  """A step that also tells every host which signal one of them has received.

  Its input is (batch, stop_request [] int32, 0: none, constants); all hosts
  read the same number from the same step's metrics, and so stop after the same
  step.
  """

  def step(state, inputs, key):
    batch, stop_request, constants = inputs
    state, metrics, *outputs = step_fn(state, batch, key, *constants)
    return (
      state,
      metrics | {run_log.STOP: parallel.pmax(stop_request)},
      *outputs,
    )

  return step


def _guarded(mapped: Any, arguments: tuple, job: LoopSettings) -> tuple:
  """A step; in one line what is wrong, if it does not fit into memory."""
  try:
    return mapped(*arguments)
  except jax.errors.JaxRuntimeError as error:
    if not device_memory.is_exhausted(error):
      raise
    # Only here: what is compiled at the first step cannot be asked.
    kinds = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments
    )
    try:
      compiled = mapped.lower(*kinds).compile()
    except jax.errors.JaxRuntimeError:
      compiled = None  # where memory is given out at compile time: TPUs
    raise UserError(_advice(job, compiled)) from error


def _advice(job: LoopSettings, compiled: Any | None = None) -> str:
  return device_memory.advice(
    job.cfg.batch_size,
    job.parts,
    job.devices,
    compiled,
    job.support,
  )


@contextlib.contextmanager
def _explain_memory(job: LoopSettings) -> Iterator[None]:
  """The same where a step's outputs are waited for, as on CPUs."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not device_memory.is_exhausted(error):
      raise
    raise UserError(_advice(job)) from error


def _save_and_exit(
  saver: checkpoint.Checkpointer, step: int, signal: int
) -> None:
  saver.close()  # first: a disk that is full is an error, not a goodbye
  run_log.info(
    f'Stopped at step {step}, which is saved. Same command: goes on.'
  )
  raise stop_lib.Interrupted(128 + signal)
