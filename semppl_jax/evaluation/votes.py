"""Soft votes of labelled images: which class an image is of, and how surely.

Every labelled image votes, by its similarity, as in soft nearest neighbours
(PAWS, Assran et al., arXiv 2104.13963), averaged over views of the image. That
every class counts alike, however many labels it has, and the temperature are
ours; docs/label.md has what else was tried.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from semppl_jax.evaluation import knn
from semppl_jax.memory.label_queue import LabelQueue

NEIGHBOURS = 3  # of an image, that are told [ours]
_TEMPERATURE = 0.3  # times the spread of the labelled images' similarities
_LEAST = 1e-3  # of temperatures: a single labelled image has no spread
_LOOKED_AT = 1000  # labelled images, for the spread


class Voters(NamedTuple):
  """L labelled images, with W embeddings of each."""

  keys: np.ndarray  # [W, L, d] float32, unit rows
  labels: np.ndarray  # [L] int32
  rows: np.ndarray  # [L] int, which images of their source they are


class Votes(NamedTuple):
  """What labelled images say of n others."""

  labels: np.ndarray  # [n] int32, the pseudo-label
  share: np.ndarray  # [n] float32, of the votes, in [0, 1]
  runner_up: np.ndarray  # [n] int32, the best of the other classes; -1: none
  runner_up_share: np.ndarray  # [n] float32; may be above `share`
  neighbours: np.ndarray  # [n, m] int, rows of the nearest, nearest first
  similarity: np.ndarray  # [n, m] float32, cosine


def of_queue(queue: LabelQueue, row_of: dict[int, int]) -> Voters:
  """The newest entry of each labelled image; older are of earlier networks.

  Args:
    queue: of all devices together, NumPy arrays.
    row_of: an image's id -> its row; others' entries are left out.
  """
  capacity = len(queue.labels)
  newest_first = (int(queue.count) - 1 - np.arange(capacity)) % capacity
  slots: dict[int, int] = {}
  for slot in newest_first:
    row = row_of.get(int(queue.ids[slot]))
    if row is not None and queue.labels[slot] >= 0:
      slots.setdefault(row, int(slot))
  rows = np.array(sorted(slots), int)
  chosen = np.array([slots[row] for row in rows], int)
  return Voters(queue.embeddings[:, chosen], queue.labels[chosen], rows)


def shares(queries: np.ndarray, voters: Voters, num_classes: int) -> np.ndarray:
  """The share of the votes of each class, [n, K] float32 with rows of sum 1.

  A class's vote is the mean over its labelled images of
  exp(cosine / temperature); shares are averaged over all pairs of views.

  Args:
    queries: [V, n, d] float32, views of n images.
    voters: L images, at least one.
    num_classes: K.
  """
  counts = np.bincount(voters.labels, minlength=num_classes)
  total = np.zeros((queries.shape[1], num_classes), np.float32)
  for keys in voters.keys:
    scale = temperature(keys)
    for view in queries:
      scores = knn.soft_scores(
        view, keys, voters.labels, num_classes=num_classes, temperature=scale
      )
      means = scores - np.log(np.maximum(counts, 1))
      total += special.softmax(np.where(counts, means, -np.inf), axis=1)
  return total / (len(queries) * len(voters.keys))


def temperature(keys: np.ndarray) -> float:
  """0.3 times the standard deviation of similarities between labelled images.

  So that shares say the same whatever the scale of a network's cosines is.

  Args:
    keys: [L, d] float32, unit rows.
  """
  some = keys[:: -(-len(keys) // _LOOKED_AT)]
  between = (some @ some.T)[~np.eye(len(some), dtype=bool)]
  spread = float(between.std()) if len(between) else 0.0
  return max(_TEMPERATURE * spread, _LEAST)


def vote(
  queries: np.ndarray,
  voters: Voters,
  num_classes: int,
  chosen_by: np.ndarray | None = None,
) -> Votes:
  """Pseudo-labels, and the share of the votes that they have.

  Args:
    queries: [V, n, d] float32, views of n images; neighbours are the first's.
    voters: L images, at least one.
    num_classes: K.
    chosen_by: [n, K] shares of another vote, whose winners are the labels;
      None: this one's. Of equal shares the smaller class wins.
  """
  found = shares(queries, voters, num_classes)
  image = np.arange(len(found))
  labels = (found if chosen_by is None else chosen_by).argmax(axis=1)
  others = found.copy()
  others[image, labels] = -1
  runner_up = others.argmax(axis=1)
  nobody = num_classes < 2 or len(np.unique(voters.labels)) < 2
  nearest, similarity = knn.neighbours(queries[0], voters.keys[0], NEIGHBOURS)
  return Votes(
    labels.astype(np.int32),
    found[image, labels],
    np.where(nobody, -1, runner_up).astype(np.int32),
    np.zeros(len(found), np.float32) if nobody else found[image, runner_up],
    voters.rows[nearest],
    similarity,
  )
