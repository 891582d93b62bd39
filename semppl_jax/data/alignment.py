"""Image registration: whether one thumbnail is a crop of another, or alike.

Scale and shift along each axis are found by Gauss-Newton (Lucas and Kanade,
1981), for many pairs at once. As they mix no axes, bilinear sampling is two
products with matrices.
"""

from typing import NamedTuple

import numpy as np

MOST = (
  0.14  # of scale and shift; half the image is 1: a crop by 5% a side [ours]
)
_COARSE, _FINE = 5, 3  # iterations on smoothed images, and on the thumbnails
_DAMPING = 0.02  # of the normal equations' diagonal [ours]
_LEAST_CONTRAST = 2.0  # standard deviation, of 255 levels [ours]


class Likeness(NamedTuple):
  """Of P pairs, after alignment."""

  pixels: np.ndarray  # [P] float32, correlation of all colours' pixels
  details: np.ndarray  # [P] float32, of their differences to what is around


def compare(
  first: np.ndarray, second: np.ndarray, align: np.ndarray
) -> Likeness:
  """Correlations of pairs where both thumbnails show something.

  Args:
    first: [P, s, s, 3] uint8.
    second: [P, s, s, 3] uint8.
    align: [P] bool, whether a scale and a shift are looked for.
  """
  first, second = first.astype(np.float32), second.astype(np.float32)
  warp = np.zeros((len(first), 4), np.float32)
  if np.any(align):
    warp[align] = _warp(first[align].mean(-1), second[align].mean(-1))
  side = first.shape[1]
  across, inside_x = _sampling(warp[:, :2], side)
  down, inside_y = _sampling(warp[:, 2:], side)
  inside = inside_y[:, :, None] & inside_x[:, None]  # [P, s, s]
  moved = np.stack(
    [down @ first[..., c] @ across.transpose(0, 2, 1) for c in range(3)], -1
  )
  return Likeness(
    _correlation(moved, second, inside),
    _correlation(moved - _smooth(moved), second - _smooth(second), inside),
  )


def contrast(pixels: np.ndarray) -> np.ndarray:
  """[N] float32, standard deviation of thumbnails, each colour less its mean.

  Args:
    pixels: [N, s, s, 3] uint8.
  """
  variance = pixels.astype(np.float32).var(axis=(1, 2))  # [N, 3]
  return np.sqrt(variance.mean(axis=1))


def _warp(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """[P, 4]: scale and shift in x, then in y, that take `first` to `second`."""
  first, second = _normalised(first), _normalised(second)
  side = first.shape[1]
  warp = np.zeros((len(first), 4), np.float32)
  place = _places(side)
  for smoothing, steps in ((2, _COARSE), (0, _FINE)):
    a, b = first, second
    for _ in range(smoothing):
      a, b = _smooth(a[..., None])[..., 0], _smooth(b[..., None])[..., 0]
    for _ in range(steps):
      across, inside_x = _sampling(warp[:, :2], side)
      down, inside_y = _sampling(warp[:, 2:], side)
      moved = down @ a @ across.transpose(0, 2, 1)
      weight = inside_y[:, :, None] & inside_x[:, None]
      # Slopes for places of which half an image is 1.
      dy, dx = (g * (side / 2) for g in np.gradient(moved, axis=(1, 2)))
      jacobian = np.stack(
        [dx * place, dx, dy * place[:, None], dy], axis=-1
      ).reshape(len(a), -1, 4)
      weighted = jacobian * weight.reshape(len(a), -1, 1)
      normal = weighted.transpose(0, 2, 1) @ jacobian
      diagonal = np.einsum('pii->pi', normal)
      diagonal += _DAMPING * diagonal.mean(axis=1, keepdims=True) + 1e-3
      rest = (b - moved).reshape(len(a), -1, 1)
      step = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ rest)
      warp = np.clip(warp + step[..., 0], -MOST, MOST)
  return warp


def _places(side: int) -> np.ndarray:
  """[s] float32, where pixels are; an image reaches from -1 to 1."""
  return ((np.arange(side, dtype=np.float32) + 0.5) * 2 / side) - 1


def _sampling(warp: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
  """Bilinear sampling along an axis, [P, s, s], and which are inside, [P, s].

  Args:
    warp: [P, 2], scale and shift.
    side: s.
  """
  place = _places(side)
  moved = place * (1 + warp[:, :1]) + warp[:, 1:]
  index = (moved + 1) * side / 2 - 0.5
  inside = (index > -0.75) & (index < side - 0.25)
  index = np.clip(index, 0, side - 1)
  distance = np.abs(index[:, :, None] - np.arange(side, dtype=np.float32))
  return np.maximum(0, 1 - distance), inside


def _smooth(x: np.ndarray) -> np.ndarray:
  """A binomial filter of 5 x 5, edges repeated; [P, s, s, c]."""
  for axis in (1, 2):
    pad = [(0, 0)] * 4
    pad[axis] = (2, 2)
    y = np.pad(x, pad, mode='edge')
    n = x.shape[axis]
    part = lambda i, y=y, n=n, axis=axis: np.take(y, range(i, i + n), axis)
    x = (part(0) + part(4)) / 16 + (part(1) + part(3)) / 4 + part(2) * 0.375
  return x


def _normalised(x: np.ndarray) -> np.ndarray:
  x = x - x.mean(axis=(1, 2), keepdims=True)
  return x / np.maximum(x.std(axis=(1, 2), keepdims=True), _LEAST_CONTRAST)


def _correlation(
  a: np.ndarray, b: np.ndarray, inside: np.ndarray
) -> np.ndarray:
  """[P] of [P, s, s, 3], each colour less its mean."""
  weight = inside[..., None].astype(np.float32)
  number = weight.sum(axis=(1, 2), keepdims=True)
  a = (a - (a * weight).sum((1, 2), keepdims=True) / number) * weight
  b = (b - (b * weight).sum((1, 2), keepdims=True) / number) * weight
  sizes = np.sqrt((a * a).sum((1, 2, 3)) * (b * b).sum((1, 2, 3)))
  return (a * b).sum((1, 2, 3)) / np.maximum(sizes, 1e-6)
