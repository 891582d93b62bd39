"""A function of images over a whole data set, on all devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from semppl_jax import parallel
from semppl_jax.data import pipeline


def over_images(
  forward: Callable[[Any, jax.Array], tuple[jax.Array, ...]],
  state: Any,
  source: Any,
  devices: Sequence[jax.Device],
  batch_size: int,
  *,
  images: pipeline.Images,
  workers: int = 0,
  on_unreadable: pipeline.OnUnreadable | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
  """Runs every image of `source` through `forward`, in order.

  Args:
    forward: (state, arrays [b, ...]) -> arrays [b, ...], on one device's part.
    state: leaves [D, ...].
    source: N records, by index.
    devices: the D devices.
    batch_size: images at a time, rounded up to a multiple of D; the last batch
      is filled up, so that there is one shape to compile for.
    images: how they become arrays, all of one shape.
    workers: processes that decode; 0: threads of this one.
    on_unreadable: told of each image that cannot be decoded.

  Returns:
    For each output [N, ...]; and which images could be decoded, [N] bool: the
    outputs of the others are those of a black image.
  """
  mapped = parallel.map_evaluation(forward, devices)
  size = -(-batch_size // len(devices)) * len(devices)
  parts, readable = [], []
  for arrays, known in pipeline.in_order(
    source, batch_size=size, workers=workers, images=images,
    on_unreadable=on_unreadable,
  ):  # fmt: skip
    filled = np.resize(arrays, (size,) + arrays.shape[1:])
    outputs = mapped(state, parallel.shard(filled, len(devices)))
    flat = [np.asarray(x).reshape((size,) + x.shape[2:]) for x in outputs]
    parts.append([x[: len(arrays)] for x in flat])
    readable.append(known)
  return (
    [np.concatenate(column) for column in zip(*parts)],
    np.concatenate(readable),
  )
