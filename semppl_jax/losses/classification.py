"""Classification of labelled images: cross-entropy, top-1. No collectives."""

import chex
import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy in nats; 0 where the label is -1.

  Args:
    logits: [..., b, K]; computed in float32 at least.
    labels: [b] int32, broadcast over the leading axes; -1: unlabelled.

  Returns:
    [..., b].
  """
  chex.assert_axis_dimension(logits, -2, len(labels))
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  true = jnp.broadcast_to(jnp.maximum(labels, 0), logits.shape[:-1])
  loss = optax.losses.softmax_cross_entropy_with_integer_labels(wide, true)
  return jnp.where(labels >= 0, loss, 0.0)


def top1(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1 where the largest logit is the label's, else 0: [..., b] float32."""
  return (logits.argmax(axis=-1) == labels).astype(jnp.float32)
