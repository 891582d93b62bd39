"""What a trained encoder is worth: embeddings, neighbours, linear probes.

Works on the test images of the data set (or on its validation part). The
network runs in evaluation mode on the middle of every image, without
augmentation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from semppl_jax.data import pipeline
from semppl_jax.evaluation import inference
from semppl_jax.memory import pseudo_labels
from semppl_jax.methods import base
from semppl_jax.models import networks as networks_lib
from semppl_jax.train.state import TrainState


class Features(NamedTuple):
  """What the online network says of N images, in the order of the source."""

  embeddings: np.ndarray  # [N, e] float32, the encoder's output
  votes: np.ndarray  # [N] int32, what the objective predicts, -1: nothing
  guesses: np.ndarray  # [N] int32, the classifier's choice, -1: no classifier
  readable: np.ndarray  # [N] bool, whether the image could be decoded


def features(
  state: TrainState,
  method: base.Method,
  nets: networks_lib.Networks,
  cfg: ml_collections.FrozenConfigDict,
  source: Any,
  devices: list[jax.Device],
  on_unreadable: pipeline.OnUnreadable | None = None,
) -> Features:
  """Runs every image of `source` through the online network.

  Args:
    state: leaves [D, ...].
    method: the objective.
    nets: the networks.
    cfg: settings.
    source: records with 'image', by index.
    devices: the D devices.
    on_unreadable: told of each image that cannot be decoded.
  """
  images = pipeline.Images(
    crop=(cfg.views.large_size, cfg.evaluation.center),
    on_corrupt=cfg.dataset.on_corrupt,
  )
  outputs, readable = inference.over_images(
    _make_forward(method, nets), state, source, devices,
    cfg.evaluation.batch_size, images=images, workers=cfg.dataset.workers,
    on_unreadable=on_unreadable,
  )  # fmt: skip
  return Features(*outputs, readable)


def rows_to_judge(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
  """Rows of the training images that are looked at in the end.

  Args:
    labels: [N] labels that training saw, -1: none.
    most: so many images without a label at most, at random; 0: all.
    seed: of the choice.

  Returns:
    Sorted rows: all labelled images, and those.
  """
  hidden = np.flatnonzero(labels < 0)
  if most and len(hidden) > most:
    hidden = np.random.RandomState(seed % 2**32).permutation(hidden)[:most]
  return np.sort(np.concatenate([np.flatnonzero(labels >= 0), hidden]))


def _make_forward(
  method: base.Method, nets: networks_lib.Networks
) -> Callable[[TrainState, jax.Array], tuple[jax.Array, ...]]:
  """(state, crops [b, S, S, 3] in [0, 1]) -> Features' fields of b images."""

  def forward(state, views):
    outputs, _ = nets.online(
      state.online_params, state.online_state, views, False
    )
    nobody = jnp.full(len(views), -1, jnp.int32)
    votes = guesses = nobody
    if method.predict is not None:
      one_view = jax.tree.map(lambda x: x[None], outputs)
      votes = method.predict(one_view, state.memory)  # [b]
    if 'logits' in outputs:
      guesses = outputs['logits'].argmax(axis=-1).astype(jnp.int32)
    return outputs['embedding'], votes, guesses

  return forward


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float | None:
  """Share of right predictions among images whose truth is known (>= 0)."""
  known = truth >= 0
  return (
    float(np.mean(predicted[known] == truth[known])) if any(known) else None
  )


def knn_predict(
  queries: np.ndarray, keys: np.ndarray, labels: np.ndarray, k: int
) -> np.ndarray:
  """Cosine kNN with the method's own vote.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32, embeddings of labelled images.
    labels: [M] int.
    k: neighbours; at most M are used.

  Returns:
    [N] int32.
  """
  nearest, similarity = neighbours(queries, keys, k)
  return np.asarray(pseudo_labels.vote(labels[nearest], similarity)[0])


def neighbours(
  queries: np.ndarray, keys: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest keys by cosine, nearest first; the earlier of equals.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32.
    k: at most M are found.

  Returns:
    Rows of the keys, [N, k] int, and their similarities, [N, k] float32.
  """
  keys = keys / _lengths(keys)
  rows, chosen = [], []
  for block in _blocks(queries, len(keys)):
    similarity = (block / _lengths(block)) @ keys.T
    nearest = np.argsort(-similarity, axis=1, kind='stable')[:, :k]  # [n, k]
    rows.append(nearest)
    chosen.append(np.take_along_axis(similarity, nearest, axis=1))
  return np.concatenate(rows), np.concatenate(chosen)


def _blocks(
  queries: np.ndarray, num_keys: int, block_size: int = 1024
) -> list[np.ndarray]:
  """Parts of the queries whose similarities take at most some 256 MB."""
  size = max(1, min(block_size, 2**26 // max(1, num_keys)))
  return np.split(queries, range(size, len(queries), size))


def knn_scores(
  queries: np.ndarray,
  keys: np.ndarray,
  labels: np.ndarray,
  *,
  k: int,
  num_classes: int,
  block_size: int = 1024,
) -> np.ndarray:
  """Cosine kNN as a ranking of all classes, the method's own vote first.

  A class stands before another with more votes among the k nearest keys, then
  with more summed similarity of these votes, then (without votes) with a nearer
  key of its own; the smaller id of equals.

  Args:
    queries: [N, e] float32.
    keys: [M, e] float32, embeddings of labelled images.
    labels: [M] int.
    k: neighbours; at most M are used.
    num_classes: K.
    block_size: queries at a time; fewer where there are many keys, so that
      similarities take at most some 256 MB.

  Returns:
    [N, K] float32, larger is better; a class without a key is last. Only the
    order has a meaning.
  """
  keys = keys / _lengths(keys)
  parts = [
    _rank_block(block / _lengths(block), keys, labels, k, num_classes)
    for block in _blocks(queries, len(keys), block_size)
  ]
  return np.concatenate(parts)


def _rank_block(queries, keys, labels, k, num_classes):
  similarity = queries @ keys.T  # [n, M]
  nearest = np.argsort(-similarity, axis=1, kind='stable')[:, :k]  # [n, k]
  rows = np.arange(len(queries))[:, None]
  votes, summed = np.zeros((2, len(queries), num_classes))
  np.add.at(votes, (rows, labels[nearest]), 1)
  np.add.at(summed, (rows, labels[nearest]), similarity[rows, nearest])
  own = np.full((len(queries), num_classes), -np.inf)  # nearest key of a class
  np.maximum.at(own, (rows, labels[None]), similarity)
  own = np.where(votes > 0, 0, own)  # the vote's ties go to the smaller id
  smaller = np.broadcast_to(-np.arange(num_classes), own.shape)
  # [n, K], worst first
  order = np.lexsort((smaller, own, summed, votes), axis=-1)
  ranks = np.empty_like(order)
  np.put_along_axis(ranks, order, np.arange(num_classes)[None], axis=1)
  return ranks.astype(np.float32)


def _lengths(x: np.ndarray) -> np.ndarray:
  return np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def linear_probe(
  train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float
) -> np.ndarray:
  """Logistic regression on standardised frozen features.

  Args:
    train: [M, e] float32.
    labels: [M] int.
    test: [N, e] float32.
    c: inverse strength of the L2 penalty.

  Returns:
    [N] predicted labels. With one class only, that class.
  """
  if len(np.unique(labels)) < 2:
    return np.full(len(test), labels[0])
  # Late: it takes seconds to import, and a training needs it at its end only.
  from sklearn import linear_model, preprocessing
  from sklearn import pipeline as sk_pipeline

  probe = sk_pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=c, max_iter=2000),
  )
  return probe.fit(train, labels).predict(test)


def pseudo_labels_of(
  features: Features, cfg: ml_collections.FrozenConfigDict
) -> np.ndarray:
  """[N] int32 labels for unlabelled images, -1: none.

  What the objective predicts; of the classifier, where the objective does not
  predict, or where the classifier trains the encoder.
  """
  detached = 'classifier' not in cfg or cfg.classifier.detached
  predicts = detached and np.any(features.votes >= 0)
  return features.votes if predicts else features.guesses


def scores(
  train: Features,
  test: Features | None,
  *,
  labels: np.ndarray,
  truth: np.ndarray,
  test_truth: np.ndarray | None,
  cfg: ml_collections.FrozenConfigDict,
) -> dict[str, float | None]:
  """The numbers of results.json; None where there is nothing to measure.

  Args:
    train: features of N training images: `rows_to_judge`.
    test: features of the test images, or None without a test split.
    labels: [N] labels that training saw, -1: none.
    truth: [N] true labels, -1: unknown.
    test_truth: true labels of the test images.
    cfg: settings.

  Returns:
    pseudo_label_accuracy: on unlabelled training images, see
      `pseudo_labels_of` (SemPPL's is the vote in the final queue).
    classifier_top1: the classifier that trained along.
    knn_top1: encoder features against the labelled training images.
    linear_labelled_top1, linear_all_top1: logistic regression on the features
      of the labelled images, of all N.
  """
  labels, truth = (np.where(train.readable, x, -1) for x in (labels, truth))
  if test is not None:
    test_truth = np.where(test.readable, test_truth, -1)
  labelled = labels >= 0
  guesses = pseudo_labels_of(train, cfg)
  names = ('classifier_top1', 'knn_top1') + (
      'linear_labelled_top1', 'linear_all_top1',
  )  # fmt: skip
  result = dict.fromkeys(('pseudo_label_accuracy',) + names)
  if not any(labelled):
    return result | _all_labels_probe(train, test, truth, test_truth, cfg)
  result['pseudo_label_accuracy'] = accuracy(
    guesses, np.where(labelled, -1, truth)
  )
  if test is None:
    return result
  result['classifier_top1'] = accuracy(test.guesses, test_truth)
  keys = train.embeddings[labelled]
  result['knn_top1'] = accuracy(
    knn_predict(test.embeddings, keys, labels[labelled], cfg.evaluation.k),
    test_truth,
  )
  if cfg.evaluation.probes:
    predicted = linear_probe(
      keys, labels[labelled], test.embeddings, cfg.evaluation.probe_c
    )
    result['linear_labelled_top1'] = accuracy(predicted, test_truth)
  return result | _all_labels_probe(train, test, truth, test_truth, cfg)


def _all_labels_probe(train, test, truth, test_truth, cfg):
  known = truth >= 0
  if test is None or not cfg.evaluation.probes or not any(known):
    return {}
  predicted = linear_probe(
    train.embeddings[known],
    truth[known],
    test.embeddings,
    cfg.evaluation.probe_c,
  )
  return {'linear_all_top1': accuracy(predicted, test_truth)}
