"""A function of images over a whole data set, on all devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from semppl_jax import parallel


def over_images(
  forward: Callable[[Any, jax.Array], tuple[jax.Array, ...]],
  state: Any,
  source: Any,
  devices: Sequence[jax.Device],
  batch_size: int,
) -> list[np.ndarray]:
  """Runs every image of `source` through `forward`, in order.

  Args:
    forward: (state, images [b, ...]) -> arrays [b, ...], on one device's part.
    state: leaves [D, ...].
    source: N records with 'image', by index; all images of one shape.
    devices: the D devices.
    batch_size: images at a time, rounded up to a multiple of D; the last batch
      is filled up, so that there is one shape to compile for.

  Returns:
    For each output, [N, ...].
  """
  mapped = parallel.map_evaluation(forward, devices)
  size = -(-batch_size // len(devices)) * len(devices)
  parts = []
  for start in range(0, len(source), size):
    rows = range(start, min(start + size, len(source)))
    images = np.stack([source[i]['image'] for i in rows])
    filled = np.resize(images, (size,) + images.shape[1:])
    outputs = mapped(state, parallel.shard(filled, len(devices)))
    flat = [np.asarray(x).reshape((size,) + x.shape[2:]) for x in outputs]
    parts.append([x[: len(rows)] for x in flat])
  return [np.concatenate(column) for column in zip(*parts)]
