"""Drawn photographs: JPEG files as hard to decode as ImageNet's.

What a JPEG costs depends on its pixels and on its bytes, and noise or flat
colours have far too many or too few. These have the statistics of natural
images instead: amplitudes fall with frequency as 1/f, channels go together,
and objects with textures of their own cover each other with sharp edges.
"""

import io

import numpy as np
from PIL import Image

# Most of ImageNet: 500 x 375 pixels at about 110 KB (its mean over all files).
_LONG, _SHORT = 500, 375
_PORTRAITS = 4  # one in so many stands upright
_QUALITY = 95
# Brightness, blue-yellow, red-green, in RGB; colours vary less, as in nature.
_CHANNELS = np.array([[1, 1, 1], [0.2, 0.1, -0.3], [0.12, -0.12, 0]])


def photos(count: int, seed: int = 0) -> list[bytes]:
  """JPEG files (quality 95, 4:2:0), a quarter of them upright.

  Args:
    count: how many.
    seed: of all. The first n files do not depend on count.

  Returns:
    The files' bytes.
  """
  return [_photo(np.random.default_rng([seed, i]), i) for i in range(count)]


def _photo(random: np.random.Generator, number: int) -> bytes:
  upright = number % _PORTRAITS == _PORTRAITS - 1
  shape = (_LONG, _SHORT) if upright else (_SHORT, _LONG)
  image = surface(random, shape)
  for _ in range(random.integers(3, 9)):
    image = np.where(outline(random, shape), surface(random, shape), image)
  image = image + random.normal(0, 0.008, image.shape)  # the sensor's noise
  pixels = np.uint8(255 * np.clip(image, 0, 1) + 0.5)
  file = io.BytesIO()
  Image.fromarray(pixels).save(
    file, 'JPEG', quality=_QUALITY, subsampling='4:2:0'
  )
  return file.getvalue()


def surface(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  """A texture of one material, [H, W, 3], about 0.45 and mostly in [0, 1]."""
  slopes = random.uniform(0.9, 1.4) + np.array([0, 0.3, 0.3])
  contrast = random.uniform(0.08, 0.22)
  fields = np.stack([field(random, shape, slope) for slope in slopes], axis=-1)
  colour = random.uniform(0.25, 0.65) + random.normal(0, 0.3, 3) @ _CHANNELS / 2
  return colour + contrast * fields @ _CHANNELS


def field(
  random: np.random.Generator, shape: tuple[int, int], slope: float
) -> np.ndarray:
  """Gaussian numbers [H, W], mean 0, variance 1, of amplitudes 1 / f^slope."""
  height, width = shape
  down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
  frequency = np.float32(np.hypot(down, right))
  frequency[0, 0] = np.inf  # no mean
  noise = random.standard_normal(shape, np.float32)
  spectrum = np.fft.rfft2(noise) / frequency ** float(slope)
  values = np.fft.irfft2(spectrum, shape)
  return values / values.std()


def outline(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  """Where an ellipse or a rectangle lies, turned by any angle: [H, W, 1]."""
  middle = random.uniform(0, shape)
  radii = random.uniform(0.06, 0.35, 2) * min(shape)
  angle = random.uniform(0, np.pi)
  down, right = np.indices(shape) - middle[:, None, None]
  along = (right * np.cos(angle) + down * np.sin(angle)) / radii[0]
  across = (down * np.cos(angle) - right * np.sin(angle)) / radii[1]
  power = random.choice([2, 16])
  return (along**power + across**power < 1)[..., None]
