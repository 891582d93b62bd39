"""Golden numbers, crops by hand, and what a view may depend on."""

import functools
import itertools

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import config, errors
from semppl_jax.augment import views
from tests.helpers import golden, tiny

GOLDEN = golden.load('color_ops.npz')
IMAGE = GOLDEN['image']  # [32, 32, 3]
STILL = {
  'num_small': 0,
  'large_area': (1.0, 1.0),
  'aspect': (1.0, 1.0),
  'flip': 0.0,
  'jitter': 0.0,
  'grayscale': 0.0,
  'blur': (0.0, 0.0),
  'solarize': (0.0, 0.0),
}  # square images of the large size come back as they are
LUMA = np.array([0.2989, 0.5870, 0.1140], np.float32)

# Compiled whole: many small operations take longer one by one.
adjust_hsv = jax.jit(views.adjust_hsv)
blur = jax.jit(views.blur, static_argnames='radius')


@functools.partial(jax.jit, static_argnames=('size', 'antialias'))
def crop(image, window, *, size, antialias=False):
  """Of an image that fills its array."""
  shape = jnp.array(image.shape[:2], jnp.float32)
  return views.crop(image, window, shape, size=size, antialias=antialias)


jax_resize = jax.jit(jax.image.resize, static_argnums=(1, 2, 3))
ADJUST = (
  (jax.jit(pix.adjust_brightness), 0),
  (jax.jit(pix.adjust_contrast), 1),
  (jax.jit(pix.adjust_saturation), 1),
  (jax.jit(pix.adjust_hue), 0),
)


def settings(**changes):
  cfg = config.default().views
  with cfg.unlocked():
    cfg.update(changes)
  return cfg


def photos(number, height, width, low=0, high=256, seed=0):
  random = np.random.RandomState(seed)
  return random.randint(low, high, (number, height, width, 3)).astype(np.uint8)


def keys_of(number, seed=0):
  return jax.random.split(jax.random.key(seed), number)


def make(cfg, images, keys=None):
  keys = keys_of(len(images)) if keys is None else keys
  return jax.jit(functools.partial(views.make_views, cfg=cfg))(keys, images)


# -- one operation on one image --


def close(actual, name, atol=2e-6):
  np.testing.assert_allclose(actual, GOLDEN[name], rtol=0, atol=atol)


@pytest.mark.parametrize('delta', ['0.25', '-0.4'])
def test_brightness_is_the_releases(delta):
  name = f'adjust_brightness_delta{delta}'
  close(pix.adjust_brightness(IMAGE, float(delta)), name)


@pytest.mark.parametrize('factor', ['0.6', '1.4'])
def test_contrast_is_the_releases(factor):
  name = f'adjust_contrast_factor{factor}'
  close(pix.adjust_contrast(IMAGE, float(factor)), name)


@pytest.mark.parametrize('factor', ['0.8', '1.2', '0.0'])
def test_saturation_is_the_releases(factor):
  name = f'adjust_saturation_factor{factor}'
  close(adjust_hsv(IMAGE, float(factor), 0.0), name)


@pytest.mark.parametrize('turn', ['0.1', '-0.1', '0.5'])
def test_hue_is_the_releases(turn):
  close(adjust_hsv(IMAGE, 1.0, float(turn)), f'adjust_hue_delta{turn}')


def test_hsv_is_the_releases():
  hsv = jax.jit(pix.rgb_to_hsv)(IMAGE)
  difference = np.abs(hsv - GOLDEN['rgb_to_hsv'])
  hue = np.minimum(difference[..., 0], 1 - difference[..., 0])  # a circle
  assert max(hue.max(), difference[..., 1:].max()) < 2e-6
  close(jax.jit(pix.hsv_to_rgb)(hsv), 'hsv_to_rgb_of_rgb_to_hsv')


def test_grayscale_and_solarize_are_the_releases():
  close(views.grayscale(IMAGE), 'to_grayscale')
  close(pix.solarize(IMAGE, 0.5), 'solarize_threshold0.5_prob1')


@pytest.mark.parametrize(
  ('kernel', 'sigma'),
  [('3.2', '0.5'), ('3.2', '2.0'), ('7.0', '1.0'), ('22.4', '1.3')],
)
def test_blur_is_the_releases(kernel, sigma):
  radius = int(float(kernel) / 2)
  actual = blur(IMAGE, float(sigma), radius=radius)
  close(actual, f'gaussian_blur_kernel{kernel}_sigma{sigma}')


def test_blur_of_an_oblong_image_is_dm_pixs():
  image = IMAGE[:20, :13]
  expected = jax.jit(pix.gaussian_blur, static_argnums=2)(image, 1.7, 4)
  actual = blur(image, 1.7, radius=2)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_a_crop_at_scale_1_is_a_slice():
  window = jnp.array([5.0, 9.0, 8.0, 8.0])
  actual = crop(IMAGE, window, size=8)
  np.testing.assert_allclose(actual, IMAGE[5:13, 9:17], rtol=0, atol=1e-6)


@pytest.mark.parametrize('axis', [0, 1])
def test_a_crop_between_pixels_has_keys_weights(axis):
  # A quarter pixel further: distances 1.25, 0.25, 0.75, 1.75 to the four
  # nearest pixels, and Keys' kernel with a = -0.5 worked out there.
  weights = np.array([-0.0703125, 0.8671875, 0.2265625, -0.0234375])
  corner = np.array([5.0, 9.0])
  corner[axis] += 0.25
  image = np.float32(0.25) + IMAGE / 2  # away from the clip
  actual = crop(image, jnp.array([*corner, 8.0, 8.0]), size=8)
  shifted = [np.roll(image, shift, axis) for shift in (1, 0, -1, -2)]
  expected = np.tensordot(weights, shifted, axes=1)[5:13, 9:17]
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(('size', 'antialias'), [(13, True), (48, False)])
def test_a_crop_of_everything_is_a_resize(size, antialias):
  image = IMAGE[:, :20]
  window = jnp.array([0.0, 0.0, 32.0, 20.0])
  actual = crop(image, window, size=size, antialias=antialias)
  expected = jax_resize(image, (size, size, 3), 'cubic', antialias)
  expected = np.clip(expected, 0, 1)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_a_crop_is_clipped():
  image = np.zeros((12, 10, 3), np.float32)
  image[4:8, 4:8] = 1  # the kernel overshoots here
  raw = jax_resize(image, (7, 7, 3), 'cubic', False)
  assert raw.min() < 0 and raw.max() > 1
  actual = crop(image, jnp.array([0.0, 0, 12, 10]), size=7)
  np.testing.assert_allclose(actual, np.clip(raw, 0, 1), rtol=0, atol=3e-6)


@pytest.mark.parametrize('antialias', [False, True])
def test_what_lies_around_an_image_is_not_seen(antialias):
  """An image in the corner of a larger array crops as it does alone."""
  image = IMAGE[:20, :13].astype(np.float64)
  canvas = np.random.RandomState(0).rand(32, 32, 3)
  canvas[:20, :13] = image
  with tiny.enable_x64(True):  # in float32 sums of other lengths round apart
    for window in ([0, 0, 20, 13], [11.3, 4.2, 8.6, 8.7], [19, 12, 1, 1]):
      window = jnp.array(window)
      alone = crop(image, window, size=9, antialias=antialias)
      inside = views.crop(
        canvas, window, jnp.array([20.0, 13.0]), size=9, antialias=antialias
      )
      np.testing.assert_allclose(inside, alone, rtol=0, atol=1e-6)


# -- windows --


def windows(number, *args, seed=0):
  random = np.random.RandomState(seed)
  shapes = random.rand(number, 20).astype(np.float32)
  corners = random.rand(number, 2).astype(np.float32)
  size, *rest = args
  size = jnp.array(size, jnp.float32)
  draw = jax.jit(jax.vmap(lambda s, c: views.random_window(s, c, size, *rest)))
  return np.asarray(draw(shapes, corners))


def test_small_windows_are_uniform():
  drawn = windows(4000, (40, 50), (0.05, 0.14), (3 / 4, 4 / 3))
  top, left, height, width = drawn.T
  area = (height * width / 2000 - 0.05) / 0.09  # [0, 1) if uniform
  aspect = np.log(width / height) / np.log(16 / 9) + 0.5
  places = top / (40 - height), left / (50 - width)
  for share in (area, aspect, *places):
    assert -1e-5 < share.min() < 0.01 and 0.99 < share.max() < 1 + 1e-5
    deciles = np.histogram(share, 10, (0, 1))[0] / 4000
    assert np.all(np.abs(deciles - 0.1) < 0.02)  # over four sigma


def test_large_windows_stay_inside_image_area_and_aspect():
  drawn = windows(4000, (30, 30), (0.14, 1.0), (3 / 4, 4 / 3))
  top, left, height, width = drawn.T
  assert drawn[:, :2].min() >= 0
  assert max((top + height).max(), (left + width).max()) <= 30 * (1 + 1e-6)
  area, aspect = height * width / 900, width / height
  assert 0.14 - 1e-5 < area.min() < 0.15 and 0.95 < area.max() <= 1 + 1e-5
  assert 0.75 - 1e-5 < aspect.min() < 0.76 and 1.31 < aspect.max() < 1.33334
  # Shapes that do not fit are drawn again: the largest areas get rarer.
  assert np.mean(area > 0.57) < 0.45


@pytest.mark.parametrize(
  ('size', 'area', 'aspect', 'sides'),
  [
    ((20, 20), 1.0, 1.0, (20, 20)),
    ((20, 20), 0.5, 2.0, (10, 20)),
    ((10, 30), 1.0, 3.0, (10, 30)),
    ((20, 60), 0.5, 1.0, (20, 20)),  # does not fit: shrunk, aspect kept
    ((60, 20), 0.9, 1.5, (20 / 1.5, 20)),
  ],
)
def test_windows_by_hand(size, area, aspect, sides):
  drawn = windows(3, size, (area, area), (aspect, aspect))
  np.testing.assert_allclose(drawn[:, 2:], [sides] * 3, rtol=1e-6)
  free = np.array(size) - np.array(sides)
  corner = np.random.RandomState(0)
  corner.rand(3, 20)
  np.testing.assert_allclose(drawn[:, :2], corner.rand(3, 2) * free, atol=1e-4)


# -- jitter --


@pytest.mark.parametrize(
  'strengths, mirrored',
  [
    ((0.4, 0.4, 0.2, 0.1), False),
    ((0.4, 0.4, 0.2, 0.1), True),
    ((0.4, 0.0, 0.0, 0.1), False),
    ((0.0, 0.4, 0, 0), False),
    ((0, 0, 1, 0), False),
  ],
)
def test_jitter_applies_the_changes_in_the_order_of_its_numbers(
  strengths, mirrored
):
  image = IMAGE[:8, :8]  # with black, white and pure colours: clips matter
  present = [change for change in range(4) if strengths[change]]
  orders = list(itertools.permutations(present))
  numbers = np.full((len(orders), 4), 0.5, np.float32)
  for row, order in zip(numbers, orders):
    for place, change in enumerate(order):
      row[present.index(change)] = (place + 0.5) / 4
  amounts = np.array([0.95, 0.9, 0.1, 0.8], np.float32)
  if mirrored:  # each change the other way
    amounts = 1 - amounts
  jitter = jax.vmap(views.jitter, in_axes=(None, 0, None, None))
  actual = jax.jit(jitter, static_argnums=3)(image, numbers, amounts, strengths)
  for order, result in zip(orders, actual):
    expected = image
    for change in order:
      adjust, neutral = ADJUST[change]
      amount = neutral + strengths[change] * (2 * amounts[change] - 1)
      expected = jnp.clip(adjust(expected, amount), 0, 1)
    np.testing.assert_allclose(result, expected, rtol=0, atol=3e-6)
  distinct = []
  for result in np.asarray(actual):
    if all(np.abs(result - other).max() > 1e-3 for other in distinct):
      distinct.append(result)
  # Hue and saturation commute: where they are neighbours (12 orders of 24),
  # both orders give the same.
  assert len(distinct) == {4: 18, 2: 2, 1: 1}[len(present)]


@pytest.mark.parametrize('strength', [0.8, 1.5])
def test_brightness_that_multiplies(strength):
  """U[max(0, 1 - s), 1 + s] times the image, as in SimCLRv2's release."""
  image = IMAGE[:8, :8] / 2
  lowest = max(0, 1 - strength)
  for amount, factor in (
    (0.0, lowest), (0.5, (lowest + 1 + strength) / 2), (1.0, 1 + strength),
  ):  # fmt: skip
    actual = views.jitter(
      image, jnp.zeros(4), jnp.full(4, amount), (strength, 0, 0, 0), 'multiply'
    )
    expected = np.clip(image * factor, 0, 1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_views_have_the_brightness_that_is_asked_for():
  changes = {
    'num_large': 1, 'large_size': 8, 'jitter': 1.0, 'brightness': 0.4,
    'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0,
  }  # fmt: skip
  images = photos(4, 8, 8, low=60, high=120)  # no clipping
  shown = images / np.float32(255)
  added, times = (
    make(settings(**STILL | changes | {'brightness_mode': mode}), images)[0][0]
    for mode in ('add', 'multiply')
  )
  shift, factor = np.asarray(added) - shown, np.asarray(times) / shown
  for image in range(4):  # one number for all of an image, the same draw
    np.testing.assert_allclose(shift[image], shift[image, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(factor[image], 1 + shift[image], atol=1e-4)
  assert np.abs(shift).min() > 1e-3


# -- whole views --


def test_certain_operations_act_in_views_of_their_type():
  changes = {
    'num_large': 3,
    'large_size': 20,
    'small_size': 8,
    'flip': 1.0,
    'grayscale': 1.0,
    'blur': (0.0, 1.0),
    'blur_sigma': (1.5, 1.5),
    'blur_kernel': 0.25,  # 5 pixels of 20: radius 2
    'solarize': (1.0, 0.0),
    'solarize_threshold': 0.4,
  }
  images = photos(2, 20, 20)
  large, small = make(settings(**STILL | changes), images)
  assert small.shape == (0, 2, 8, 8, 3)  # num_small is 0
  assert large.dtype == small.dtype == jnp.float32
  grey = np.flip(images / np.float32(255), axis=2) @ LUMA
  grey = np.repeat(grey[..., None], 3, axis=-1)
  solarized = np.where(grey < 0.4, grey, 1 - grey)
  blurred = jax.vmap(lambda image: pix.gaussian_blur(image, 1.5, 5))(grey)
  for actual, expected in zip(large, (solarized, blurred, solarized)):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


def test_small_views_may_have_probabilities_of_their_own():
  changes = {
    'num_large': 2,
    'num_small': 2,
    'large_size': 20,
    'small_size': 20,
    'small_area': (1.0, 1.0),
    'blur_sigma': (1.5, 1.5),
    'blur_kernel': 0.25,
    'solarize_threshold': 0.4,
  }
  images = photos(2, 20, 20)
  plain = images / np.float32(255)
  solarized = np.where(plain < 0.4, plain, 1 - plain)
  blurred = jax.vmap(lambda image: pix.gaussian_blur(image, 1.5, 5))(plain)

  def check(own, large, small):
    found = make(settings(**STILL | changes | own), images)
    wanted = np.stack([*large, *small])
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=0, atol=2e-6)

  some = {'blur': (1.0, 0.0)}
  check(some, [blurred, plain], [blurred, plain])  # by their type
  check(some | {'small_blur': 0.0}, [blurred, plain], [plain] * 2)
  check({'small_blur': 1.0}, [plain] * 2, [blurred] * 2)
  some = {'solarize': (0.0, 1.0)}
  check(some, [plain, solarized], [plain, solarized])
  check(some | {'small_solarize': 0.0}, [plain, solarized], [plain] * 2)
  check({'small_solarize': 1.0}, [plain] * 2, [solarized] * 2)


def test_flip_and_jitter_come_as_often_as_asked():
  changes = {
    'num_large': 2,
    'num_small': 2,
    'large_size': 8,
    'small_size': 8,
    'small_area': (1.0, 1.0),
    'flip': 0.3,
    'jitter': 0.6,
    'brightness': 0.2,
    'contrast': 0.0,
    'saturation': 0.0,
    'hue': 0.0,
  }
  images = photos(150, 8, 8, low=60, high=190)  # no clipping
  both = np.concatenate(make(settings(**STILL | changes), images))
  plain = images / np.float32(255)
  shift = (both - plain).mean((2, 3, 4))  # [4, 150]
  centred = both - shift[..., None, None, None]
  flipped = np.abs(centred - plain[:, :, ::-1]).max((2, 3, 4)) < 1e-5
  straight = np.abs(centred - plain).max((2, 3, 4)) < 1e-5
  assert np.all(flipped ^ straight)
  assert abs(flipped.mean() - 0.3) < 0.08  # four sigma of 600 draws
  jittered = np.abs(shift) > 1e-6
  assert abs(jittered.mean() - 0.6) < 0.08
  assert 0.19 < shift.max() < 0.2 and -0.2 < shift.min() < -0.19
  together = np.mean(flipped & jittered)
  assert abs(together - 0.18) < 0.07  # independent
  # Every view of every image draws anew, small ones included.
  assert len(np.unique(shift[jittered].round(6))) > 0.95 * jittered.sum()


FULL = {
  'num_large': 3,
  'num_small': 2,
  'large_size': 24,
  'small_size': 20,
  'blur_kernel': 0.2,
}


@pytest.fixture(scope='module')
def full():
  """Everything on; returns the mapped function and how often it was traced."""
  traces = []

  def traced(keys, images):
    traces.append(images.shape)
    return views.make_views(keys, images, settings(**FULL))

  return jax.jit(traced), traces


def test_views_are_images_and_differ(full):
  images = photos(1, 30, 26).repeat(4, axis=0)
  result = full[0](keys_of(4), images)
  assert result.large.shape == (3, 4, 24, 24, 3)
  assert result.small.shape == (2, 4, 20, 20, 3)
  for each in result:
    assert each.min() >= 0 and each.max() <= 1 and each.std() > 0.05
    assert len({np.asarray(view).tobytes() for view in each[0]}) == 4  # by key
    assert len({np.asarray(view).tobytes() for view in each[:, 0]}) == len(each)


def test_a_view_does_not_depend_on_its_place_in_the_batch(full):
  function, traces = full
  images, keys, order = photos(4, 30, 26), keys_of(4, seed=1), [2, 0, 3, 1]
  first = function(keys, images)
  moved = function(keys[np.array(order)], images[order])
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a[:, order], b), first, moved
  )
  assert len(traces) == 1  # other keys and images, but no second trace


def test_a_view_does_not_depend_on_the_rest_of_batch_and_views(full):
  images, keys = photos(4, 30, 26), keys_of(4, seed=1)
  whole = full[0](keys, images)
  part = make(
    settings(**FULL | {'num_large': 2, 'num_small': 0}), images[2:3], keys[2:3]
  )
  np.testing.assert_allclose(
    part.large, whole.large[:2, 2:3], rtol=0, atol=1e-5
  )


# -- mistakes --


@pytest.mark.parametrize(
  'images',
  [
    np.zeros((3, 8, 8), np.uint8),
    np.zeros((3, 8, 8, 1), np.uint8),
    np.zeros((3, 8, 8, 3), np.float32),
  ],
)
def test_wrong_images_are_named(images):
  with pytest.raises(errors.UserError) as caught:
    views.make_views(keys_of(3), images, settings())
  message = str(caught.value)
  assert str(images.dtype) in message and str(images.shape) in message
  assert '\n' not in message and 'uint8 [n, height, width, 3]' in message


@pytest.mark.parametrize(
  'keys', [jax.random.PRNGKey(0), jnp.zeros((2,)), keys_of(3), keys_of(1)[0]]
)
def test_wrong_keys_are_named(keys):
  with pytest.raises(errors.UserError, match='one per image') as caught:
    views.make_views(keys, np.zeros((2, 8, 8, 3), np.uint8), settings())
  assert str(keys.shape) in str(caught.value)


# -- images of many sizes, and saliency masks --


def on_canvas(images, side):
  canvas = np.full((len(images), side, side, 3), 99, np.uint8)
  for place, image in zip(canvas, images):
    place[: image.shape[0], : image.shape[1]] = image
  return canvas, np.array([image.shape[:2] for image in images], np.int32)


def test_images_of_many_sizes_are_seen_as_they_are_alone():
  cfg = settings(**FULL)
  images = [photos(1, *size)[0] for size in ((24, 24), (13, 30), (32, 9))]
  canvas, sizes = on_canvas(images, 32)
  keys = keys_of(3)
  whole = jax.jit(functools.partial(views.make_views, cfg=cfg))(
    keys, canvas, sizes=sizes
  )
  for i, image in enumerate(images):
    alone = make(cfg, image[None], keys[i : i + 1])
    for found, wanted in zip(whole, alone):
      # Solarize turns rounding about its threshold into a jump.
      far = np.abs(found[:, i] - wanted[:, 0]) > 1e-4
      assert far.mean() < 1e-3


def masked_views(probability, masks, images=None, **changes):
  cfg = settings(**STILL | {'large_size': 20, 'num_large': 4} | changes)
  cfg.saliency = probability
  images = photos(len(masks), 20, 20) if images is None else images
  make = jax.jit(functools.partial(views.make_views, cfg=cfg))
  return images / np.float32(255), make(
    keys_of(len(masks)), images, masks=masks
  )


def test_masked_background_is_mid_grey():
  masks = np.zeros((2, 20, 20), bool)
  masks[0, 5:9, 3:17] = True
  floats, (large, _) = masked_views(1.0, masks)
  expected = np.where(masks[..., None], floats, 0.5)
  for view in large:
    np.testing.assert_allclose(view, expected, rtol=0, atol=1e-6)


def test_the_background_goes_before_the_crop():
  """At the mask's edge the kernel sees grey, not what was there."""
  masks = np.zeros((1, 20, 20), bool)
  masks[:, :, :10] = True
  floats, (large, _) = masked_views(1.0, masks, large_size=31)
  hidden = np.where(masks[..., None], floats, np.float32(0.5))
  wanted = jax_resize(hidden, (1, 31, 31, 3), 'cubic', False)
  np.testing.assert_allclose(large[0], np.clip(wanted, 0, 1), rtol=0, atol=2e-5)


def test_masking_comes_as_often_as_asked_and_to_large_views_alone():
  masks = np.zeros((200, 20, 20), bool)
  changes = {'num_small': 2, 'small_size': 20, 'small_area': (1.0, 1.0)}
  floats, (large, small) = masked_views(0.3, masks, **changes)
  grey = np.abs(np.asarray(large) - 0.5).max((2, 3, 4)) < 1e-6  # [4, 200]
  assert abs(grey.mean() - 0.3) < 4 * (0.3 * 0.7 / 800) ** 0.5
  assert 0 < np.mean(grey[0] & grey[1]) < 0.2  # views draw independently
  np.testing.assert_allclose(small, np.stack([floats] * 2), rtol=0, atol=1e-6)


def test_a_background_of_colours():
  """Behind the foreground a gradient of two colours, another in each view."""
  masks = np.zeros((200, 20, 20), bool)
  masks[:, 5:9, 3:17] = True
  floats, (large, _) = masked_views(1.0, masks, background='colours')
  large = np.asarray(large)  # [4, 200, 20, 20, 3]
  np.testing.assert_allclose(
    large[:, masks], np.stack([floats[masks]] * 4), rtol=0, atol=1e-5
  )
  behind = large[:, :, 9:]
  for axis in (2, 3):
    np.testing.assert_allclose(np.diff(behind, 2, axis=axis), 0, atol=1e-5)
  # Means of two uniform colours, in the middle: 0.5, with variance 1 / 24.
  middle = behind.mean(axis=(2, 3))  # [4, 200, 3]
  assert abs(middle.mean() - 0.5) < 0.02
  assert 0.1 < middle.std() < 0.3
  for one, other in ((middle[0], middle[1]), (middle[:, 0], middle[:, 1])):
    assert np.abs(one - other).mean() > 0.1
  # From end to end as often across as down, and not in grey alone.
  slopes = [np.abs(np.diff(behind, axis=axis)).mean() for axis in (2, 3)]
  assert 0.7 < slopes[0] / slopes[1] < 1.4
  assert behind.std(axis=-1).mean() > 0.1


def test_views_that_keep_their_background_keep_it():
  masks = np.zeros((100, 20, 20), bool)
  floats, (large, _) = masked_views(0.3, masks, background='colours')
  kept = np.abs(np.asarray(large) - floats).max((2, 3, 4)) < 1e-6
  assert abs(kept.mean() - 0.7) < 4 * (0.3 * 0.7 / 400) ** 0.5


def test_masks_change_nothing_else():
  """Same crops and colours with masks of foreground alone, or none."""
  images, masks = photos(3, 24, 24), np.ones((3, 24, 24), bool)
  make = jax.jit(functools.partial(views.make_views, cfg=settings(**FULL)))
  with_masks = make(keys_of(3), images, masks=masks)
  without = make(keys_of(3), images)
  for found, wanted in zip(with_masks, without):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
