"""What a step of every objective costs, beside SemPPL's.

  python -m benchmarks.method_costs
  python -m benchmarks.method_costs --rounds=0    # operations alone

Operations an image of the whole step, as lowered and before XLA optimises: each
objective's own ImageNet settings (views, heads, support) with one ResNet-50. A
loop's body counts once, so SemPPL's kNN and MIRA's iterations hardly count.
Seconds of a step, medians of rounds in turns: the same settings with another
encoder, batch and sizes, prototypes at most --prototypes, on one device, its
queues empty. A step with a support counts its labelled images in its time, not
among its images.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from benchmarks import command, programs, turns
from experiments import (
  imagenet,
  imagenet_byol,
  imagenet_daino,
  imagenet_dino,
  imagenet_mira,
  imagenet_simclr,
  imagenet_suave,
  imagenet_swav,
)
from semppl_jax.distributed import parallel
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.workdir import tables

BASELINE = 'semppl'
METHODS = {
  BASELINE: imagenet.get_config,
  'byol': imagenet_byol.get_config,
  'simclr': imagenet_simclr.get_config,
  'swav': imagenet_swav.get_config,
  'dino': imagenet_dino.get_config,
  'mira': imagenet_mira.get_config,
  'suave': imagenet_suave.get_config,
  'daino': imagenet_daino.get_config,
}


def settings(
  name: str, encoder: str, batch_size: int, sizes: Sequence[int]
) -> ml_collections.ConfigDict:
  """An objective's ImageNet settings with one encoder, batch and sizes.

  Args:
    name: a key of METHODS.
    encoder: a key of encoders.ENCODERS, 1x.
    batch_size: B, on one device. Queues have as many batches as they had, a
      support its share of the batch.
    sizes: of the canvas, of large and of small views, pixels.
  """
  cfg = METHODS[name]()
  share = batch_size / cfg.batch_size
  cfg.encoder.update(name=encoder, width=1, selective_kernels=False)
  cfg.dataset.image_size, cfg.views.large_size, cfg.views.small_size = sizes
  if 'queue' in cfg:
    batches = cfg.queue.capacity // cfg.batch_size
    cfg.queue.capacity = batches * batch_size
  if 'support' in cfg:
    cfg.support.images = max(1, round(share * cfg.support.images))
  cfg.batch_size, cfg.accumulate = batch_size, 1
  return cfg


def _program(run: run_lib.TrainRun, state: Any) -> programs.Program:
  step = functools.partial(step_lib.train_step, setup=run.setup)
  batch = parallel.shard(programs.batch_of(run), 1)
  return programs.Program(step, state, batch)


def operations(cfg: ml_collections.ConfigDict) -> float:
  """Of a step, per image of the batch."""
  run = programs.prepare(cfg)
  state = jax.eval_shape(lambda: run_lib.initial_state(run))
  program = _program(run, state)
  key = jax.eval_shape(lambda: jax.random.key(0))
  mapped = parallel.map_step(program.step, run.devices, donate=False)
  lowered = mapped.lower(program.state, program.batch, key)
  return programs.flops(lowered) / cfg.batch_size


def seconds(
  configs: dict[str, ml_collections.ConfigDict], rounds: int
) -> dict[str, list[float]]:
  """Of a step of each, in turns."""
  heard = turns.Compilations()
  runners = []
  for name, cfg in configs.items():
    run = programs.prepare(cfg)
    program = _program(run, run_lib.initial_state(run))
    runners.append(turns.Ours(name, program, run.devices, heard))
    command.say(f'{name}: compiled in {runners[-1].compile_seconds:.0f} s')
  return turns.take_turns(runners, rounds)


def show(found: dict[str, dict[str, float]]) -> str:
  """A row for each objective, and its share of SemPPL's."""
  rows, base = [], found[BASELINE]
  for name, one in found.items():
    row = [name]
    row.append(f'{one["operations"] / 1e9:.1f}')
    row.append(f'{one["operations"] / base["operations"]:.2f}')
    if 'seconds' in one:
      row.append(f'{one["seconds"]:.2f}')
      row.append(f'{one["seconds"] / base["seconds"]:.2f}')
    rows.append(row)
  heads = ['objective', 'GFLOP an image', f'of {BASELINE}']
  if 'seconds' in base:
    heads += ['seconds a step', f'of {BASELINE}']
  return tables.markdown(heads, rows)


def _arguments() -> argparse.Namespace:
  parser = command.parser(__doc__)
  parser.add_argument('--encoder', default='resnet18', help='of the times')
  parser.add_argument('--batch_size', type=int, default=16, help='likewise')
  parser.add_argument('--sizes', default='96,64,32', help='likewise')
  parser.add_argument('--prototypes', type=int, default=3000, help='likewise')
  parser.add_argument('--rounds', type=int, default=5, help='0: no times')
  parser.add_argument('--methods', default=','.join(METHODS))
  return parser.parse_args()


def main() -> None:
  """Counts, times and prints."""
  args = _arguments()
  names = [name for name in METHODS if name in args.methods.split(',')]
  found: dict[str, dict[str, float]] = {}
  for name in names:
    count = operations(settings(name, 'resnet50', 16, (512, 224, 96)))
    found[name] = {'operations': count}
    command.say(f'{name}: {count / 1e9:.1f} GFLOP an image')
  if args.rounds:
    sizes = [int(size) for size in args.sizes.split(',')]
    configs = {}
    for name in names:
      cfg = settings(name, args.encoder, args.batch_size, sizes)
      if 'prototypes' in cfg and cfg.prototypes.number:
        number = min(args.prototypes, cfg.prototypes.number)
        cfg.prototypes.number = number
      configs[name] = cfg
    for name, values in seconds(configs, args.rounds).items():
      found[name]['seconds'] = float(np.median(values))
  print(show(found))
  command.finish(args, found)


if __name__ == '__main__':
  main()
