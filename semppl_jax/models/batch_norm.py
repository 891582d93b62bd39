"""BatchNorm whose statistics are of each view by itself."""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp


class BatchNorm(hk.BatchNorm):
  """Batch normalisation (Ioffe and Szegedy, 2015) of views that go together.

  What `hk.BatchNorm` makes of the views in a pass of each its own, in values,
  gradients and running averages; parameters and state are named as there.
  """

  def __init__(self, views: bool = False, **settings: Any):
    """Sets what it computes.

    Args:
      views: the first axis is that of views, with statistics for each.
      **settings: of hk.BatchNorm, with scale; without offset it is 0.
    """
    super().__init__(**settings)
    self._views = views

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[n, ..., c] or [V, n, ..., c] -> the same, each channel normalised."""
    if not is_training:
      flat = x.reshape(-1, *x.shape[2:]) if self._views else x
      return super().__call__(flat, False).reshape(x.shape)
    shape = x.shape
    if not self._views:
      x = x[None]
    channels = (1,) * (x.ndim - 2) + x.shape[-1:]
    scale = hk.get_parameter('scale', channels, x.dtype, self.scale_init)
    offset = jnp.zeros_like(scale)
    if self.create_offset:
      offset = hk.get_parameter('offset', channels, x.dtype, self.offset_init)
    y, mean, variance = _normalise(
      x, scale, offset, self.eps, self.cross_replica_axis
    )
    for view in range(len(x)):
      self.mean_ema(mean[view])
      self.var_ema(variance[view])
    return y.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(
  x: jax.Array,
  scale: jax.Array,
  offset: jax.Array,
  eps: float,
  axis: str | None,
) -> tuple[jax.Array, ...]:
  """[V, n, ..., c] -> the same, and means and variances [V, 1, ..., c]."""
  return _forward(x, scale, offset, eps, axis)[0]


def _forward(x, scale, offset, eps, axis):
  moments = [jnp.mean(y, _axes(x), keepdims=True) for y in (x, jnp.square(x))]
  mean, mean_of_squares = jax.lax.pmean(moments, axis) if axis else moments
  variance = mean_of_squares - jnp.square(mean)
  inverse = jax.lax.rsqrt(variance + eps)
  y = (x - mean) * (scale * inverse) + offset
  return (y, mean, variance), (x, scale, mean, inverse)


def _backward(unused_eps, axis, residuals, gradients):
  # The averages are state: nobody asks for their gradients. In closed form it
  # takes two passes over x and g, and no sums but those of the parameters.
  x, scale, mean, inverse = residuals
  g, normalised = gradients[0], (x - mean) * inverse
  here = [jnp.mean(y, _axes(x), keepdims=True) for y in (g, g * normalised)]
  of_all = jax.lax.pmean(here, axis) if axis else here
  of_x = scale * inverse * (g - of_all[0] - normalised * of_all[1])
  size = x[0, ..., 0].size
  of_offset, of_scale = (size * mean.sum(axis=0) for mean in here)
  return of_x, of_scale, of_offset


_normalise.defvjp(_forward, _backward)


def _axes(x: jax.Array) -> tuple[int, ...]:
  """All but views and channels."""
  return tuple(range(1, x.ndim - 1))
