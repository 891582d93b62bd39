"""kNN by the cosine of embeddings: one search, and what is read from it.

The search runs on one device, over blocks of keys and of queries: similarities
are never there for more than one of each. Keys go to the device block by block,
once; all queries, and what they have found, stay there. Products are of float32
at full precision.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.evaluation import measures
from semppl_jax.memory import pseudo_labels

# At a time [ours]: 64 MB of similarities, and 128 MB of keys of 2,048 numbers.
_QUERIES, _KEYS = 1024, 2**14
_NOT_A_NUMBER = np.finfo(np.float32).min  # after all others, before no key
_vote = jax.jit(pseudo_labels.vote)


class _Found(NamedTuple):
  """What a search has found so far for n queries."""

  similarity: jax.Array  # [n, k] float32, falling; -inf: no key yet
  rows: jax.Array  # [n, k] int32, of the keys
  nearest: jax.Array  # [n, K] float32, of each class's nearest key; -inf: none


def neighbours(
  queries: np.ndarray, keys: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Nearest neighbours by cosine, nearest first; the earlier of equals.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32; may be a memory-mapped file.
    k: at most M are found.

  Returns:
    Rows of the keys, [N, k] int, and their similarities, [N, k] float32; one
    that is not a number is the least of all.
  """
  return _nearest(queries, keys, np.zeros(len(keys), np.int32), k)


def predict(
  queries: np.ndarray, keys: np.ndarray, labels: np.ndarray, k: int
) -> np.ndarray:
  """kNN classification, with the method's own vote.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32, embeddings of images; may be a memory-mapped file.
    labels: [M] int, -1: such an image is nobody's neighbour.
    k: neighbours; at most as many as there are labels are used.

  Returns:
    [N] int32.
  """
  rows, similarity = _nearest(queries, keys, labels, k)
  return np.asarray(_vote(labels[rows], similarity)[0])


def leave_one_out(
  embeddings: np.ndarray,
  labels: np.ndarray,
  k: int,
  asked: np.ndarray | None = None,
) -> float | None:
  """Leave-one-out kNN: each image is classified by all the others.

  An image whose class has no other is not asked: it cannot be right.

  Args:
    embeddings: [n, e] float32, of labelled images.
    labels: [n] int32, all known.
    k: neighbours, at most n - 1.
    asked: rows of images that are asked; None: all.

  Returns:
    Top-1 accuracy; None: no image is asked.
  """
  rows = np.arange(len(labels)) if asked is None else asked
  rows = rows[has_another(labels)[rows]]
  if not len(rows):
    return None
  found, similarity = neighbours(embeddings[rows], embeddings, k + 1)
  # The image itself goes last, and then out. An equal one may stand before it,
  # so far that it is not found at all.
  order = np.argsort(found == rows[:, None], axis=1, kind='stable')
  votes = [np.take_along_axis(x, order, axis=1) for x in (found, similarity)]
  found, similarity = (x[:, : min(k, len(labels) - 1)] for x in votes)
  predicted, _ = _vote(labels[found], similarity)
  return measures.accuracy(np.asarray(predicted), labels[rows])


def has_another(labels: np.ndarray) -> np.ndarray:
  """[n] bool, whether another image has the label; -1 is no label."""
  counts = np.bincount(labels[labels >= 0], minlength=1)
  return (labels >= 0) & (counts[labels] > 1)


def ranks(
  queries: np.ndarray,
  keys: np.ndarray,
  labels: np.ndarray,
  *,
  k: int,
  num_classes: int,
) -> np.ndarray:
  """kNN as a ranking of all classes, the method's own vote first.

  A class stands before another with more votes among the k nearest keys, then
  with more summed similarity of these votes, then (without votes) with a nearer
  key of its own; the smaller id of equals.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32, embeddings of images; may be a memory-mapped file.
    labels: [M] int, -1: such an image is nobody's neighbour.
    k: neighbours; at most as many as there are labels are used.
    num_classes: K.

  Returns:
    [N, K] float32, larger is better; a class without a key is last. Only the
    order has a meaning.
  """
  (found,) = ranks_of_each(
    queries, keys, labels, ks=(k,), num_classes=num_classes
  )
  return found


def ranks_of_each(
  queries: np.ndarray,
  keys: np.ndarray,
  labels: np.ndarray,
  *,
  ks: Sequence[int],
  num_classes: int,
  temperature: float | None = None,
) -> list[np.ndarray]:
  """`ranks` for several numbers of neighbours, by one search.

  Weighted votes are those of DINO (Caron et al., arXiv 2104.14294; its release,
  eval_knn.py): a class stands before another whose votes have a smaller sum of
  exp(similarity / temperature), then (without votes) before one whose nearest
  key is farther; the smaller id of equals.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32, embeddings of images; may be a memory-mapped file.
    labels: [M] int, -1: such an image is nobody's neighbour.
    ks: numbers of neighbours; at most as many as there are labels are used.
    num_classes: K.
    temperature: of weighted votes; None: the majority's, see `ranks`.

  Returns:
    [N, K] float32 for each of ks, see `ranks`.
  """
  parts = [
    [_rank(*block, labels, k, temperature) for k in ks]
    for block in (
      tuple(map(np.asarray, found))
      for found in _search(queries, keys, labels, max(ks), num_classes)
    )
  ]
  return [np.concatenate(found) for found in zip(*parts, strict=True)]


def soft_scores(
  queries: np.ndarray,
  keys: np.ndarray,
  labels: np.ndarray,
  *,
  num_classes: int,
  temperature: float,
) -> np.ndarray:
  """Soft nearest neighbours: all labelled images vote, by similarity.

  log of softmax over all keys of similarity / temperature, summed by class;
  PAWS (Assran et al., arXiv 2104.13963; its release, snn_eval.py).

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32, embeddings of images; may be a memory-mapped file.
    labels: [M] int, -1: such an image is left out.
    num_classes: K.
    temperature: above 0.

  Returns:
    [N, K] float32 log-probabilities; of a class without a key float32's least.
  """
  used = np.flatnonzero(labels >= 0)
  size = min(_KEYS, _power_of_two(len(used)))
  many = min(_QUERIES, _power_of_two(len(queries)))
  blocks = [
    jnp.asarray(_filled(_normalised(queries[i : i + many]), many))
    for i in range(0, len(queries), many)
  ]
  scores = [jnp.full((many, num_classes), -jnp.inf)] * len(blocks)
  for i in range(0, len(used), size):
    rows = used[i : i + size]
    block = jnp.asarray(_filled(_normalised(keys[rows]), size))
    classes = _filled(labels[rows].astype(np.int32), size, num_classes)
    scores = [
      _add_votes(one, queries_, block, classes, temperature)
      for one, queries_ in zip(scores, blocks, strict=True)
    ]
  joined = np.concatenate([np.zeros((0, num_classes)), *scores])
  log_p = np.asarray(jax.nn.log_softmax(joined[: len(queries)]), np.float32)
  return np.nan_to_num(log_p, nan=_NOT_A_NUMBER, neginf=_NOT_A_NUMBER)


@jax.jit
def _add_votes(
  scores: jax.Array,
  queries: jax.Array,
  keys: jax.Array,
  labels: jax.Array,
  temperature: float,
) -> jax.Array:
  """Logarithms of sums of exp(similarity / temperature), after m keys more.

  Args:
    scores: [n, K] of earlier keys.
    queries: [n, e], of unit length.
    keys: [m, e], of unit length.
    labels: [m] int32, K: no key.
    temperature: above 0.
  """
  similarity = jnp.dot(keys, queries.T, precision=jax.lax.Precision.HIGHEST)
  similarity = jnp.where(jnp.isnan(similarity), -1.0, similarity)  # the least
  number = scores.shape[1]
  # Label K is out of range and dropped. Less its class's largest, no similarity
  # is too large.
  largest = jax.ops.segment_max(similarity, labels, number)  # [K, n]
  weights = jnp.exp((similarity - largest[labels]) / temperature)
  sums = jax.ops.segment_sum(weights, labels, number)
  return jnp.logaddexp(scores, (largest / temperature + jnp.log(sums)).T)


def _nearest(queries, keys, labels, k):
  """`neighbours` among the keys that have a label."""
  found = list(_search(queries, keys, labels, k))
  rows, similarity = (
    np.concatenate([np.asarray(getattr(block, name)) for block in found])
    for name in ('rows', 'similarity')
  )
  return rows.astype(int), similarity


def _rank(similarity, rows, nearest, labels, k, temperature):
  """The ranking of the classes of n queries, [n, K] float32; see `_Found`."""
  similarity, rows = similarity[:, :k], rows[:, :k]
  num_queries, num_classes = nearest.shape
  queries = np.arange(num_queries)[:, None]
  votes, summed = np.zeros((2, num_queries, num_classes))
  np.add.at(votes, (queries, labels[rows]), 1)
  weight = similarity
  if temperature is not None:
    votes = np.minimum(votes, 1)  # whether there are any
    # Less the largest, which changes no order: the exponential is finite.
    weight = np.exp(
      (similarity - similarity[:, :1].astype(float)) / temperature
    )
  np.add.at(summed, (queries, labels[rows]), weight)
  own = np.where(votes > 0, 0, nearest)  # the vote's ties go to the smaller id
  smaller = np.broadcast_to(-np.arange(num_classes), own.shape)
  # [n, K], worst first
  order = np.lexsort((smaller, own, summed, votes), axis=-1)
  placed = np.empty_like(order)
  np.put_along_axis(placed, order, np.arange(num_classes)[None], axis=1)
  return placed.astype(np.float32)


def _search(
  queries: np.ndarray,
  keys: np.ndarray,
  labels: np.ndarray,
  k: int,
  num_classes: int = 0,
) -> Iterator[_Found]:
  """The search: what is found for each block of the queries, in order.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32.
    labels: [M] int, -1: not searched.
    k: neighbours, at most as many as there are labels.
    num_classes: K, of the nearest keys; 0: they are not looked for.
  """
  used = np.flatnonzero(labels >= 0)
  k = min(k, len(used))
  # A few sizes only, for each is compiled.
  size = min(_KEYS, _power_of_two(len(used)))
  many = min(_QUERIES, _power_of_two(len(queries)))
  blocks = [
    jnp.asarray(_filled(_normalised(queries[i : i + many]), many))
    for i in range(0, max(1, len(queries)), many)
  ]
  empty = _Found(
    jnp.full((many, k), -jnp.inf, jnp.float32),
    jnp.zeros((many, k), jnp.int32),
    jnp.full((many, num_classes), -jnp.inf, jnp.float32),
  )
  found = [empty] * len(blocks)
  for i in range(0, len(used), size):
    rows = used[i : i + size]
    block = jnp.asarray(_filled(_normalised(keys[rows]), size))
    numbers = jnp.asarray(_filled(rows.astype(np.int32), size, -1))
    classes = jnp.asarray(_filled(labels[rows].astype(np.int32), size))
    found = [
      _update(one, block_of_queries, block, numbers, classes)
      for one, block_of_queries in zip(found, blocks, strict=True)
    ]
  for i, one in enumerate(found):
    count = min(many, len(queries) - i * many)
    yield jax.tree.map(lambda x, count=count: x[:count], one)


@jax.jit
def _update(
  found: _Found,
  queries: jax.Array,
  keys: jax.Array,
  rows: jax.Array,
  labels: jax.Array,
) -> _Found:
  """What n queries have found after m keys more.

  Args:
    found: among earlier keys.
    queries: [n, e], of unit length.
    keys: [m, e], of unit length.
    rows: [m] int32, rising, of the keys; -1: there is none.
    labels: [m] int32.
  """
  similarity = jnp.dot(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
  similarity = jnp.where(jnp.isnan(similarity), _NOT_A_NUMBER, similarity)
  similarity = jnp.where(rows >= 0, similarity, -jnp.inf)  # [n, m]
  k, num_classes = found.rows.shape[1], found.nearest.shape[1]
  # `top_k` takes the earlier of equals, and earlier keys come first.
  best, place = jax.lax.top_k(similarity, min(k, len(rows)))
  candidates = jnp.concatenate([found.similarity, best], axis=1)
  names = jnp.concatenate([found.rows, rows[place]], axis=1)
  best, place = jax.lax.top_k(candidates, k)
  nearest = found.nearest
  if num_classes:
    own = jax.ops.segment_max(similarity.T, labels, num_classes)  # [K, n]
    nearest = jnp.maximum(nearest, own.T)
  return _Found(best, jnp.take_along_axis(names, place, axis=1), nearest)


def _normalised(x: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.maximum(lengths, 1e-6)


def _filled(x: np.ndarray, size: int, value: float = 0) -> np.ndarray:
  """[n, ...] -> [size, ...]."""
  missing = [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1)
  return np.pad(x, missing, constant_values=value)


def _power_of_two(count: int) -> int:
  """The least power of two that is not smaller."""
  return 1 << max(0, count - 1).bit_length()
