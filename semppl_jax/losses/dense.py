"""The contrastive terms with all other images of the batch as negatives.

They equal those of `contrastive` with n = B - 1, to rounding. An image's
negatives are there in three numbers for each pair of views, which serve all of
its positives; the logits themselves are there block by block of images, and are
computed again for the gradient.

Shapes: b images on this device, B on all of them, V views of the online
network, the large ones first, W views of the target network, d the embedding
size. Computed in float32 at least; one value per image, in nats.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Negatives(NamedTuple):
  """What the terms need of an image's negatives j, with logits s."""

  log_sum: jax.Array  # [V, W, b] log sum over j of exp s(v, w, j)
  # Means over j with the weights q = softmax s(v, w), of large views
  mean: jax.Array  # [W, W, b] of s(v, w, j), no gradient
  mirrored: jax.Array  # [W, W, b] of s(w, v, j), what the mirror image gives


def negatives(
  online: jax.Array,
  candidates: jax.Array,
  mask: jax.Array,
  *,
  temperature: float,
  stop_gradient: str,
  block_size: int,
) -> Negatives:
  """The three numbers, of every image and pair of views.

  Args:
    online: [V, b, d] anchors, unit vectors.
    candidates: [W, B, d] target views of all images, unit vectors.
    mask: [b, B] bool, True: this image counts. Of an image with none the
      numbers are finite and of no meaning: it must be left out.
    temperature: tau, above 0.
    stop_gradient: of `contrastive.invariance`; 'teacher' keeps gradients out
      of q in `mirrored`.
    block_size: images whose V W B logits are there at once.
  """
  views, images, size = online.shape
  targets, total, _ = candidates.shape
  chex.assert_shape(candidates, (targets, total, size))
  chex.assert_shape(mask, (images, total))
  one = functools.partial(
    _of_one, temperature=temperature, teacher=stop_gradient == 'teacher'
  )
  wide = jnp.promote_types(online.dtype, jnp.float32)
  candidates = candidates.astype(wide)
  each = jax.checkpoint(lambda image: one(*image, candidates))
  per_image = jax.lax.map(
    each,
    (online.astype(wide).swapaxes(0, 1), mask),
    batch_size=min(block_size, images),
  )  # leaves [b, .., W]
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), per_image)


def _of_one(
  online: jax.Array,
  mask: jax.Array,
  candidates: jax.Array,
  *,
  temperature: float,
  teacher: bool,
) -> Negatives:
  """Of one image: online [V, d], mask [B], candidates [W, B, d]."""
  logits = jnp.einsum(
    'vd,wcd->vwc', online, candidates, precision=jax.lax.Precision.HIGHEST
  )  # [V, W, B]
  logits /= temperature
  counts = mask | ~mask.any()  # finite where there are none
  log_sum = jax.nn.logsumexp(logits, axis=-1, where=counts)  # [V, W]
  large = logits[: len(candidates)]  # [W, W, B]
  q = jnp.exp(large - log_sum[: len(large), :, None])
  q = jnp.where(counts, q, 0.0)
  mean = jax.lax.stop_gradient(jnp.sum(q * large, axis=-1))
  if teacher:
    q = jax.lax.stop_gradient(q)
  return Negatives(log_sum, mean, jnp.sum(q * large.swapaxes(0, 1), axis=-1))


def positive_logits(
  online: jax.Array, positives: jax.Array, *, temperature: float
) -> jax.Array:
  """Logits [V, W, b] of positives [W, b, d] for online views [V, b, d]."""
  wide = jnp.promote_types(online.dtype, jnp.float32)
  products = jnp.einsum(
    'vbd,wbd->vwb',
    online.astype(wide),
    positives.astype(wide),
    precision=jax.lax.Precision.HIGHEST,
  )
  return products / temperature


def info_nce(positive: jax.Array, against: Negatives) -> jax.Array:
  """Mean over pairs of views of -log P[positive]; see `contrastive.info_nce`.

  Args:
    positive: [V, W, b] from `positive_logits`.
    against: the image's negatives.

  Returns:
    [b].
  """
  chex.assert_equal_shape([positive, against.log_sum])
  total = jnp.logaddexp(positive, against.log_sum)
  return jnp.mean(total - positive, axis=(0, 1))


def invariance(
  positive: jax.Array, against: Negatives, *, stop_gradient: str
) -> jax.Array:
  """Mean over pairs v != w of the KL; see `contrastive.invariance`.

  With Z = log sum over positive and negatives, p = exp(s - Z) of the positive
  and r = 1 - p, E_P[x] is p x(positive) + r E_q[x].

  Args:
    positive: [W, W, b] from `positive_logits`, large views only.
    against: the image's negatives.
    stop_gradient: as `negatives` was given it.

  Returns:
    [b]; zeros if W is 1.
  """
  large = len(positive)
  chex.assert_equal_shape([positive, against.mirrored])
  if large == 1:
    return jnp.zeros(positive.shape[2:], positive.dtype)
  total = jnp.logaddexp(positive, against.log_sum[:large])
  log_p = positive - total
  p, r = jnp.exp(log_p), jnp.exp(against.log_sum[:large] - total)
  if stop_gradient == 'teacher':
    p, r = jax.lax.stop_gradient((p, r))
  entropy = jax.lax.stop_gradient(p * log_p + r * (against.mean - total))
  mirror = lambda x: x.swapaxes(0, 1)
  cross = p * mirror(log_p) + r * (against.mirrored - mirror(total))
  pairs = ~jnp.eye(large, dtype=bool)[:, :, None]
  total = jnp.sum(jnp.where(pairs, entropy - cross, 0.0), axis=(0, 1))
  return total / (large * (large - 1))
