"""Features of whole data sets: images in order through a network.

On all devices of all hosts, in evaluation mode, without augmentation. Arrays
that would be larger than `IN_MEMORY` are memory-mapped files instead.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from semppl_jax.data import pipeline, sources
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from semppl_jax.models import networks as networks_lib
from semppl_jax.train.state import TrainState

# Bytes of one output [ours]. Those of all ImageNet, [1.28M, 2048], are 10.5e9.
IN_MEMORY = 2**32

# (state, arrays [b, ...]) -> arrays [b, ...], on one device's part of a batch.
Forward = Callable[[Any, jax.Array], tuple[jax.Array, ...]]


class Features(NamedTuple):
  """What a network says of N images, in the order of the source."""

  embeddings: np.ndarray  # [N, e] float32, the encoder's output
  votes: np.ndarray  # [N] int32, what the objective predicts, -1: nothing
  # [N] int32, the choice of the classifier that trained along, on the online
  # network in any case; -1: no classifier
  guesses: np.ndarray
  readable: np.ndarray  # [N] bool, whether the image could be decoded


def features(
  state: TrainState,
  method: base.Method,
  nets: networks_lib.Networks,
  cfg: ml_collections.FrozenConfigDict,
  source: Any,
  devices: list[jax.Device],
  on_unreadable: pipeline.OnUnreadable | None = None,
) -> Features:
  """Features of every image of `source`, by the evaluated network.

  Args:
    state: leaves [D, ...].
    method: the objective.
    nets: the networks.
    cfg: settings; evaluation.network says which network.
    source: records with 'image', by index.
    devices: the D devices.
    on_unreadable: told of each image that cannot be decoded.
  """
  images = pipeline.Images(
    crop=(cfg.views.large_size, cfg.evaluation.center),
    on_corrupt=cfg.dataset.on_corrupt,
  )
  outputs, readable = over_images(
    make_forward(method, nets, cfg.evaluation.network), state, source,
    devices, cfg.evaluation.batch_size, images=images,
    workers=cfg.dataset.workers, on_unreadable=on_unreadable,
  )  # fmt: skip
  return Features(*outputs, readable)


def make_forward(
  method: base.Method, nets: networks_lib.Networks, network: str = 'online'
) -> Forward:
  """(state, crops [b, S, S, 3] in [0, 1]) -> Features' fields of b images.

  Args:
    method: the objective.
    nets: the networks.
    network: 'online' or 'target', whose embedding and predictions they are.
  """

  def forward(state, views):
    online, _ = nets.online(
      state.online_params, state.online_state, views, False
    )
    outputs = online
    if network == 'target':
      # One pass: the compiler drops what is not used of the online network's,
      # all of it if it has no classifier, and joins the two of the encoder.
      trees = state.target_params, state.target_state
      outputs = dict(nets.target(*trees, views, False)[0])
      outputs['embedding'] = nets.encode(*trees, views, False)[0]
    nobody = jnp.full(len(views), -1, jnp.int32)
    votes = guesses = nobody
    if method.predict is not None:
      one_view = jax.tree.map(lambda x: x[None], outputs)
      votes = method.predict(one_view, state.memory)  # [b]
    if 'logits' in online:
      guesses = online['logits'].argmax(axis=-1).astype(jnp.int32)
    return outputs['embedding'], votes, guesses

  return forward


def over_images(
  forward: Forward,
  state: Any,
  source: Any,
  devices: Sequence[jax.Device],
  batch_size: int,
  *,
  images: pipeline.Images,
  workers: int = 0,
  on_unreadable: pipeline.OnUnreadable | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
  """Inference: every image of `source` through `forward`, in order.

  Args:
    forward: see Forward.
    state: leaves [D, ...], of this host's devices.
    source: N records, by index; every host reads a share of them.
    devices: all devices of the job.
    batch_size: images at a time, rounded up to a multiple of D; the last batch
      is filled up, so that there is one shape to compile for.
    images: how they become arrays, all of one shape.
    workers: processes that decode; 0: threads of this one.
    on_unreadable: told of each image that cannot be decoded.

  Returns:
    For each output [N, ...], see `allocate`; and which images could be decoded,
    [N] bool: the outputs of the others are those of a black image.

  Raises:
    UserError: see `allocate`.
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
  found: list[np.ndarray] = []
  for start, (arrays, known) in zip(
    range(0, len(source), size), inputs, strict=True
  ):
    filled = np.resize(arrays, (per_host,) + arrays.shape[1:])
    outputs = mapped(state, parallel.shard(filled, local))
    columns = [*map(parallel.unshard, outputs), np.resize(known, per_host)]
    count = min(size, len(source) - start)
    for i, column in enumerate(columns):
      rows = np.concatenate(processes.allgather(column))[:count]
      if not start:
        found.append(allocate((len(source),) + rows.shape[1:], rows.dtype))
      found[i][start : start + count] = rows
  *outputs, readable = found
  return outputs, readable


def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An array in memory, or a memory-mapped one where it is too large.

  The file has no name, lies in the folder for temporary files (TMPDIR, which
  should be on a disk), and is gone with the array or with the process.

  Args:
    shape: of the array.
    dtype: of the array.

  Raises:
    UserError: the disk has no room for it.
  """
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  if size <= IN_MEMORY:
    return np.empty(shape, dtype)
  with tempfile.TemporaryFile() as file:
    try:
      # Else a full disk is found out by a signal that kills the process.
      reserve = getattr(os, 'posix_fallocate', None)  # macOS has none
      if reserve is not None:
        reserve(file.fileno(), 0, size)
    except OSError as e:
      raise UserError(
        f'{tempfile.gettempdir()} has no room for {size / 1e9:.1f} GB of '
        f'features ({e.strerror}): set TMPDIR to a folder on a larger disk.'
      ) from None
    return np.memmap(file, dtype, 'w+', shape=shape)


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
