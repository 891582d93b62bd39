"""The crops of linear evaluation and fine-tuning, on the device.

Both are those of DeepMind's SemPPL release: windows of whole pixels, cut out
first and then resized (bicubic, Keys a = -0.5, half-pixel centres, no
antialiasing, clipped to [0, 1]), so that a resized pixel never sees what lies
beyond its window. The release cuts with TensorFlow on the host.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.errors import UserError


def train_crops(
  keys: jax.Array,
  images: jax.Array,
  *,
  size: int,
  area: tuple[float, float] = (0.08, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
  flip: float = 0.5,
) -> jax.Array:
  """A random resized crop of each image, flipped half of the time.

  Args:
    keys: [n] typed keys, one per image.
    images: [n, H, W, 3] uint8.
    size: the side of the result, in pixels.
    area: lowest and highest share of the image that a window covers.
    aspect: lowest and highest width / height of a window.
    flip: probability.

  Returns:
    [n, size, size, 3] float32 in [0, 1].

  Raises:
    UserError: if images have another rank or dtype.
  """
  _check_images(images)

  def one(key, image):
    draws = jax.random.uniform(key, (5,))
    window = random_window(draws[:4], image.shape[:2], area=area, aspect=aspect)
    image = resample(image, window, size=size)
    return jnp.where(draws[4] < flip, image[:, ::-1], image)

  return jax.vmap(one)(keys, images)


def center_crops(
  images: jax.Array, *, size: int, share: float = 0.875
) -> jax.Array:
  """The middle of each image: the test images of the release.

  Args:
    images: [n, H, W, 3] uint8.
    size: the side of the result, in pixels.
    share: side of the window / shorter side of the image (224 / 256).

  Returns:
    [n, size, size, 3] float32 in [0, 1].

  Raises:
    UserError: if images have another rank or dtype.
  """
  _check_images(images)
  height, width = images.shape[1:3]
  side = max(1, int(np.float32(share) * np.float32(min(height, width))))
  window = (height - side + 1) // 2, (width - side + 1) // 2, side, side
  crop = functools.partial(
    resample, window=jnp.array(window, jnp.float32), size=size
  )
  return jax.vmap(crop)(images)


def random_window(
  draws: jax.Array,
  size: tuple[int, int],
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> jax.Array:
  """The release's random crop window: one try, cut off at the image's sides.

  Args:
    draws: [4] uniform numbers in [0, 1): area, aspect, left, top.
    size: height and width of the image.
    area: lowest and highest share of the image.
    aspect: lowest and highest width / height; uniform in the logarithm.

  Returns:
    [4] float32 top, left, height, width: whole pixels.
  """
  pixels = (area[0] + (area[1] - area[0]) * draws[0]) * size[0] * size[1]
  ratio = aspect[0] * (aspect[1] / aspect[0]) ** draws[1]
  side = lambda x, most: jnp.clip(jnp.round(jnp.sqrt(x)), 1, most)
  height = side(pixels / ratio, size[0])
  width = side(pixels * ratio, size[1])
  left = jnp.floor(draws[2] * (size[1] - width + 1))
  top = jnp.floor(draws[3] * (size[0] - height + 1))
  return jnp.stack([top, left, height, width])


def resample(image: jax.Array, window: jax.Array, *, size: int) -> jax.Array:
  """A window of an image [H, W, 3] uint8 as [size, size, 3] in [0, 1]."""
  top, left, height, width = window
  down = _weights(top, height, image.shape[0], size)  # [size, H]
  across = _weights(left, width, image.shape[1], size)  # [size, W]
  image = image.astype(jnp.float32) / 255
  # Accelerators would otherwise round what goes into the products.
  precision = jax.lax.Precision.HIGHEST
  image = jnp.einsum('yi,ijc,xj->yxc', down, image, across, precision=precision)
  return jnp.clip(image, 0, 1)


def _weights(
  start: jax.Array, length: jax.Array, pixels: int, size: int
) -> jax.Array:
  """[size, pixels] shares of the input pixels in every output pixel."""
  place = jnp.arange(pixels, dtype=jnp.float32)
  centre = start + (jnp.arange(size) + 0.5) * (length / size) - 0.5  # [size]
  x = jnp.abs(place - centre[:, None])
  near = (1.5 * x - 2.5) * x**2 + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  kernel = jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))
  inside = (place >= start) & (place < start + length)
  kernel = jnp.where(inside, kernel, 0)
  return kernel / jnp.sum(kernel, axis=1, keepdims=True)


def _check_images(images: jax.Array) -> None:
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
    raise UserError(
      f'images are {images.dtype} {images.shape}; they must be uint8 '
      '[n, height, width, 3].'
    )
