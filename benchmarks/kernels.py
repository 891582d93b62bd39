"""Where a step's time goes: its profile, summed by kind of operation.

  python -m benchmarks.kernels                            # what is there
  python -m benchmarks.kernels --encoder=resnet18 --batch_size=4 \
    --sizes=64,32,16

One step of `benchmarks.programs`, after it is compiled and has run once, under
JAX's profiler. Kinds are the names of XLA's operations (on a GPU: kernels)
without their numbers. Prints a table of shares; --json=FILE writes it.
"""

import argparse
import collections
import glob
import gzip
import json
import re
import tempfile

import jax

from benchmarks import command, programs, turns
from semppl_jax.train import run as run_lib
from semppl_jax.workdir import tables


def durations(folder: str) -> dict[str, tuple[float, int]]:
  """Kind -> its seconds and calls, of the one profile below a folder."""
  (path,) = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)
  with gzip.open(path) as file:
    events = json.load(file)['traceEvents']
  seconds, calls = collections.Counter(), collections.Counter()
  for event in events:
    # Operations say which they are; spans around them do not.
    if event.get('ph') == 'X' and 'hlo_op' in event.get('args', {}):
      kind = re.sub(r'[._\d]+$', '', event['name'])
      seconds[kind] += event['dur'] / 1e6
      calls[kind] += 1
  return {kind: (value, calls[kind]) for kind, value in seconds.most_common()}


def measure(run: run_lib.TrainRun) -> dict[str, tuple[float, int]]:
  """Kind -> seconds and calls, of one step."""
  runner = turns.Ours(
    'step', programs.whole(run), run.devices, turns.Compilations()
  )
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      runner.take()
    return durations(folder)


def _arguments() -> argparse.Namespace:
  cpu = jax.devices()[0].platform == 'cpu'
  parser = command.parser(__doc__)
  parser.add_argument('--encoder', default='resnet50')
  parser.add_argument('--sizes', default='128,96,48' if cpu else '512,224,96')
  parser.add_argument('--batch_size', type=int, default=16 if cpu else 128)
  parser.add_argument(
    '--precision', default='float32', choices=['float32', 'bfloat16']
  )
  return parser.parse_args()


def main() -> None:
  """Measures and prints."""
  args = _arguments()
  sizes = [int(size) for size in args.sizes.split(',')]
  cfg = programs.settings(
    args.encoder, args.batch_size, sizes, 20 * args.batch_size,
    precision=args.precision,
  )  # fmt: skip
  found = measure(programs.prepare(cfg))
  total = sum(seconds for seconds, _ in found.values())
  rows = [
    [kind, f'{1e3 * seconds:.2f}', str(calls), f'{100 * seconds / total:.1f}%']
    for kind, (seconds, calls) in list(found.items())[:25]
  ]
  print(tables.markdown(['operation', 'ms', 'calls', 'share'], rows))
  command.finish(args, found)


if __name__ == '__main__':
  main()
