"""Random views of images, on the device, from one key per image.

Every operation takes ONE float image [H, W, 3] in [0, 1] and returns the like;
`make_views` maps them over images and views at the edge. Order and clipping are
those of DeepMind's BYOL release: crop (clipped), flip, colour jitter (clipped
after every operation), grayscale, blur, solarize, clip. A view depends on its
image's key and its own number only, not on the batch around it.
"""

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax import structs
from semppl_jax.errors import UserError

_TRIES = 10  # crop shapes drawn per view; the first that fits is taken


def make_views(keys: jax.Array, images: jax.Array, cfg) -> structs.Views:
  """Draws all views of a batch.

  Views alternate between type A and type B, large and small ones each from A;
  the types differ in the probability of blur and solarize.

  Args:
    keys: [b] typed keys, one per image.
    images: [b, H, W, 3] uint8.
    cfg: the `views` section of the config.

  Returns:
    Views, float32 in [0, 1].

  Raises:
    UserError: if images or keys have another shape or dtype.
  """
  _check_images(images)
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
    raise UserError(
        f'keys have dtype {keys.dtype}; they must be jax.random.key keys.'
    )
  if keys.shape != images.shape[:1]:
    raise UserError(
        f'keys have shape {keys.shape}; {images.shape[0]} images need one each.'
    )

  def of_one_size(first, count, size, area):
    if not count:
      return jnp.zeros((0, len(images), size, size, 3))

    def one(number, key, image):
      return _view(
          jax.random.fold_in(key, first + number),
          image.astype(jnp.float32) / 255,
          jnp.asarray(cfg.blur)[number % 2],
          jnp.asarray(cfg.solarize)[number % 2],
          size=size,
          area=area,
          cfg=cfg,
      )

    over_images = jax.vmap(one, in_axes=(None, 0, 0))
    over_views = jax.vmap(over_images, in_axes=(0, None, None))
    return over_views(jnp.arange(count), keys, images)  # [V, b, s, s, 3]

  return structs.Views(
      large=of_one_size(0, cfg.num_large, cfg.large_size, cfg.large_area),
      small=of_one_size(
          cfg.num_large, cfg.num_small, cfg.small_size, cfg.small_area
      ),
  )


def resize(images: jax.Array, size: int) -> jax.Array:
  """Whole images, bicubic without antialiasing: no randomness, for evaluation.

  Args:
    images: [n, H, W, 3] uint8; an image that is not square is stretched.
    size: the side of the result, in pixels.

  Returns:
    [n, size, size, 3] float32 in [0, 1].

  Raises:
    UserError: if images have another rank or dtype.
  """
  _check_images(images)
  shape = (len(images), size, size, 3)
  whole = jax.image.resize(
      images.astype(jnp.float32) / 255, shape, 'cubic', antialias=False
  )
  return jnp.clip(whole, 0, 1)


def _view(key, image, blur_probability, solarize_probability, *, size, area, cfg):
  """One view [size, size, 3] of one image; parts that cannot act are left out."""
  keys = jax.random.split(key, 6)
  window = random_window(
      keys[0], image.shape[:2], area=area, aspect=cfg.aspect
  )
  image = crop(image, window, size=size, antialias=cfg.antialias)
  if cfg.flip:
    image = pix.random_flip_left_right(keys[1], image, probability=cfg.flip)
  if cfg.jitter:
    image = jitter(
        keys[2],
        image,
        probability=cfg.jitter,
        brightness=cfg.brightness,
        contrast=cfg.contrast,
        saturation=cfg.saturation,
        hue=cfg.hue,
    )
  if cfg.grayscale:
    image = _maybe(keys[3], cfg.grayscale, grayscale(image), image)
  radius = int(int(cfg.blur_kernel * size) / 2)
  if radius and any(cfg.blur):
    key_apply, key_sigma = jax.random.split(keys[4])
    low, high = cfg.blur_sigma
    sigma = jax.random.uniform(key_sigma, minval=low, maxval=high)
    blurred = blur(image, sigma, radius=radius)
    image = _maybe(key_apply, blur_probability, blurred, image)
  if any(cfg.solarize):
    solarized = pix.solarize(image, cfg.solarize_threshold)
    image = _maybe(keys[5], solarize_probability, solarized, image)
  return jnp.clip(image, 0, 1)


def random_window(
    key: jax.Array,
    shape: tuple[int, int],
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> jax.Array:
  """Draws a crop window: area uniform, aspect uniform in its logarithm.

  A shape that does not fit into the image is drawn again; should none of the
  tries fit (images much longer than wide), the last is shrunk until it does.

  Args:
    key: a typed key.
    shape: height and width of the image.
    area: lowest and highest share of the image that the window covers.
    aspect: lowest and highest width / height.

  Returns:
    [4] float32 top, left, height, width, in pixels, not rounded.
  """
  key_area, key_aspect, key_place = jax.random.split(key, 3)
  image = jnp.asarray(shape, jnp.float32)  # [2] height, width
  share = jax.random.uniform(
      key_area, (_TRIES,), minval=area[0], maxval=area[1]
  )
  log_aspect = jax.random.uniform(
      key_aspect,
      (_TRIES,),
      minval=np.log(aspect[0]),
      maxval=np.log(aspect[1]),
  )
  side = jnp.sqrt(share * image[0] * image[1])
  half = jnp.exp(log_aspect / 2)
  sides = jnp.stack([side / half, side * half], axis=1)  # [tries, 2]
  fits = jnp.all(sides <= image, axis=1).at[-1].set(True)
  chosen = sides[jnp.argmax(fits)]  # the first True
  chosen *= jnp.minimum(1, jnp.min(image / chosen))
  corner = jax.random.uniform(key_place, (2,)) * (image - chosen)
  return jnp.concatenate([corner, chosen])


def crop(
    image: jax.Array, window: jax.Array, *, size: int, antialias: bool = False
) -> jax.Array:
  """Bicubic resampling (Keys, a = -0.5) of a window, as two matrix products.

  Beyond the window's edge the kernel sees the image's own pixels, not a repeat
  of the edge.

  Args:
    image: [H, W, 3] float.
    window: [4] top, left, height, width, in pixels; need not be whole.
    size: the side of the result.
    antialias: whether the kernel widens where the window shrinks.

  Returns:
    [size, size, 3], clipped to [0, 1]: the kernel overshoots.
  """
  scale = size / window[2:]
  resampled = jax.image.scale_and_translate(
      image,
      (size, size, 3),
      (0, 1),
      scale,
      -window[:2] * scale,
      'cubic',
      antialias=antialias,
  )
  return jnp.clip(resampled, 0, 1)


def jitter(
    key: jax.Array,
    image: jax.Array,
    *,
    probability: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> jax.Array:
  """Changes the colours in four ways, in random order, or not at all.

  Args:
    key: a typed key.
    image: [H, W, 3] in [0, 1].
    probability: of all changes together.
    brightness: each channel moves by up to this much, either way.
    contrast: the factor about each channel's mean is 1 +- this.
    saturation: the factor of the HSV saturation is 1 +- this.
    hue: the HSV hue turns by up to this share of the circle, either way.

  Returns:
    [H, W, 3], clipped to [0, 1] after every change. Strength 0: left out.
  """
  key_apply, key_order, *keys = jax.random.split(key, 6)
  changes = [
      (pix.adjust_brightness, 0, brightness),
      (pix.adjust_contrast, 1, contrast),
      (pix.adjust_saturation, 1, saturation),
      (pix.adjust_hue, 0, hue),
  ]
  branches = []
  for key_change, (adjust, neutral, strength) in zip(keys, changes):
    if strength:
      amount = neutral + strength * jax.random.uniform(
          key_change, minval=-1, maxval=1
      )
      branches.append(lambda x, a=amount, f=adjust: jnp.clip(f(x, a), 0, 1))
  changed = image
  order = jax.random.permutation(key_order, len(branches))
  for place in range(len(branches)):
    changed = jax.lax.switch(order[place], branches, changed)
  return _maybe(key_apply, probability, changed, image)


def grayscale(image: jax.Array) -> jax.Array:
  """Three equal channels of luma (weights of rec601: white gives 0.9999)."""
  # Without this, accelerators would round the product's inputs.
  with jax.default_matmul_precision('highest'):
    return pix.rgb_to_grayscale(image, keep_dims=True)


def blur(image: jax.Array, sigma: jax.Array, *, radius: int) -> jax.Array:
  """Gaussian blur with zero padding, so that edges darken as in the release.

  Args:
    image: [H, W, 3].
    sigma: [] standard deviation, in pixels.
    radius: the kernel has 2 radius + 1 taps, normalised.

  Returns:
    [H, W, 3].
  """
  return pix.gaussian_blur(image, sigma, 2 * radius)


def _maybe(key, probability, changed, image):
  return jnp.where(jax.random.bernoulli(key, probability), changed, image)


def _check_images(images: jax.Array) -> None:
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
    raise UserError(
        f'images are {images.dtype} {tuple(images.shape)}; they must be uint8 '
        '[n, height, width, 3].'
    )
