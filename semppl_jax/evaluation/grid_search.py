"""The learning rates of fine-tuning, chosen on a held-out part of the images.

Every pair has a folder of its own, with its training and its score: a search
that was stopped goes on.
"""

import itertools
import math
from typing import Any

import numpy as np

from semppl_jax import storage
from semppl_jax.data import sources
from semppl_jax.errors import UserError
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation.measures import Measure
from semppl_jax.evaluation.setup import EvalRun
from semppl_jax.train import watchdog
from semppl_jax.workdir import metrics, run_log
from semppl_jax.workdir.names import RESULTS


def search(
  run: EvalRun,
  folder: str,
  *,
  rows: np.ndarray | None = None,
  steps: int | None = None,
  measure: Measure | None = None,
) -> tuple[tuple[float, float], float | None]:
  """The pair of learning rates that does best on held-out labelled images.

  Args:
    run: with the grid.
    folder: each pair has a folder in it.
    rows: [M] of the training images, held out; None: a stratified share
      grid.holdout of the labelled ones.
    steps: of each training; None: num_epochs of the images that are left.
    measure: what is best; None: top-1.

  Returns:
    The pair (classifier, encoder), and its held-out score; without a grid the
    config's own, and None.

  Raises:
    UserError: no pair had a finite loss, or no image is left to train on.
  """
  optimizer, grid = run.cfg.optimizer, run.cfg.grid
  pairs = list(
    itertools.product(grid.learning_rates, grid.encoder_learning_rates)
  )
  if not pairs:
    return (optimizer.learning_rate, optimizer.encoder_learning_rate), None
  if len(pairs) == 1:
    return pairs[0], None
  scores = {
    pair: _held_out(run, folder, pair, rows, steps, measure) for pair in pairs
  }

  def quality(pair):
    # Few held-out images tie often; then the loss decides.
    score, loss = _score(scores[pair]), scores[pair]['loss']
    return (-1.0, 0.0) if loss is None else (score, -loss)

  best = max(pairs, key=quality)
  if scores[best]['loss'] is None:
    raise UserError(
      'grid: the loss is not finite with any pair of learning rates; set '
      'smaller ones.'
    )
  return best, _score(scores[best])


def _score(result: dict[str, Any]) -> float:
  return result.get('score', result['top1']) or 0.0  # None: nothing was seen


def _held_out(
  run: EvalRun,
  folder: str,
  rates: tuple[float, float],
  rows: np.ndarray | None,
  steps: int | None,
  measure: Measure | None,
) -> dict[str, Any]:
  """Trains on a part of the labelled images; scores on the rest of them.

  A loss of None says that it was not finite at some step.
  """
  workdir = storage.path(folder) / '_'.join(map(repr, rates))
  workdir.mkdir(parents=True, exist_ok=True)
  if done := metrics.read_json(workdir / RESULTS):
    return done
  if rows is None:
    rows = _share(run)
  labels = run.labels.copy()
  labels[rows] = -1
  held_out = sources.Rows(run.data.train, rows)
  hparams = classifier_lib.hyperparameters(
    run, labels, run.nets.features, *rates
  )
  if steps is not None:
    hparams = hparams._replace(total_steps=steps)
  try:
    state, _ = classifier_lib.fit(
      run, hparams, run.data.train, labels, str(workdir)
    )
    predictions = classifier_lib.predict(run, state, held_out)
    result = _judge(predictions, held_out.labels, measure)
  except watchdog.NotFiniteError:
    result = {'top1': 0.0, 'top5': 0.0, 'loss': None}
  if result['loss'] is None or not math.isfinite(result['loss']):
    result['loss'] = None
  run_log.info(
    f'learning rates {rates[0]:g}, encoder {rates[1]:g}: '
    f'{_score(result):.1%} of {len(rows)} held-out images'
    f'{", not finite" if result["loss"] is None else ""}'
  )
  metrics.write_json(workdir / RESULTS, result)
  return result


def _share(run: EvalRun) -> np.ndarray:
  """Rows of the labelled images that grid.holdout says."""
  total = int(np.sum(run.labels >= 0))
  count = math.ceil(run.cfg.grid.holdout * total)
  if count >= total:
    raise UserError(
      f'grid.holdout {run.cfg.grid.holdout} of {total} labelled images leaves '
      'none to train on: set a smaller one, or grids of one value.'
    )
  return sources.split(run.labels, count, seed=run.cfg.seed)[1]


def _judge(
  predictions: classifier_lib.Predictions,
  labels: np.ndarray,
  measure: Measure | None,
) -> dict[str, Any]:
  logits, readable = predictions
  truth = np.where(readable, labels, -1)
  result = metrics.classification(logits, truth)
  if measure is not None and (known := truth >= 0).any():
    result['score'] = measure(logits[known].argmax(axis=1), truth[known])
  return result
