"""Quality of a representation while it trains: kNN and RankMe.

No label that training does not see is looked at, but those of images that were
set aside for validation (dataset.validation), and never the test images. The
encoder is that of evaluation.network, in evaluation mode, without augmentation;
nothing of the training changes.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.data import pipeline, sources
from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.evaluation import features, knn
from semppl_jax.evaluation.measures import accuracy
from semppl_jax.models import networks
from semppl_jax.train import device_memory
from semppl_jax.train import run as run_lib
from semppl_jax.train.state import TrainState
from semppl_jax.workdir import metrics

VALIDATION = 'validation_knn_top1'
LEAVE_ONE_OUT = 'leave_one_out_knn_top1'
# Labelled images, at random, that are asked for their neighbours [ours].
_ASKED = 25_600
_EPSILON = 1e-7  # RankMe's


def rankme(embeddings: np.ndarray) -> float:
  """RankMe: how many directions embeddings use, by singular values' entropy.

  exp(-sum p log p) with p = s / sum(s) + 1e-7, s the min(n, e) singular values
  (Garrido et al., ICML 2023, arXiv 2210.02885, equations 1 and 2). Not centred.
  The values are found on one device, in float32.

  Args:
    embeddings: [n, e] float32.

  Returns:
    From 1 to min(n, e), nearly; NaN: of no images, of values that are not
    finite, or of zeros alone.
  """
  if not len(embeddings) or not np.isfinite(embeddings).all():
    return float('nan')
  found = np.asarray(_singular_values(embeddings), np.float64)
  if not found.sum() > 0:
    return float('nan')
  share = found / found.sum() + _EPSILON
  return float(np.exp(-np.sum(share * np.log(share))))


@jax.jit
def _singular_values(x: jax.Array) -> jax.Array:
  return jnp.linalg.svd(x, compute_uv=False)


class Quality:
  """What is measured of the states of one run; compiled once.

  Args:
    run: data, networks and settings.

  Attributes:
    knn: the metric of kNN: `VALIDATION` where images were set aside for that,
      else `LEAVE_ONE_OUT`, of the labelled training images; '': none, for lack
      of labels.
  """

  def __init__(self, run: run_lib.TrainRun):
    self._run, cfg = run, run.cfg
    self.knn = _knn(run)
    random = np.random.RandomState(cfg.seed % 2**32)
    every = np.arange(len(run.data.train))
    ranked = _some(random, every, cfg.evaluation.rank_images)
    keys = np.flatnonzero(run.labels >= 0) if self.knn else np.zeros(0, int)
    self._rows = np.union1d(ranked, keys)
    self._ranked = np.isin(self._rows, ranked)
    self._labels = np.full(len(self._rows), -1, np.int32)
    self._labels[np.isin(self._rows, keys)] = run.labels[keys]
    asked = knn.has_another(self._labels)
    self._asked = np.zeros(len(self._rows), bool)
    self._asked[_some(random, np.flatnonzero(asked), _ASKED)] = True
    self._forward = functools.partial(_embed, run.setup.nets)

  def __call__(self, state: TrainState) -> dict[str, float | None]:
    """The metrics of a state.

    Args:
      state: leaves [D, ...], on the devices; is not changed.

    Returns:
      rankme, the metric that `knn` names, and quality_seconds, how long it
      took; None: not a number, or no image could be read. Alike on all hosts.

    Raises:
      UserError: the devices' memory is too small.
    """
    cfg = self._run.cfg.evaluation
    jax.block_until_ready(state.online_params)  # the step is not our time
    begun = time.monotonic()
    try:
      found = self._measure(state)
    except jax.errors.JaxRuntimeError as error:
      if not device_memory.is_exhausted(error):
        raise
      raise UserError(
        'The devices have no memory left to measure quality while training: '
        f'evaluation.batch_size is {cfg.batch_size} and evaluation.rank_images '
        f'{cfg.rank_images}; set them lower, or evaluation.every_epochs to 0.'
      ) from error
    found['quality_seconds'] = time.monotonic() - begun
    return processes.broadcast_from_first(metrics.plain(found))

  def _measure(self, state: TrainState) -> dict[str, float | None]:
    run, k = self._run, self._run.cfg.evaluation.k
    train, known = self._embed(state, sources.Rows(run.data.train, self._rows))
    result: dict[str, float | None] = {
      'rankme': rankme(train[self._ranked & known])
    }
    labels = np.where(known, self._labels, -1)
    if self.knn == VALIDATION:
      held_out, readable = self._embed(state, run.data.test)
      truth = np.where(readable, run.data.test.labels, -1)
      predicted = knn.predict(held_out, train, labels, k)
      result[VALIDATION] = accuracy(predicted, truth)
    elif self.knn == LEAVE_ONE_OUT:
      keys = labels >= 0
      asked = np.flatnonzero(self._asked[keys])
      result[LEAVE_ONE_OUT] = knn.leave_one_out(
        train[keys], labels[keys], k, asked
      )
    return result

  def _embed(
    self, state: TrainState, source: sources.Source
  ) -> tuple[np.ndarray, np.ndarray]:
    """[n, e] float32, and which images could be decoded, [n] bool."""
    run, cfg = self._run, self._run.cfg
    trees = state.online_params, state.online_state
    if cfg.evaluation.network == 'target':
      trees = state.target_params, state.target_state
    images = pipeline.Images(
      crop=(cfg.views.large_size, cfg.evaluation.center),
      on_corrupt=cfg.dataset.on_corrupt,
    )
    (found,), readable = features.over_images(
      self._forward, trees, source, run.devices, cfg.evaluation.batch_size,
      images=images, workers=cfg.dataset.workers,
      # Training and the evaluation at the end tell of them.
      on_unreadable=lambda name, reason: None,
    )  # fmt: skip
    return found, readable


def _embed(
  nets: networks.Networks, trees: tuple[Any, Any], views: jax.Array
) -> tuple[jax.Array]:
  """The encoder's embeddings [b, e] float32 of crops [b, S, S, 3]."""
  return (nets.encode(*trees, views, False)[0].astype(jnp.float32),)


def _some(
  random: np.random.RandomState, rows: np.ndarray, most: int
) -> np.ndarray:
  """So many of the rows at most, at random; 0: all."""
  return random.permutation(rows)[:most] if most else rows


def _knn(run: run_lib.TrainRun) -> str:
  """See `Quality`."""
  if run.cfg.dataset.validation:
    return VALIDATION if np.any(run.labels >= 0) else ''
  return LEAVE_ONE_OUT if knn.has_another(run.labels).any() else ''


def check(run: run_lib.TrainRun) -> None:
  """Refuses to keep the best of what cannot be measured.

  Raises:
    UserError: too few labels.
  """
  if run.cfg.evaluation.keep_best and not _knn(run):
    raise UserError(
      'evaluation.keep_best is True, but there are too few labels for kNN: set '
      'labels.per_class to 2 or more or, with any labels, dataset.validation.'
    )
