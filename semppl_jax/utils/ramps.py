"""Ramps: values that go from one to another while a duration passes.

For schedules of the engine's and of objectives. Times may be traced or Python
numbers; values are float32 scalars, and stay where they are before time 0 and
after the duration.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def fraction(time: jax.Array | int, duration: int) -> jax.Array:
  """How much of the duration is over, [] float32 in [0, 1].

  A duration below 1 counts as 1.
  """
  time = jnp.asarray(time, jnp.float32)
  return jnp.clip(time / max(duration, 1), 0, 1)


def linear(
  time: jax.Array | int, first: float, last: float, duration: int
) -> jax.Array:
  """From `first` at time 0 to `last` along a line, [] float32."""
  return first + (last - first) * fraction(time, duration)


def cosine(
  time: jax.Array | int, first: float, last: float, duration: int
) -> jax.Array:
  """From `first` at time 0 to `last` along half a cosine, [] float32."""
  left = 0.5 * (1 + jnp.cos(jnp.pi * fraction(time, duration)))
  return last + (first - last) * left


def linear_by_epoch(
  step: jax.Array | int,
  first: float,
  last: float,
  *,
  epochs: int,
  steps: Callable[[float], int],
) -> jax.Array:
  """From `first` to `last` along a line, one value in each epoch.

  The first of the epochs has `first`; the last of them has `last`, as have all
  after it. DINO's temperature of the target (facebookresearch/dino,
  main_dino.py, DINOLoss).

  Args:
    step: [] steps done.
    first: with one epoch, that epoch's.
    last: with no epoch, everywhere.
    epochs: how many.
    steps: epochs -> steps, see base.RunFacts.

  Returns:
    [] float32.
  """
  if epochs < 1:
    return jnp.float32(last)
  ends = [steps(epoch) for epoch in range(1, max(epochs, 2))]
  over = jnp.sum(jnp.asarray(ends) <= step)
  return linear(over, first, last, len(ends))
