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

from semppl_jax import (
  checkpoint,
  config,
  evaluate,
  parallel,
  pretrain_step,
  report,
  run_log,
  runs,
  signals,
  train_state,
)
from semppl_jax import metrics as metrics_lib

RESULTS = 'results.json'


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
  run = runs.prepare(cfg)
  checkpoint.claim(workdir, cfg.to_dict(), ignore=config.COSMETIC)
  done = metrics_lib.read_json(os.path.join(workdir, RESULTS))
  if done is not None:
    run_log.say(f'{workdir}: this run is finished, at step {done["step"]}.')
    return done
  saver = checkpoint.Checkpointer(workdir, keep=cfg.keep_checkpoints)
  try:
    state, seconds = train(run, workdir, saver)
    return finish(run, state, workdir, seconds)
  except run_log.NotFiniteError as e:
    # The update before made this loss: a state saved after it is no good one.
    saver.discard(e.step - 1)
    raise
  finally:
    saver.close()


def train(
  run: runs.Run, workdir: str, saver: checkpoint.Checkpointer
) -> tuple[train_state.TrainState, float]:
  """All steps that are left.

  Returns:
    The final state, leaves [D, ...] on the devices, and the seconds of
    training, over all the times that the run was taken up again.
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
  log = run_log.Log(writer, cfg, run.setup.total_steps, start, clock)

  def save():
    log.flush()  # no checkpoint of a state whose loss was not looked at
    step = int(state.step[0])
    portable = train_state.to_portable(state)
    saver.save(step, portable, {'position': step, 'elapsed_seconds': clock()})

  with signals.StopSignal() as stop:
    for batch, truth in runs.input_batches(run, start):
      state, scalars, labels = step_fn(
        state, parallel.shard(batch, num_devices), base_key
      )
      step = log.add(scalars, labels, batch.labels, truth)
      if stop.received:
        save()
        saver.close()
        run_log.say(
          f'Stopped at step {step}, which is saved. Same command: goes on.'
        )
        raise signals.Interrupted(128 + stop.received)
      if (
        step % cfg.checkpoint_every_steps == 0 or step == run.setup.total_steps
      ):
        save()
  log.close()
  return state, clock()


def restore_or_init(
  run: runs.Run, saver: checkpoint.Checkpointer
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
  run_log.say(f'Going on from the checkpoint of step {step}.')
  state = train_state.from_portable(portable, num_devices)
  return state, info['elapsed_seconds']


def finish(
  run: runs.Run, state: train_state.TrainState, workdir: str, seconds: float
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
