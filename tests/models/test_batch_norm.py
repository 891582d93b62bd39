"""BatchNorm of views is Haiku's, in a pass for each: values and gradients."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.models.batch_norm import BatchNorm

SETTINGS = {
  'create_scale': True, 'create_offset': True, 'decay_rate': 0.9, 'eps': 1e-3,
  'name': 'norm',
}  # fmt: skip


def _noise(*shape, seed=0):
  return np.random.RandomState(seed).standard_normal(shape).astype('float32')


def _theirs(x, axis=None):
  norm = hk.BatchNorm(**SETTINGS, cross_replica_axis=axis)
  return jnp.stack([norm(view, True) for view in x])


def _ours(x, axis=None):
  return BatchNorm(views=True, **SETTINGS, cross_replica_axis=axis)(x, True)


def _trees(x):
  net = hk.transform_with_state(_theirs)
  params, state = net.init(None, x)
  moved = lambda x: x + 0.5 * _noise(*x.shape, seed=3)
  return jax.tree.map(moved, params), state


def _results(forward, params, state, x, weights, axis=None):
  """The values, the state, and gradients of a sum weighted by noise."""
  net = hk.transform_with_state(lambda x: forward(x, axis))

  def loss(params, x):
    y, new_state = net.apply(params, state, None, x)
    return jnp.sum(weights * y), (y, new_state)

  return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


def _assert_close(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('shape', [(3, 8, 5), (3, 4, 2, 3, 5), (1, 6, 2, 2, 4)])
def test_values_gradients_and_averages(shape):
  x = 2 * _noise(*shape) + 1
  args = *_trees(x), x, _noise(*shape, seed=1)
  _assert_close(_results(_ours, *args), _results(_theirs, *args))


def test_without_views_it_is_haikus():
  x = 2 * _noise(6, 3, 5) + 1
  args = *_trees(x[None]), x, _noise(*x.shape, seed=1)
  ours = lambda x, axis: BatchNorm(**SETTINGS)(x, True)
  theirs = lambda x, axis: hk.BatchNorm(**SETTINGS)(x, True)
  _assert_close(_results(ours, *args), _results(theirs, *args))


@pytest.mark.skipif(len(jax.devices()) < 4, reason='needs 4 devices')
def test_statistics_and_gradients_of_all_devices():
  x = 2 * _noise(4, 3, 6, 5) + 1  # [D, V, n, c]
  params, state = _trees(x[0])
  weights = _noise(*x.shape, seed=1)

  def mapped(forward):
    one = lambda x, w: _results(forward, params, state, x, w, parallel.AXIS)
    devices = jax.devices()[:4]
    return jax.pmap(one, axis_name=parallel.AXIS, devices=devices)(x, weights)

  _assert_close(mapped(_ours), mapped(_theirs))


def test_evaluation_takes_the_averages():
  x = _noise(3, 4, 2, 5)
  params, state = _trees(x)
  _, (_, state) = _results(_ours, params, state, x, x)
  net = lambda make: hk.transform_with_state(make).apply(params, state, None, x)
  ours, same = net(lambda x: BatchNorm(views=True, **SETTINGS)(x, False))
  theirs, _ = net(
    lambda x: hk.BatchNorm(**SETTINGS)(x.reshape(12, 2, 5), False)
  )
  np.testing.assert_allclose(ours.reshape(12, 2, 5), theirs, rtol=1e-6)
  _assert_close(same, state)
