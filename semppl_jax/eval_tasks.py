"""What a checkpoint is worth: the tasks of evaluation.

linear: DeepMind's protocol, a classifier on the frozen encoder;
semi_supervised: all weights fine-tuned on the labelled images;
knn: neighbours among the labelled images;
classifier: the one that the checkpoint has.
Each writes results.json with top1, top5 and loss on the test images, and
per_class.json.
"""

import itertools
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from semppl_jax import (
  claims,
  classifier_fit,
  classifier_step,
  eval_config,
  eval_runs,
  evaluate,
  metrics,
  name_matching,
  run_log,
  weights,
)
from semppl_jax.data import sources
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.eval_runs import EvalRun

RESULTS = 'results.json'


def run_task(
  cfg: ml_collections.ConfigDict, workdir: str, step: int | None = None
) -> dict[str, Any]:
  """Evaluates one checkpoint and writes everything below `workdir`.

  Goes on where it was stopped; a finished evaluation is not touched.

  Args:
    cfg: the resolved config.
    workdir: a folder of this evaluation's own.
    step: of a run's checkpoint; None: the newest.

  Returns:
    What results.json holds.

  Raises:
    UserError: a setting, an input or a checkpoint that cannot work.
    Interrupted: SIGINT or SIGTERM; what was trained is saved.
  """
  run = eval_runs.prepare(cfg, step)
  _check_heads(run)
  run_log.say(f'{cfg.checkpoint}: {run.weights}')
  height, width, _ = run.data.image_shape
  run_log.say(
    f'Images of {height} x {width} pixels; the middle {cfg.crops.center:.1%} '
    f'at {cfg.crops.size} pixels.'
  )
  if run.weights.mapping:
    run_log.say(name_matching.explain(run.weights.mapping))
  identity = {'digest': weights.digest(run.weights)}
  identity |= weights.settings(run.weights)._asdict()
  settings = cfg.to_dict() | {'weights': identity}
  claims.claim(workdir, settings, ignore=eval_config.COSMETIC)
  done = metrics.read_json(os.path.join(workdir, RESULTS))
  if done is not None:
    run_log.say(f'{workdir}: this evaluation is finished.')
    return done
  begun = time.monotonic()
  logits, extra = TASKS[cfg.task](run, workdir)
  if not np.isfinite(logits).all():
    raise UserError(
      'The classifier has become NaN or infinite: set a smaller '
      'optimizer.learning_rate, and another --workdir.'
    )
  truth = run.data.test.labels
  results = metrics.classification(logits, truth)
  if cfg.task == 'knn':
    results['loss'] = None  # ranks are no probabilities
  results |= extra | {
    'num_labels': int(np.sum(run.labels >= 0)),
    'num_test': int(np.sum(truth >= 0)),
    'checkpoint': str(run.weights),
    'checkpoint_step': run.weights.step,
    'seconds': time.monotonic() - begun,
    'devices': f'{len(run.devices)} x {run.devices[0].device_kind}',
  }
  right = np.asarray(metrics.topk_correct(logits, truth, 1))
  metrics.write_json(
    os.path.join(workdir, 'per_class.json'),
    metrics.per_class(right, truth, run.data.class_names),
  )
  metrics.write_json(os.path.join(workdir, RESULTS), results)
  return results


def linear(run: EvalRun, workdir: str) -> tuple[np.ndarray, dict[str, Any]]:
  """Trains a classifier on the frozen encoder; logits of the test images."""
  source = run.data.train
  encode: Callable[..., Any] | None = run.nets.encode
  if run.cfg.features == 'cached':
    source, encode = classifier_fit.cached(run), None
  setup = classifier_fit.setup(
    run, run.labels, encode, run.cfg.optimizer.learning_rate
  )
  state, seconds = classifier_fit.fit(run, setup, source, run.labels, workdir)
  logits = classifier_fit.logits(run, state, run.data.test)
  return logits, {'steps': setup.total_steps, 'training_seconds': seconds}


def semi_supervised(
  run: EvalRun, workdir: str
) -> tuple[np.ndarray, dict[str, Any]]:
  """Fine-tunes all weights on the labelled images; logits of the test images.

  The two learning rates are those of a small grid that do best on a part of
  the labelled images; then all of them are trained on.
  """
  rates, held_out_top1 = _search(run, os.path.join(workdir, 'grid'))
  setup = classifier_fit.setup(run, run.labels, run.nets.encode, *rates)
  state, seconds = classifier_fit.fit(
    run, setup, run.data.train, run.labels, workdir
  )
  logits = classifier_fit.logits(run, state, run.data.test)
  return logits, {
    'steps': setup.total_steps,
    'learning_rate': rates[0],
    'encoder_learning_rate': rates[1],
    'held_out_top1': held_out_top1,
    'training_seconds': seconds,
  }


def knn(run: EvalRun, workdir: str) -> tuple[np.ndarray, dict[str, Any]]:
  """Votes of the nearest labelled images; ranks of the classes as logits."""
  del workdir  # nothing is trained
  labelled = np.flatnonzero(run.labels >= 0)
  params, bn_state = (
    eval_runs.on_devices(run, tree)
    for tree in (run.weights.params, run.weights.state)
  )
  embed = lambda source: eval_runs.embed(
    run, source, params, bn_state, run.cfg.knn.of
  )
  keys = embed(sources.Rows(run.data.train, labelled))
  ranks = evaluate.knn_scores(
    embed(run.data.test),
    keys,
    run.labels[labelled],
    k=run.cfg.knn.k,
    num_classes=run.data.num_classes,
  )
  return ranks, {'k': min(run.cfg.knn.k, len(labelled))}


def classifier(run: EvalRun, workdir: str) -> tuple[np.ndarray, dict[str, Any]]:
  """The classifier that the checkpoint has; logits of the test images."""
  del workdir  # nothing is trained
  state = classifier_step.ClassifierState(
    step=np.int32(0),
    online_params=run.weights.params,
    online_state=run.weights.state,
    opt_state=(),
  )
  state = eval_runs.on_devices(run, state)
  return classifier_fit.logits(run, state, run.data.test), {}


TASKS = {
  'linear': linear,
  'semi_supervised': semi_supervised,
  'knn': knn,
  'classifier': classifier,
}


def _check_heads(run: EvalRun) -> None:
  """Refuses a checkpoint that lacks what the task evaluates."""
  cfg, has = run.cfg, {m.split('/')[0] for m in run.weights.params}
  needed = {'projection': 'projector', 'prediction': 'predictor'}
  head = needed.get(cfg.knn.of) if cfg.task == 'knn' else None
  if head and head not in has:
    raise CheckpointError(
      f'{cfg.checkpoint} has no {head}, but knn.of is {cfg.knn.of}.'
    )
  if cfg.task != 'classifier':
    return
  if 'classifier' not in has:
    raise CheckpointError(f'{cfg.checkpoint} has no classifier.')
  classes = run.weights.params['classifier']['w'].shape[1]
  if classes != run.data.num_classes:
    raise CheckpointError(
      f'the classifier in {cfg.checkpoint} has {classes} classes, '
      f'dataset {cfg.dataset.name!r} has {run.data.num_classes}.'
    )


def _search(
  run: EvalRun, folder: str
) -> tuple[tuple[float, float], float | None]:
  """The pair of learning rates that does best on held-out labelled images.

  Args:
    run: with the grid.
    folder: each pair has a folder in it.

  Returns:
    The pair (classifier, encoder), and its held-out top-1; without a grid the
    config's own, and None.
  """
  optimizer, grid = run.cfg.optimizer, run.cfg.grid
  pairs = list(
    itertools.product(grid.learning_rates, grid.encoder_learning_rates)
  )
  if not pairs:
    return (optimizer.learning_rate, optimizer.encoder_learning_rate), None
  if len(pairs) == 1:
    return pairs[0], None
  scores = {pair: _held_out(run, folder, *pair) for pair in pairs}

  def quality(pair):
    # Few held-out images tie often; then the loss decides.
    top1, loss = scores[pair]['top1'], scores[pair]['loss']
    return (-1.0, 0.0) if loss is None else (top1, -loss)

  best = max(pairs, key=quality)
  if scores[best]['loss'] is None:
    raise UserError(
      'grid: the loss is not finite with any pair of learning rates; set '
      'smaller ones.'
    )
  return best, scores[best]['top1']


def _held_out(
  run: EvalRun, folder: str, rate: float, encoder_rate: float
) -> dict[str, Any]:
  """Trains on a part of the labelled images; scores on the rest of them.

  A loss of None says that it was not finite at some step.
  """
  workdir = pathlib.Path(folder, f'{rate!r}_{encoder_rate!r}')
  workdir.mkdir(parents=True, exist_ok=True)
  if done := metrics.read_json(workdir / RESULTS):
    return done
  total = int(np.sum(run.labels >= 0))
  count = math.ceil(run.cfg.grid.holdout * total)
  if count >= total:
    raise UserError(
      f'grid.holdout {run.cfg.grid.holdout} of {total} labelled images leaves '
      'none to train on: set a smaller one, or grids of one value.'
    )
  _, rows = sources.split(run.labels, count, seed=run.cfg.seed)
  labels = run.labels.copy()
  labels[rows] = -1
  held_out = sources.Rows(run.data.train, rows)
  setup = classifier_fit.setup(run, labels, run.nets.encode, rate, encoder_rate)
  try:
    state, _ = classifier_fit.fit(
      run, setup, run.data.train, labels, str(workdir)
    )
    logits = classifier_fit.logits(run, state, held_out)
    result = metrics.classification(logits, held_out.labels)
  except run_log.NotFiniteError:
    result = {'top1': 0.0, 'top5': 0.0, 'loss': None}
  if result['loss'] is None or not math.isfinite(result['loss']):
    result['loss'] = None
  run_log.say(
    f'learning rates {rate:g}, encoder {encoder_rate:g}: '
    f'{result["top1"]:.1%} of {len(rows)} held-out images'
    f'{", not finite" if result["loss"] is None else ""}'
  )
  metrics.write_json(workdir / RESULTS, result)
  return result
