"""A classifier trained on a checkpoint's encoder, or on its projector's layers.

And what it says.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from semppl_jax.data import pipeline, sources
from semppl_jax.distributed import parallel
from semppl_jax.evaluation import classifier_step
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.evaluation.setup import EvalRun
from semppl_jax.train import loop, resume, schedules


def hyperparameters(
  run: EvalRun,
  labels: np.ndarray,
  encode: Callable[..., Any] | None,
  rate: float,
  encoder_rate: float | None = None,
) -> classifier_step.Hyperparameters:
  """What is trained, how fast and how long.

  Args:
    run: settings.
    labels: [N], -1: not to be trained on; the others make an epoch.
    encode: see classifier_step.Hyperparameters.
    rate: learning rate of the classifier, see optimizer.scaling.
    encoder_rate: of what the classifier is on; None: it is frozen.
  """
  to_steps = functools.partial(
    schedules.to_steps,
    num_examples=int(np.sum(labels >= 0)),
    batch_size=run.cfg.batch_size,
  )
  return classifier_step.Hyperparameters(
    cfg=run.cfg,
    encode=encode,
    learning_rate=rate,
    encoder_learning_rate=encoder_rate,
    total_steps=to_steps(run.cfg.num_epochs),
    warmup_steps=to_steps(run.cfg.optimizer.warmup_epochs),
  )


def fit(
  run: EvalRun,
  hparams: classifier_step.Hyperparameters,
  source: Any,
  labels: np.ndarray,
  workdir: str,
) -> tuple[classifier_step.ClassifierState, float]:
  """Trains on the images with a label, from the newest checkpoint on.

  Args:
    run: checkpoint, devices, settings.
    hparams: what is trained.
    source: N images, or their features.
    labels: [N], -1: not to be trained on.
    workdir: of metrics and checkpoints.

  Returns:
    The last state, leaves [D, ...], and the seconds of training.
  """
  params, bn_state = map(
    run.nets.features_tree, (run.checkpoint.params, run.checkpoint.state)
  )
  fresh = classifier_step.init(
    hparams,
    params,
    bn_state,
    embedding_size=setup_lib.features_size(run),
    num_classes=run.data.num_classes,
  )
  from_host = functools.partial(
    parallel.replicate, num_devices=len(run.devices)
  )

  def train(saver):
    state, past = resume.restore(
      saver, from_host(fresh), like=fresh, from_host=from_host
    )
    start = int(state.step[0])
    batches = pipeline.batches(
      source,
      labels,
      seed=run.cfg.seed,
      batch_size=run.cfg.batch_size,
      start_step=start,
      num_steps=hparams.total_steps - start,
      labelled_share=1.0,
      # Features are in memory: workers would each be sent a copy.
      workers=0 if hparams.encode is None else run.cfg.dataset.workers,
      images=_images(run, hparams),
      on_unreadable=run.unreadable,
    )
    job = loop.LoopSettings(
      run.cfg, hparams.total_steps, run.devices, workdir, saver
    )
    step = functools.partial(classifier_step.train_step, hparams=hparams)
    return loop.fit(
      job,
      loop.mapped(job, step),
      state,
      batches,
      to_host=classifier_step.to_host,
      past=past,
    )

  state, past = resume.with_checkpointer(workdir, run.cfg, train)
  return state, past.seconds


def _images(
  run: EvalRun, hparams: classifier_step.Hyperparameters
) -> pipeline.Images:
  """How what is trained on becomes arrays: see classifier_step.train_step."""
  if hparams.encode is None:
    return pipeline.Images()
  if run.cfg.crops.augment:
    return pipeline.whole(run.cfg.dataset, run.data)
  return setup_lib.center_crops(run.cfg)


def cached(run: EvalRun) -> tuple[sources.Records, np.ndarray]:
  """The training images' features, computed once, in place of the images.

  Returns:
    The features as a source, and the labels [N] of those that can be trained
    on: an image that cannot be decoded has none.
  """
  labelled = np.flatnonzero(run.labels >= 0)
  params, bn_state = (
    setup_lib.replicated(run, tree)
    for tree in (run.checkpoint.params, run.checkpoint.state)
  )
  rows = sources.Rows(run.data.train, labelled)
  features, readable = setup_lib.embed(
    run, rows, params, bn_state, 'features'
  )  # [L, e]
  place = np.full(len(run.labels), -1)
  place[labelled] = np.arange(len(labelled))
  labels = run.labels.copy()
  labels[labelled[~readable]] = -1
  return sources.Records(labels, lambda i: features[place[i]]), labels


class Predictions(NamedTuple):
  """What a classifier says of N images."""

  logits: np.ndarray  # [N, K]
  readable: np.ndarray  # [N] bool, whether the image could be decoded


def predict(
  run: EvalRun, state: classifier_step.ClassifierState, source: Any
) -> Predictions:
  """What the classifier says of all images of a source, in order."""
  features, readable = setup_lib.embed(
    run, source, state.online_params, state.online_state, 'features'
  )
  head = parallel.unreplicate({'classifier': state.online_params['classifier']})
  logits = np.asarray(jax.jit(classifier_step.logits)(head, features))
  return Predictions(logits, readable)


def state_of(run: EvalRun) -> classifier_step.ClassifierState:
  """The checkpoint's weights on all devices, leaves [D, ...]."""
  params, bn_state = run.checkpoint.params, run.checkpoint.state
  state = classifier_step.ClassifierState(np.int32(0), params, bn_state, ())
  return setup_lib.replicated(run, state)


def predict_own(
  run: EvalRun, state: classifier_step.ClassifierState, source: Any
) -> Predictions:
  """What the classifier that the checkpoint has says, linear or prototypes.

  Args:
    run: checkpoint, networks, settings.
    state: see `state_of`.
    source: N images.
  """
  if run.checkpoint.classifier != 'prototypes':
    return predict(run, state, source)
  weights = state.online_params, state.online_state
  return Predictions(*setup_lib.embed(run, source, *weights, 'logits'))
