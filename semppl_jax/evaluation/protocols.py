"""What a checkpoint is worth: the tasks of evaluation.

linear: DeepMind's protocol, a classifier on the frozen encoder;
semi_supervised: all weights fine-tuned on the labelled images, from the encoder
or from a layer of the projector on;
knn: neighbours among the labelled images;
classifier: the one that the checkpoint has, linear or its prototypes.
Each writes results.json with top1, top5 and loss on the test images, and
per_class.json.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from semppl_jax.data import sources
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation import grid_search
from semppl_jax.evaluation import knn as knn_lib
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.evaluation.classifier import Predictions
from semppl_jax.evaluation.setup import EvalRun
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import match_names
from semppl_jax.workdir import metrics, run_data, run_log
from semppl_jax.workdir.names import RESULTS


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
  run = setup_lib.prepare(cfg, step)
  check(run)
  run_log.info(f'{cfg.checkpoint}: {run.checkpoint}')
  run_log.info(
    f'Test images: the middle {cfg.crops.center:.1%} at {cfg.crops.size} px.'
  )
  if run.checkpoint.mapping:
    run_log.info(match_names.explain(run.checkpoint.mapping))
  with setup_lib.claimed_workdir(run, workdir):
    done = metrics.read_json(os.path.join(workdir, RESULTS))
    run_data.check(workdir, run, finished=done is not None)
    if done is not None:
      run_log.info(f'{workdir}: this evaluation is finished.')
      return done
    return _evaluate(run, workdir)


def _evaluate(run: EvalRun, workdir: str) -> dict[str, Any]:
  """The task of a run; writes its results."""
  cfg = run.cfg
  begun = time.monotonic()
  (logits, readable), extra = TASKS[cfg.task](run, workdir)
  if not np.isfinite(logits).all():
    raise UserError(
      'The classifier has become NaN or infinite: set a smaller '
      'optimizer.learning_rate, and another --workdir.'
    )
  truth = np.where(readable, run.data.test.labels, -1)
  results = metrics.classification(logits, truth)
  if cfg.task == 'knn':
    results['loss'] = None  # ranks are no probabilities
  results |= extra | {
    'num_labels': int(np.sum(run.labels >= 0)),
    'num_test': int(np.sum(truth >= 0)),
    'unreadable_images': len(run.unreadable),
    'checkpoint': str(run.checkpoint),
    'checkpoint_step': run.checkpoint.step,
    'network': run.checkpoint.weights_of,
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


def linear(run: EvalRun, workdir: str) -> tuple[Predictions, dict[str, Any]]:
  """Trains a classifier on the frozen encoder; asks it of the test images."""
  source, labels = run.data.train, run.labels
  encode: Callable[..., Any] | None = run.nets.features
  if run.cfg.features == 'cached':
    (source, labels), encode = classifier_lib.cached(run), None
  hparams = classifier_lib.hyperparameters(
    run, labels, encode, run.cfg.optimizer.learning_rate
  )
  state, seconds = classifier_lib.fit(run, hparams, source, labels, workdir)
  predictions = classifier_lib.predict(run, state, run.data.test)
  return predictions, {
    'classifier_on': run.cfg.classifier.on,
    'steps': hparams.total_steps,
    'training_seconds': seconds,
  }


def semi_supervised(
  run: EvalRun, workdir: str
) -> tuple[Predictions, dict[str, Any]]:
  """Fine-tunes all weights on the labelled images.

  The two learning rates are those of a small grid that do best on a part of
  the labelled images; then all of them are trained on.
  """
  rates, held_out_top1 = grid_search.search(run, os.path.join(workdir, 'grid'))
  hparams = classifier_lib.hyperparameters(
    run, run.labels, run.nets.features, *rates
  )
  state, seconds = classifier_lib.fit(
    run, hparams, run.data.train, run.labels, workdir
  )
  predictions = classifier_lib.predict(run, state, run.data.test)
  return predictions, {
    'classifier_on': run.cfg.classifier.on,
    'steps': hparams.total_steps,
    'learning_rate': rates[0],
    'encoder_learning_rate': rates[1],
    'held_out_top1': held_out_top1,
    'training_seconds': seconds,
  }


def knn(run: EvalRun, workdir: str) -> tuple[Predictions, dict[str, Any]]:
  """Votes of the nearest labelled images; ranks of the classes as logits.

  With knn.more_k the votes of other numbers of neighbours, too, whose scores
  are kN_top1 and kN_top5. With knn.vote 'snn' all labelled images vote, and
  logits are log-probabilities.
  """
  del workdir  # nothing is trained
  settings = run.cfg.knn
  labelled = np.flatnonzero(run.labels >= 0)
  params, bn_state = (
    setup_lib.replicated(run, tree)
    for tree in (run.checkpoint.params, run.checkpoint.state)
  )
  embed = lambda source: setup_lib.embed(
    run, source, params, bn_state, settings.of
  )
  keys, known = embed(sources.Rows(run.data.train, labelled))
  queries, readable = embed(run.data.test)
  truth = np.where(readable, run.data.test.labels, -1)
  known_labels = np.where(known, run.labels[labelled], -1)
  if settings.vote == 'snn':
    scores = knn_lib.soft_scores(
      queries,
      keys,
      known_labels,
      num_classes=run.data.num_classes,
      temperature=settings.temperature,
    )
    count = int(known.sum())
    return Predictions(scores, readable), {'k': count, 'vote': settings.vote}
  weighted = settings.vote == 'weighted'
  ranks, *others = knn_lib.ranks_of_each(
    queries,
    keys,
    known_labels,
    ks=(settings.k, *settings.more_k),
    num_classes=run.data.num_classes,
    temperature=settings.temperature if weighted else None,
  )
  extra = {'k': min(settings.k, int(known.sum())), 'vote': settings.vote}
  for k, other in zip(settings.more_k, others, strict=True):
    found = metrics.classification(other, truth)
    extra |= {f'k{k}_{name}': found[name] for name in ('top1', 'top5')}
  return Predictions(ranks, readable), extra


def classifier(
  run: EvalRun, workdir: str
) -> tuple[Predictions, dict[str, Any]]:
  """Asks the classifier that the checkpoint has."""
  del workdir  # nothing is trained
  state = classifier_lib.state_of(run)
  predictions = classifier_lib.predict_own(run, state, run.data.test)
  return predictions, {'classifier': run.checkpoint.classifier}


TASKS = {
  'linear': linear,
  'semi_supervised': semi_supervised,
  'knn': knn,
  'classifier': classifier,
}


def check(run: EvalRun) -> None:
  """What would stop a task of these, known before it begins.

  Raises:
    CheckpointError: the checkpoint lacks what is evaluated.
    UserError: more neighbours than there are labelled images.
  """
  _check_heads(run)
  _check_neighbours(run)


def _check_heads(run: EvalRun) -> None:
  """Refuses a checkpoint that lacks what the task evaluates."""
  cfg, has = run.cfg, {m.split('/')[0] for m in run.checkpoint.params}
  needed = {'projection': 'projector', 'prediction': 'predictor'}
  head = needed.get(cfg.knn.of) if cfg.task == 'knn' else None
  if head and head not in has:
    raise CheckpointError(
      f'{cfg.checkpoint} has no {head}, but knn.of is {cfg.knn.of}.'
    )
  if head and run.checkpoint.classifier_on != architecture_lib.ENCODER:
    raise CheckpointError(
      f'{cfg.checkpoint} has no layers after {run.checkpoint.classifier_on}, '
      f'where its classifier is, but knn.of is {cfg.knn.of}: set it to '
      'embedding.'
    )
  if cfg.task != 'classifier':
    return
  classes = run.checkpoint.num_classes
  if not classes:
    raise setup_lib.no_classifier(run)
  if classes != run.data.num_classes:
    raise CheckpointError(
      f'the classifier in {cfg.checkpoint} has {classes} classes, '
      f'dataset {cfg.dataset.name!r} has {run.data.num_classes}.'
    )


def _check_neighbours(run: EvalRun) -> None:
  """Refuses more neighbours than there are labelled images.

  But for one majority, as before there were other votes: then all vote.
  """
  cfg, count = run.cfg, int(np.sum(run.labels >= 0))
  if cfg.task != 'knn' or cfg.knn.vote == 'snn':
    return
  if cfg.knn.vote == 'majority' and not cfg.knn.more_k:
    return
  for name, values in (('k', (cfg.knn.k,)), ('more_k', cfg.knn.more_k)):
    if max(values, default=0) > count:
      raise UserError(
        f'knn.{name} is {cfg.knn[name]}, but there are {count} labelled '
        'images: set it to no more.'
      )
