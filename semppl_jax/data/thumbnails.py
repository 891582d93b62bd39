"""Thumbnails: what is kept of images to tell which are copies of each other.

Of each image a digest of its bytes and 32 x 32 pixels, 3.1 kB in all, so that
a large data set is read once, and fits.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np
import tqdm
from PIL import Image

from semppl_jax.data import images, sources

SIDE = 32  # of a thumbnail, in pixels
_DECODED = 128  # pixels of the longer side that a thumbnail is made of
_BLOCK = 512  # images that are read at once
_MOST_THREADS = 8


class Thumbnails(NamedTuple):
  """N images, in the order of their source."""

  digests: np.ndarray  # [N] uint64, of an image's bytes, or of its array
  pixels: np.ndarray  # [N, SIDE, SIDE, 3] uint8; of unreadable ones 0
  sides: np.ndarray  # [N] int32, the shorter side of the image; unreadable: 0
  unreadable: dict[int, str]  # row -> reason


def make(source: sources.Source, progress: bool = False) -> Thumbnails:
  """Reads all images once, by threads.

  Args:
    source: N records.
    progress: whether a bar is shown, on a terminal.
  """
  count = len(source)
  made = Thumbnails(
    np.zeros(count, np.uint64),
    np.zeros((count, SIDE, SIDE, 3), np.uint8),
    np.zeros(count, np.int32),
    {},
  )
  with (
    futures.ThreadPoolExecutor(_threads(source)) as pool,
    tqdm.tqdm(
      total=count,
      desc='thumbnails',
      unit='image',
      disable=None if progress else True,
    ) as bar,
  ):
    for rows in _blocks(count):
      for row, found in zip(rows, pool.map(_Read(source), rows), strict=True):
        if isinstance(found, str):
          made.unreadable[row] = found
        else:
          made.digests[row], made.pixels[row], made.sides[row] = found
      bar.update(len(rows))
  return made


class _Read:
  """Row -> (digest, thumbnail, shorter side), or why there is none."""

  def __init__(self, source: sources.Source):
    self._source = source

  def __call__(self, row: int) -> tuple[int, np.ndarray, int] | str:
    try:
      data = self._source[row]['image']
      image = images.load(data, _DECODED)
    except images.Unreadable as error:
      return str(error)
    small = Image.fromarray(image).resize(
      (SIDE, SIDE), Image.Resampling.BILINEAR
    )
    return _digest(data), np.asarray(small), min(image.shape[:2])


def _digest(data: bytes | np.ndarray) -> int:
  if isinstance(data, np.ndarray):
    data = repr(data.shape).encode() + np.ascontiguousarray(data).tobytes()
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')


def _blocks(count: int) -> Iterator[range]:
  for start in range(0, count, _BLOCK):
    yield range(start, min(start + _BLOCK, count))


def _threads(source: sources.Source) -> int:
  # Those that wait for a bucket need no core.
  cores = _MOST_THREADS if sources.is_remote(source) else os.cpu_count() or 1
  return min(_MOST_THREADS, cores)
