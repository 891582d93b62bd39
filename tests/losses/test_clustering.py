"""Swapped prediction: values by hand, against plain loops, and invariants."""

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.losses import clustering


def _case(views=4, images=3, number=5):
  random = np.random.RandomState(0)
  q = np.asarray(jax.nn.softmax(random.standard_normal((2, images, number))))
  return q, random.uniform(-1, 1, (views, images, number)).astype(np.float32)


def test_a_loss_by_hand():
  """DINO's, of one image: (H(3/4, 1/4) + log 2) / 2."""
  q = jnp.array([[[0.75, 0.25]], [[0.5, 0.5]]])
  scores = jnp.array([[[0.0, 0.0]], [[0.1 * np.log(3), 0.0]]])
  loss = clustering.swapped_prediction(q, scores, 0.1)
  # View 2, of (3/4, 1/4), predicts (3/4, 1/4); view 1, undecided, anything.
  wanted = (-0.75 * np.log(0.75) - 0.25 * np.log(0.25) + np.log(2)) / 2
  np.testing.assert_allclose(loss, [wanted], rtol=1e-6)


def test_the_pairs_are_those_of_the_formula():
  q, scores = _case()
  total = np.zeros(3)
  for a in range(2):
    for v in range(4):
      if v != a:
        total += clustering.cross_entropy(q[a], scores[v], 0.1) / (2 * 3)
  found = clustering.swapped_prediction(q, scores, 0.1)
  np.testing.assert_allclose(found, total, rtol=1e-6)


def test_cross_entropy_is_a_plain_sum():
  q, scores = _case()
  p = np.exp(scores[0].astype(np.float64) / 0.3)
  p /= p.sum(axis=-1, keepdims=True)
  wanted = -(q[0] * np.log(p)).sum(axis=-1)
  found = clustering.cross_entropy(q[0], scores[0], 0.3)
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_constant_of_a_row_changes_nothing_and_assignments_learn_nothing():
  q, scores = _case()
  found = clustering.swapped_prediction(q, scores, 0.1)
  moved = clustering.swapped_prediction(q, scores + 3 * q[:1, :, :1], 0.1)
  np.testing.assert_allclose(moved, found, rtol=1e-5)
  for loss in (
    lambda q: clustering.swapped_prediction(q, scores, 0.1).sum(),
    lambda q: clustering.cross_entropy(q[0], scores[0], 0.1).sum(),
  ):
    np.testing.assert_array_equal(jax.grad(loss)(q), 0)


def test_a_view_does_not_predict_its_own_assignment():
  """Only view 0 predicts view 1, and the other way round, of two."""
  q, scores = _case(views=2)
  grads = jax.jacobian(
    lambda s: clustering.swapped_prediction(q[:1], s, 0.1).sum()
  )(scores)
  np.testing.assert_array_equal(grads[0], 0)
  assert np.all(grads[1] != 0)


def test_low_precision_scores_are_taken_wide():
  q, scores = _case()
  low = jnp.asarray(scores, jnp.bfloat16)
  found = clustering.swapped_prediction(q, low, 0.1)
  assert found.dtype == jnp.float32
  wide = clustering.swapped_prediction(q, low.astype(jnp.float32), 0.1)
  np.testing.assert_array_equal(found, wide)


def test_what_shows_a_collapse_by_hand():
  one_hot = jnp.eye(4)[jnp.array([[0, 0, 1], [0, 2, 1]])]  # [2, 3, 4]
  told = clustering.assignment_metrics(one_hot, lambda tree: tree)
  share = np.array([3, 2, 1]) / 6
  assert told['assignment_entropy'] == 0
  np.testing.assert_allclose(
    told['marginal_entropy'], -(share * np.log(share)).sum(), rtol=1e-6
  )
  assert told['prototypes_used'] == 3
  assert told['top_prototype_share'] == 0.5
  uniform = jnp.full((2, 3, 4), 0.25)
  told = clustering.assignment_metrics(uniform, lambda tree: tree)
  for name in ('assignment_entropy', 'marginal_entropy'):
    np.testing.assert_allclose(told[name], np.log(4), rtol=1e-6)


def test_what_shows_a_collapse_is_of_all_devices():
  q, _ = _case(images=8, number=6)

  def of(number):
    parts = jnp.stack(jnp.split(jnp.asarray(q), number, axis=1))
    mean = lambda tree: jax.lax.pmean(tree, 'devices')
    told = jax.vmap(
      lambda q: clustering.assignment_metrics(q, mean), axis_name='devices'
    )(parts)
    return {name: np.asarray(value) for name, value in told.items()}

  whole = of(1)
  for number in (2, 4):
    for name, value in of(number).items():
      assert np.ptp(value) == 0
      np.testing.assert_allclose(value[0], whole[name][0], rtol=1e-6)
