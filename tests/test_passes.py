"""Views through a network: in order, and in one pass as in many."""

import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import structs
from semppl_jax.models import passes


def _apply(params, state, images, is_training):
  """Tells an image by its sum; the state lists how many each pass saw."""
  assert is_training
  sums = params * images.sum(axis=(1, 2, 3))[:, None]
  return structs.Outputs(sums, sums, None, None), (*state, len(images))


@pytest.mark.parametrize(
  'one_pass, seen', [(False, (3, 3, 3, 3)), (True, (6, 6))]
)
def test_outputs_stand_where_their_views_stood(one_pass, seen):
  large = jnp.arange(2 * 3 * 4 * 4 * 3, dtype=float).reshape(2, 3, 4, 4, 3)
  small = -jnp.arange(2 * 3 * 2 * 2 * 3, dtype=float).reshape(2, 3, 2, 2, 3)
  outputs, state = passes.encode(
    _apply, 2.0, (), (large, small), one_pass=one_pass
  )
  assert state == seen  # images in each pass
  assert outputs.prediction is None
  expected = [2 * views.sum(axis=(2, 3, 4)) for views in (large, small)]
  np.testing.assert_allclose(
    outputs.projection[..., 0], np.concatenate(expected), rtol=1e-6
  )


def test_a_spread_by_hand():
  same = jnp.ones((1, 4, 9)) / 3
  assert passes.spread(same) == 0
  axes = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])[None]  # fill the sphere
  np.testing.assert_allclose(passes.spread(axes), 1.0, rtol=1e-6)


def test_unit_rows():
  rows = passes.unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
  np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize('number', [1, 3])
def test_parts_are_taken_in_turn(number):
  parts = np.arange(1.0, 1 + 2 * number, dtype=np.float32).reshape(number, 2)

  def take(carry, part):
    return carry * 2 + part.sum(), {'mean': part * 10}, part + carry

  carry, averaged, kept = passes.in_turn(take, jnp.float32(1), parts)
  told, before = 1.0, []
  for part in parts:
    before.append(part + told)
    told = told * 2 + part.sum()
  assert carry == told
  np.testing.assert_allclose(averaged['mean'], 10 * parts.mean(axis=0))
  np.testing.assert_allclose(kept, before)
