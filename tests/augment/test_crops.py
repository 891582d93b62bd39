"""The release's training crops, by hand. Its test crop: test_images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.augment import crops, resampling
from semppl_jax.errors import UserError


def test_resampling_equals_jaxs_of_the_cut_window():
  image = np.random.RandomState(1).randint(0, 256, (20, 30, 3)).astype(np.uint8)
  for window in ((0, 0, 20, 30), (3, 5, 7, 11), (19, 29, 1, 1), (2, 0, 18, 4)):
    top, left, height, width = window
    where = jnp.array(window, jnp.float32)
    found = resampling.resample(image / np.float32(255), where, where, size=16)
    cut = image[top : top + height, left : left + width] / np.float32(255)
    wanted = jax.image.resize(cut, (16, 16, 3), 'cubic', antialias=False)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_random_windows_by_hand():
  window = lambda *draws, area=(0.25, 1.0), aspect=(0.5, 2.0): np.asarray(
    crops.random_window(
      jnp.array(draws), jnp.array([40.0, 60.0]), area=area, aspect=aspect
    )
  )
  # Area 0.25 x 2400 = 600 pixels, aspect 1: 24.49 rounds to 24.
  np.testing.assert_array_equal(window(0.0, 0.5, 0.0, 0.0), [0, 0, 24, 24])
  # Last corner: 40 - 24 + 1 = 17 rows and 37 columns to choose from.
  last = window(0.0, 0.5, 0.999, 0.999)
  np.testing.assert_array_equal(last, [16, 36, 24, 24])
  # The whole area at aspect 2: 34.6 x 69.3, cut off at 60 columns.
  np.testing.assert_array_equal(window(1.0, 1.0, 0.0, 0.0), [0, 0, 35, 60])
  # Nothing is too small to be seen.
  tiny = window(0.0, 0.0, 0.0, 0.0, area=(1e-6, 1.0))
  np.testing.assert_array_equal(tiny[2:], [1, 1])


def test_random_windows_lie_inside_and_spread():
  draws = jax.random.uniform(jax.random.key(0), (2000, 4))
  window = jax.vmap(
    lambda d: crops.random_window(
      d, jnp.array([32.0, 48.0]), area=(0.08, 1.0), aspect=(3 / 4, 4 / 3)
    )
  )(draws)
  top, left, height, width = np.asarray(window).T
  assert (window == np.round(window)).all()
  assert top.min() == 0 and (top + height).max() == 32
  assert left.min() == 0 and (left + width).max() == 48
  assert abs(np.mean(height * width) / (32 * 48) - 0.54) < 0.04


def test_an_images_crop_depends_on_its_key_alone():
  images = np.random.RandomState(2).randint(0, 256, (6, 12, 12, 3))
  images = images.astype(np.uint8)
  keys = jax.random.split(jax.random.key(0), 6)
  whole = crops.train_crops(keys, images, size=8)
  part = crops.train_crops(keys[3:5], images[3:5], size=8)
  assert whole.shape == (6, 8, 8, 3) and whole.dtype == jnp.float32
  np.testing.assert_array_equal(whole[3:5], part)
  assert whole.min() >= 0 and whole.max() <= 1
  flipped = crops.train_crops(keys, images, size=8, flip=1.0)
  plain = crops.train_crops(keys, images, size=8, flip=0.0)
  np.testing.assert_array_equal(flipped, plain[:, :, ::-1])
  assert np.any(whole != plain) and np.any(whole != flipped)


def test_crops_of_many_sizes_are_those_of_each_image_alone():
  """Noise around an image, which lies in a corner, is not seen."""
  random = np.random.RandomState(3)
  canvas = random.randint(0, 256, (3, 16, 16, 3)).astype(np.uint8)
  sizes = np.array([[16, 16], [7, 12], [1, 1]], np.int32)
  keys = jax.random.split(jax.random.key(1), 3)
  found = crops.train_crops(keys, canvas, size=8, sizes=sizes)
  for i, (height, width) in enumerate(sizes):
    alone = canvas[i : i + 1, :height, :width]
    wanted = crops.train_crops(keys[i : i + 1], alone, size=8)
    np.testing.assert_allclose(found[i], wanted[0], atol=1e-5)


@pytest.mark.parametrize('shape', [(8, 8, 3), (1, 8, 8, 1), (1, 8, 8, 3)])
def test_what_is_no_uint8_image_is_refused(shape):
  with pytest.raises(UserError, match='must be uint8'):
    crops.train_crops(
      jax.random.split(jax.random.key(0), 1),
      np.zeros(shape, np.float32),
      size=4,
    )
