"""A function of images over a whole data set, on all devices of all hosts."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from semppl_jax.data import pipeline, sources
from semppl_jax.distributed import parallel, processes


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
    state: leaves [D, ...], of this host's devices.
    source: N records, by index; every host reads a share of them.
    devices: all devices of the job.
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
  per_host = size // processes.count()
  local = len(parallel.local_devices(devices))
  mine = _rows(len(source), size, per_host)
  inputs = pipeline.in_order(
    sources.Rows(source, mine), batch_size=per_host, workers=workers,
    images=images, on_unreadable=on_unreadable,
  )  # fmt: skip
  parts = []
  for start, (arrays, known) in zip(
    range(0, len(source), size), inputs, strict=True
  ):
    filled = np.resize(arrays, (per_host,) + arrays.shape[1:])
    outputs = mapped(state, parallel.shard(filled, local))
    columns = [*map(parallel.unshard, outputs), np.resize(known, per_host)]
    count = min(size, len(source) - start)
    parts.append(
      [np.concatenate(processes.allgather(x))[:count] for x in columns]
    )
  *found, readable = (np.concatenate(column) for column in zip(*parts))
  return found, readable


def _rows(count: int, size: int, per_host: int) -> np.ndarray:
  """The images of this host's slices of all batches.

  Where the last batch has none for it, image 0: all hosts take equal steps.
  """
  rows = []
  for start in range(0, count, size):
    begin = start + processes.index() * per_host
    own = np.arange(begin, min(begin + per_host, start + size, count))
    rows.append(own if len(own) else np.zeros(1, int))
  return np.concatenate(rows) if rows else np.zeros(0, int)
