"""Views through a network: in order, and in one pass as in many."""

import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.models import multicrop


def _apply(params, state, images, is_training):
  """Tells an image by its sum; the state lists what each pass saw."""
  assert is_training
  sums = params * images.sum(axis=(-3, -2, -1))[..., None]
  return {'projection': sums}, (*state, images.shape[:2])


@pytest.mark.parametrize('one_pass, seen', [(False, (2, 3)), (True, (1, 6))])
def test_outputs_stand_where_their_views_stood(one_pass, seen):
  large = jnp.arange(2 * 3 * 4 * 4 * 3, dtype=float).reshape(2, 3, 4, 4, 3)
  small = -jnp.arange(2 * 3 * 2 * 2 * 3, dtype=float).reshape(2, 3, 2, 2, 3)
  outputs, state = multicrop.forward_views(
    _apply, 2.0, (), (large, small, small[:0]), one_pass=one_pass
  )
  assert state == (seen, seen)  # views and images in each pass
  expected = [2 * views.sum(axis=(2, 3, 4)) for views in (large, small)]
  np.testing.assert_allclose(
    outputs['projection'][..., 0], np.concatenate(expected), rtol=1e-6
  )


def test_heads_see_all_views_of_all_sizes_together():
  large = jnp.arange(2 * 3 * 4 * 4 * 3, dtype=float).reshape(2, 3, 4, 4, 3)
  small = -jnp.arange(3 * 3 * 2 * 2 * 3, dtype=float).reshape(3, 3, 2, 2, 3)

  def encode(params, state, images, is_training):
    assert is_training
    sums = params * images.sum(axis=(-3, -2, -1))
    return sums[..., None], (*state, images.shape[:2])

  def heads(params, state, embedding, is_training):
    assert is_training and params == 2.0
    return {'projection': embedding + 1}, (*state, embedding.shape)

  outputs, state = multicrop.forward_views(
    encode, 2.0, (), (large, small), one_pass=True, heads=heads
  )
  assert state == ((1, 6), (1, 9), (1, 15, 1))
  expected = [2 * views.sum(axis=(2, 3, 4)) + 1 for views in (large, small)]
  assert outputs['projection'].shape == (5, 3, 1)
  np.testing.assert_allclose(
    outputs['projection'][..., 0], np.concatenate(expected), rtol=1e-6
  )


@pytest.mark.parametrize('apart', [False, True])
def test_a_support_goes_first_and_shares_statistics(apart):
  rows = lambda *shape: jnp.arange(np.prod(shape), dtype=float).reshape(shape)
  large, small = rows(2, 3, 4, 4, 3), -rows(2, 3, 2, 2, 3)
  support = 1 + rows(2, 4, 4, 4, 3) ** 1.5

  def encode(params, state, images, is_training):
    assert is_training and params == 2.0
    sums = images.sum(axis=(-3, -2, -1))[..., None]
    mean = sums.mean(axis=1, keepdims=True)  # as a BatchNorm's of each view
    return sums - mean, (*state, images.shape[:2])

  def heads(params, state, embedding, is_training):
    assert is_training and params == 2.0
    spread = embedding.max(axis=1, keepdims=True)
    return embedding / spread, (*state, embedding.shape)

  of_support, of_views, state = multicrop.forward_joined(
    encode, 2.0, (), support, (large, small, small[:0]),
    heads=heads if apart else None,
  )  # fmt: skip
  assert state == ((1, 8 + 6), (1, 6), (1, 20, 1))[: 2 + apart]
  sums = lambda *views: np.concatenate(
    [np.asarray(x.sum(axis=(2, 3, 4))).reshape(-1) for x in views]
  )
  first, second = sums(support, large), sums(small)
  wanted = np.concatenate([first - first.mean(), second - second.mean()])
  wanted /= wanted.max() if apart else 1
  assert of_support.shape == (2, 4, 1) and of_views.shape == (4, 3, 1)
  found = np.concatenate([of_support.reshape(-1), of_views.reshape(-1)])
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_spread_by_hand():
  same = jnp.ones((1, 4, 9)) / 3
  assert multicrop.embedding_std(same) == 0
  axes = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])[None]  # fill the sphere
  np.testing.assert_allclose(multicrop.embedding_std(axes), 1.0, rtol=1e-6)


def test_unit_rows():
  rows = multicrop.l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
  np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
