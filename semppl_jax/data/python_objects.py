"""Images as people hand them over: arrays, PIL images, paths, folders.

Nothing is scaled or clipped by guesswork: what is not plainly an image is an
error that names it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from semppl_jax import storage
from semppl_jax.data import image_files, images, listing, sources
from semppl_jax.errors import UserError

_BYTES = (bytes, bytearray, memoryview)
Item = tuple[str, Callable[[], bytes | np.ndarray]]  # name, how it is read


def source(given: Any) -> sources.Records:
  """Makes a source of images of whatever kind and size.

  Args:
    given: one image or several: an array [H, W, 3] or [N, H, W, 3], uint8 or
      floats in [0, 1]; a PIL image; the bytes of an encoded file; the path of a
      file, or of a folder (all images below it, sorted by path, as
      sorted(pathlib.Path(folder).rglob('*')) is); or a sequence of these, of
      any sizes. In a sequence [H, W] and [H, W, 1] are grey images.

  Returns:
    N records: bytes of files, which are read when they are asked for; arrays
    [h, w, 3], uint8, or float32 from 0 to 255.

  Raises:
    UserError: there is no image or no such path, or an array has another rank,
      type, or values out of range; the line names the image.
  """
  items = list(_items(given))
  if not items:
    raise UserError('There is no image: give at least one.')
  names = [name for name, _ in items]
  return sources.Records(
    np.full(len(items), -1), lambda i: items[i][1](), encoded=True, names=names
  )


def are_files(given: Any) -> bool:
  """Whether it is a path, or a list or tuple of nothing but paths."""
  path = (str, os.PathLike)
  several = isinstance(given, (list, tuple)) and bool(given)
  return isinstance(given, path) or (
    several and all(isinstance(one, path) for one in given)
  )


def files(given: Any) -> list[str]:
  """Paths of image files: of one, of all below a folder, or of a sequence.

  Raises:
    UserError: no path, none of an image, or none that is there.
  """
  one = isinstance(given, (str, os.PathLike))
  if not one and (
    not isinstance(given, Iterable)
    or isinstance(given, (Mapping, *_BYTES))
    or hasattr(given, 'shape')
  ):
    raise UserError(
      f'Files are a path or a sequence of paths, not a {type(given).__name__}.'
    )
  found: list[str] = []
  for i, path in enumerate([given] if one else given):
    if not isinstance(path, (str, os.PathLike)):
      raise UserError(f'file {i} is a {type(path).__name__}, not a path.')
    found += [name for name, _ in _files(os.fspath(path))]
  if not found:
    raise UserError('There is no file: give at least one.')
  return found


def _items(given: Any) -> Iterator[Item]:
  if isinstance(given, (str, os.PathLike)):
    yield from _files(os.fspath(given))
  elif isinstance(given, (Image.Image, *_BYTES)):
    yield _one('the image', given)
  elif hasattr(given, 'shape'):
    array = np.asarray(given)
    if array.ndim not in (3, 4) or array.shape[-1] != 3:
      raise UserError(
        f'Images of shape {array.shape}: an array must be [N, H, W, 3], or '
        f'[H, W, 3] for one image. {_advice(array)}'
      )
    for i, image in enumerate(array if array.ndim == 4 else array[None]):
      yield _array(f'image {i}', image)
  else:
    yield from _several(given)


def _advice(array: np.ndarray) -> str:
  """What an array of a wrong shape probably is."""
  if array.ndim in (3, 4) and array.shape[-1] == 4:
    return 'Leave transparency out: images[..., :3].'
  if array.ndim in (3, 4) and array.shape[-3] in (1, 3):
    return 'Channels go last: np.moveaxis(images, -3, -1).'
  return 'Grey ones go in a list.'


def _several(given: Any) -> Iterator[Item]:
  named = f'not a {type(given).__name__}'
  if isinstance(given, Mapping):  # a sequence of names, if one were to go on
    keys = ', '.join(map(repr, list(given)[:3]))
    named += f' of {keys}: pass one of its values'
  try:
    if isinstance(given, Mapping):
      raise TypeError
    given = list(given)
  except TypeError:
    raise UserError(
      f'Images are arrays, PIL images, bytes of files, paths or a sequence of '
      f'them, {named}.'
    ) from None
  for i, one in enumerate(given):
    if isinstance(one, (str, os.PathLike)):
      yield from _files(os.fspath(one))
    elif isinstance(one, (Image.Image, *_BYTES)):
      yield _one(f'image {i}', one)
    elif hasattr(one, 'shape'):
      yield _array(f'image {i}', np.asarray(one))
    else:
      raise UserError(
        f'image {i} is a {type(one).__name__}; it must be an array, a PIL '
        'image, the bytes of a file or a path.'
      )


def _files(path: str) -> Iterator[Item]:
  path = os.path.expanduser(path)
  if listing.is_folder(path):
    found = sorted(image_files.find(path), key=lambda p: p.split(os.sep))
    if not found:
      raise UserError(f'There is no image in the folder {path}.')
  elif (
    listing.is_file(path) if storage.is_remote(path) else os.path.exists(path)
  ):
    found = [path]
  else:
    raise UserError(f'There is no file {path!r}.')
  for name in found:
    yield name, lambda name=name: image_files.read(name)


def _one(name: str, image: Any) -> Item:
  if isinstance(image, Image.Image):
    return name, lambda: images.from_pil(image)
  return name, lambda: bytes(image)


def _array(name: str, image: np.ndarray) -> Item:
  """Checks an array now, for a wrong one must not stop a long job later."""
  shape = image.shape
  if image.ndim == 2:
    image = image[..., None]
  if image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
    advice = '' if image.ndim != 3 else f' {_advice(image)}'
    raise UserError(
      f'{name} has shape {shape}; it must be [H, W, 3], or [H, W] if grey.'
      f'{advice}'
    )
  image = np.broadcast_to(image, image.shape[:2] + (3,))
  if image.dtype == np.uint8:
    return name, lambda: np.asarray(image)
  if not np.issubdtype(image.dtype, np.floating):
    raise UserError(
      f'{name} has dtype {image.dtype}; it must be uint8, or floats in [0, 1].'
    )
  low, high = float(image.min()), float(image.max())
  if np.isnan(low):
    raise UserError(f'{name} has NaN among its values.')
  if not (low >= 0 and high <= 1):
    raise UserError(
      f'{name} has values from {low:g} to {high:g}; floats must lie in [0, 1], '
      'so divide them by their range.'
    )
  return name, lambda: image.astype(np.float32) * np.float32(255)
