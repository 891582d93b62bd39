"""Centre of a target network's scores: no prototype takes all.

DINO's (arXiv 2104.14294; facebookresearch/dino, main_dino.py, DINOLoss): a
moving average of the mean score. All functions run inside the mapped step.

Shapes: W views of b images on this device, K prototypes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from semppl_jax.distributed import parallel


class Center(NamedTuple):
  """The same on all devices."""

  center: jax.Array  # c [K] float32, of the target's scores


SHARDS = Center(-1)


def init(number: int) -> Center:
  """Zeros, for K prototypes."""
  return Center(jnp.zeros(number))


def assign(
  memory: Center, scores: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Assignments [..., K]: softmax((scores - c) / temperature)."""
  return jax.nn.softmax((scores - memory.center) / temperature)


def follow(memory: Center, scores: jax.Array, momentum: float) -> Center:
  """Moves the centre towards the mean score of all devices' images.

  Only the mean travels, [K].

  Args:
    memory: of before.
    scores: [W, b, K] of this device's images.
    momentum: share of the old centre that is kept.
  """
  mean = parallel.pmean(scores.mean(axis=(0, 1)))
  return Center(momentum * memory.center + (1 - momentum) * mean)
