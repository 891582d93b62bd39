"""The training run: next batch, mapped step, log, save, stop. No maths.

A run is a pure function of its config: batch, keys and schedules derive from
the step, so a run that was stopped anywhere goes on from its last checkpoint
as if nothing had happened.
"""

import functools
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax
import tqdm

from semppl_jax import (
  checkpoint,
  config,
  evaluate,
  optimizers,
  parallel,
  pretrain_step,
  report,
  schedules,
  train_state,
)
from semppl_jax import metrics as metrics_lib
from semppl_jax import networks as networks_lib
from semppl_jax.data import pipeline, sources, subsets
from semppl_jax.errors import UserError

RESULTS = 'results.json'


def _say(line: str) -> None:
  """Tells the user, around a progress bar."""
  tqdm.tqdm.write(line, file=sys.stderr)


class NotFiniteError(UserError):
  """The loss or its gradient became NaN or infinite."""


class Interrupted(SystemExit):  # noqa: N818, an exit, not an error
  """Stopped by a signal after saving; carries the exit code 128 + signal."""


class Run(NamedTuple):
  """What a run is made of, ready to take its first step."""

  cfg: ml_collections.FrozenConfigDict
  data: sources.Dataset
  labels: np.ndarray  # [N] int32 labels that training sees, -1: none
  setup: pretrain_step.Setup
  devices: list[jax.Device]


def pretrain(cfg: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Trains, evaluates, and writes everything below `workdir`.

  Continues from the newest checkpoint there; a finished run is not touched.

  Args:
    cfg: the resolved config.
    workdir: a folder of this experiment's own.

  Returns:
    What results.json holds.

  Raises:
    UserError: a setting or an input that cannot work, a folder that holds
      another experiment, or a loss that is not finite.
    Interrupted: SIGINT or SIGTERM; the state is saved.
  """
  run = prepare(cfg)
  checkpoint.claim(workdir, cfg.to_dict(), ignore=config.COSMETIC)
  done = metrics_lib.read_json(os.path.join(workdir, RESULTS))
  if done is not None:
    _say(f'{workdir}: this run is finished, at step {done["step"]}.')
    return done
  saver = checkpoint.Checkpointer(workdir, keep=cfg.keep_checkpoints)
  try:
    state, seconds = train(run, workdir, saver)
    return finish(run, state, workdir, seconds)
  finally:
    saver.close()


def prepare(cfg: ml_collections.ConfigDict) -> Run:
  """Checks the config, reads the data set, builds networks and optimiser."""
  devices = jax.devices()
  if cfg.num_devices > len(devices):
    raise UserError(
      f'num_devices is {cfg.num_devices}, but there are {len(devices)}.'
    )
  devices = devices[: cfg.num_devices or len(devices)]
  config.validate(cfg, len(devices))
  frozen = ml_collections.FrozenConfigDict(cfg)
  data = sources.load(frozen.dataset)
  labels = subsets.select_labels(
    data.train.labels,
    per_class=cfg.labels.per_class,
    fraction=cfg.labels.fraction,
    seed=cfg.labels.seed,
    class_names=data.class_names,
  )
  if config.uses_labels(cfg) and not np.any(labels >= 0):
    raise UserError(
      f'dataset {cfg.dataset.name!r} {cfg.dataset.path} has no labelled '
      'training image, but labels.per_class or labels.fraction is above 0.'
    )
  to_steps = functools.partial(
    schedules.to_steps,
    num_examples=len(data.train),
    batch_size=cfg.batch_size,
  )
  setup = pretrain_step.Setup(
    cfg=frozen,
    nets=networks_lib.build(
      encoder=cfg.encoder.name,
      width=cfg.encoder.width,
      stem=cfg.encoder.stem,
      projector_hidden=cfg.encoder.projector_hidden,
      embedding_size=cfg.encoder.embedding_size,
      num_classes=data.num_classes if config.uses_labels(cfg) else 0,
      classifier_detached=cfg.classifier.detached,
      bn_decay=cfg.encoder.bn_decay,
      bn_eps=cfg.encoder.bn_eps,
    ),
    optimizer=build_optimizer(frozen),
    total_steps=to_steps(cfg.num_epochs),
    warmup_steps=to_steps(cfg.optimizer.warmup_epochs),
  )
  return Run(frozen, data, labels, setup, devices)


def build_optimizer(
  cfg: ml_collections.FrozenConfigDict,
) -> optax.GradientTransformation:
  """The optimiser of the config, without its learning rate."""
  opt = cfg.optimizer
  own = {
    'lars': {
      'momentum': opt.momentum,
      'trust_coefficient': opt.trust_coefficient,
    },
    'adamw': {'b1': opt.b1, 'b2': opt.b2},
  }
  return optimizers.build(
    opt.name, weight_decay=opt.weight_decay, **own.get(opt.name, {})
  )


def train(
  run: Run, workdir: str, saver: checkpoint.Checkpointer
) -> tuple[train_state.TrainState, float]:
  """All steps that are left.

  Returns:
    The final state on the host, [D, ...], and the seconds of training, over
    all the times that the run was taken up again.
  """
  cfg, num_devices = run.cfg, len(run.devices)
  state, elapsed = restore_or_init(run, saver)
  state = parallel.place(state, run.devices)
  start = int(state.step[0])
  step_fn = parallel.map_step(
    functools.partial(pretrain_step.train_step, setup=run.setup), run.devices
  )
  base_key = jax.random.key(cfg.seed)
  begun = time.monotonic()
  clock = lambda: elapsed + time.monotonic() - begun
  writer = metrics_lib.MetricsWriter(workdir, step=start)
  log = Log(writer, cfg, run.setup.total_steps, start, clock)

  def save():
    log.flush()  # no checkpoint of a state whose loss was not looked at
    step = int(state.step[0])
    portable = train_state.to_portable(state)
    saver.save(step, portable, {'position': step, 'elapsed_seconds': clock()})

  with StopSignal() as stop:
    for batch, truth in input_batches(run, start):
      state, scalars, labels = step_fn(
        state, parallel.shard(batch, num_devices), base_key
      )
      step = log.add(scalars, labels, batch.labels, truth)
      if stop.received:
        save()
        saver.close()
        _say(f'Stopped at step {step}, which is saved. Same command: goes on.')
        raise Interrupted(128 + stop.received)
      if (
        step % cfg.checkpoint_every_steps == 0 or step == run.setup.total_steps
      ):
        save()
  log.close()
  return state, clock()


def restore_or_init(
  run: Run, saver: checkpoint.Checkpointer
) -> tuple[train_state.TrainState, float]:
  """The newest checkpoint's state or a fresh one, and the seconds behind it."""
  num_devices = len(run.devices)
  state = train_state.init(
    run.cfg, run.setup.nets, run.setup.optimizer, num_devices
  )
  if saver.latest_step() is None:
    return state, 0.0
  like = train_state.to_portable(state)
  portable, info, step = saver.restore(like)
  _say(f'Going on from the checkpoint of step {step}.')
  state = train_state.from_portable(portable, num_devices)
  return state, info['elapsed_seconds']


def input_batches(run: Run, start: int) -> Iterator[tuple[Any, np.ndarray]]:
  """Host batches from step `start` on: a pure function of seed and step."""
  return pipeline.batches(
    run.data.train,
    run.labels,
    seed=run.cfg.seed,
    batch_size=run.cfg.batch_size,
    start_step=start,
    num_steps=run.setup.total_steps - start,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
    labelled_share=run.cfg.labels.share,
    workers=run.cfg.dataset.workers,
  )


class StopSignal:
  """Notes SIGINT and SIGTERM for the loop; the second one stops at once."""

  def __init__(self):
    self.received = 0
    self._before: dict[int, Any] = {}

  def __enter__(self):
    for number in (signal.SIGINT, signal.SIGTERM):
      try:
        self._before[number] = signal.signal(number, self._note)
      except ValueError:  # not the main thread: the caller keeps its handlers
        break
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, unused_frame):
    if self.received:
      raise KeyboardInterrupt
    self.received = number


class Log:
  """Looks at every step's loss, writes every n-th step, shows the progress.

  The check lags one step behind, so that the device need not wait for the
  host.
  """

  def __init__(self, writer, cfg, total_steps, start, clock):
    self._writer, self._cfg = writer, cfg
    self._total, self._step, self._start = total_steps, start, start
    self._clock, self._since = clock, clock()
    self._pending = None
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=start,
      unit='step',
      disable=not cfg.progress,
      dynamic_ncols=True,
      # In a log file every refresh is a line.
      mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )

  def add(self, scalars, labels, given, truth) -> int:
    """Takes one step's outputs; returns the number of steps taken so far."""
    self.flush()
    self._step += 1
    self._pending = (self._step, scalars, labels, given, truth)
    return self._step

  def flush(self) -> None:
    """Looks at the newest step.

    Raises:
      NotFiniteError: names the step.
    """
    if self._pending is None:
      return
    step, scalars, labels, given, truth = self._pending
    self._pending = None
    host = {k: float(v[0]) for k, v in scalars.items()}
    check_finite(step, host)
    self._bar.update()
    if step % self._cfg.log_every_steps and step != self._total:
      return
    accuracy = pseudo_label_accuracy(np.asarray(labels), given, truth)
    rate = (step - self._start) / max(self._clock() - self._since, 1e-9)
    extra = {
      'pseudo_label_accuracy': accuracy,
      'images_per_second': rate * self._cfg.batch_size,
      'seconds': self._clock(),
    }
    self._writer.write(step, host | extra)
    shown = {
      'loss': f'{host["loss"]:.3f}',
      'queue': f'{host["queue_fill"]:.0%}',
    }
    if accuracy is not None:
      shown['pseudo-labels'] = f'{accuracy:.1%}'
    self._bar.set_postfix(shown, refresh=False)

  def close(self) -> None:
    """Looks at the last step and closes the files."""
    self.flush()
    self._bar.close()
    self._writer.close()


def check_finite(step: int, scalars: dict[str, float]) -> None:
  """Raises NotFiniteError if the loss or the gradient is NaN or infinite."""
  for name in ('loss', 'grad_norm'):
    if not np.isfinite(scalars[name]):
      raise NotFiniteError(
        f'{name} is {scalars[name]} at step {step}: stopped; the last good '
        'checkpoint is kept. Try a smaller optimizer.learning_rate.'
      )


def pseudo_label_accuracy(
  labels: np.ndarray, given: np.ndarray, truth: np.ndarray
) -> float | None:
  """Share of right pseudo-labels among unlabelled images that have one.

  Args:
    labels: (pseudo-)labels of this host's images, any shape of b x D.
    given: [n] the labels that training sees, -1: none.
    truth: [n] the true labels, -1: unknown. They never reach a device.

  Returns:
    None if there is no such image.
  """
  labels = labels.reshape(-1)
  judged = (given < 0) & (labels >= 0) & (truth >= 0)
  if not judged.any():
    return None
  return float(np.mean(labels[judged] == truth[judged]))


def finish(
  run: Run, state: train_state.TrainState, workdir: str, seconds: float
) -> dict[str, Any]:
  """Evaluates the final state, writes the plots and, last, results.json."""
  begun = time.monotonic()
  embed = lambda source: evaluate.features(
    state, run.setup.nets, run.cfg, source, run.devices
  )
  train_features = embed(run.data.train)
  test = run.data.test
  test_features = None if test is None else embed(test)
  scores = evaluate.scores(
    train_features,
    test_features,
    labels=run.labels,
    truth=run.data.train.labels,
    test_truth=None if test is None else test.labels,
    cfg=run.cfg,
  )
  report.plots(
    workdir,
    embeddings=None if test is None else test_features.embeddings,
    labels=None if test is None else test.labels,
    class_names=run.data.class_names,
  )
  step = int(state.step[0])
  results = {'step': step} | scores | {
      'num_labels': int(np.sum(run.labels >= 0)),
      'seconds': seconds,
      'evaluation_seconds': time.monotonic() - begun,
      'images_per_second': step * run.cfg.batch_size / max(seconds, 1e-9),
      'devices': f'{len(run.devices)} x {run.devices[0].device_kind}',
  }  # fmt: skip
  metrics_lib.write_json(os.path.join(workdir, RESULTS), results)
  return results
