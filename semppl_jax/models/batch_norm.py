"""BatchNorm whose statistics are of each view by itself."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp


class BatchNorm(hk.BatchNorm):
  """Batch normalisation (Ioffe and Szegedy, 2015) of views that go together.

  What `hk.BatchNorm` makes of the views in a pass of each its own, in values,
  gradients and running averages; parameters and state are named as there.
  """

  def __init__(self, views: int = 1, **settings: Any):
    """Sets what it computes.

    Args:
      views: V, equal parts of the batch, one after another.
      **settings: of hk.BatchNorm, with scale and offset.
    """
    super().__init__(**settings)
    self._views = views

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[V n, ..., c] -> the same shape, normalised for each channel."""
    if not is_training or self._views == 1:
      return super().__call__(x, is_training)
    shape, channels = x.shape, (1,) * (x.ndim - 1) + x.shape[-1:]
    scale = hk.get_parameter('scale', channels, x.dtype, self.scale_init)
    offset = hk.get_parameter('offset', channels, x.dtype, self.offset_init)
    x = x.reshape(self._views, -1, *shape[1:])  # [V, n, ..., c]
    axes = tuple(range(1, x.ndim - 1))
    moments = [jnp.mean(y, axes, keepdims=True) for y in (x, jnp.square(x))]
    if self.cross_replica_axis:
      moments = jax.lax.pmean(moments, self.cross_replica_axis)
    mean, mean_of_squares = moments  # [V, 1, ..., c]
    variance = mean_of_squares - jnp.square(mean)
    for view in range(self._views):
      self.mean_ema(mean[view])
      self.var_ema(variance[view])
    factor = scale * jax.lax.rsqrt(variance + self.eps)
    return ((x - mean) * factor + offset).reshape(shape)
