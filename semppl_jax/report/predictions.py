"""What a run's network says of its images. Reads the run, writes nothing."""

from typing import Any, NamedTuple

import numpy as np

from semppl_jax.data import pipeline, sources
from semppl_jax.evaluation import features as features_lib
from semppl_jax.evaluation import final_scores, knn
from semppl_jax.evaluation.run_network import Network
from semppl_jax.train import run as run_lib

NEIGHBOURS = 4  # of an image
MOST_LABELLED = 2000


class Predictions(NamedTuple):
  """Of n images of a source."""

  rows: np.ndarray  # [n] int, of the source
  truth: np.ndarray  # [n] int32, -1: unknown
  embeddings: np.ndarray  # [n, e] float32, the encoder's
  labels: np.ndarray  # [n] int32 predicted, -1: none
  neighbours: np.ndarray  # [n, k] int, labelled training rows, nearest first
  similarity: np.ndarray  # [n, k] float32, cosine of embeddings


class Labelled(NamedTuple):
  """Labelled training images, among which neighbours are looked up."""

  rows: np.ndarray  # [M] int
  embeddings: np.ndarray  # [M, e] float32


def labelled(network: Network) -> Labelled:
  """Embeddings of the labelled training images, of some if there are many."""
  run = network.run
  rows = some(np.flatnonzero(run.labels >= 0), MOST_LABELLED, run.cfg.seed)
  if not len(rows):
    return Labelled(rows, np.zeros((0, 1), np.float32))
  found = _features(network, sources.Rows(run.data.train, rows))
  return Labelled(rows[found.readable], found.embeddings[found.readable])


def predict(
  network: Network, source: Any, rows: np.ndarray, support: Labelled
) -> Predictions:
  """Runs some images of a source through the network.

  Images that cannot be decoded are left out.

  Args:
    network: of a run.
    source: of images.
    rows: which of them.
    support: the images that may be neighbours.
  """
  chosen = sources.Rows(source, rows)
  found = _features(network, chosen)
  labels = final_scores.pseudo_labels_of(found, network.run.cfg)
  readable = found.readable
  embeddings = found.embeddings[readable]
  nearest = np.zeros((len(embeddings), 0), int)
  similarity = nearest.astype(np.float32)
  if len(support.rows) and len(embeddings):
    nearest, similarity = knn.neighbours(
      embeddings, support.embeddings, NEIGHBOURS
    )
    nearest = support.rows[nearest]
  return Predictions(
    rows[readable],
    chosen.labels[readable],
    embeddings,
    labels[readable],
    nearest,
    similarity,
  )


def _features(network: Network, source: Any) -> features_lib.Features:
  run = network.run
  return features_lib.features(
    network.state,
    run.setup.method,
    run.setup.nets,
    run.cfg,
    source,
    run.devices,
    on_unreadable=lambda name, reason: None,
  )


def crops(run: run_lib.TrainRun) -> pipeline.Images:
  """Images as evaluation sees them."""
  return pipeline.Images(
    crop=(run.cfg.views.large_size, run.cfg.evaluation.center)
  )


def some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
  """At most so many of them, at random, in their order."""
  random = np.random.RandomState(seed % 2**32)
  return np.sort(random.permutation(rows)[:most])
