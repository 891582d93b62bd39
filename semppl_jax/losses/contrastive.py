"""The loss terms: per image, no collectives.

Shapes: b images on this device, B on all of them, V views of the online
network, W views of the target network, n negatives, d the embedding size. All
embeddings are unit vectors, but those of `nt_xent` need not be. Every function
computes in float32 at least (bfloat16 is promoted, float64 stays) and returns
one value per image, in nats: the step takes the means over images. But for
`nt_xent`, candidate 0 is the positive and is always there; a masked negative
has score -inf and reaches neither values nor gradients.
"""

import chex
import jax
import jax.numpy as jnp
import optax

STOP_GRADIENTS = ('entropy', 'teacher')


def similarity_logits(
  online: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  temperature: float,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Scaled inner products of every online view with its candidates.

  The logits of ReLIC's likelihood: phi(u, v) = tau exp(<u, v> / tau), whose
  leading tau cancels in the softmax.

  Args:
    online: [V, b, d] anchors.
    positives: [W, b, d] one positive of each image in every target view.
    negatives: [W, b, n, d] the same other images' target views.
    temperature: tau, above 0.
    mask: [b, n] bool, False: this negative does not count. None: all count.

  Returns:
    [V, W, b, 1 + n] logits, the positive first, -inf where masked.
  """
  _, images, size = online.shape
  chex.assert_shape(positives, (None, images, size))
  chex.assert_shape(negatives, (len(positives), images, None, size))
  online, positives, negatives = map(_wide, (online, positives, negatives))
  # Two products, not one over joined candidates: under vmap over the draws of
  # semantic positives the second one, n times as large, is computed once.
  # The default precision would be TF32 or bfloat16 passes on accelerators.
  highest = jax.lax.Precision.HIGHEST
  first = jnp.einsum(
    'vbd,wbd->vwb', online, positives, precision=highest
  )  # [V, W, b]
  others = jnp.einsum(
    'vbd,wbnd->vwbn', online, negatives, precision=highest
  )  # [V, W, b, n]
  if mask is not None:
    others = jnp.where(mask, others, -jnp.inf)
  joined = jnp.concatenate([first[..., None], others], axis=-1)
  return joined / temperature  # [V, W, b, 1 + n]


def info_nce(logits: jax.Array) -> jax.Array:
  """Mean over pairs of views of -log P[positive]; InfoNCE.

  Args:
    logits: [V, W, b, 1 + n] from `scores`.

  Returns:
    [b]; 0 for an image whose negatives are all masked.
  """
  chex.assert_rank(logits, 4)
  log_p = jax.nn.log_softmax(_wide(logits), axis=-1)  # [V, W, b, 1 + n]
  return -log_p[..., 0].mean(axis=(0, 1))  # [b]


def invariance(logits: jax.Array, *, stop_gradient: str) -> jax.Array:
  """Mean over pairs of views v != w of KL(P[v, w] || P[w, v]).

  P[v, w] is the softmax over the candidates of anchor view v in target view w;
  its mirror image has the same candidates with the roles of the views swapped.
  The gradient is not that of the KL but, by `stop_gradient`, of

    entropy: sg[E_P log P] - E_P log P', ReLICv2's form (our setting)
    teacher: KL(sg[P] || P'), as in distillation

  with P = P[v, w], P' = P[w, v] and sg the stop-gradient. Pairs v = w stay out:
  their KL is 0, but the entropy form gives them a gradient (our setting).

  Args:
    logits: [V_L, V_L, b, 1 + n] from `scores`, large views only.
    stop_gradient: 'entropy' or 'teacher'.

  Returns:
    [b]; zeros if V_L is 1.

  Raises:
    ValueError: if `stop_gradient` is neither.
  """
  if stop_gradient not in STOP_GRADIENTS:
    raise ValueError(
      f'loss.stop_gradient is {stop_gradient!r}; it must be one of '
      f'{", ".join(map(repr, STOP_GRADIENTS))}.'
    )
  logits = _wide(logits)
  views, _, images, candidates = logits.shape
  chex.assert_shape(logits, (views, views, images, candidates))
  if views == 1:
    return jnp.zeros([images], logits.dtype)
  log_p = jax.nn.log_softmax(logits, axis=-1)
  # A masked candidate is masked in the mirror image too, and 0 log 0 = 0. The
  # zero put in here also keeps its -inf out of the gradient.
  log_p = jnp.where(jnp.isneginf(logits), 0.0, log_p)
  p = jnp.where(jnp.isneginf(logits), 0.0, jnp.exp(log_p))
  if stop_gradient == 'teacher':
    p = jax.lax.stop_gradient(p)
  entropy = jax.lax.stop_gradient(p * log_p)
  kl = jnp.sum(entropy - p * log_p.swapaxes(0, 1), axis=-1)  # [V_L, V_L, b]
  pairs = ~jnp.eye(views, dtype=bool)[:, :, None]
  return jnp.sum(jnp.where(pairs, kl, 0.0), (0, 1)) / (views * (views - 1))


def nt_xent(
  anchors: jax.Array,
  candidates: jax.Array,
  index: jax.Array,
  *,
  temperature: float,
) -> tuple[jax.Array, jax.Array]:
  """NT-Xent: cross-entropy over all views of the batch but the anchor itself.

  l(v, i) = -log softmax over (w, j) != (v, i) of <z(v, i), z(w, j)> / tau, at
  the other view of image i; SimCLR (arXiv 2002.05709), eq. 1.

  Args:
    anchors: [2, b, d] both views of this device's images.
    candidates: [2, B, d] both views of all images, the anchors among them.
    index: [b] int32, places of the anchors' images among the candidates.
    temperature: tau, above 0.

  Returns:
    [2, b] the loss of each anchor; and [2, b, B] its logits with the other view
    of all images alone, the positive at `index`.
  """
  _, images, size = anchors.shape
  chex.assert_shape(anchors, (2, None, None))
  chex.assert_shape(candidates, (2, None, size))
  chex.assert_shape(index, (images,))
  anchors, candidates = map(_wide, (anchors, candidates))
  logits = jnp.einsum(
    'vbd,wcd->vbwc', anchors, candidates, precision=jax.lax.Precision.HIGHEST
  )  # [2, b, 2, B]
  logits /= temperature
  total = candidates.shape[1]
  same_image = index[:, None, None] == jnp.arange(total)  # [b, 1, B]
  same_view = jnp.eye(2, dtype=bool)[:, None, :, None]  # [2, 1, 2, 1]
  others = jnp.where(same_view & same_image, -jnp.inf, logits)
  positive = jnp.stack([index + total, index])  # [2, b] in the flat candidates
  loss = optax.losses.softmax_cross_entropy_with_integer_labels(
    others.reshape(2, images, -1), positive
  )
  return loss, jnp.stack([logits[0, :, 1], logits[1, :, 0]])


def _wide(x: jax.Array) -> jax.Array:
  """In float32, or in x's own type where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
