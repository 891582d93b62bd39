"""Soft labels by similarity to labelled images: PAWS's terms.

"Semi-supervised learning of visual features by non-parametrically predicting
view assignments with support samples" (PAWS, Assran et al., arXiv 2104.13963);
facebookresearch/suncet, src/losses.py. Arrays in, arrays out, no collectives.

Shapes: V views of n images; m labelled images, of C classes; d the size of an
embedding. Every function computes in float32 at least. Logarithms of 0 are
those of the smallest normal number, so that values and gradients are finite.
"""

import chex
import jax
import jax.numpy as jnp


def soft_labels(
  embeddings: jax.Array,
  support: jax.Array,
  classes: jax.Array,
  *,
  temperature: float,
) -> jax.Array:
  """Soft nearest neighbours: the softmax of similarities, times the labels.

  p(x) = softmax over s of <x, x_s> / tau, times y; eq. 1 of PAWS. The order of
  the labelled images is of no account.

  Args:
    embeddings: [V, n, d] unit vectors.
    support: [m, d] unit vectors of labelled images.
    classes: [m, C] their labels, each of sum 1.
    temperature: tau, above 0.

  Returns:
    [V, n, C] of sum 1.
  """
  chex.assert_rank(embeddings, 3)
  chex.assert_shape(support, (len(classes), embeddings.shape[-1]))
  highest = jax.lax.Precision.HIGHEST
  similarity = jnp.einsum(
    'vnd,md->vnm', _wide(embeddings), _wide(support), precision=highest
  )
  weights = jax.nn.softmax(similarity / temperature)  # [V, n, m]
  return jnp.einsum('vnm,mc->vnc', weights, classes, precision=highest)


def sharpen(p: jax.Array, temperature: float) -> jax.Array:
  """Sharpening: p^(1 / T), to sum 1 again.

  Args:
    p: [..., C] of sum 1.
    temperature: T, above 0, at most 1; 1 changes nothing.

  Returns:
    [..., C].
  """
  # Over the largest, no power is lost to underflow where it counts.
  largest = jax.lax.stop_gradient(p.max(axis=-1, keepdims=True))
  powers = (p / largest) ** (1 / temperature)
  return powers / powers.sum(axis=-1, keepdims=True)


def swapped_targets(
  sharpened: jax.Array, views: int, *, least: float
) -> jax.Array:
  """What each view is to predict: the other large view's, or both ones' mean.

  Args:
    sharpened: [2, n, C] soft labels of the two large views.
    views: V, large ones first; each of the others has the mean of both.
    least: smaller entries become 0; the rest is left as it is.

  Returns:
    [V, n, C].
  """
  two, images, number = sharpened.shape
  chex.assert_equal(two, 2)
  both = jnp.broadcast_to(sharpened.mean(axis=0), (views - 2, images, number))
  targets = jnp.concatenate([sharpened[::-1], both])
  return jnp.where(targets < least, 0.0, targets)


def cross_entropy(targets: jax.Array, p: jax.Array) -> jax.Array:
  """-sum_c targets log p, in nats: [..., C] twice -> [...]."""
  return -jnp.sum(targets * _log(p), axis=-1)


def entropy(p: jax.Array) -> jax.Array:
  """Entropy -sum_c p log p, in nats, log C at most: [..., C] -> [...]."""
  return cross_entropy(p, p)


def _log(p: jax.Array) -> jax.Array:
  return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _wide(x: jax.Array) -> jax.Array:
  """In float32, or in x's own type where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
