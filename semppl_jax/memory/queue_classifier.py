"""Pseudo-labels by a classifier that learns from a label queue.

CMSF's head (Navaneet et al., ECCV 2022; UCDvision/CMSF,
semi_supervised/pseudo_label_train.py): a perceptron of one hidden layer on unit
target projections of labelled images, trained by SGD beside the networks. There
it trains twice an epoch, ten passes over the queue each time; here in every
step a little, on slots drawn uniformly [ours], so that a run is a pure function
of its steps. Runs inside the mapped step: weights and updates are the same on
all devices, and the drawn rows travel.

Shapes: C slots of the queue, d the embedding size, K classes, n rows.
"""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from semppl_jax.losses import classification
from semppl_jax.memory import label_queue
from semppl_jax.memory.label_queue import LabelQueue


class Classifier(NamedTuple):
  """The same on all devices."""

  params: hk.Params
  state: hk.State  # BatchNorm's running statistics
  momentum: hk.Params  # of SGD, like the weights


def _network(num_classes: int) -> hk.TransformedWithState:
  """[n, d] unit rows -> logits [n, K]."""

  def forward(x, is_training):
    hidden = hk.Linear(2 * x.shape[-1])(x)
    norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
    hidden = jax.nn.relu(norm(hidden, is_training))
    return hk.Linear(num_classes)(hidden)

  return hk.transform_with_state(forward)


def init(key: jax.Array, size: int, num_classes: int) -> Classifier:
  """Random weights.

  Args:
    key: of them.
    size: d.
    num_classes: K.
  """
  rows = jnp.zeros((2, size))
  params, state = _network(num_classes).init(key, rows, True)
  return Classifier(params, state, jax.tree.map(jnp.zeros_like, params))


def shards(size: int, num_classes: int) -> Classifier:
  """-1 for every leaf: none is split over the devices."""
  make = lambda: init(jax.random.key(0), size, num_classes)
  return jax.tree.map(lambda _: -1, jax.eval_shape(make))


def train(
  classifier: Classifier,
  queue: LabelQueue,
  key: jax.Array,
  *,
  steps: int,
  batch_size: int,
  learning_rate: float,
  momentum: float,
  weight_decay: float,
) -> tuple[Classifier, jax.Array]:
  """Steps of SGD on the cross-entropy of rows of the queue.

  Args:
    classifier: before them.
    queue: of one view; its filled slots have labels. With none it stays as it
      is.
    key: of the draws, the same on all devices.
    steps: how many.
    batch_size: n, rows of each, drawn with replacement.
    learning_rate: of each.
    momentum: decay of the trace.
    weight_decay: times a parameter, added to its gradient, of all of them.

  Returns:
    The classifier, and the mean cross-entropy in nats, [] float32; 0: nothing
    to learn from.
  """
  slots = label_queue.sample_slots(queue, key, steps * batch_size)
  rows = label_queue.rows(queue, slots)[0].reshape(steps, batch_size, -1)
  labels = queue.labels[slots].reshape(steps, batch_size)
  num_classes = classifier.params['linear_1']['b'].size
  apply = _network(num_classes).apply

  def loss(params, state, rows, labels):
    logits, state = apply(params, state, None, rows, True)
    return classification.cross_entropy(logits, labels).mean(), state

  def update(old, batch):
    params, state, trace = old
    (value, state), grads = jax.value_and_grad(loss, has_aux=True)(
      params, state, *batch
    )
    trace = jax.tree.map(
      lambda v, g, w: momentum * v + g + weight_decay * w, trace, grads, params
    )
    params = jax.tree.map(lambda w, v: w - learning_rate * v, params, trace)
    return Classifier(params, state, trace), value

  trained, values = jax.lax.scan(update, classifier, (rows, labels))
  filled = jnp.any(queue.ids >= 0)
  return jax.tree.map(
    lambda new, old: jnp.where(filled, new, old),
    (trained, values.mean()),
    (classifier, jnp.zeros(())),
  )


def logits(classifier: Classifier, rows: jax.Array) -> jax.Array:
  """[n, d] unit rows -> [n, K], in evaluation mode."""
  apply = _network(classifier.params['linear_1']['b'].size).apply
  return apply(classifier.params, classifier.state, None, rows, False)[0]


def assign(
  logits: jax.Array, labels: jax.Array, min_confidence: float
) -> jax.Array:
  """(Pseudo-)labels: the true label if there is one, else a sure guess.

  Args:
    logits: [n, K].
    labels: [n] int32 true labels, -1: unlabelled.
    min_confidence: the largest probability, at least, of a guess that counts.

  Returns:
    [n] int32, -1: none.
  """
  sure = jax.nn.softmax(logits).max(axis=-1) >= min_confidence
  guess = jnp.where(sure, logits.argmax(axis=-1), -1).astype(labels.dtype)
  return jnp.where(labels >= 0, labels, guess)
