"""Small batches: which learning rate, and how much is lost.

  python -m benchmarks.batch_sizes --workdir=runs/batch_sizes

SemPPL on the digits (digits.py: 128 images, AdamW, 60 epochs) at batches of 64
to 512 images. All see as many images; the queue holds the labelled images of as
many batches; the learning rate is that of 128 images, or goes with the batch or
with its square root (`optimizer.scaling`). Beside it ReLICv2 with 512 images at
once and in 2, 4 and 8 parts (`accumulate`), whose BatchNorm statistics alone
differ.
Scores are of 300 held-out training images, not of the test images.

Resumable, and may be started several times on one work directory, as
benchmarks.methods. Writes table.md and table.json: percent, mean and standard
error over seeds.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import logging

from benchmarks import command, method_runs, scores
from experiments import digits, digits_relicv2
from semppl_jax.workdir import tables

BATCH = 128  # that the experiments are made for
BATCHES = (64, 128, 256, 512)
RULES = {'constant': 0.0, 'square root': 0.5, 'linear': 1.0}  # powers
PARTS = (1, 2, 4, 8)
VALIDATION = 300
COLUMNS = {
  'pseudo_label_accuracy': 'pseudo-labels',
  'knn_top1': 'kNN',
  'linear_labelled_top1': 'linear, labelled',
  'linear_all_top1': 'linear, all labels',
}


class Cell(NamedTuple):
  """One run."""

  method: str  # 'semppl' or 'relicv2'
  batch: int
  rule: str  # of RULES
  parts: int  # `accumulate`
  seed: int

  def folder(self, workdir: str) -> str:
    """Where it lies in the table's work directory."""
    rule = f'{RULES[self.rule]:g}'
    name = f'{self.method}-{self.batch}-{rule}-{self.parts}-{self.seed}'
    return os.path.join(workdir, name)


def rows() -> Iterator[tuple[str, int, str, int]]:
  """Method, batch, rule and parts of each row of the table."""
  for batch in BATCHES:
    for rule in RULES if batch != BATCH else ('linear',):
      yield 'semppl', batch, rule, 1
  for parts in PARTS:
    yield 'relicv2', BATCHES[-1], 'linear', parts


def cells(seeds: int) -> list[Cell]:
  """All runs, seed by seed."""
  return [Cell(*row, seed) for seed in range(seeds) for row in rows()]


def config(cell: Cell, epochs: float = 0) -> Any:
  """Settings of a run, on one device; epochs of 0 are the experiment's."""
  is_semppl = cell.method == 'semppl'
  cfg = (digits if is_semppl else digits_relicv2).get_config()
  share = cell.batch / BATCH
  cfg.seed = cfg.labels.seed = cell.seed
  cfg.num_devices = 1
  cfg.progress = False
  cfg.dataset.validation = VALIDATION
  cfg.batch_size = cell.batch
  cfg.accumulate = cell.parts
  cfg.num_epochs = epochs or cfg.num_epochs
  cfg.queue.capacity = int(cfg.queue.capacity * share)
  if not is_semppl:  # no loss sees a vote
    cfg.queue.balance = False
  # The settings go with the batch by themselves.
  cfg.optimizer.learning_rate *= share ** (RULES[cell.rule] - 1)
  return cfg


def table(seeds: int, workdir: str) -> tuple[str, dict[str, Any]]:
  """The table of what is finished, and its numbers by row and seed."""
  numbers: dict[str, dict[int, dict[str, Any]]] = {}
  lines = []
  for row in rows():
    found = {
      seed: one
      for seed in range(seeds)
      if (one := method_runs.results(Cell(*row, seed), workdir))
    }
    if not found:
      continue
    method, batch, rule, parts = row
    key = f'{method} {batch} {rule} {parts}'
    numbers[key] = found
    rate = config(Cell(*row, 0)).optimizer.learning_rate * batch / 256
    columns = [
      scores.percent([one[column] for one in found.values() if column in one])
      for column in COLUMNS
    ]
    lines.append(
      [method, f'{batch}', f'{parts}', rule, f'{rate:.2g}', f'{len(found)}',
       *columns]
    )  # fmt: skip
  heads = ['method', 'images a step', 'parts', 'rate', '', 'seeds']
  return tables.markdown([*heads, *COLUMNS.values()], lines), numbers


def main() -> None:
  """Trains what is left, then writes the table."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/batch_sizes')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument(
    '--epochs', type=float, default=0, help="for a trial; 0: the experiments'"
  )
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  os.makedirs(args.workdir, exist_ok=True)
  plan = cells(args.seeds)
  unfinished = lambda: [
    cell for cell in plan if method_runs.results(cell, args.workdir) is None
  ]
  command.say(f'{len(unfinished())} runs of one core are left, a minute each.')
  method_runs.until_done(
    unfinished,
    lambda cell: method_runs.attempt(
      config(cell, args.epochs), cell.folder(args.workdir)
    ),
  )
  text, numbers = table(args.seeds, args.workdir)
  command.finish_table(args, text, numbers)


if __name__ == '__main__':
  main()
