"""Classification: cross-entropy with labels or with a teacher, top-1.

Per image, no collectives.
"""

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


def soft_cross_entropy(
  logits: jax.Array, teacher: jax.Array, temperature: float
) -> jax.Array:
  """Cross-entropy with a teacher's probabilities, both at a temperature.

  -sum_k softmax(T / tau)_k log softmax(S / tau)_k in nats: distillation as in
  SimCLRv2 (arXiv 2006.10029, eq. 2). No gradient flows into the teacher.

  Args:
    logits: S, [..., K] of the student; computed in float32 at least.
    teacher: T, likewise, of the teacher.
    temperature: tau, above 0.

  Returns:
    [...]; where S = T it is the entropy of the teacher's probabilities.
  """
  chex.assert_equal_shape((logits, teacher))
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  wanted = jax.lax.stop_gradient(teacher).astype(wide) / temperature
  return optax.losses.softmax_cross_entropy(
    logits.astype(wide) / temperature, jax.nn.softmax(wanted)
  )


def top1(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1 where the largest logit is the label's, else 0: [..., b] float32."""
  return (logits.argmax(axis=-1) == labels).astype(jnp.float32)
