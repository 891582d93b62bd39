"""What the step takes of a device's memory, and the largest batch that fits.

  python -m benchmarks.memory --target=h100       # no GPU needed: targets.py
  python -m benchmarks.memory --networks=resnet_50_1x --precisions=float32
  python -m benchmarks.memory --target=h100 --networks=resnet_50_1x,cifar10 \
    --gigabytes=8,12,16,24,48

For each network of a released checkpoint at full size, or for cifar10's
experiment: the compiler's account of the step at --per_device images, its
temporary memory beside the floor, and images that fit on devices of
--gigabytes, at this account (it is what
device_memory.advice says when a run does not fit). Floor: what the backward
pass cannot do without, the output of each convolution of the online network,
once, for all six views; what BatchNorm and ReLU make of it can be computed
again. Parameters, optimiser and queue (of 20 images' slots for each image here)
come on top.
Prints a table; --json=FILE writes the numbers. Minutes for each network.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import ml_collections

from benchmarks import command, cost, programs, targets
from experiments import cifar10, imagenet
from semppl_jax import preflight
from semppl_jax.train import device_memory
from semppl_jax.workdir import tables

CIFAR = 'cifar10'
WAYS = ('float32', 'bfloat16', 'bfloat16+remat')


def settings(
  network: str, way: str, per_device: int
) -> ml_collections.ConfigDict:
  """The experiment of a network, see WAYS, for one device."""
  if network == CIFAR:
    cfg = cifar10.get_config()
  else:
    cfg = imagenet.get_config(cost.networks()[network])
  cfg.precision, _, remat = way.partition('+')
  cfg.remat = bool(remat)
  cfg.batch_size, cfg.queue.capacity = per_device, 20 * per_device
  return cfg


def measure(
  network: str, way: str, per_device: int, target: targets.Target
) -> dict[str, Any]:
  """The compiler's account of one step; sizes in bytes on one device."""
  run = programs.prepare(settings(network, way, per_device))
  program = programs.described(run)
  lowered = programs.lower(program, target.devices)
  need = device_memory.need(target.compile(lowered))
  return {
    'network': network,
    'way': way,
    'per_device': per_device,
    'state': need.state,
    'temporary': need.temporary,
    'floor_per_image': preflight.floor(run),
  }


def show(rows: list[dict[str, Any]], gigabytes: Sequence[float]) -> str:
  """As a table."""
  heads = [
    'network', 'way', 'state, GB', 'temporary, MB an image',
    'floor, MB an image', 'x floor',
    *(f'images in {size:g} GB' for size in gigabytes),
  ]  # fmt: skip
  cells = []
  for row in rows:
    each = row['temporary'] / row['per_device']
    need = device_memory.Need(row['state'], row['temporary'])
    fits = [
      device_memory.largest_batch(need, row['per_device'], int(size * 1e9))
      for size in gigabytes
    ]
    cells.append(
      [
        row['network'],
        row['way'],
        f'{row["state"] / 1e9:.2f}',
        f'{each / 1e6:.0f}',
        f'{row["floor_per_image"] / 1e6:.0f}',
        f'{each / row["floor_per_image"]:.2f}',
        *fits,
      ]
    )
  return tables.markdown(heads, cells)


def _arguments() -> argparse.Namespace:
  parser = command.parser(__doc__)
  parser.add_argument('--target', default='here:1', help='see targets.py')
  parser.add_argument('--networks', default=','.join(cost.networks()))
  parser.add_argument('--precisions', default=','.join(WAYS))
  parser.add_argument('--per_device', type=int, default=32, help='images')
  parser.add_argument('--gigabytes', default='80', help='of devices')
  return parser.parse_args()


def main() -> None:
  """Compiles one after another, and prints."""
  args = _arguments()
  target = targets.find(args.target)
  rows = []
  for network in args.networks.split(','):
    for way in args.precisions.split(','):
      rows.append(measure(network, way, args.per_device, target))
      command.say(str(rows[-1]))
  number, kind = len(target.devices), target.devices[0].device_kind
  print(f'{number} x {kind}, compiled at {args.per_device} images each:\n')
  print(show(rows, [float(size) for size in args.gigabytes.split(',')]))
  command.finish(args, {'device': kind, 'rows': rows})


if __name__ == '__main__':
  main()
