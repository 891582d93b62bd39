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

import argparse
import collections

import jax

from benchmarks import command, hlo, programs, queue_parts, targets
from experiments import imagenet
from semppl_jax.train import device_memory
from semppl_jax.workdir import tables

# Images of the compiled step; what SemPPL sends is proportional to it.
PER_DEVICE = 16


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
    capacity: device_memory.need(
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


def show_traffic(
  found: dict[int, list[hlo.Collective]], target: targets.Target
) -> str:
  """Bytes by kind, for two capacities; and whether any shape knows C."""
  columns = [by_kind(collectives) for collectives in found.values()]
  rows = [
    [kind, row['number']] + [f'{column[kind]["bytes"]:,}' for column in columns]
    for kind, row in columns[0].items()
  ]
  small, large = found.values()
  sums = [sum(one.bytes for one in half) for half in (small, large)]
  rows.append(['all', len(small)] + [f'{total:,}' for total in sums])
  heads = ['collective', 'number'] + [f'bytes, C = {c:,}' for c in found]
  # The small queue's own may be another array's: 4,096 is the heads' size.
  capacity = max(found)
  dimensions = {capacity, capacity // len(target.devices)}
  bad = [one for one in large if one.dimensions & dimensions]
  return tables.markdown(heads, rows) + (
    f'difference {sums[1] - sums[0]:,} bytes; collectives that differ in a '
    f'shape: {difference(small, large)}; with a dimension C or C/D '
    f'({", ".join(map(str, sorted(dimensions)))}): {len(bad)}\n'
  )


def show_operations(operations: dict[str, float]) -> str:
  """Beside the step's."""
  step = operations['step without these']
  rows = [
    [name, f'{count / 1e9:,.0f}', f'{100 * count / step:.3f}%']
    for name, count in operations.items()
  ]
  return tables.markdown(['what', 'GFLOP', 'of the step'], rows)


def show_memory(head: str, what: str, sizes: dict[int, int]) -> str:
  """Bytes as MiB."""
  rows = [[f'{n:,}', f'{size / 2**20:,.1f}'] for n, size in sizes.items()]
  return tables.markdown([head, what], rows)


def _arguments() -> argparse.Namespace:
  parser = command.parser(__doc__)
  parser.add_argument('--target', default='here:4', help='see targets.py')
  parser.add_argument('--encoder', default='resnet50', help='the networks')
  parser.add_argument('--small', type=int, default=4096, help='slots')
  parser.add_argument('--large', type=int, default=81_920, help='slots')
  parser.add_argument('--batch_size', type=int, default=4096)
  return parser.parse_args()


def main() -> None:
  """Counts and prints."""
  args = _arguments()
  jax.config.update('jax_num_cpu_devices', 8)
  target = targets.find(args.target)
  where = f'{len(target.devices)} x {target.devices[0].device_kind}'
  carried = {
    c: traffic(args.encoder, c, target) for c in (args.small, args.large)
  }
  print(f'{args.encoder}, {where}, {PER_DEVICE} images each; on a device:\n')
  print(show_traffic(carried, target))

  operations = arithmetic(args.encoder, args.batch_size, args.large)
  print(f'A step, B = {args.batch_size:,}, C = {args.large:,}, one device:\n')
  print(show_operations(operations))

  temporary = search_memory(
    args.batch_size, [args.small, 4 * args.small, args.large]
  )
  print(show_memory('C', 'MiB that the kNN needs besides', temporary))
  held = queue_memory(args.large, [1, 2, 8, 64])
  print(show_memory('devices', 'MiB of the queue on each', held))
  command.finish(
    args,
    {
      'traffic': {c: by_kind(found) for c, found in carried.items()},
      'operations': operations,
      'temporary': temporary,
      'queue': held,
    },
  )


if __name__ == '__main__':
  main()
