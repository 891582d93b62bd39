"""Density of images: how near their nearest neighbours are."""

import numpy as np
import tqdm

from semppl_jax.evaluation import knn

_QUERIES = 2**15  # of one search, which goes over all keys


def mean_squared_distances(
  features: np.ndarray, k: int, *, hide: bool | None = True
) -> np.ndarray:
  """Mean squared distance to the k nearest images, the image itself included.

  The smaller, the denser. By exact search, in blocks: beside the features there
  are the neighbours of some thousand images at a time.

  Args:
    features: [N, d] float32 rows of unit length.
    k: neighbours, at most N.
    hide: no progress bar; None: none where nobody looks.

  Returns:
    [N] float32, from 0 to 4.
  """
  means = np.empty(len(features), np.float32)
  with tqdm.tqdm(
    total=len(features), desc='density', unit='image', disable=hide
  ) as bar:
    for i in range(0, len(features), _QUERIES):
      queries = features[i : i + _QUERIES]
      _, similarity = knn.neighbours(queries, features, k)
      squared = np.maximum(2 - 2 * similarity, 0)
      means[i : i + _QUERIES] = squared.mean(axis=1)
      bar.update(len(queries))
  return means
