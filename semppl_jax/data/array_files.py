"""Images and labels in one .npz file: reading and checking them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from concurrent import futures
from typing import BinaryIO

import numpy as np

from semppl_jax import storage
from semppl_jax.data import retry
from semppl_jax.errors import UserError
from semppl_jax.utils.text import first_line

Split = tuple[np.ndarray, np.ndarray]  # [N, H, W, 3] uint8, [N] integers

_TRANSFER = 2**24  # bytes of an object at once
_TRANSFERS = 8  # at the same time
_ARRAYS = ('train_images', 'train_labels', 'test_images', 'test_labels')


def read(path: str) -> dict[str, Split]:
  """Reads train_images, train_labels, test_images and test_labels.

  Args:
    path: of the file. Images are [N, H, W, 3], [N, H, W, 1] or [N, H, W]
      uint8; labels [N] integers, -1: unknown (training only). The test pair may
      be missing.

  Returns:
    {'train': (images [N, H, W, 3], labels [N])}, and 'test' if there is one.

  Raises:
    UserError: names the file or the array, and what would do.
  """
  parts = _read_npz(path)
  splits = {'train': _split(parts, 'train', lowest=-1)}
  if 'test_images' in parts or 'test_labels' in parts:
    splits['test'] = _split(parts, 'test', lowest=0)
    train, test = (splits[s][0].shape[1:] for s in ('train', 'test'))
    if train != test:
      raise UserError(
        f'test_images are {test} and train_images are {train}; they must '
        'have one size.'
      )
  return splits


def three_channels(images: np.ndarray) -> np.ndarray:
  """[N, H, W] or [N, H, W, 1] -> [N, H, W, 3]; [N, H, W, 3] as it is."""
  images = images[..., None] if images.ndim == 3 else images
  return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _read_npz(path: str) -> dict[str, np.ndarray | None]:
  try:
    with _on_disk(path) as local, np.load(local, allow_pickle=False) as file:
      known = {name: file[name] for name in _ARRAYS if name in file}
      if wrong := [k for k, v in known.items() if type(v) is not np.ndarray]:
        raise ValueError(f'{wrong[0]} is no array')
      # Of others, which may be huge, the names.
      return known | {n: None for n in file.files if n not in _ARRAYS}
  except storage.StorageError:
    raise
  except Exception as e:  # a broken file raises one of many
    reason = first_line(e)
    raise UserError(
      f'dataset.path {path!r} is not a readable .npz file: {reason}'
    ) from e


@contextlib.contextmanager
def _on_disk(path: str) -> Iterator[str | BinaryIO]:
  """The path, or a copy of an object that nobody else sees."""
  if not storage.is_remote(path):
    yield path
    return
  size = storage.path(path).stat().st_size
  with (
    tempfile.TemporaryFile() as file,
    futures.ThreadPoolExecutor(_TRANSFERS) as pool,
  ):

    def copy(start: int) -> None:
      end = min(start + _TRANSFER, size)
      os.pwrite(file.fileno(), retry.remote(path, start, end), start)

    list(pool.map(copy, range(0, size, _TRANSFER)))
    yield file


def _split(
  parts: dict[str, np.ndarray | None], split: str, lowest: int
) -> Split:
  """Checks and joins one split's images and labels; labels from `lowest` up."""
  for key in (f'{split}_images', f'{split}_labels'):
    if key not in parts:
      others = ', '.join(ascii(name)[1:-1] for name in parts)
      raise UserError(f'dataset.path has no array {key!r}, but {others[:500]}.')
  images, labels = parts[f'{split}_images'], parts[f'{split}_labels']
  shape_ok = images.ndim == 3 or (
    images.ndim == 4 and images.shape[3] in (1, 3)
  )
  if not shape_ok or images.dtype != np.uint8 or not images.size:
    raise UserError(
      f'{split}_images is {images.dtype} {images.shape}; it must be uint8 '
      '[N, H, W, 3], [N, H, W, 1] or [N, H, W], and not empty.'
    )
  if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
    raise UserError(
      f'{split}_labels is {labels.dtype} {labels.shape}; it must be '
      f'integers [{len(images)}], one for each image.'
    )
  if not lowest <= labels.min() <= labels.max() < 2**20:
    raise UserError(
      f'{split}_labels go from {labels.min()} to {labels.max()}; they must be '
      f'class numbers, from {lowest} to {2**20 - 1}.'
    )
  different = len(np.unique(labels[labels >= 0]))
  if split == 'train' and labels.max() >= max(1000, 100 * different):
    raise UserError(
      f'{split}_labels go up to {labels.max()}, but only {different} different '
      'ones are there: number the classes from 0 on, as '
      'np.unique(labels, return_inverse=True) does.'
    )
  return three_channels(images), labels
