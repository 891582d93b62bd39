"""Images per second and core: from JPEG bytes to what the six views need.

  pip install '.[benchmark]'
  python -m benchmarks.input --rounds=5

Files are synthesised: 500 x 375, natural statistics, as large as ImageNet's
(benchmarks/synthetic_photos.py), and come out of memory. Each way of making
batches runs in a process of its own, all in turn, round after round; figures
are medians over rounds, with their range, of images per second of processor
time, of all threads and processes together. The ways:

  tf.data     what DeepMind's release does: for each view, decode the window and
              resize it, to float32 (benchmarks/tf_data.py); and, though the
              release does not, decoding once
  host crops  decode once, six uint8 crops by OpenCV, with grain
  ours        `data.pipeline`: decode once onto a canvas; the device cuts
  decoder     libjpeg-turbo alone, in a loop: the bound

Also prints how many cores one GPU would need at --throughput images per second,
and the memory of an epoch from files on disk, by quarters. --json=FILE writes
the numbers.
"""

import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from absl import app, flags

from benchmarks import host_crops, synthetic_photos, tf_data
from semppl_jax import config
from semppl_jax.data import datasets, images, pipeline, sources

_PHOTOS = flags.DEFINE_integer('photos', 48, 'Different files.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Of all ways in turn.')
_SECONDS = flags.DEFINE_float('seconds', 3.0, 'Of each measurement.')
_EPOCH = flags.DEFINE_integer('epoch', 6000, 'Images of the memory epoch.')
_THROUGHPUT = flags.DEFINE_float(
  'throughput', 2900.0, 'Images per second that a GPU asks for.'
)
_JSON = flags.DEFINE_string('json', None, 'File for the numbers.')

RELEASE, OURS = 'tf.data as released, 1 thread', 'ours, this process, 1 thread'
_CANVAS = pipeline.Images(canvas=(512, 512))


def ours(jpegs: list[bytes], seconds: float, **kwargs: int) -> dict[str, float]:
  """Our pipeline, endlessly, over files in memory."""
  source = sources.Records(
    np.arange(len(jpegs)), functools.partial(_get, jpegs), encoded=True
  )
  start = lambda: pipeline.batches(
    source, source.labels, seed=0, batch_size=64, start_step=0,
    num_steps=10**6, images=_CANVAS, **kwargs,
  )  # fmt: skip
  return host_crops.rate(start, seconds)


def _get(jpegs: list[bytes], i: int) -> bytes:
  return jpegs[i]


def decoder(jpegs: list[bytes], seconds: float) -> dict[str, float]:
  """The decoder alone, as `data.images` calls it."""
  begun, cpu, count = time.perf_counter(), time.process_time(), 0
  while time.perf_counter() - begun < seconds:
    for jpeg in jpegs:
      images.decode(jpeg)
    count += len(jpegs)
  return {'images_per_cpu_second': count / (time.process_time() - cpu)}


WAYS: dict[str, Callable[..., dict[str, float]]] = {
  RELEASE: functools.partial(tf_data.measure, threads=1),
  'tf.data as released, 2 threads': functools.partial(
    tf_data.measure, threads=2
  ),
  'tf.data, decoding once': functools.partial(
    tf_data.measure, threads=1, decode_once=True
  ),
  'host crops, this process': functools.partial(host_crops.measure, threads=1),
  'host crops, 1 worker': functools.partial(host_crops.measure, workers=1),
  OURS: functools.partial(ours, threads=1),
  'ours, this process, 2 threads': functools.partial(ours, threads=2),
  'ours, 2 workers': functools.partial(ours, workers=2),
  'decoder alone': decoder,
}


def epoch_memory(jpegs: list[bytes], count: int) -> list[float]:
  """Resident megabytes after each quarter of an epoch from files on disk."""
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder, 'train', 'photo')
    place.mkdir(parents=True)
    for i in range(count):
      # Links: the disk holds each photo once, the folder has `count` files.
      first = place / f'{i % len(jpegs)}.jpg'
      if i < len(jpegs):
        first.write_bytes(jpegs[i])
      else:
        os.link(first, place / f'{i}.jpg')
    cfg = config.default().dataset
    cfg.update(name='folder', path=folder)
    data = datasets.load(cfg)
    quarter = count // 64 // 4
    seen = []
    for i, _ in enumerate(
      pipeline.batches(
        data.train, data.train.labels, seed=0, batch_size=64, start_step=0,
        num_steps=4 * quarter, images=pipeline.whole(cfg, data),
      )
    ):  # fmt: skip
      if (i + 1) % quarter == 0:
        seen.append(psutil.Process().memory_info().rss / 1e6)
  return seen


def _apart(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function in a fresh process."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    return pool.submit(function, *args).result()


def _run(name: str, jpegs: list[bytes], seconds: float) -> float:
  flags.FLAGS.mark_as_parsed()  # grain's workers ask for it
  return WAYS[name](jpegs, seconds)['images_per_cpu_second']


def table(found: dict[str, list[float]]) -> str:
  """Medians, ranges and ratios to the release, as Markdown."""
  middle = {name: float(np.median(rates)) for name, rates in found.items()}
  lines = [
    '| input | images per CPU-second | range | x release |',
    '| --- | --- | --- | --- |',
  ]
  for name, rates in found.items():
    # Round by round: the machine's own changes cancel.
    ratio = np.median(np.divide(rates, found[RELEASE]))
    lines.append(
      f'| {name} | {middle[name]:.0f} | {min(rates):.0f} to {max(rates):.0f} '
      f'| {ratio:.1f} |'
    )
  return '\n'.join(lines)


def main(unused_argv: list[str]) -> None:
  """Measures all ways in turn and prints the table."""
  jpegs = synthetic_photos.photos(_PHOTOS.value)
  size = np.mean([len(jpeg) for jpeg in jpegs]) / 1e3
  print(
    f'{len(jpegs)} files of {size:.0f} KB on average, {os.cpu_count()} CPUs'
  )
  found: dict[str, list[float]] = {name: [] for name in WAYS}
  for _ in range(_ROUNDS.value):
    for name in WAYS:
      found[name].append(_apart(_run, name, jpegs, _SECONDS.value))
  print(table(found))
  cores = _THROUGHPUT.value / float(np.median(found[OURS]))
  print(
    f'\nA GPU that takes {_THROUGHPUT.value:g} images per second needs '
    f'{cores:.1f} cores like these.'
  )
  memory = _apart(epoch_memory, jpegs, _EPOCH.value)
  told = ', '.join(f'{x:.0f}' for x in memory)
  print(f'Resident MB by quarters of {_EPOCH.value} images: {told}')
  if _JSON.value:
    numbers = {'images_per_cpu_second': found, 'epoch_megabytes': memory}
    pathlib.Path(_JSON.value).write_text(json.dumps(numbers, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
