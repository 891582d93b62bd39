"""The training run: next batch, mapped step, log, save, stop. No maths.

A run is a pure function of its config: batch, keys and schedules derive from
the step, so a run that was stopped anywhere goes on from its last checkpoint
as if nothing had happened.
"""

import functools
import os
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from semppl_jax import checkpoint, config, storage
from semppl_jax.data import labels as labels_lib
from semppl_jax.data import sources
from semppl_jax.distributed import consistency, parallel, processes
from semppl_jax.errors import UserError
from semppl_jax.evaluation import (
  baselines,
  final_scores,
  label_files,
  labelling,
  quality,
  run_network,
)
from semppl_jax.evaluation import features as features_lib
from semppl_jax.train import (
  initial_weights,
  loop,
  plausibility,
  recipe,
  resume,
  watchdog,
)
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train import teacher as teacher_lib
from semppl_jax.workdir import lock, run_data, run_log
from semppl_jax.workdir import metrics as metrics_lib
from semppl_jax.workdir.names import RESULTS, UNREADABLE


def pretrain(cfg: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Trains, evaluates, and writes everything below `workdir`.

  Continues from the newest checkpoint there; a finished run is not touched. In
  a job of several processes all of them call this, with a folder that all see.

  Args:
    cfg: the config; what it leaves open is chosen first.
    workdir: a folder of this experiment's own.

  Returns:
    What results.json holds.

  Raises:
    UserError: a setting or an input that cannot work, or a folder that holds
      another experiment.
    AlarmError: the loss is not finite or has exploded, or the representation
      has collapsed.
    Interrupted: SIGINT or SIGTERM; the state is saved.
  """
  consistency.check(cfg.to_dict() | {'workdir': workdir})
  cfg = recipe.complete(cfg, workdir)
  run = processes.run_on_all(lambda: run_lib.prepare(cfg))
  quality.check(run)
  # Before the folder is claimed for settings that cannot work.
  start = initial_weights.load(run, workdir)
  teacher = teacher_lib.load(run, workdir)
  plausibility.tell(run)
  for one in (start, teacher):
    if one is not None:
      run_log.info(one.line)
  with lock.claimed(workdir, cfg.to_dict(), ignore=config.COSMETIC):
    results = os.path.join(workdir, RESULTS)
    done = processes.broadcast_from_first(
      processes.run_on_all(lambda: metrics_lib.read_json(results))
    )
    run_data.check(workdir, run, finished=done is not None)
    if done is not None:
      run_log.info(f'{workdir}: this run is finished, at step {done["step"]}.')
      return done
    if storage.is_remote(workdir):
      run_log.info(
        f'{workdir}: numbers of steps are there every half minute; there are '
        'no TensorBoard events.'
      )
    initial_weights.remember(workdir, start)
    teacher_lib.remember(workdir, teacher)
    state, past = resume.with_checkpointer(
      workdir, cfg, lambda saver: train(run, workdir, saver, start, teacher)
    )
    return finish(run, state, workdir, past)


def train(
  run: run_lib.TrainRun,
  workdir: str,
  saver: checkpoint.Checkpointer,
  start: initial_weights.Start | None = None,
  teacher: teacher_lib.Teacher | None = None,
) -> tuple[state_lib.TrainState, resume.History]:
  """All steps that are left, going back where the watchdog says so.

  Args:
    run: data and settings.
    workdir: of the run.
    saver: its checkpoints.
    start: see `restore_or_init`.
    teacher: frozen, if the method has one.

  Returns:
    The final state, leaves [D, ...] on the devices, and what the run remembers,
    over all the times that it was taken up again.
  """
  job = loop.LoopSettings(
      run.cfg, run.setup.total_steps, run.devices, workdir, saver,
      parts=run.cfg.accumulate, profile_steps=run.cfg.profile_steps,
      support=config.support_size(run.cfg),
  )  # fmt: skip
  setup, constants = run.setup, ()
  if teacher is not None:
    setup = setup._replace(teacher=teacher.apply)
    constants = (teacher.on_devices(run.devices),)
  step = functools.partial(step_lib.train_step, setup=setup)
  run_step = loop.mapped(job, step, *constants)
  state, past = restore_or_init(run, workdir, saver, start)
  measured = _quality(run)
  while True:
    try:
      return _fit(run, job, run_step, state, past, measured)
    except watchdog.AlarmError as alarm:
      tried = resume.roll_back(saver, workdir, run.cfg.watchdog, alarm, past)
    state, past = restore_or_init(run, workdir, saver, start)
    # All of them: the checkpoint may be older than the one before this.
    past = past._replace(rollbacks=tried.rollbacks)


def _quality(run: run_lib.TrainRun) -> loop.Quality | None:
  """What is measured while training; None: nothing."""
  cfg = run.cfg.evaluation
  if not cfg.every_epochs:
    return None
  measure = quality.Quality(run)
  every = run.facts.steps(cfg.every_epochs)
  return loop.Quality(every, measure, measure.knn if cfg.keep_best else '')


def _fit(
  run: run_lib.TrainRun,
  job: loop.LoopSettings,
  run_step: Any,
  state: Any,
  past: resume.History,
  measured: loop.Quality | None,
) -> tuple[state_lib.TrainState, resume.History]:
  unreadable = run_log.Unreadable(os.path.join(job.workdir, UNREADABLE))
  try:
    return _fit_on(run, job, run_step, state, past, measured, unreadable)
  finally:
    unreadable.flush()


def _fit_on(run, job, run_step, state, past, measured, unreadable):
  start, known = int(state.step[0]), sources.labels_by_id(run.data.train)
  if run.cfg.progress:
    run_log.info(
      'Compiling the step, once: about half a minute for a small network, '
      'minutes for a large one.'
    )
  return loop.fit(
    job,
    run_step,
    state,
    run_lib.input_batches(run, start, unreadable, past.skipped),
    to_host=functools.partial(
      state_lib.to_host, method=run.setup.method, devices=run.devices
    ),
    describe=lambda batch, truth, *outputs: functools.partial(
      _describe,
      batch=batch,
      truth=truth,
      outputs=outputs,
      known=known,
      parts=run.cfg.accumulate,
    ),
    past=past,
    watch=watching(run, past.watch),
    quality=measured,
  )


def watching(
  run: run_lib.TrainRun, memory: dict[str, Any] | None = None
) -> watchdog.Watchdog:
  """The watchdog of a run; `memory` is that of the steps before."""
  method = run.setup.method
  trains = {
    'loss': True,
    'spread': method.embedding is not None,
    'chance': bool(method.chance),
    'marginal': method.prototypes is not None,
    'assignments': method.prototypes is not None,
    'labels': method.labels_train,
  }
  return watchdog.Watchdog(
    run.cfg.watchdog,
    watched=[name for name, is_trained in trains.items() if is_trained],
    warmup_steps=run.setup.warmup_steps,
    chance=method.chance,
    lowest=method.lowest,
    prototypes=method.prototypes,
    advice=method.advice,
    largest_class=labels_lib.largest_class(run.labels, run.data.num_classes),
    memory=memory,
  )


def _describe(scalars, *, batch, truth, outputs, known, parts):
  on_host = lambda x: parallel.unshard(x, parts)
  labels, *alike = jax.tree.map(on_host, outputs)
  row, shown = run_log.pretraining(
    scalars, labels=labels, given=batch.labels, truth=truth
  )
  for named in alike:
    row |= run_log.purity(named, batch.ids, known)
  return row, shown


def restore_or_init(
  run: run_lib.TrainRun,
  workdir: str,
  saver: checkpoint.Checkpointer,
  start: initial_weights.Start | None = None,
) -> tuple[state_lib.TrainState, resume.History]:
  """The newest checkpoint's state or a fresh one, and the run's past.

  Args:
    run: data and settings.
    workdir: of the run.
    saver: its checkpoints.
    start: what a fresh state begins with. None: read if it is needed, as where
      an alarm takes a resumed run back to before its first checkpoint.
  """
  if saver.latest_step() is None and start is None:
    start = initial_weights.load(run, workdir)
  fresh, method = run_lib.initial_state(run, start), run.setup.method
  return resume.restore(
    saver,
    fresh,
    like=state_lib.abstract_state(fresh, method, len(run.devices)),
    from_host=functools.partial(
      state_lib.from_host, method=method, devices=run.devices
    ),
  )


def finish(
  run: run_lib.TrainRun,
  state: state_lib.TrainState,
  workdir: str,
  past: resume.History,
) -> dict[str, Any]:
  """Evaluates the final state, writes the plots and, last, results.json."""
  from semppl_jax.workdir import plots

  begun = time.monotonic()
  unreadable = run_log.Unreadable(os.path.join(workdir, UNREADABLE))
  embed = lambda source, tell=unreadable: features_lib.features(
    state, run.setup.method, run.setup.nets, run.cfg, source, run.devices, tell
  )
  seen = final_scores.rows_to_judge(
    run.labels, run.cfg.evaluation.train_images, run.cfg.seed
  )
  train_features = embed(sources.Rows(run.data.train, seen))
  test = run.data.test
  # A test image may be called what a training image is called.
  tell = lambda name, reason: unreadable(f'test: {name}', reason)
  test_features = None if test is None else embed(test, tell)
  scores = final_scores.scores(
    train_features,
    test_features,
    labels=run.labels[seen],
    truth=run.data.train.labels[seen],
    test_truth=None if test is None else test.labels,
    kept_back=run.calibration is not None and run.calibration[seen] >= 0,
    cfg=run.cfg,
  )
  _label(run, state, seen, workdir)
  if processes.is_first():
    plots.plots(
      workdir,
      embeddings=None if test is None else test_features.embeddings,
      labels=None if test is None else test.labels,
      class_names=run.data.class_names,
    )
  step = int(state.step[0])
  results = {'step': step} | scores | _without_network(run) | {
      'network': run.cfg.evaluation.network,
      'num_labels': int(np.sum(run.labels >= 0)),
      'test_images': 0 if test is None else len(test),
      'unreadable_images': unreadable.on_all_hosts(),
      'rollbacks': len(past.rollbacks),
      'seconds': past.seconds,
      'evaluation_seconds': time.monotonic() - begun,
      'images_per_second': step * run.cfg.batch_size / max(past.seconds, 1e-9),
      'devices': f'{len(run.devices)} x {run.devices[0].device_kind}',
  }  # fmt: skip
  if past.best:
    results['best_step'] = past.best['step']
    results[f'best_{past.best["metric"]}'] = past.best['value']
  if processes.is_first():
    metrics_lib.write_json(os.path.join(workdir, RESULTS), results)
  return processes.broadcast_from_first(metrics_lib.plain(results))


def _label(
  run: run_lib.TrainRun,
  state: state_lib.TrainState,
  seen: np.ndarray,
  workdir: str,
) -> None:
  """Writes labels.csv, of the training images that are looked at."""
  if not run.cfg.evaluation.labels_csv or not np.any(run.labels >= 0):
    return
  if processes.count() > 1:
    run_log.info(
      f'No labels.csv in a job of several processes: semppl-jax label '
      f'--run={workdir} writes it.'
    )
    return
  rows = seen[run.labels[seen] < 0]
  path = os.path.join(workdir, label_files.NAME)
  try:
    job = labelling.of_run(run_network.Network(run, state, int(state.step[0])))
    label_files.check_replaceable(path, job)
  except UserError as error:  # the run has its scores all the same
    run_log.info(f'No labels.csv: {error}')
    return
  found = labelling.label(job, rows, progress=run.cfg.progress)
  label_files.write(path, job, found)
  for line in label_files.lines(found.summary) if run.cfg.progress else ():
    run_log.info(line)


def _without_network(run: run_lib.TrainRun) -> dict[str, float | None]:
  """What the most frequent class, pixels and colours give on the test images.

  None where there are no test images; the baselines also where there are more
  images than evaluation.baseline_images.
  """
  test, names = run.data.test, baselines.NAMES
  if test is None:
    return dict.fromkeys(('chance_top1', *names))
  counts = np.bincount(test.labels[test.labels >= 0], minlength=1)
  chance = float(counts.max() / counts.sum()) if counts.sum() else None
  looked_at = int(np.sum(run.labels >= 0)) + len(test)
  if looked_at > run.cfg.evaluation.baseline_images:
    return {'chance_top1': chance} | dict.fromkeys(names)
  found = baselines.scores(run.data.train, run.labels, test, test.labels)
  return {'chance_top1': chance} | found
