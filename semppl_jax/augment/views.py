"""Random views of images, on the device, from one key per image.

Every operation takes ONE float image [H, W, 3] in [0, 1] and returns the like;
`make_views` maps them over images and views at the edge. Order and clipping are
those of DeepMind's BYOL release: crop (clipped), flip, colour jitter (clipped
after every change), grayscale, blur, solarize, clip. A view depends on its
image's key and on its own number, not on the batch around it.
"""

import functools

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax import types
from semppl_jax.augment import resampling
from semppl_jax.errors import UserError

_EXACT = jax.lax.Precision.HIGHEST
_TRIES = 10  # crop shapes drawn per view; the first that fits is taken

# How many uniform numbers a view needs. They are drawn together: every call of
# the random generator adds half a second of compilation on a CPU.
_DRAWS = {
  'shape': 2 * _TRIES,
  'corner': 2,
  'flip': 1,
  'jitter': 1,
  'order': 4,
  'amounts': 4,
  'grayscale': 1,
  'blur': 1,
  'sigma': 1,
  'solarize': 1,
}
# Draws of their own: they came later, and what runs without masks saw stands.
_SALIENCY, _BACKGROUND = 2**16, 2**17


def make_views(
  keys: jax.Array,
  images: jax.Array,
  cfg,
  sizes: jax.Array | None = None,
  masks: jax.Array | None = None,
  precision: jax.lax.Precision = _EXACT,
) -> types.Views:
  """Draws all views of a batch.

  Large views alternate between type A and type B, and so do small ones; the
  types differ in the probabilities of blur and of solarize, for which small
  views may have one of their own. With masks, some large views see the
  foreground alone, on mid-grey (ReLICv2's saliency masking; how often is our
  setting), or on colours that tell nothing (our setting, after the background
  augmentations of Ryali et al., arXiv 2103.12719).

  Args:
    keys: [b] typed keys, one per image. Views number 0..V_L-1 are the large
      ones, V_L..V-1 the small ones.
    images: [b, H, W, 3] uint8.
    cfg: the `views` section of the config.
    sizes: [b, 2] height and width of each image, which lies in the top left
      corner of its array; None: images fill their arrays.
    masks: [b, H, W] bool, the foreground; None: nothing is masked.
    precision: of the products that crop and blur; see `resampling.resample`.

  Returns:
    Views, float32 in [0, 1].

  Raises:
    UserError: if images or keys have another shape or dtype.
  """
  _check_images(images)
  typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
  if not typed or keys.shape != images.shape[:1]:
    raise UserError(
      f'keys are {keys.dtype} {keys.shape}; they must be jax.random.key keys '
      f'of shape {images.shape[:1]}, one per image.'
    )

  numbers = jnp.arange(cfg.num_large + cfg.num_small)
  draws = _draw(keys, numbers, sum(_DRAWS.values()))  # [V, b, n]
  large, small = draws[: cfg.num_large], draws[cfg.num_large :]
  images = images.astype(jnp.float32) / 255
  if sizes is None:
    sizes = jnp.tile(jnp.array(images.shape[1:3]), (len(images), 1))
  sizes = sizes.astype(jnp.float32)
  of_one_size = functools.partial(_of_one_size, cfg=cfg, precision=precision)
  small_views = of_one_size(
    small, images, sizes, None, size=cfg.small_size, area=cfg.small_area,
    blurs=_of_small(cfg.small_blur, cfg.blur),
    solarizes=_of_small(cfg.small_solarize, cfg.solarize),
  )  # fmt: skip
  hidden = None
  if masks is not None and cfg.saliency:
    of_large = numbers[: cfg.num_large]
    hide = _draw(keys, _SALIENCY + of_large, 1)[..., 0] < cfg.saliency
    hidden = hide, _draw(keys, _BACKGROUND + of_large, 7)  # [V_L, b], ...
    # The background goes before the crop (our setting). Cropping is linear, so
    # that both are cropped at once, and one is chosen after it.
    shown = masks[..., None].astype(jnp.float32)
    grey = jnp.where(masks[..., None], images, 0.5)
    parts = [images, grey] + ([shown] if cfg.background == 'colours' else [])
    images = jnp.concatenate(parts, axis=-1)  # [b, H, W, 6 or 7]
  large_views = of_one_size(
    large, images, sizes, hidden, size=cfg.large_size, area=cfg.large_area,
    blurs=cfg.blur, solarizes=cfg.solarize,
  )  # fmt: skip
  return types.Views(large_views, small_views)


def _of_small(own, of_large):
  """Probabilities in small views of type A, of type B."""
  return of_large if own is None else (own, own)


def _draw(keys: jax.Array, numbers: jax.Array, count: int) -> jax.Array:
  """Uniform numbers for views and images: [b] keys, [v] -> [v, b, count]."""

  def draw(number, key):
    return jax.random.uniform(jax.random.fold_in(key, number), (count,))

  over_images = jax.vmap(draw, in_axes=(None, 0))
  return jax.vmap(over_images, in_axes=(0, None))(numbers, keys)


def _of_one_size(draws, images, sizes, hidden, *, size, **settings):
  """Views [v, b, size, size, 3] of all images, from their numbers [v, b, n]."""
  if not len(draws):
    return jnp.zeros((0, len(images), size, size, 3))
  one = functools.partial(_view, size=size, **settings)
  per_image = None if hidden is None else 0
  over_images = jax.vmap(one, in_axes=(0, 0, 0, per_image, None))
  kinds = jnp.arange(len(draws)) % 2  # A, B, A, B, ..
  over_views = jax.vmap(over_images, in_axes=(None, None, 0, per_image, 0))
  return over_views(images, sizes, draws, hidden, kinds)


def _view(
    image, shape, draws, hidden, kind,
    *, size, area, blurs, solarizes, cfg, precision,
):  # fmt: skip
  """One view [size, size, 3] of one image; what can never act is left out."""
  ends = np.cumsum(list(_DRAWS.values()))[:-1]
  draw = dict(zip(_DRAWS, jnp.split(draws, ends)))

  def maybe(name, probability, changed):
    return jnp.where(draw[name] < probability, changed, image)

  window = random_window(draw['shape'], draw['corner'], shape, area, cfg.aspect)
  image = crop(
      image, window, shape, size=size, antialias=cfg.antialias,
      precision=precision,
  )  # fmt: skip
  if hidden is not None:
    image = _without_background(image, *hidden)
  if cfg.flip:
    image = maybe('flip', cfg.flip, pix.flip_left_right(image))
  strengths = (cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)
  if cfg.jitter and any(strengths):
    jittered = jitter(
      image, draw['order'], draw['amounts'], strengths, cfg.brightness_mode
    )
    image = maybe('jitter', cfg.jitter, jittered)
  if cfg.grayscale:
    image = maybe('grayscale', cfg.grayscale, grayscale(image))
  radius = int(int(cfg.blur_kernel * size) / 2)
  if radius and any(blurs):
    low, high = cfg.blur_sigma
    sigma = low + (high - low) * draw['sigma'][0]
    blurred = blur(image, sigma, radius=radius, precision=precision)
    image = maybe('blur', jnp.asarray(blurs)[kind], blurred)
  if any(solarizes):
    solarized = pix.solarize(image, cfg.solarize_threshold)
    image = maybe('solarize', jnp.asarray(solarizes)[kind], solarized)
  return jnp.clip(image, 0, 1)


def _without_background(image, hide, draws):
  """A crop [size, size, 6 or 7] of image, foreground on grey, mask -> RGB."""
  whole, foreground, mask = jnp.split(image, (3, 6), axis=-1)
  if mask.shape[-1]:
    # From one colour to another, in any direction, from corner to corner.
    ends, angle = draws[:6].reshape(2, 3), 2 * jnp.pi * draws[6]
    across, down = jnp.cos(angle), jnp.sin(angle)
    along = jnp.linspace(-0.5, 0.5, len(image))
    share = across * along + down * along[:, None]
    share = share / (jnp.abs(across) + jnp.abs(down)) + 0.5  # in [0, 1]
    colours = ends[0] + (ends[1] - ends[0]) * share[..., None]
    foreground += (1 - mask) * (colours - 0.5)
  return jnp.where(hide, jnp.clip(foreground, 0, 1), whole)


def random_window(
  shapes: jax.Array,
  corner: jax.Array,
  size: jax.Array,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> jax.Array:
  """A random crop window: area uniform, aspect uniform in its logarithm.

  Of the shapes drawn, the first that fits into the image is taken; if none does
  (an image much longer than wide), the last, shrunk until it fits. Torchvision
  draws like this too; it is our setting.

  Args:
    shapes: [2 tries] uniform numbers in [0, 1).
    corner: [2] uniform numbers in [0, 1).
    size: [2] height and width of the image.
    area: lowest and highest share of the image that the window covers.
    aspect: lowest and highest width / height.

  Returns:
    [4] float32 top, left, height, width, in pixels, not rounded.
  """
  size = jnp.asarray(size, jnp.float32)  # [2]
  shares, places = jnp.split(shapes, 2)
  pixels = (area[0] + (area[1] - area[0]) * shares) * size[0] * size[1]
  ratios = aspect[0] * (aspect[1] / aspect[0]) ** places
  sides = jnp.sqrt(jnp.stack([pixels / ratios, pixels * ratios], axis=1))
  fits = jnp.all(sides <= size, axis=1).at[-1].set(True)
  sides = sides[jnp.argmax(fits)]  # [tries, 2] -> [2], the first that fits
  sides *= jnp.minimum(1, jnp.min(size / sides))
  return jnp.concatenate([corner * (size - sides), sides])


def crop(
  image: jax.Array,
  window: jax.Array,
  shape: jax.Array,
  *,
  size: int,
  antialias: bool = False,
  precision: jax.lax.Precision = _EXACT,
) -> jax.Array:
  """Bicubic resampling (Keys, a = -0.5) of a window.

  Beyond the window's edge the kernel sees the image itself.

  Args:
    image: [H, W, c] float.
    window: [4] top, left, height, width, in pixels, need not be whole.
    shape: [2] height and width of the image, in the array's top left corner.
    size: the side of the result.
    antialias: whether the kernel widens where the window shrinks.
    precision: see `resampling.resample`.

  Returns:
    [size, size, c], clipped to [0, 1], for the kernel overshoots.
  """
  bounds = jnp.concatenate([jnp.zeros(2), shape])
  image = resampling.resample(
      image, window, bounds, size=size, antialias=antialias,
      precision=precision,
  )  # fmt: skip
  return jnp.clip(image, 0, 1)


def jitter(
  image: jax.Array,
  order: jax.Array,
  amounts: jax.Array,
  strengths: tuple[float, float, float, float],
  brightness_mode: str = 'add',
) -> jax.Array:
  """Changes brightness, contrast, saturation and hue, in random order.

  Args:
    image: [H, W, 3] in [0, 1].
    order: [4] uniform numbers in [0, 1): the changes follow each other by size.
    amounts: [4] uniform numbers in [0, 1): from -strength to strength.
    strengths: the largest shift of all channels; the largest difference from 1
      of the factor about each channel's mean, and of that of HSV saturation;
      the largest turn of HSV hue (circle: 1). With strength 0: left out.
    brightness_mode: 'multiply': of brightness, too, the largest difference from
      1 of a factor, which is not below 0 (SimCLRv2's), in place of a shift.

  Returns:
    [H, W, 3], clipped to [0, 1] after every change.
  """
  present = [change for change in range(4) if strengths[change]]
  delta, contrast, saturation, hue = (2 * amounts - 1) * jnp.array(strengths)
  darkest = max(0, 1 - strengths[0])
  light = darkest + (1 + strengths[0] - darkest) * amounts[0]

  # Mapped over images, a switch computes all changes at every place. So join
  # the two that go through HSV; that halves the work.
  def place(image, change):
    candidates = []
    if {0, 1} & set(present):
      if brightness_mode == 'multiply':
        brighter = image * light
      else:
        brighter = pix.adjust_brightness(image, delta)
      steeper = pix.adjust_contrast(image, 1 + contrast)
      candidates.append(jnp.where(change == 0, brighter, steeper))
    if {2, 3} & set(present):
      factor = jnp.where(change == 2, 1 + saturation, 1)
      turn = jnp.where(change == 3, hue, 0)
      candidates.append(adjust_hsv(image, factor, turn))
    image = jnp.where(change < 2, candidates[0], candidates[-1])
    return jnp.clip(image, 0, 1), None

  # Sorting random numbers compiles much faster than random.permutation.
  changes = jnp.array(present)[jnp.argsort(order[: len(present)])]
  return jax.lax.scan(place, image, changes)[0]


def adjust_hsv(
  image: jax.Array, factor: jax.Array, turn: jax.Array
) -> jax.Array:
  """dm-pix's adjust_saturation by factor [] and adjust_hue by turn [], joined.

  They commute: hue, saturation and value are three numbers, and each changes
  one. image and result: [H, W, 3].
  """
  hue, saturation, value = jnp.moveaxis(pix.rgb_to_hsv(image), -1, 0)
  saturation = jnp.clip(saturation * factor, 0, 1)
  return pix.hsv_to_rgb(jnp.stack([hue + turn, saturation, value], axis=-1))


def grayscale(image: jax.Array) -> jax.Array:
  """Three equal channels of luma (rec601 weights: white becomes 0.9999)."""
  # Accelerators would otherwise round what goes into the product.
  with jax.default_matmul_precision('highest'):
    return pix.rgb_to_grayscale(image, keep_dims=True)


def blur(
  image: jax.Array,
  sigma: jax.Array,
  *,
  radius: int,
  precision: jax.lax.Precision = _EXACT,
) -> jax.Array:
  """Gaussian blur, zeros beyond the edge, so that edges darken as in BYOL.

  Equals dm-pix's gaussian_blur. That one is a convolution, and mapped over
  images with a sigma each a grouped one: ten times slower on a CPU than these
  two products with banded matrices.

  Args:
    image: [H, W, 3].
    sigma: [] standard deviation, in pixels.
    radius: the kernel has 2 radius + 1 taps and sum 1.
    precision: see `resampling.resample`.
  """
  gauss = lambda distance: jnp.exp(-(distance**2) / (2 * sigma**2))
  total = jnp.sum(gauss(jnp.arange(-radius, radius + 1)))

  def band(side):
    distance = jnp.arange(side)[:, None] - jnp.arange(side)  # [side, side]
    return jnp.where(jnp.abs(distance) <= radius, gauss(distance) / total, 0)

  down, across = band(image.shape[0]), band(image.shape[1])
  return jnp.einsum('yi,ijc,xj->yxc', down, image, across, precision=precision)


def _check_images(images: jax.Array) -> None:
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
    raise UserError(
      f'images are {images.dtype} {images.shape}; they must be uint8 '
      '[n, height, width, 3].'
    )
