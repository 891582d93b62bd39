"""What a run of each ImageNet experiment costs, in floating-point operations.

  python -m benchmarks.cost            # counts, nothing is run
  python -m benchmarks.cost --measure=16   # and times ResNet-50 on this device

Counts are XLA's, of the whole step (views, both networks and their gradients,
optimiser) before optimisation, at a batch of 16 on one device, divided by the
images; the kNN's share grows with the queue and is left out (a queue of 16).
Days are those of 300 epochs of ImageNet at a rate of --tflops on all devices
together: an assumption until somebody measures it. Prints a table; --json=FILE
writes the numbers.
"""

import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from experiments import imagenet
from semppl_jax import parallel, pretrain_step, runs, structs, train_state

_MEASURE = flags.DEFINE_integer(
  'measure', 0, 'Time ResNet-50 1x at this batch size; 0: count only.'
)
_TFLOPS = flags.DEFINE_float('tflops', 100.0, 'Rate that days are for.')
_JSON = flags.DEFINE_string('json', None, 'File for the numbers.')

IMAGES, EPOCHS = 1_281_167, 300
_BATCH = 16


def prepare(variant: str, batch_size: int = _BATCH) -> runs.Run:
  """An experiment on noise instead of ImageNet, for one device."""
  cfg = imagenet.get_config(variant)
  cfg.update(batch_size=batch_size, num_devices=1)
  cfg.dataset.update(name='synthetic', num_examples=64, num_classes=1000)
  cfg.labels.update(subset='', fraction=0.1)
  cfg.queue.capacity = batch_size
  return runs.prepare(cfg)


def images_of(run: runs.Run) -> structs.Batch:
  """Images as ImageNet's lie in a batch: whole, of 375 x 500 pixels."""
  count, (height, width, _) = run.cfg.batch_size, run.data.image_shape
  random = np.random.RandomState(0)
  images = random.randint(0, 256, (count, height, width, 3)).astype(np.uint8)
  labels = np.arange(count, dtype=np.int32) % 10 - 9  # a tenth is labelled
  ids = np.arange(count, dtype=np.int32)
  sizes = np.tile(np.array([375, 500], np.int32), (count, 1))
  return structs.Batch(images, np.maximum(labels, -1), ids, sizes)


def count(variant: str) -> float:
  """Floating-point operations of one step, per image."""
  run = prepare(variant)
  state = jax.eval_shape(lambda: train_state.init(*run.setup[:3], run.devices))
  step = functools.partial(pretrain_step.train_step, setup=run.setup)
  mapped = parallel.map_step(step, run.devices, donate=False)
  batch = parallel.shard(images_of(run), 1)
  lowered = mapped.lower(state, batch, jax.random.key(0))
  return lowered.cost_analysis()['flops'] / _BATCH


def measure(batch_size: int, repeats: int = 3) -> dict[str, float]:
  """Seconds of a step of ResNet-50 1x here: the median after the first."""
  run = prepare('resnet_50_1x_10pct', batch_size)
  state = train_state.init(*run.setup[:3], run.devices)
  step = functools.partial(pretrain_step.train_step, setup=run.setup)
  mapped = parallel.map_step(step, run.devices)
  batch = parallel.shard(images_of(run), 1)
  seconds = []
  for _ in range(repeats + 1):
    begun = time.perf_counter()
    state, metrics, _ = mapped(state, batch, jax.random.key(0))
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - begun)
  median = float(np.median(seconds[1:]))
  return {
    'batch_size': batch_size,
    'first_step_seconds': seconds[0],
    'step_seconds': median,
    'images_per_second': batch_size / median,
  }


def table(counts: dict[str, float], tflops: float) -> str:
  """GFLOP per image and device-days for each network, as Markdown."""
  lines = [
    f'| network | GFLOP per image | days at {tflops:g} TFLOP/s |',
    '| --- | --- | --- |',
  ]
  for name, flops in counts.items():
    days = flops * IMAGES * EPOCHS / (tflops * 1e12) / 86_400
    lines.append(f'| {name} | {flops / 1e9:.0f} | {days:.1f} |')
  return '\n'.join(lines)


def main(unused_argv: list[str]) -> None:
  """Counts, measures if asked to, and prints."""
  logging.set_verbosity(logging.WARNING)
  nets = [v.removesuffix('_1pct') for v in imagenet.VARIANTS if '_1pct' in v]
  counts = {net: count(f'{net}_1pct') for net in nets}
  print(table(counts, _TFLOPS.value))
  found: dict[str, Any] = {'flops_per_image': counts}
  if _MEASURE.value:
    found |= {'measured': measure(_MEASURE.value)}
    found['device'] = jax.devices()[0].device_kind
    rate = found['measured']['images_per_second']
    achieved = rate * counts['resnet_50_1x'] / 1e9
    print(
      f'\nResNet-50 1x here (1 x {found["device"]}, B = {_MEASURE.value}, '
      f'float32): {rate:.2f} images per second, {achieved:.0f} GFLOP/s, '
      f'{IMAGES * EPOCHS / rate / 86_400:,.0f} days for {EPOCHS} epochs.'
    )
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
