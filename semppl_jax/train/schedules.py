"""Functions of the step, and of durations: the step is the only clock.

Steps may be traced or Python ints; values are float32 scalars. The formulas
are those of BYOL's and SemPPL's public releases; scaling by the root of the
batch size is SimCLR's.
"""

import math

import jax
import jax.numpy as jnp

# The peak of the learning rate over its base, by the batch size.
SCALINGS = {
  'linear': lambda batch_size: batch_size / 256,
  'sqrt': lambda batch_size: batch_size**0.5,
}


def learning_rate(
  step: jax.Array | int,
  *,
  base: float,
  batch_size: int,
  total_steps: int,
  warmup_steps: int,
  scaling: str = 'linear',
) -> jax.Array:
  """Linear warm-up to base x batch_size / 256, then a cosine to 0.

  Args:
    step: updates done so far; step 0 has rate 0 if there is a warm-up.
    base: learning rate for 256 images; with scaling 'sqrt' for one image.
    batch_size: B, global.
    total_steps: the rate is 0 from here on.
    warmup_steps: the rate has its peak here; a run no longer than its warm-up
      never gets past it.
    scaling: a key of SCALINGS; 'sqrt': the peak is base x sqrt(batch_size).

  Returns:
    [] float32.
  """
  peak = base * SCALINGS[scaling](batch_size)
  rise = _fraction(step, warmup_steps)
  decay = _cosine(_fraction(step - warmup_steps, total_steps - warmup_steps))
  return peak * jnp.where(step < warmup_steps, rise, decay)


def ema_rate(
  step: jax.Array | int,
  *,
  base: float,
  total_steps: int,
  constant: bool = False,
) -> jax.Array:
  """Share of the old target that a target update keeps, [] float32.

  Rises from `base` at step 0 to 1 at `total_steps` along a cosine, as in BYOL;
  stays at `base` if `constant`.
  """
  if constant:
    return jnp.float32(base)
  return 1 - (1 - base) * _cosine(_fraction(step, total_steps))


def to_steps(epochs: float, *, num_examples: int, batch_size: int) -> int:
  """A duration in epochs as whole steps, rounded down; at least 1 if above 0.

  Epochs are joined end to end: a batch may straddle two of them, so 3 epochs
  of 10 images in batches of 4 are 7 steps.
  """
  if epochs <= 0:
    return 0
  exact = epochs * num_examples / batch_size
  # 0.29 * 100 is 28.999...: meant as 29.
  return max(1, math.floor(exact + 1e-6))


def _fraction(step: jax.Array | int, duration: int) -> jax.Array:
  """How much of the duration is over, [] float32 in [0, 1]."""
  step = jnp.asarray(step, jnp.float32)
  return jnp.clip(step / max(duration, 1), 0, 1)


def _cosine(fraction: jax.Array) -> jax.Array:
  """From 1 down to 0 over half a period."""
  return 0.5 * (1 + jnp.cos(jnp.pi * fraction))
