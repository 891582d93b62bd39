"""The training crops of linear evaluation and fine-tuning, on the device.

They are those of DeepMind's SemPPL release: windows of whole pixels, cut out
first and then resized (bicubic, Keys a = -0.5, half-pixel centres, no
antialiasing, clipped to [0, 1]), so that a resized pixel never sees what lies
beyond its window. The release cuts with TensorFlow on the host, from the
original file; here an image larger than dataset.image_size is shrunk first. The
release's test crop is cut on the host here too: `data.images.center_crop`.
"""

import jax
import jax.numpy as jnp

from semppl_jax.augment import resampling
from semppl_jax.errors import UserError


def train_crops(
  keys: jax.Array,
  images: jax.Array,
  *,
  size: int,
  area: tuple[float, float] = (0.08, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
  flip: float = 0.5,
  sizes: jax.Array | None = None,
) -> jax.Array:
  """A random resized crop of each image, flipped half of the time.

  Args:
    keys: [n] typed keys, one per image.
    images: [n, H, W, 3] uint8.
    size: the side of the result, in pixels.
    area: lowest and highest share of the image that a window covers.
    aspect: lowest and highest width / height of a window.
    flip: probability.
    sizes: [n, 2] height and width of each image, which lies in the top left
      corner of its array; None: images fill their arrays.

  Returns:
    [n, size, size, 3] float32 in [0, 1].

  Raises:
    UserError: if images have another rank or dtype.
  """
  _check_images(images)

  if sizes is None:
    sizes = jnp.tile(jnp.array(images.shape[1:3]), (len(images), 1))

  def one(key, image, shape):
    draws = jax.random.uniform(key, (5,))
    window = random_window(draws[:4], shape, area=area, aspect=aspect)
    image = image.astype(jnp.float32) / 255
    image = resampling.resample(image, window, window, size=size)
    image = jnp.clip(image, 0, 1)
    return jnp.where(draws[4] < flip, image[:, ::-1], image)

  return jax.vmap(one)(keys, images, sizes.astype(jnp.float32))


def random_window(
  draws: jax.Array,
  size: jax.Array,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> jax.Array:
  """The release's random crop window: one try, cut off at the image's sides.

  Args:
    draws: [4] uniform numbers in [0, 1): area, aspect, left, top.
    size: [2] height and width of the image.
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


def _check_images(images: jax.Array) -> None:
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
    raise UserError(
      f'images are {images.dtype} {images.shape}; they must be uint8 '
      '[n, height, width, 3].'
    )
