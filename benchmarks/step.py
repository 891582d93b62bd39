"""How fast the step is: beside its networks alone, and beside PyTorch.

  python -m benchmarks.step                              # what is there
  python -m benchmarks.step --precision=bfloat16 --torch=""   # largest batch

On one device. Programs take turns; times are medians over rounds:

  step         the training step: views, both networks, kNN, sampling, losses,
               gradients, LARS, moving average
  networks     both networks' passes on views that are there, and gradients
  embed        the encoder in evaluation mode, one large view
  supervised   one large view, cross-entropy, gradients, LARS
  PyTorch      the first three by `torch_twin.step` (extra `benchmark-torch`;
               --torch names its interpreter), channels_last, compiled on a GPU;
               --torch_form has its other forms

Sizes: ResNet-50 on a GPU at full size, with the largest batch that the
compiler says fits (half of the memory if PyTorch shares it); on a CPU 16
images, views of 96 and 48 px. Prints tables; --json=FILE writes the numbers.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import command, cost, peaks, programs, turns
from semppl_jax.models import encoders
from semppl_jax.train import device_memory
from semppl_jax.train import run as run_lib
from semppl_jax.utils import allocator
from semppl_jax.workdir import tables

TORCH_ENCODERS = ('resnet18', 'resnet50')


def settings(args: argparse.Namespace, batch_size: int) -> Any:
  """The experiment at the sizes that are asked for."""
  sizes = [int(size) for size in args.sizes.split(',')]
  return programs.settings(
    args.encoder, batch_size, sizes, 20 * batch_size, precision=args.precision
  )


def largest(args: argparse.Namespace, share: float) -> int:
  """Images that fit on a share of the device, by the account of the step at 32.

  Three programs have a state of their own, so that not all of it is free.
  """
  device = jax.devices()[0]
  available = device_memory.limit(device)
  if available is None:
    return 16
  run = programs.prepare(settings(args, 32))
  compiled = programs.lower(programs.described(run), run.devices).compile()
  fits = device_memory.largest_batch(
    device_memory.need(compiled), 32, share * available
  )
  return max(16, fits // 8 * 8)


def torch_sizes(run: run_lib.TrainRun) -> dict[str, Any]:
  """The same work for `torch_twin.step`."""
  cfg = run.cfg
  return {
    'encoder': cfg.encoder.name,
    'width': cfg.encoder.width,
    'stem': cfg.encoder.stem,
    'batch_size': cfg.batch_size,
    'canvas': cfg.dataset.image_size,
    'large_size': cfg.views.large_size,
    'small_size': cfg.views.small_size,
    'capacity': cfg.queue.capacity,
    'projector_hidden': cfg.projector.hidden,
    'embedding_size': cfg.projector.size,
    'num_classes': run.data.num_classes,
    'num_large': cfg.views.num_large,
    'num_small': cfg.views.num_small,
    'k': cfg.queue.k,
    'num_draws': cfg.loss.num_semantic_positives,
    'num_negatives': cfg.loss.num_negatives,
  }


PROGRAMS = {
  'step': programs.whole,
  'networks': programs.bare,
  'embed': programs.embed,
  'supervised': programs.supervised,
}
TORCH_PROGRAMS = {'step': 'whole', 'networks': 'bare', 'embed': 'embed'}
TORCH_FORMS = {
  'usual': (),
  'channels_last': ('--no-compiled',),
  'default': ('--no-compiled', '--layout=contiguous_format'),
  'compiled': ('--compiled',),
  'default_compiled': ('--compiled', '--layout=contiguous_format'),
}


def flops(run: run_lib.TrainRun, names: Collection[str]) -> dict[str, float]:
  """Operations of one call of each of our programs.

  As a CPU would get it, for a GPU's backend counts compiled programs alone; NaN
  where JAX_PLATFORMS hides the CPU.
  """
  try:
    device = jax.devices('cpu')[:1]
  except RuntimeError:
    return dict.fromkeys(names, float('nan'))
  return {
    name: programs.flops(programs.lower(PROGRAMS[name](run), device))
    for name in names
  }


def measure(
  run: run_lib.TrainRun,
  server: turns.TorchServer | None,
  names: Sequence[str],
  rounds: int,
  ahead: int,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
  """Seconds of each program in every round; and what compiling took."""
  heard = turns.Compilations()
  ours = [
    turns.Ours(name, PROGRAMS[name](run), run.devices, heard, ahead)
    for name in names
  ]
  theirs = [
    turns.Theirs(f'PyTorch {name}', server, what)
    for name, what in TORCH_PROGRAMS.items()
    if server and name in names
  ]
  compiled = {
    runner.name: {
      'compile_seconds': runner.compile_seconds,
      'first_seconds': runner.first,
      'compiled_again': runner.compiled_again,
    }
    for runner in ours
  }
  return turns.take_turns(ours + theirs, rounds), compiled


def ratios(seconds: dict[str, list[float]]) -> dict[str, tuple[float, ...]]:
  """Of the rounds' ratios: median, smallest, largest; and of the best rounds.

  The last is the ratio of the shortest times: what disturbs a shared machine
  only ever makes it slower.
  """
  pairs = {
    'step / networks': ('step', 'networks'),
    'PyTorch step / PyTorch networks': ('PyTorch step', 'PyTorch networks'),
    'step: PyTorch / ours': ('PyTorch step', 'step'),
    'networks: PyTorch / ours': ('PyTorch networks', 'networks'),
    'embed: PyTorch / ours': ('PyTorch embed', 'embed'),
  }
  found = {}
  for name, (above, below) in pairs.items():
    if above in seconds and below in seconds:
      of_rounds = np.divide(seconds[above], seconds[below])
      found[name] = tuple(
        float(f(of_rounds)) for f in (np.median, np.min, np.max)
      ) + (min(seconds[above]) / min(seconds[below]),)
  return found


def show_times(
  seconds: dict[str, list[float]],
  operations: dict[str, float],
  batch_size: int,
  peak: float,
) -> str:
  """A row for each program."""
  rows = []
  for name, values in seconds.items():
    median = float(np.median(values))
    count = operations[name.removeprefix('PyTorch ')]
    rate = count / median / 1e12
    rows.append(
      [
        name,
        f'{median:.3f}',
        f'{min(values):.3f} to {max(values):.3f}',
        f'{batch_size / median:.2f}',
        f'{rate:.3f}',
        f'{100 * rate / peak:.0f}%',
      ]
    )
  heads = ['program', 'seconds', 'range', 'images/s', 'TFLOP/s', 'of the peak']
  return tables.markdown(heads, rows)


def _arguments() -> argparse.Namespace:
  cpu = jax.devices()[0].platform == 'cpu'
  parser = command.parser(__doc__)
  parser.add_argument(
    '--encoder', default='resnet50', choices=encoders.ENCODERS
  )
  parser.add_argument(
    '--sizes', default='128,96,48' if cpu else '512,224,96',
    help='of the canvas, of large and of small views',
  )  # fmt: skip
  parser.add_argument('--batch_size', type=int, default=0, help='0: what fits')
  parser.add_argument(
    '--precision', default='float32', choices=['float32', 'bfloat16']
  )
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--programs', default=','.join(PROGRAMS), help='of ours')
  parser.add_argument(
    '--ahead', type=int, default=1 if cpu else 10,
    help='steps that are dispatched in a turn before it is waited for them',
  )  # fmt: skip
  there = importlib.util.find_spec('torch') is not None
  parser.add_argument(
    '--torch', default=sys.executable if there else '',
    help='an interpreter that has PyTorch; "": without',
  )  # fmt: skip
  parser.add_argument('--torch_form', choices=TORCH_FORMS, default='usual')
  args = parser.parse_args()
  names = args.programs.split(',')
  if not set(names) <= set(PROGRAMS):
    parser.error(f'--programs: some of {",".join(PROGRAMS)}')
  if args.torch and args.encoder not in TORCH_ENCODERS:
    parser.error(f'with PyTorch: --encoder={" or ".join(TORCH_ENCODERS)}')
  return args


def show(found: dict[str, Any], args: argparse.Namespace) -> str:
  """Times, ratios, and what compiling and a whole run would take."""
  seconds, peak = found['seconds'], found['matmul_tflops']
  heads = ['ratio', 'median', 'smallest', 'largest', 'of the best rounds']
  rows = [
    [name, *(f'{x:.3f}' for x in row)] for name, row in found['ratios'].items()
  ]
  text = (
    f'{args.encoder}, {args.precision}, {found["batch_size"]} images on one '
    f'{found["device"]}, canvas, large, small: {args.sizes}; {args.rounds} '
    f'rounds. A product of matrices reaches {peak:.3g} TFLOP/s, memory '
    f'{found["gigabytes_per_second"]:.0f} GB/s.\n\n'
    f'{show_times(seconds, found["operations"], found["batch_size"], peak)}\n'
    f'{tables.markdown(heads, rows)}'
  )
  if 'step' not in found['compiled']:
    return text
  step = found['compiled']['step']
  days = cost.IMAGES * cost.EPOCHS / 86_400
  days *= float(np.median(seconds['step'])) / found['batch_size']
  return (
    f'{text}\nThe step compiled in {step["compile_seconds"]:.0f} s (first call '
    f'{step["first_seconds"]:.0f} s), in the second call '
    f'{step["compiled_again"]} times. {cost.EPOCHS} epochs of ImageNet at this '
    f'rate and these sizes: {days:,.1f} days.'
  )


def main() -> None:
  """Measures and prints."""
  allocator.keep_freed_memory()  # as a run does
  args = _arguments()
  if args.torch:  # shares the device
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  else:  # memory taken piece by piece would not hold one large temporary
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
  device = jax.devices()[0]
  batch_size = args.batch_size or largest(args, 0.45 if args.torch else 0.85)
  run = programs.prepare(settings(args, batch_size))
  names = args.programs.split(',')
  operations = flops(run, names)
  server = None
  if args.torch:
    gpu = ['--device=cuda'] if device.platform == 'gpu' else []
    server = turns.TorchServer(
      args.torch,
      torch_sizes(run),
      f'--precision={args.precision}',
      f'--ahead={args.ahead}',
      *TORCH_FORMS[args.torch_form],
      *gpu,
    )
  seconds, compiled = measure(run, server, names, args.rounds, args.ahead)
  if server:
    server.close()
  found = {
    'device': device.device_kind,
    'arguments': {k: str(v) for k, v in vars(args).items()},
    'batch_size': batch_size,
    'seconds': seconds,
    'ratios': ratios(seconds),
    'operations': operations,
    'compiled': compiled,
    'torch': server and server.ready,
    'matmul_tflops': peaks.matmul_tflops(device, args.precision),
    'gigabytes_per_second': peaks.gigabytes_per_second(device),
  }
  print(show(found, args))
  command.finish(args, found)


if __name__ == '__main__':
  main()
