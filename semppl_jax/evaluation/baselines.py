"""Baselines without a network: logistic regression on pixels and on colours.

What a training must beat on the same labels before it is worth its time.
"""

from typing import Any

import numpy as np

from semppl_jax.data import pipeline, sources
from semppl_jax.evaluation import logistic, measures

NAMES = ('baseline_pixels_top1', 'baseline_histogram_top1')
_PIXELS = 16  # a side of the small image
_HISTOGRAM = 64  # a side of the image whose colours are counted
_BINS = (8, 4, 4)  # of hue, saturation, value


def scores(
  train: Any,
  labels: np.ndarray,
  test: Any,
  test_truth: np.ndarray,
  c: float = 1.0,
) -> dict[str, float | None]:
  """Test top-1 of both, or None without a label or a test image.

  Args:
    train: records with 'image', by index.
    labels: [N] labels that training sees, -1: none.
    test: records with 'image'.
    test_truth: [M] true labels of the test images, -1: unknown.
    c: inverse strength of the L2 penalty, on standardised features.

  Returns:
    baseline_pixels_top1: 16 x 16 pixels, RGB. baseline_histogram_top1: the
    square roots of the shares of 8 x 4 x 4 bins of hue, saturation and value.
  """
  known = np.flatnonzero(labels >= 0)
  if not len(known) or not len(test):
    return dict.fromkeys(NAMES)
  result = {}
  for name, features in zip(NAMES, (pixels, _histograms)):
    keys, readable = features(sources.Rows(train, known))
    queries, judged = features(test)
    result[name] = measures.accuracy(
      logistic.linear_probe(
        keys[readable], labels[known][readable], queries, c
      ),
      np.where(judged, test_truth, -1),
    )
  return result


def pixels(source: Any) -> tuple[np.ndarray, np.ndarray]:
  """[N, 16 * 16 * 3] float32 in [0, 1], and which images could be read."""
  images, readable = _small(source, _PIXELS)
  return images.reshape(len(images), -1), readable


def _histograms(source: Any) -> tuple[np.ndarray, np.ndarray]:
  """[N, 8 * 4 * 4] roots of shares, and which images could be read."""
  images, readable = _small(source, _HISTOGRAM)
  return np.stack([histogram(image) for image in images]), readable


def histogram(image: np.ndarray) -> np.ndarray:
  """Square roots of the shares of an image's colours.

  Args:
    image: [h, w, 3] float32 in [0, 1].

  Returns:
    [128] float64 of unit length: bins of equal width in hue, saturation, value.
  """
  from matplotlib import colors  # late: it takes seconds to import

  hsv = colors.rgb_to_hsv(image).reshape(-1, 3)
  counts, _ = np.histogramdd(hsv, bins=_BINS, range=[(0, 1)] * 3)
  return np.sqrt(counts.ravel() / len(hsv))


def _small(source: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
  """The middles of all images, [N, size, size, 3] float32 in [0, 1]."""
  crop = pipeline.Images(crop=(size, 1.0))
  # The run itself tells of images that cannot be decoded.
  quietly = lambda name, reason: None
  parts = list(
    pipeline.in_order(
      source, batch_size=256, images=crop, on_unreadable=quietly
    )
  )
  images, readable = (np.concatenate(column) for column in zip(*parts))
  return images, readable
