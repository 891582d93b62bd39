"""Functions of the step, and of durations: the step is the only clock.

Steps may be traced or Python ints; values are float32 scalars. The formulas
are those of BYOL's and SemPPL's public releases; scaling by the root of the
batch size is SimCLR's, warm-ups of other kinds are SwAV's and MIRA's.
"""

import math

import jax
import jax.numpy as jnp

from semppl_jax.utils import ramps

# The peak of the learning rate over its base, by the batch size.
SCALINGS = {
  'linear': lambda batch_size: batch_size / 256,
  'sqrt': lambda batch_size: batch_size**0.5,
}
# How much of the rise is over after so many of the warm-up's steps, from none
# at its first step to all at the one after it (byol), from none at its first to
# all at its last (swav: SwAV's main_swav.py, DINO's utils.py), or from none
# before it to all after it (mira: MIRA's src/scheduler.py).
WARMUPS = {
  'byol': ramps.fraction,
  'swav': lambda step, steps: ramps.fraction(step, steps - 1),
  'mira': lambda step, steps: ramps.fraction(step + 1, steps + 1),
}


def learning_rate(
  step: jax.Array | int,
  *,
  base: float,
  batch_size: int,
  total_steps: int,
  warmup_steps: int,
  scaling: str = 'linear',
  start: float = 0.0,
  final: float = 0.0,
  warmup_kind: str = 'byol',
) -> jax.Array:
  """Linear warm-up to base x batch_size / 256, then a cosine to the final rate.

  Args:
    step: updates done so far; step 0 has the rate `start` if there is a
      warm-up, a little more with warmup_kind 'mira'.
    base: learning rate for 256 images; with scaling 'sqrt' for one image.
    batch_size: B, global.
    total_steps: the rate is final from here on.
    warmup_steps: the rate has its peak here; a run no longer than its warm-up
      never gets past it.
    scaling: a key of SCALINGS; 'sqrt': the peak is base x sqrt(batch_size).
    start: where the warm-up begins, scaled as `base` is.
    final: where the cosine ends, likewise.
    warmup_kind: a key of WARMUPS.

  Returns:
    [] float32.
  """
  scale = SCALINGS[scaling](batch_size)
  rise = WARMUPS[warmup_kind](step, warmup_steps)
  decay = ramps.cosine(
    step - warmup_steps, 1.0, 0.0, total_steps - warmup_steps
  )
  warms_up = step < warmup_steps
  lowest = jnp.where(warms_up, start * scale, final * scale)
  return lowest + (base * scale - lowest) * jnp.where(warms_up, rise, decay)


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
  return ramps.cosine(step, base, 1.0, total_steps)


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
