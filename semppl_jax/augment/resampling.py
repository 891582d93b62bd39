"""Windows of images, resized on the device by two matrix products."""

import jax
import jax.numpy as jnp


def resample(
  image: jax.Array,
  window: jax.Array,
  bounds: jax.Array,
  *,
  size: int,
  antialias: bool = False,
  precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> jax.Array:
  """A window of an image, bicubic (Keys, a = -0.5), half-pixel centres.

  Args:
    image: [H, W, c] float.
    window: [4] top, left, height, width, in pixels, need not be whole.
    bounds: [4] likewise: the kernel sees pixels within these only, so that what
      lies around an image, or beyond the window, does not matter.
    size: the side of the result.
    antialias: whether the kernel widens where the window shrinks.
    precision: of the products. Accelerators round what goes into them by
      default, to 10 (GPU) or 7 (TPU) bits after the first; by HIGHEST, not.

  Returns:
    [size, size, c] float, not clipped: the kernel overshoots.
  """
  down, across = (
    _weights(window[i::2], bounds[i::2], image.shape[i], size, antialias)
    for i in (0, 1)
  )  # [size, H], [size, W]
  return jnp.einsum('yi,ijc,xj->yxc', down, image, across, precision=precision)


def _weights(
  window: jax.Array, bounds: jax.Array, pixels: int, size: int, antialias: bool
) -> jax.Array:
  """[size, pixels] shares of the input pixels in every output pixel."""
  start, length = window
  low, extent = bounds
  scale = length / size  # input pixels for an output pixel
  centre = start + (jnp.arange(size) + 0.5) * scale - 0.5  # [size]
  place = jnp.arange(pixels, dtype=jnp.float32)
  x = jnp.abs(place - centre[:, None]) / (
    jnp.maximum(scale, 1) if antialias else 1
  )
  near = (1.5 * x - 2.5) * x**2 + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  kernel = jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))
  kernel = jnp.where((place >= low) & (place < low + extent), kernel, 0)
  return kernel / jnp.sum(kernel, axis=1, keepdims=True)
