"""Folders of image files: finding, labelling and decoding them."""

import os
from collections.abc import Sequence

import numpy as np
from absl import logging
from PIL import Image

from semppl_jax import config
from semppl_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff')


def decode(path: str, size: int) -> np.ndarray:
  """A file's image: shorter side to `size` (bicubic), then a centre crop.

  Args:
    path: any format that Pillow reads; grey, palette, CMYK become RGB.
    size: pixels.

  Returns:
    [size, size, 3] uint8.

  Raises:
    UserError: names the file.
  """
  try:
    with Image.open(path) as file:
      image = _to_rgb(file)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    raise UserError(f'{path} is not a readable image: {reason}') from e
  scale = size / min(image.size)
  wide, high = (max(size, round(side * scale)) for side in image.size)
  if (wide, high) != image.size:
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
  left, top = (wide - size) // 2, (high - size) // 2
  return np.asarray(image.crop((left, top, left + size, top + size)))


def _to_rgb(image: Image.Image) -> Image.Image:
  """8 bits a channel. Pillow's own conversion would clip 16 bits to white."""
  if image.mode.startswith('I;16'):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F'):
    raise ValueError(f'its mode {image.mode} is neither 8 nor 16 bits')
  return image.convert('RGB')


def subfolders(folder: str) -> list[str]:
  """Sorted names of a folder's subfolders; none if there is no folder."""
  if not os.path.isdir(folder):
    return []
  return sorted(
    e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != '.'
  )


def by_class(folder: str, names: Sequence[str]) -> tuple[list[str], list[int]]:
  """Image files and labels of folder/CLASS/*; none if there is no folder."""
  paths, labels = [], []
  if stray := find(folder, deep=False):
    raise UserError(f'{stray[0]} is in no class; it belongs in {folder}/CLASS/')
  for name in subfolders(folder):
    if name not in names:
      raise UserError(
        f'{os.path.join(folder, name)} is no class of train/'
        f'{config.nearest_name(name, names)}'
      )
    found = find(os.path.join(folder, name))
    if not found:
      logging.warning('%s has no images.', os.path.join(folder, name))
    paths += found
    labels += [list(names).index(name)] * len(found)
  return paths, labels


def find(folder: str, deep: bool = True) -> list[str]:
  """Sorted paths of the image files below a folder, or directly in it."""
  paths = []
  for parent, children, names in os.walk(folder):
    children[:] = [c for c in sorted(children) if deep and c[0] != '.']
    images = [n for n in sorted(names) if n.lower().endswith(SUFFIXES)]
    paths += [os.path.join(parent, n) for n in images if n[0] != '.']
  return paths
