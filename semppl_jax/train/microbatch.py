"""Microbatches: a batch taken in parts, one after another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan(
  step: Callable[[Any, Any], tuple[Any, Any, Any]], carry: Any, batches: Any
) -> tuple[Any, Any, Any]:
  """Gradient accumulation: takes the microbatches one after another.

  Args:
    step: (carry, batch) -> (carry, what is averaged, what is kept of each).
    carry: goes from one to the next.
    batches: leaves [m, ...]; with m = 1 there is no loop.

  Returns:
    The last carry, the means over them, and what was kept, leaves
    [m, ...].
  """
  number = len(jax.tree.leaves(batches)[0])
  first = jax.tree.map(lambda x: x[0], batches)
  if number == 1:
    carry, averaged, kept = step(carry, first)
    return carry, averaged, jax.tree.map(lambda x: x[None], kept)
  sums = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, carry, first)[1]
  )

  def body(carry, batch):
    carry, sums = carry
    carry, averaged, kept = step(carry, batch)
    return (carry, jax.tree.map(jnp.add, sums, averaged)), kept

  (carry, sums), kept = jax.lax.scan(body, (carry, sums), batches)
  return carry, jax.tree.map(lambda x: x / number, sums), kept
