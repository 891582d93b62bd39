"""Another input than ours: six crops made on the host.

Each JPEG is decoded once, with libjpeg-turbo (fast DCT, smooth upsampling of
colour); all views are cut and resized on the host with OpenCV, which is what a
device without spare time would want. Grain runs it.

`rate` is the clock for this and for any other iterator over batches: images
per second of processor time, of all threads and all worker processes.
"""

import dataclasses
import functools
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import jax
import numpy as np
import psutil
import simplejpeg
from grain import python as grain_python

ASPECT = (3 / 4, 4 / 3)  # of crops: width / height
TRIES = 10  # shapes drawn per crop
PAGE = 4096  # bytes


@dataclasses.dataclass(frozen=True)
class Crops:
  """Views of one size: how many, their side, their share of the image."""

  count: int
  size: int
  area: tuple[float, float]


VIEWS = {
  'large': Crops(4, 224, (0.14, 1.0)),
  'small': Crops(2, 96, (0.05, 0.14)),
}

Batch = dict[str, np.ndarray]


def measure(
  jpegs: Sequence[bytes],
  seconds: float,
  *,
  batch_size: int = 32,
  workers: int = 0,
  threads: int = 1,
) -> dict[str, float]:
  """How fast JPEGs become batches.

  Args:
    jpegs: files, over and over.
    seconds: how long the clock runs.
    batch_size: b.
    workers: processes of grain's; 0: this one.
    threads: of this process, where there are no workers: each makes a batch at
      a time; 0: the caller does. A worker has one thread: it would leave
      behind shared memory that others had begun to fill.

  Returns:
    See `rate`.
  """
  start = functools.partial(
    batches,
    jpegs,
    batch_size=batch_size,
    workers=workers,
    threads=threads,
  )
  return rate(start, seconds)


def rate(
  start: Callable[[], Iterator[Any]], seconds: float, settle: float = 2.0
) -> dict[str, float]:
  """How fast an iterator gives batches, once it runs.

  Args:
    start: returns it: over trees of arrays [b, ...], all of b images. It is
      closed at the end, if it can be.
    seconds: how long the clock runs.
    settle: seconds before: workers start, buffers fill.

  Returns:
    'images_per_cpu_second': per second that any processor spent on this
    process and its descendants; 'images_per_second': by the clock on the wall;
    and what they come from: 'images', 'cpu_seconds', 'seconds'. Whoever uses a
    batch must read it, and what comes out of shared memory is mapped only
    then: so one byte of each page is read.
  """
  iterator = start()
  try:
    _take(iterator, settle)
    cpu, begin = cpu_seconds(), time.perf_counter()
    images = _take(iterator, seconds)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - begin
  finally:
    if hasattr(iterator, 'close'):
      iterator.close()
    del iterator
    gc.collect()  # grain's shared memory
  return {
    'images_per_cpu_second': images / cpu,
    'images_per_second': images / wall,
    'images': images,
    'cpu_seconds': cpu,
    'seconds': wall,
  }


def _take(iterator: Iterator[Any], seconds: float) -> int:
  """Takes and reads batches for so long, 4 at least; returns their images."""
  end, images, number = time.perf_counter() + seconds, 0, 0
  while number < 4 or time.perf_counter() < end:
    leaves = jax.tree.leaves(next(iterator))
    for leaf in leaves:
      leaf.reshape(-1).view(np.uint8)[::PAGE].max(initial=0)
    images += len(leaves[0])
    number += 1
  return images


def cpu_seconds() -> float:
  """Processor time of this process and of all its descendants until now."""
  process, total = psutil.Process(), 0.0
  for each in [process, *process.children(recursive=True)]:
    try:
      times = each.cpu_times()
    except psutil.NoSuchProcess:  # then it counts as one of a parent's children
      continue
    total += times.user + times.system
    total += times.children_user + times.children_system
  return total


def batches(
  jpegs: Sequence[bytes],
  *,
  batch_size: int,
  workers: int,
  threads: int,
) -> Iterator[Batch]:
  """Endless batches; for the arguments, see `measure`."""
  threads = 0 if workers else threads
  batch_fn = functools.partial(crops, shared=bool(workers))
  data = grain.MapDataset.source(_Endless(jpegs))
  data = data.batch(batch_size, batch_fn=batch_fn).to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  )
  options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
  return iter(data.mp_prefetch(options))


@dataclasses.dataclass(frozen=True)
class _Endless:
  """Files by number, over and over."""

  jpegs: Sequence[bytes]

  def __len__(self) -> int:
    return 2**40

  def __getitem__(self, i: int) -> tuple[int, bytes]:
    return i, self.jpegs[i % len(self.jpegs)]


def crops(files: Sequence[tuple[int, bytes]], shared: bool) -> Batch:
  """All views of all images."""
  cv2.setNumThreads(1)  # it would start one per core in each of grain's
  batch = {
    name: _zeros((len(files), view.count, view.size, view.size, 3), shared)
    for name, view in VIEWS.items()
  }
  for place, (number, data) in enumerate(files):
    image, random = decode(data), np.random.default_rng(number)
    for name, view in VIEWS.items():
      for out in batch[name][place]:
        top, left, height, width = window(random, image.shape, view.area)
        part = image[top : top + height, left : left + width]
        cv2.resize(part, out.shape[:2], out, interpolation=cv2.INTER_CUBIC)
  return batch


def window(
  random: np.random.Generator,
  shape: Sequence[int],
  area: tuple[float, float],
) -> tuple[int, int, int, int]:
  """Top, left, height and width, as `views.random_window`, in whole pixels."""
  numbers = random.random(2 * TRIES + 2).tolist()
  low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
  for share, place in zip(numbers[:TRIES], numbers[TRIES:]):
    pixels = (area[0] + (area[1] - area[0]) * share) * shape[0] * shape[1]
    ratio = math.exp(low + (high - low) * place)
    height = round(math.sqrt(pixels / ratio))
    width = round(math.sqrt(pixels * ratio))
    if height <= shape[0] and width <= shape[1]:
      break
  height, width = min(height, shape[0]), min(width, shape[1])
  top = int(numbers[-2] * (shape[0] - height + 1))
  left = int(numbers[-1] * (shape[1] - width + 1))
  return top, left, height, width


def decode(data: bytes) -> np.ndarray:
  """[H, W, 3] uint8, in memory that this thread's next call overwrites.

  New memory for every image that waits for its batch costs up to a fifth of
  the decoding: the system hands it out page by page.
  """
  height, width, _, _ = simplejpeg.decode_jpeg_header(data)
  buffer = getattr(_local, 'buffer', None)
  if buffer is None or len(buffer) < 3 * height * width:
    buffer = _local.buffer = np.empty(3 * height * width, np.uint8)
  return simplejpeg.decode_jpeg(
    data, 'RGB', fastdct=True, fastupsample=False, buffer=buffer
  )


_local = threading.local()


def _zeros(shape: tuple[int, ...], shared: bool) -> np.ndarray:
  """Zeros, in memory that the main process can see or in any."""
  if shared:  # new shared memory is zeros
    return grain_python.SharedMemoryArray(shape, np.uint8)
  return np.zeros(shape, np.uint8)
