"""One table of SemPPL and its rivals: same data, network, views and selection.

  python -m benchmarks.methods --workdir=runs/methods
  python -m benchmarks.methods --methods=swav,suave --seeds=5 --labels=2
  python -m benchmarks.methods --data=DIR --steps=400 --seeds=3 \
    --methods=semppl,relicv2,paws,supervised --workdir=runs/methods_characters

Data: scikit-learn's digits, by experiments/digits.py; or a folder as
experiments/folder.py takes it, with DIR/train/CLASS and DIR/test/CLASS, all of
whose labels are known to the scores and hidden from training but for --labels
(`benchmarks.drawn_folders characters` makes one). On a folder all rows have the
same encoder, views, batch and number of steps, see method_settings.py.

Of each row the settings of method_rows.py are tried on seed 10 and held-out
training images; the one with the best mean of kNN and linear on the labelled
images is taken for seeds 0, 1, ..., with the test images. A seed decides
weights, batches and which images have labels. A row may begin with another's
checkpoint of the same seed; both are then trained. Rows that need no training
stand beside.

Prints first what is to be trained and how long it takes: by the runs that are
finished, or else by a measured pass of the first row's network. Resumable:
finished runs are kept. Start it as often as there are cores, on one work
directory that all see, for example as the jobs of an array: each takes runs
that no other has, and waits for those.

Writes table.md and table.json: test top-1 in percent, mean and standard error,
the paired difference from SemPPL; images seen and seconds, with those of the
run that a row begins with, without labelled images beside the batches. And
table.html, a page with the curves of all rows and every validation score.
"""

import argparse
import collections
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from benchmarks import (
  command,
  method_page,
  method_runs,
  method_settings,
  method_table,
)
from benchmarks.method_rows import ROWS
from benchmarks.method_runs import VALIDATION_SEED, Cell
from benchmarks.method_settings import Table
from semppl_jax.errors import UserError
from semppl_jax.train import pass_time
from semppl_jax.train import run as run_lib
from semppl_jax.utils import files
from semppl_jax.workdir import metrics, tables

_COMMON = 'table_settings.json'  # what all runs of a work directory share
_ELSEWHERE = 30.0  # seconds of a run beside its steps, about


def agree(table: Table) -> None:
  """Sees to it that all runs of a work directory are of one table.

  Raises:
    UserError: it has runs with other data, labels or steps.
  """
  path = os.path.join(table.workdir, _COMMON)
  own = {key: getattr(table, key) for key in ('data', 'labels', 'steps')}
  there = metrics.read_json(path)
  if there is None:
    metrics.write_json(path, own)
    return
  for key, value in own.items():
    if there[key] != value:
      raise UserError(
        f'--{key} is {value}, but the runs in --workdir {table.workdir} are '
        f'with {there[key]}: choose another --workdir.'
      )


def check(names: Sequence[str], table: Table) -> dict[str, run_lib.TrainRun]:
  """A run of each row, made ready, so that what cannot work is told at once.

  Raises:
    UserError: of the first such row.
  """
  found = {}
  for name in names:
    try:
      cfg = method_runs.settings(Cell(name, 0, VALIDATION_SEED), table)
      found[name] = run_lib.prepare(cfg)
    except UserError as error:
      raise UserError(f'{name}: {error}') from error
  return found


def forecast(
  plan: Sequence[Cell], table: Table, runs: dict[str, run_lib.TrainRun]
) -> str:
  """What is left to be trained, and how long it takes.

  By the runs of the table that are finished. If none is: by a measured pass of
  the first row's network, as if all took as long an image.

  Args:
    plan: all runs.
    table: where they lie.
    runs: one of each row, see `check`.
  """
  seconds: dict[str, list[float]] = collections.defaultdict(list)
  left: collections.Counter[str] = collections.Counter()
  for cell in plan:
    now = method_runs.ready(cell, table)
    found = now and method_runs.results(now, table.workdir)
    if found:
      seconds[cell.row].append(_all_seconds(found))
    else:
      left[cell.row] += 1
  every = [x for of_row in seconds.values() for x in of_row]
  source = 'by those that are finished'
  if left and not every:
    source = f"by a pass of {next(iter(runs))}'s network"
    seconds = _estimates(runs)
  lines = [
    f'{number:4d} of {name}, about {runs[name].setup.total_steps} steps'
    for name, number in left.items()
  ]
  hours = sum(n * np.mean(seconds.get(k, every)) for k, n in left.items())
  total = f'{left.total()} runs are left, {hours / 3600:.1f} hours of one core'
  return '\n'.join([*lines, f'{total}, {source}.' if left else f'{total}.'])


def _all_seconds(found: dict[str, Any]) -> float:
  return found['seconds'] + found.get('evaluation_seconds', 0.0)


def _estimates(runs: dict[str, run_lib.TrainRun]) -> dict[str, list[float]]:
  """Seconds of a run of each row, by a pass of the first one's network."""
  first = next(iter(runs.values()))
  seconds = pass_time.OVERHEAD * pass_time.seconds_of_passes(
    first.cfg, first.facts, first.cfg.batch_size, first.devices[0]
  )
  of_image = seconds / first.cfg.batch_size
  return {
    name: [run.setup.total_steps * run.cfg.batch_size * of_image + _ELSEWHERE]
    for name, run in runs.items()
  }


def with_starts(names: Sequence[str]) -> list[str]:
  """The rows and those that they begin with, in the table's order."""
  wanted = set(names) | {ROWS[name].begins_with for name in names}
  return [name for name in ROWS if name in wanted]


def _parser() -> argparse.ArgumentParser:
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/methods')
  parser.add_argument('--data', default='digits', help='digits, or a folder')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--labels', default='2', help='a class, or e.g. 10%%')
  parser.add_argument(
    '--steps', type=int, default=0,
    help="of every run; default: the rows' own epochs on the digits, "
    f'{method_settings.STEPS} on a folder',
  )  # fmt: skip
  parser.add_argument('--methods', default=','.join(ROWS))
  return parser


def main() -> None:
  """Trains what is left, then writes the table."""
  parser = _parser()
  args = parser.parse_args()
  unknown = set(args.methods.split(',')) - ROWS.keys()
  if unknown:
    parser.error(
      f'--methods: {", ".join(sorted(unknown))}; known: {", ".join(ROWS)}'
    )
  if not re.fullmatch(r'\d+|\d+(\.\d+)?%', args.labels):
    parser.error(f'--labels: {args.labels}; so many a class, or e.g. 10%')
  if not 0 < args.seeds <= VALIDATION_SEED:
    parser.error(
      f'--seeds: {args.seeds}; from 1 to {VALIDATION_SEED}, for seed '
      f'{VALIDATION_SEED} chooses the settings'
    )
  logging.set_verbosity(logging.WARNING)
  try:
    found = run(args)
  except UserError as error:
    parser.error(str(error))
  command.finish(args, found)


def _table(args: argparse.Namespace) -> Table:
  if args.data == method_settings.DIGITS:
    return Table(args.workdir, args.labels, args.data, args.steps)
  steps = args.steps or method_settings.STEPS
  path = os.path.abspath(args.data)
  return Table(args.workdir, args.labels, path, steps)


def run(args: argparse.Namespace) -> method_table.Found:
  """All of a command line: plan, trainings, table."""
  table = _table(args)
  names = with_starts(args.methods.split(','))
  if not table.is_digits:
    command.say(method_settings.told(table))
  runs = check(names, table)
  os.makedirs(table.workdir, exist_ok=True)
  agree(table)
  plan = list(method_runs.cells(names, args.seeds, table))
  command.say(forecast(plan, table, runs))
  method_runs.work(plan, table)
  found = method_table.collect(names, args.seeds, table)
  decided = tables.markdown(*method_table.choices(names, table))
  text = f'{tables.markdown(*method_table.rows_of(found))}\n{decided}'
  files.write_text(pathlib.Path(table.workdir, 'table.md'), text)
  metrics.write_json(os.path.join(table.workdir, 'table.json'), found)
  print(text)
  command.say(f'Written: {method_page.write(names, found, table)}')
  return found


if __name__ == '__main__':
  main()
