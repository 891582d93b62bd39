"""Swapped prediction: a view predicts which prototypes another belongs to.

What SwAV (arXiv 2006.09882), DINO (arXiv 2104.14294), MIRA and their
semi-supervised forms share. Per image, no collectives.

Shapes: b images on this device, B on all, K prototypes; V views of the online
network, the first A of which have assignments q; all in float32 at least. A row
of q sums to 1.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(
  q: jax.Array, scores: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """-sum_k q_k log softmax(scores / temperature)_k, in nats.

  Args:
    q: [..., K], no gradient flows into it.
    scores: [..., K]; leading axes are broadcast.
    temperature: tau, above 0.

  Returns:
    [...].
  """
  log_p = jax.nn.log_softmax(_wide(scores) / temperature)
  return -jnp.sum(jax.lax.stop_gradient(q) * log_p, axis=-1)


def swapped_prediction(
  q: jax.Array, scores: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Mean cross-entropy over pairs of views a != v, a with an assignment.

  1/A sum_a 1/(V - 1) sum_{v != a} H(q_a, s_v). Small views predict and are
  never predicted. facebookresearch/swav, main_swav.py, and dino, main_dino.py.

  Args:
    q: [A, b, K] of the first A views; no gradient flows into it.
    scores: [V, b, K] of all views, V > 1.
    temperature: tau, above 0.

  Returns:
    [b].
  """
  views, images, number = scores.shape
  chex.assert_shape(q, (None, images, number))
  log_p = jax.nn.log_softmax(_wide(scores) / temperature)
  pairs = -jnp.einsum(
    'abk,vbk->avb',
    jax.lax.stop_gradient(q),
    log_p,
    precision=jax.lax.Precision.HIGHEST,
  )  # [A, V, b]
  other_view = ~np.eye(len(q), views, dtype=bool)  # [A, V]
  pairs = jnp.where(other_view[..., None], pairs, 0.0)
  return pairs.sum(axis=(0, 1)) / other_view.sum()


def assignment_metrics(
  q: jax.Array, mean: Callable[[Any], Any]
) -> dict[str, jax.Array]:
  """What shows a collapse of the assignments, of all devices' images.

  Args:
    q: [A, n, K] of this device's images.
    mean: over devices, of every leaf of a tree.

  Returns:
    Scalars, equal on all devices: `assignment_entropy`, mean of H(q), and
    `marginal_entropy`, H(mean q), in nats, log K at most; `prototypes_used`,
    how many are the largest of some q; `top_prototype_share`, the share of
    those whose largest is the most frequent one.
  """
  chex.assert_rank(q, 3)
  number = q.shape[-1]
  largest = jnp.zeros(number).at[q.argmax(axis=-1).reshape(-1)].add(1.0)
  marginal, share, entropy = mean(
    (q.mean(axis=(0, 1)), largest / largest.sum(), _entropy(q).mean())
  )
  return {
    'assignment_entropy': entropy,
    'marginal_entropy': _entropy(marginal),
    'prototypes_used': jnp.sum(share > 0, dtype=jnp.float32),
    'top_prototype_share': share.max(),
  }


def _entropy(p: jax.Array) -> jax.Array:
  """[..., K] -> [...], in nats."""
  return jax.scipy.special.entr(p).sum(axis=-1)


def _wide(x: jax.Array) -> jax.Array:
  """In float32, or in x's own type where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
