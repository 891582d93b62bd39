"""A classifier that learns from a queue: steps by hand, draws, its guesses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.memory import label_queue, queue_classifier
from tests.helpers import golden

_SIZE, _CLASSES = 4, 3
_SGD = {
  'steps': 3, 'batch_size': 5, 'learning_rate': 0.1, 'momentum': 0.9,
  'weight_decay': 0.01,
}  # fmt: skip


def _queue(filled, capacity=8):
  """Its first slots are filled, with labels 0, 1, 2, 0, ..."""
  rows = np.zeros((1, capacity, _SIZE), np.float32)
  rows[:, :filled] = np.random.RandomState(0).randn(filled, _SIZE)
  number = np.arange(capacity, dtype=np.int32)
  there = number < filled
  return label_queue.LabelQueue(
    rows,
    np.where(there, number % _CLASSES, -1).astype(np.int32),
    np.where(there, 100 + number, -1).astype(np.int32),
    np.int32(filled),
  )


def _fresh():
  return queue_classifier.init(jax.random.key(1), _SIZE, _CLASSES)


def _train(number, queue, classifier=None, seed=0, **changes):
  """What `train` makes on each of D devices; all must agree."""
  train = functools.partial(queue_classifier.train, **(_SGD | changes))
  parts = np.stack(np.split(queue.embeddings, number, axis=1))
  axes = label_queue.LabelQueue(0, None, None, None)
  mapped = jax.vmap(train, in_axes=(None, axes, None), axis_name=parallel.AXIS)
  found = mapped(
    classifier or _fresh(),
    queue._replace(embeddings=parts),
    jax.random.key(seed),
  )
  for leaf in jax.tree.leaves(found):
    np.testing.assert_array_equal(leaf, leaf[:1].repeat(number, 0))
  return jax.tree.map(lambda x: np.asarray(x[0]), found)


def _loss(params, x, labels):
  """Linear, BatchNorm, ReLU, Linear and softmax, written out."""
  hidden = x @ params['linear']['w'] + params['linear']['b']
  mean, variance = hidden.mean(0), hidden.var(0)
  hidden = (hidden - mean) / jnp.sqrt(variance + 1e-5)
  norm = params['batch_norm']
  hidden = jnp.maximum(hidden * norm['scale'] + norm['offset'], 0)
  logits = hidden @ params['linear_1']['w'] + params['linear_1']['b']
  p = jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True)
  right = jnp.take_along_axis(p, labels[:, None], 1)
  return -jnp.log(right).mean(), (mean, variance)


def test_steps_are_those_of_sgd_with_momentum_and_decay():
  queue, begun = _queue(7), _fresh()
  after, loss = _train(1, queue)
  slots = label_queue.sample_slots(queue, jax.random.key(0), 15).reshape(3, 5)
  params, velocity = begun.params, None
  values, means, variances = [], [], []
  gradient = jax.jit(jax.value_and_grad(_loss, has_aux=True))
  for drawn in np.asarray(slots):
    (value, moments), grads = gradient(
      params, queue.embeddings[0, drawn], queue.labels[drawn]
    )
    step = jax.tree.map(lambda g, w: g + 0.01 * w, grads, params)
    velocity = (
      step
      if velocity is None
      else jax.tree.map(lambda v, g: 0.9 * v + g, velocity, step)
    )
    params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
    values.append(value)
    means.append(moments[0])
    variances.append(moments[1])
  assert params['linear']['w'].shape == (_SIZE, 2 * _SIZE)
  chex.assert_trees_all_close(after.params, params, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(after.momentum, velocity, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(loss, np.mean(values), rtol=1e-5)
  # Running averages of decay 0.9, without their beginning from 0.
  weights = 0.9 ** np.array([2, 1, 0])
  weights /= weights.sum()
  state = after.state
  for name, moments in (('mean', means), ('var', variances)):
    average = state[f'batch_norm/~/{name}_ema']['average'][0]
    wanted = weights @ np.array(moments)
    np.testing.assert_allclose(average, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'number', [*(pytest.param(n, marks=pytest.mark.long) for n in (2, 4)), 8]
)
def test_the_number_of_devices_changes_nothing(number):
  queue = _queue(6)
  one, many = _train(1, queue), _train(number, queue)
  chex.assert_trees_all_close(many, one, rtol=1e-5, atol=1e-6)


def test_slots_are_drawn_uniformly_among_those_that_are_filled():
  for filled in (1, 5, 8):
    queue = _queue(filled)
    slots = label_queue.sample_slots(queue, jax.random.key(filled), 8000)
    counts = np.bincount(slots, minlength=8)
    assert not counts[filled:].any()
    wanted = 8000 / filled
    assert np.abs(counts[:filled] - wanted).max() < 5 * np.sqrt(wanted)


@pytest.mark.parametrize('number', [1, 2, 8])
def test_rows_are_those_of_the_slots_on_every_device(number):
  queue = _queue(8)
  parts = np.stack(np.split(queue.embeddings, number, axis=1))
  slots = np.array([7, 0, -1, 3, 3], np.int32)
  get = lambda part: label_queue.rows(queue._replace(embeddings=part), slots)
  found = jax.vmap(get, axis_name=parallel.AXIS)(parts)
  wanted = np.where(slots[:, None] >= 0, queue.embeddings[:, slots], 0)
  np.testing.assert_array_equal(found, np.stack([wanted] * number))


def test_an_empty_queue_teaches_nothing():
  after, loss = _train(2, _queue(0))
  chex.assert_trees_all_equal(after, jax.tree.map(np.asarray, _fresh()))
  assert loss == 0


def test_it_learns_a_queue_by_heart():
  queue = _queue(7)
  rows, labels = queue.embeddings[0, :7], queue.labels[:7]
  after, _ = _train(1, queue, steps=300, batch_size=8, weight_decay=1e-4)
  found = queue_classifier.logits(after, rows)
  guess = queue_classifier.assign(found, np.full(7, -1, np.int32), 0.6)
  np.testing.assert_array_equal(guess, labels)


def test_guesses_of_the_releases_head_are_the_releases():
  """Stored with -1 where the head is not sure: image 6."""
  file = golden.load('cmsf_semi.npz')
  unit = file['target'] / np.linalg.norm(file['target'], axis=1)[:, None]
  logits = unit @ file['head_w'].T + file['head_b']
  np.testing.assert_allclose(
    jax.nn.softmax(logits), file['head_prob'], rtol=1e-5, atol=1e-6
  )
  visible = np.where(file['unlabelled'] == 0, file['labels'], -1)
  found = queue_classifier.assign(
    logits, visible.astype(np.int32), file['threshold']
  )
  pointer = int(file['pointer'])
  slots = (pointer + np.arange(8)) % 40
  np.testing.assert_array_equal(found, file['queue_labels_after'][slots])
  assert found[6] == -1


def test_a_guess_counts_from_the_threshold_on():
  logits = np.log(np.array([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]], 'f4'))
  labels = np.array([-1, -1, -1], np.int32)
  assign = lambda least, known=labels: queue_classifier.assign(
    logits, known, least
  ).tolist()
  assert assign(0.74) == [0, 1, -1]
  assert assign(0.76) == [-1, -1, -1]
  assert assign(0.0) == [0, 1, 0]
  # A true label overrules a guess, sure or not.
  assert assign(0.74, np.array([1, -1, 0], np.int32)) == [1, 1, 0]
