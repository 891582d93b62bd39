"""Microbatches one after another."""

import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.train import microbatch


@pytest.mark.parametrize('number', [1, 3])
def test_parts_are_taken_in_turn(number):
  parts = np.arange(1.0, 1 + 2 * number, dtype=np.float32).reshape(number, 2)

  def take(carry, part):
    return carry * 2 + part.sum(), {'mean': part * 10}, part + carry

  carry, averaged, kept = microbatch.scan(take, jnp.float32(1), parts)
  told, before = 1.0, []
  for part in parts:
    before.append(part + told)
    told = told * 2 + part.sum()
  assert carry == told
  np.testing.assert_allclose(averaged['mean'], 10 * parts.mean(axis=0))
  np.testing.assert_allclose(kept, before)
