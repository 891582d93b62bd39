"""The training run: next batch, mapped step, log, save, stop. No maths.

A run is a pure function of its config: batch, keys and schedules derive from
the step, so a run that was stopped anywhere goes on from its last checkpoint
as if nothing had happened.
"""

import functools
import os
import time
from typing import Any

import ml_collections
import numpy as np

from semppl_jax import (
  alike,
  checkpoint,
  claims,
  config,
  evaluate,
  hosts,
  loop,
  parallel,
  pretrain_step,
  report,
  run_log,
  runs,
  train_state,
)
from semppl_jax import metrics as metrics_lib
from semppl_jax.data import sources

RESULTS = 'results.json'
UNREADABLE = 'unreadable.jsonl'  # images that others stood in for, if any


def pretrain(cfg: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Trains, evaluates, and writes everything below `workdir`.

  Continues from the newest checkpoint there; a finished run is not touched. In
  a job of several processes all of them call this, with a folder that all see.

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
  alike.check(cfg.to_dict() | {'workdir': workdir})
  run = hosts.together(lambda: runs.prepare(cfg))
  with claims.claimed(workdir, cfg.to_dict(), ignore=config.COSMETIC):
    results = os.path.join(workdir, RESULTS)
    done = hosts.agree(hosts.together(lambda: metrics_lib.read_json(results)))
    if done is not None:
      run_log.say(f'{workdir}: this run is finished, at step {done["step"]}.')
      return done
    state, seconds = loop.saved(
      workdir, cfg, lambda saver: train(run, workdir, saver)
    )
    return finish(run, state, workdir, seconds)


def train(
  run: runs.Run, workdir: str, saver: checkpoint.Checkpointer
) -> tuple[train_state.TrainState, float]:
  """All steps that are left.

  Returns:
    The final state, leaves [D, ...] on the devices, and the seconds of
    training, over all the times that the run was taken up again.
  """
  state, elapsed = restore_or_init(run, saver)
  unreadable = run_log.Unreadable(os.path.join(workdir, UNREADABLE))
  job = loop.Job(
      run.cfg, run.setup.total_steps, run.devices, workdir, saver,
      parts=run.cfg.accumulate, profile_steps=run.cfg.profile_steps,
  )  # fmt: skip
  return loop.fit(
    job,
    functools.partial(pretrain_step.train_step, setup=run.setup),
    state,
    runs.input_batches(run, int(state.step[0]), unreadable),
    to_portable=functools.partial(train_state.to_portable, devices=run.devices),
    describe=lambda batch, truth, labels: functools.partial(
      _describe, labels=labels, given=batch.labels, truth=truth, run=run
    ),
    elapsed=elapsed,
  )


def _describe(scalars, *, labels, given, truth, run):
  labels = parallel.unshard(labels, run.cfg.accumulate)
  return run_log.pretraining(scalars, labels=labels, given=given, truth=truth)


def restore_or_init(
  run: runs.Run, saver: checkpoint.Checkpointer
) -> tuple[train_state.TrainState, float]:
  """The newest checkpoint's state or a fresh one, and the seconds behind it."""
  cfg, nets, optimizer = run.setup[:3]
  fresh = train_state.init(cfg, nets, optimizer, run.devices)
  return loop.restore(
    saver,
    fresh,
    like=train_state.like(cfg, fresh),
    from_portable=functools.partial(
      train_state.from_portable, devices=run.devices
    ),
  )


def finish(
  run: runs.Run, state: train_state.TrainState, workdir: str, seconds: float
) -> dict[str, Any]:
  """Evaluates the final state, writes the plots and, last, results.json."""
  begun = time.monotonic()
  unreadable = run_log.Unreadable(os.path.join(workdir, UNREADABLE))
  embed = lambda source, tell=unreadable: evaluate.features(
    state, run.setup.nets, run.cfg, source, run.devices, tell
  )
  seen = evaluate.rows_to_judge(
    run.labels, run.cfg.evaluation.train_images, run.cfg.seed
  )
  train_features = embed(sources.Rows(run.data.train, seen))
  test = run.data.test
  # A test image may be called what a training image is called.
  tell = lambda name, reason: unreadable(f'test: {name}', reason)
  test_features = None if test is None else embed(test, tell)
  scores = evaluate.scores(
    train_features,
    test_features,
    labels=run.labels[seen],
    truth=run.data.train.labels[seen],
    test_truth=None if test is None else test.labels,
    cfg=run.cfg,
  )
  if hosts.is_first():
    report.plots(
      workdir,
      embeddings=None if test is None else test_features.embeddings,
      labels=None if test is None else test.labels,
      class_names=run.data.class_names,
    )
  step = int(state.step[0])
  results = {'step': step} | scores | {
      'num_labels': int(np.sum(run.labels >= 0)),
      'unreadable_images': unreadable.on_all_hosts(),
      'seconds': seconds,
      'evaluation_seconds': time.monotonic() - begun,
      'images_per_second': step * run.cfg.batch_size / max(seconds, 1e-9),
      'devices': f'{len(run.devices)} x {run.devices[0].device_kind}',
  }  # fmt: skip
  if hosts.is_first():
    metrics_lib.write_json(os.path.join(workdir, RESULTS), results)
  return hosts.agree(metrics_lib.plain(results))
