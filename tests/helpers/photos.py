"""Pictures like photographs, and what is done to copies of them."""

import io

import numpy as np
from PIL import Image


def photo(seed, side=96):
  """[side, side, 3] uint8: noise with the spectrum of photographs."""
  random = np.random.RandomState(seed)
  frequency = np.fft.fftfreq(side) * side
  size = np.hypot(frequency[:, None], frequency)[..., None]
  noise = random.normal(size=(side, side, 3))
  noise = 0.4 * noise + noise.mean(-1, keepdims=True)
  spectrum = np.fft.fft2(noise, axes=(0, 1)) / np.maximum(size, 1)
  spectrum[0, 0] = 0
  image = np.fft.ifft2(spectrum, axes=(0, 1)).real
  image *= random.uniform(30, 60) / image.std()
  image += random.uniform(80, 170, 3)
  return image.clip(0, 255).astype(np.uint8)


def recompressed(image, quality=50):
  """The bytes of a JPEG."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'JPEG', quality=quality)
  return file.getvalue()


def resized(image, side):
  size = (side, side)
  return np.asarray(Image.fromarray(image).resize(size, Image.BICUBIC))


def cropped(image, left=0.05, top=0.05, right=0.05, bottom=0.05):
  height, width = image.shape[:2]
  rows = slice(round(top * height), height - round(bottom * height))
  columns = slice(round(left * width), width - round(right * width))
  return np.ascontiguousarray(image[rows, columns])


def flipped(image):
  return np.ascontiguousarray(image[:, ::-1])
