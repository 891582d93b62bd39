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


def sinkhorn(
  scores: jax.Array,
  queue_scores: jax.Array | None = None,
  queue_counts: jax.Array | bool = True,
  *,
  epsilon: float,
  iterations: int,
  over_devices: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
  """Sinkhorn-Knopp's assignments of SwAV: of equal weight for each prototype.

  Begins with exp(scores / epsilon); an iteration gives every prototype the same
  sum over images, then every image the sum 1. In logarithms, where scores of
  any size are finite. The last sums are those of images: prototypes have equal
  ones in the limit only. arXiv 2006.09882; facebookresearch/swav,
  main_swav.py, distributed_sinkhorn.

  Args:
    scores: [A, b, K]; each view by itself.
    queue_scores: [A, n, K] of more images, which share the prototypes but get
      no assignments here; None: there are none.
    queue_counts: [] bool, False: those images are left out.
    epsilon: above 0; the smaller, the harder the assignments.
    iterations: at least 1.
    over_devices: takes logarithms [A, K] of the devices' sums to that of the
      sum over all of them.

  Returns:
    [A, b, K]; each image's sum is 1.
  """
  views, _, prototypes = scores.shape
  rows = [scores]
  if queue_scores is not None:
    chex.assert_shape(queue_scores, (views, None, prototypes))
    rows.append(queue_scores)
  rows = [_wide(x) / epsilon for x in rows]
  for _ in range(iterations):
    sums, *of_queue = (jax.nn.logsumexp(x, axis=1) for x in rows)  # [A, K]
    for more in of_queue:
      # Apart from the batch's: left out, it changes no bit of the sums.
      more = jnp.where(queue_counts, more, -jnp.inf)
      sums = jnp.logaddexp(sums, more)
    sums = over_devices(sums)[:, None]
    rows = [jax.nn.log_softmax(x - sums, axis=-1) for x in rows]
  return jnp.exp(rows[0])


def mira(
  scores: jax.Array,
  *,
  temperature: float | jax.Array,
  beta: float | jax.Array,
  iterations: int,
  over_devices: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Assignments of the largest mutual information near the network's own.

  q maximises beta I(q) - mean over images of KL(q_i || p_i), p = softmax(scores
  / temperature), I the mutual information of images and prototypes: q_i is
  proportional to p_i^(1 / (1 - beta)) u^(-beta / (1 - beta)) with u = mean q.
  By fixed-point iteration in logarithms, each view by itself; the error shrinks
  by beta at least in each. A constant of one image's scores changes nothing. No
  gradient is meant to flow. MIRA (NeurIPS 2022); movinghoon/MIRA, train.py.

  Args:
    scores: [A, b, K] of this device's images, cosines.
    temperature: tau_t, above 0.
    beta: from 0, where q = p, to 1, excluded: there q is hard and prototypes
      get equal shares.
    iterations: 30 are exact to rounding at beta 3/4.
    over_devices: takes logarithms [A, K] of the devices' sums to that of the
      sum over all of them.

  Returns:
    [A, b, K]; each image's sum is 1.
  """
  chex.assert_rank(scores, 3)
  balance = beta / (1 - beta)
  own = jax.nn.log_softmax(_wide(scores) / (temperature * (1 - beta)))

  def log_sum(x):  # [A, b, K] -> [A, 1, K]; the mean's, but for a constant
    return over_devices(jax.nn.logsumexp(x, axis=1))[:, None]

  def step(_, log_v):
    # A constant of log v drops out of the softmax.
    log_q = jax.nn.log_softmax(own - balance * log_v)
    return beta * log_v + (1 - beta) * log_sum(log_q)

  log_v = (1 - beta) * log_sum(own)
  log_v = jax.lax.fori_loop(0, iterations, step, log_v)
  return jax.nn.softmax(own - balance * log_v)


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
