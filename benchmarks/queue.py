"""What the queue costs: traffic, arithmetic, memory. Counted, not timed.

  python -m benchmarks.queue                            # 4 CPU devices
  python -m benchmarks.queue --target=h100:8            # see targets.py
  python -m benchmarks.queue --encoder=resnet18 --target=v5p:2x2x1

Traffic: bytes of all collectives of the compiled step, on each device, with a
queue of --small and of --large slots: the networks are real, the images small,
for no collective knows their size. Arithmetic: floating-point operations of
kNN, sampling and fetching at --batch_size, beside the step's. Memory: the
queue's on each device, and what the kNN needs besides, as the compiler says.
Prints tables; --json=FILE writes the numbers.
"""

import collections
import json
import pathlib
from typing import Any

import jax
from absl import app, flags, logging

from benchmarks import hlo, programs, queue_parts, targets
from experiments import imagenet
from semppl_jax import memory, tables

_TARGET = flags.DEFINE_string('target', 'here:4', 'See targets.py.')
_ENCODER = flags.DEFINE_string('encoder', 'resnet50', 'The networks.')
_SMALL = flags.DEFINE_integer('small', 4096, 'Slots of the small queue.')
_LARGE = flags.DEFINE_integer('large', 81_920, 'Slots of the large one.')
_BATCH = flags.DEFINE_integer('batch_size', 4096, 'B that operations are for.')
_JSON = flags.DEFINE_string('json', None, 'File for the numbers.')

PER_DEVICE = 16  # images of the compiled step; bytes are proportional to it


def traffic(
  encoder: str, capacity: int, target: targets.Target
) -> list[hlo.Collective]:
  """Collectives of the compiled step with C slots on the target's devices."""
  number = len(target.devices)
  cfg = programs.settings(
    encoder, PER_DEVICE, (64, 64, 32), capacity // number
  )  # fmt: skip
  program = programs.whole(programs.prepare(cfg))
  return hlo.collectives(
    target.compile(programs.lower(program, target.devices))
  )


def by_kind(found: list[hlo.Collective]) -> dict[str, dict[str, int]]:
  """{kind: how many, and their bytes}."""
  sums: dict = collections.defaultdict(lambda: {'number': 0, 'bytes': 0})
  for one in found:
    sums[one.kind]['number'] += 1
    sums[one.kind]['bytes'] += one.bytes
  return dict(sorted(sums.items()))


def difference(one: list[hlo.Collective], two: list[hlo.Collective]) -> int:
  """How many collectives of either have not their like in the other."""
  counts = [collections.Counter(map(str, found)) for found in (one, two)]
  return sum(((counts[0] - counts[1]) + (counts[1] - counts[0])).values())


def arithmetic(
  encoder: str, batch_size: int, capacity: int
) -> dict[str, float]:
  """Floating-point operations of a step on one device, by their purpose."""
  parts = queue_parts.Parts(batch_size, capacity)
  cfg = imagenet.get_config()
  cfg.encoder.name = encoder
  return {
    'step without these': batch_size * programs.step_flops(cfg),
    'kNN': parts.search_flops(),
    'kNN, by the formula': parts.search_formula(),
    'sampling and fetching': parts.sampling_flops(),
  }


def search_memory(batch_size: int, capacities: list[int]) -> dict[int, int]:
  """{C: bytes that the kNN needs beside its arguments, on one device}."""
  return {
    capacity: memory.need(
      queue_parts.Parts(batch_size, capacity).search().compile()
    ).temporary
    for capacity in capacities
  }


def queue_memory(capacity: int, devices: list[int]) -> dict[int, int]:
  """{D: bytes of the queue on each of D devices}."""

  def held(number):
    shapes = queue_parts.Parts(number, capacity, number).queue()
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))

  return {number: held(number) for number in devices}


def _show_traffic(small: list, large: list, target: targets.Target) -> str:
  columns = by_kind(small), by_kind(large)
  rows = [
    [kind, columns[0][kind]['number']]
    + [f'{column[kind]["bytes"]:,}' for column in columns]
    for kind in columns[0]
  ]
  sums = [sum(one.bytes for one in found) for found in (small, large)]
  rows.append(['all', len(small)] + [f'{total:,}' for total in sums])
  heads = ['collective', 'number', f'bytes, C = {_SMALL.value:,}']
  heads.append(f'bytes, C = {_LARGE.value:,}')
  # The small queue's own may be another array's: 4,096 is the heads' size.
  dimensions = {_LARGE.value, _LARGE.value // len(target.devices)}
  bad = [one for one in large if one.dimensions & dimensions]
  return tables.markdown(heads, rows) + (
    f'difference {sums[1] - sums[0]:,} bytes; collectives that differ in a '
    f'shape: {difference(small, large)}; with a dimension C or C/D '
    f'({", ".join(map(str, sorted(dimensions)))}): {len(bad)}\n'
  )


def main(unused_argv: list[str]) -> None:
  """Counts and prints."""
  logging.set_verbosity(logging.ERROR)
  jax.config.update('jax_num_cpu_devices', 8)
  target = targets.find(_TARGET.value)
  where = f'{len(target.devices)} x {target.devices[0].device_kind}'
  small, large = (
    traffic(_ENCODER.value, capacity, target)
    for capacity in (_SMALL.value, _LARGE.value)
  )
  print(
    f'{_ENCODER.value}, {where}, {PER_DEVICE} images each; bytes on a device:\n'
  )
  print(_show_traffic(small, large, target))
  found: dict[str, Any] = {
    'traffic': {_SMALL.value: by_kind(small), _LARGE.value: by_kind(large)},
    'operations': arithmetic(_ENCODER.value, _BATCH.value, _LARGE.value),
    'temporary': search_memory(
      _BATCH.value, [_SMALL.value, 4 * _SMALL.value, _LARGE.value]
    ),
    'queue': queue_memory(_LARGE.value, [1, 2, 8, 64]),
  }
  step = found['operations']['step without these']
  print(f'operations of a step, B = {_BATCH.value:,}, C = {_LARGE.value:,}:\n')
  rows = [
    [name, f'{count / 1e9:,.0f}', f'{100 * count / step:.3f}%']
    for name, count in found['operations'].items()
  ]
  print(tables.markdown(['what', 'GFLOP', 'of the step'], rows))
  mib = lambda sizes: [[f'{n:,}', f'{size / 2**20:,.1f}'] for n, size in sizes]
  rows = mib(found['temporary'].items())
  print(tables.markdown(['C', 'MiB that the kNN needs besides'], rows))
  rows = mib(found['queue'].items())
  print(tables.markdown(['devices', 'MiB of the queue on each'], rows))
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
