"""Encoded images as arrays, on the host: decoding, fitting, the test crop.

JPEGs are decoded as TensorFlow decodes them by default, which is what the
release's numbers rest on: the fast integer DCT, smooth upsampling of colour.
EXIF orientation is ignored, as there.
"""

import functools
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image
from scipy import sparse

from semppl_jax.utils.text import first_line

MAX_PIXELS = 2**27  # a larger image is refused: a small file can claim any size
# Nor may a JPEG go over its pixels again and again, for hours.
_MAX_WORK = 2**32  # pixels times scans
# Pillow knows more, and would start Ghostscript for some.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')

# A JPEG is shrunk by its decoder alone, to so many eighths of its size, if that
# leaves this share of the side that is asked for: much cheaper than resizing.
_ENOUGH = 0.75


class Unreadable(ValueError):
  """An image that cannot be decoded; the message is the reason, one line."""


def decode(data: bytes | np.ndarray, side: int | None = None) -> np.ndarray:
  """The pixels of an encoded image.

  Args:
    data: JPEG, PNG, WebP, GIF, BMP or TIFF, told by its content, whatever its
      name was; grey, palette, 16 bits and CMYK become RGB, transparency is
      dropped. An array passes as it is.
    side: the longer side that the image will be shrunk to; a larger JPEG is
      decoded at a fraction of its size. None: whole.

  Returns:
    [H, W, 3] uint8.

  Raises:
    Unreadable: truncated, corrupt or too large data, or no image.
  """
  if isinstance(data, np.ndarray):
    return data
  if data[:2] == b'\xff\xd8':
    try:
      return _decode_jpeg(data, side)
    except ValueError as e:
      if isinstance(e, Unreadable):
        raise
      # Below: libjpeg's warnings are errors above. Pillow knows which matter.
  return _decode_other(data)


def from_pil(image: Image.Image) -> np.ndarray:
  """The pixels of a PIL image of whatever mode; files take this way, too.

  Args:
    image: grey, palette, 16 bits, CMYK, YCbCr and HSV become RGB, transparency
      is dropped.

  Returns:
    [H, W, 3] uint8.

  Raises:
    Unreadable: a mode whose range is not known, as of 32 bits, or a file that
      is damaged: Pillow reads it only now.
  """
  try:
    return _from_pil(image)
  except Unreadable:
    raise
  except Exception as e:  # of a damaged file Pillow raises one of many
    raise Unreadable(_one_line(e)) from e


def load(data: bytes | np.ndarray, side: int | None) -> np.ndarray:
  """`decode`, then shrunk so that the longer side is at most `side`.

  Args:
    data: see `decode`.
    side: pixels; a smaller image is not enlarged. None: as it is.

  Returns:
    [h, w, 3] uint8; the aspect is kept up to a pixel. Of a larger JPEG the
    longer side is from 3/4 of `side` to `side`, of other files it is `side`.

  Raises:
    Unreadable: see `decode`.
  """
  image = decode(data, side)
  longer = max(image.shape[:2])
  if side is None or longer <= side:
    return image
  height, width = (max(1, round(n * side / longer)) for n in image.shape[:2])
  shrunk = Image.fromarray(image).resize(
    (width, height), Image.Resampling.BICUBIC, reducing_gap=2.0
  )
  return np.asarray(shrunk)


def center_crop(image: np.ndarray, *, size: int, share: float) -> np.ndarray:
  """The middle of an image as the release's evaluation sees it.

  A square window of whole pixels is cut out first and then resized: bicubic
  (Keys, a = -0.5), half-pixel centres, no antialiasing.

  Args:
    image: [H, W, 3] uint8.
    size: the side of the result, in pixels.
    share: side of the window / shorter side of the image, e.g. 224 / 256.

  Returns:
    [size, size, 3] float32, clipped to [0, 1].
  """
  height, width = image.shape[:2]
  # In float32 as TensorFlow does it, or some windows differ by a pixel.
  side = max(1, int(np.float32(share) * np.float32(min(height, width))))
  top, left = (height - side + 1) // 2, (width - side + 1) // 2
  window = image[top : top + side, left : left + side]
  if side == size:
    return window / np.float32(255)
  weights = _weights(side, size)
  flat = window.reshape(side, -1).astype(np.float32)  # [side, side * 3]
  rows = (weights @ flat).reshape(size, side, 3)
  flat = rows.transpose(1, 0, 2).reshape(side, -1)  # [side, size * 3]
  pixels = (weights @ flat).reshape(size, size, 3).transpose(1, 0, 2)
  return np.clip(pixels / np.float32(255), 0, 1)


@functools.lru_cache(maxsize=256)
def _weights(side: int, size: int) -> sparse.csr_matrix:
  """[size, side] shares of the pixels; at most 4 in a row are not 0."""
  centre = (np.arange(size) + 0.5) * (side / size) - 0.5
  places = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
  x = np.abs(places - centre[:, None])
  near = (1.5 * x - 2.5) * x**2 + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  kernel = np.where(x <= 1, near, np.where(x < 2, far, 0))
  kernel *= (places >= 0) & (places < side)  # none beyond the window
  kernel /= kernel.sum(axis=1, keepdims=True)
  rows = np.repeat(np.arange(size), 4)
  columns = np.clip(places, 0, side - 1).ravel()
  entries = (kernel.astype(np.float32).ravel(), (rows, columns))
  return sparse.csr_matrix(entries, shape=(size, side))


def _decode_jpeg(data: bytes, side: int | None) -> np.ndarray:
  height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
  _check_size(height, width, data)
  least = {}
  if eighths := _eighths(max(height, width), side):
    of = lambda n: -(-n * eighths // 8)
    least = {'min_height': of(height), 'min_width': of(width)}
  four = colours in ('CMYK', 'YCCK')
  image = simplejpeg.decode_jpeg(
    data, 'CMYK' if four else 'RGB', fastdct=True, fastupsample=False, **least
  )
  if not four:
    return image
  # Inverted inks, as Adobe writes and TensorFlow reads them.
  inks = image.astype(np.uint16)
  return (inks[..., :3] * inks[..., 3:] // 255).astype(np.uint8)


def _eighths(longer: int, side: int | None) -> int | None:
  """At how many eighths of its size a JPEG is decoded; None: whole."""
  if side is None or longer <= side:
    return None
  for eighths in range(7, 0, -1):
    if -(-longer * eighths // 8) <= side:
      break
  enough = longer * eighths >= 8 * _ENOUGH * side or longer > 8 * side
  return eighths if enough else eighths + 1


def _decode_other(data: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
      _check_size(file.height, file.width, data)
      return from_pil(file)
  except Unreadable:
    raise
  except Exception as e:  # likewise
    raise Unreadable(_one_line(e)) from e


def _from_pil(image: Image.Image) -> np.ndarray:
  if image.mode in ('I', 'F'):  # which number is white, nothing says
    raise Unreadable(f'its mode {image.mode} is neither 8 nor 16 bits')
  if image.mode.startswith('I;16'):
    # Pillow's own conversion would clip 16 bits to white.
    return _grey((np.asarray(image) >> 8).astype(np.uint8))
  with warnings.catch_warnings():
    # Pillow warns of transparency in palettes, which is dropped anyway.
    warnings.simplefilter('ignore', UserWarning)
    if image.mode in ('RGBa', 'La'):  # premultiplied: Pillow goes step by step
      image = image.convert({'RGBa': 'RGBA', 'La': 'LA'}[image.mode])
    return np.asarray(image.convert('RGB'))


def _grey(image: np.ndarray) -> np.ndarray:
  """[H, W] as [H, W, 3]."""
  return np.repeat(image[..., None], 3, axis=-1)


def _check_size(height: int, width: int, data: bytes) -> None:
  if height * width > MAX_PIXELS:
    raise Unreadable(
      f'its {height} x {width} pixels are more than {MAX_PIXELS:,}'
    )
  # Within a scan no such bytes can stand.
  scans = data.count(b'\xff\xda') if data[:2] == b'\xff\xd8' else 1
  if height * width * scans > _MAX_WORK:
    raise Unreadable(f'it has {scans:,} scans of {height} x {width} pixels')


def _one_line(error: Exception) -> str:
  if isinstance(error, Image.UnidentifiedImageError):
    return 'it is no image that can be decoded'  # Pillow names a buffer
  return first_line(error)
