"""The step's cost on each of 1, 2, 4, 8 devices. Counted, not timed.

  python -m benchmarks.scaling
  python -m benchmarks.scaling --encoder=resnet50 --sizes=224,96   # slow

With a fixed batch per device, and a queue of 20 times the whole batch, as in
the paper's experiment: operations of the networks on each device, which should
not change; of the kNN, which grow with the batch, beside their formula
2 V_q V_L B (C / D) d; of sampling; bytes of all collectives. With a fixed whole
batch: bytes of collectives on each device, which should stay bounded. Then from
where on the kNN matters. Prints tables; --json=FILE writes the numbers.
"""

import argparse

import jax

from benchmarks import command, hlo, programs, queue_parts, targets
from experiments import imagenet
from semppl_jax.train import run as run_lib
from semppl_jax.workdir import tables

DEVICES = (1, 2, 4, 8)
TIMES = 20  # C / B


def prepare(args: argparse.Namespace, per_device: int) -> run_lib.TrainRun:
  """One device's part of the run that is asked for."""
  large, small = map(int, args.sizes.split(','))
  sizes, capacity = (large, large, small), TIMES * per_device
  return programs.prepare(
    programs.settings(args.encoder, per_device, sizes, capacity)
  )


def networks(run: run_lib.TrainRun, devices: int) -> float:
  """Operations of both networks' passes on each device, compiled."""
  target = targets.find(f'here:{devices}')
  program = programs.bare(run)
  return programs.flops(target.compile(programs.lower(program, target.devices)))


def traffic(run: run_lib.TrainRun, devices: int) -> int:
  """Bytes of all collectives of the compiled step, on each device."""
  target = targets.find(f'here:{devices}')
  lowered = programs.lower(programs.whole(run), target.devices)
  return sum(one.bytes for one in hlo.collectives(target.compile(lowered)))


def of_devices(run: run_lib.TrainRun) -> list[dict[str, float]]:
  """What each device does, for every number of devices."""
  per_device, rows = run.cfg.batch_size, []
  for devices in DEVICES:
    batch_size = devices * per_device
    parts = queue_parts.Parts(batch_size, TIMES * batch_size, devices)
    rows.append(
      {
        'devices': devices,
        'networks': networks(run, devices),
        'knn': parts.search_flops(),
        'knn_formula': parts.search_formula(),
        'sampling': parts.sampling_flops(),
        'bytes': traffic(run, devices),
      }
    )
  return rows


def matters(flops_per_image: float) -> dict[float, float]:
  """{share of the networks' operations: B at which the kNN reaches it}."""
  one = queue_parts.Parts(1, TIMES).search_formula()  # of B = 1; goes with B^2
  return {
    share: share * flops_per_image / one for share in (0.01, 0.03, 0.1, 1)
  }


def show(rows: list[dict[str, float]]) -> str:
  """As a table."""
  first = rows[0]['networks']
  heads = [
    'devices', 'networks, GFLOP', 'against 1 device', 'kNN, GFLOP',
    'by the formula', 'sampling, GFLOP', 'collectives, MB',
  ]  # fmt: skip
  cells = [
    [
      row['devices'],
      f'{row["networks"] / 1e9:.2f}',
      f'{100 * (row["networks"] / first - 1):+.3f}%',
      f'{row["knn"] / 1e9:.4f}',
      f'{row["knn_formula"] / 1e9:.4f}',
      f'{row["sampling"] / 1e9:.4f}',
      f'{row["bytes"] / 1e6:.2f}',
    ]
    for row in rows
  ]
  return tables.markdown(heads, cells)


def _arguments() -> argparse.Namespace:
  parser = command.parser(__doc__)
  parser.add_argument('--encoder', default='resnet18', help='the networks')
  parser.add_argument('--sizes', default='64,32', help='of views: large,small')
  parser.add_argument('--per_device', type=int, default=16, help='images')
  parser.add_argument('--total', type=int, default=128, help='B where fixed')
  return parser.parse_args()


def main() -> None:
  """Counts and prints."""
  args = _arguments()
  jax.config.update('jax_num_cpu_devices', max(DEVICES))
  rows = of_devices(prepare(args, args.per_device))
  print(
    f'{args.encoder}, views of {args.sizes} px, {args.per_device} images on '
    f'each {jax.devices()[0].device_kind} device, C = {TIMES} B; on each:\n'
  )
  print(show(rows))

  fixed = {
    devices: traffic(prepare(args, args.total // devices), devices)
    for devices in DEVICES[1:]
  }
  print(f'B = {args.total} whatever the devices; on each device:\n')
  cells = [[devices, f'{size / 1e6:.2f}'] for devices, size in fixed.items()]
  print(tables.markdown(['devices', 'collectives, MB'], cells))

  shares = matters(programs.step_flops(imagenet.get_config()))
  print(f'kNN over {TIMES} B slots beside ResNet-50 1x at full size:\n')
  cells = [[f'{100 * s:g}%', f'{b:,.0f}'] for s, b in shares.items()]
  print(tables.markdown(['share', 'at B ='], cells))
  command.finish(
    args, {'per_device': rows, 'fixed_batch_bytes': fixed, 'knn_at': shares}
  )


if __name__ == '__main__':
  main()
