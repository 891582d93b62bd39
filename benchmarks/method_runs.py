"""The runs of a table: which, in what order, and who trains them.

A run lies in WORKDIR/ROW-SEED-TRIAL. Trials of a row are decided on
VALIDATION_SEED before its other seeds begin, and a run that another one begins
with is trained before it. Any number of processes share the work.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command, method_settings
from benchmarks.method_rows import ROWS
from benchmarks.method_settings import Table
from semppl_jax import pretraining
from semppl_jax.errors import UserError
from semppl_jax.train import watchdog
from semppl_jax.workdir import metrics

VALIDATION_SEED = 10


class Cell(NamedTuple):
  """One run: of a row, by a seed, with one of its trials."""

  row: str
  trial: int
  seed: int

  @property
  def validates(self) -> bool:
    """Whether it decides on settings, and sees no test image."""
    return self.seed == VALIDATION_SEED

  def folder(self, workdir: str) -> str:
    """Where it lies in the table's work directory."""
    return os.path.join(workdir, f'{self.row}-{self.seed}-{self.trial}')


def config(cell: Cell, table: Table) -> Any:
  """Settings of one run, whose start is known."""
  row = ROWS[cell.row]
  cfg = settings(cell, table)
  if row.begins_with:
    best = best_trial(row.begins_with, table)
    begin = Cell(row.begins_with, best, cell.seed)
    cfg.init = begin.folder(table.workdir)
  return cfg


def settings(cell: Cell, table: Table) -> Any:
  """Settings of one run, without its start."""
  return method_settings.config_of(
    ROWS[cell.row], cell.trial, cell.seed, table, test=not cell.validates
  )


def trials(name: str, table: Table) -> Sequence[dict[str, Any]]:
  """What is tried of a row."""
  return method_settings.trials(ROWS[name], table)


def results(cell: Cell, workdir: str) -> dict[str, Any] | None:
  """What a finished run has in results.json."""
  path = os.path.join(cell.folder(workdir), pretraining.RESULTS)
  return metrics.read_json(path)


def judged(found: dict[str, Any]) -> float:
  """A validation run's score; 0 for one that was stopped by an alarm."""
  return (
    found.get('knn_top1', 0.0) + found.get('linear_labelled_top1', 0.0)
  ) / 2


def best_trial(name: str, table: Table) -> int | None:
  """The trial with the best score; None: not all are finished."""
  number = len(trials(name, table))
  if number == 1:
    return 0
  found = [
    results(Cell(name, trial, VALIDATION_SEED), table.workdir)
    for trial in range(number)
  ]
  return None if None in found else int(np.argmax(list(map(judged, found))))


def cells(names: Sequence[str], seeds: int, table: Table) -> Iterator[Cell]:
  """All runs of a table but for the choice of a trial, -1: the best one."""
  for name in names:
    number = len(trials(name, table))
    needed = any(ROWS[other].begins_with == name for other in names)
    for trial in range(number if number > 1 or needed else 0):
      yield Cell(name, trial, VALIDATION_SEED)
  for seed in range(seeds):
    for name in names:
      yield Cell(name, -1, seed)


def ready(cell: Cell, table: Table) -> Cell | None:
  """The run with its trial, if all that it needs is finished."""
  row = ROWS[cell.row]
  if cell.trial < 0:
    best = best_trial(cell.row, table)
    if best is None:
      return None
    cell = cell._replace(trial=best)
  if row.begins_with:
    before = ready(Cell(row.begins_with, -1, cell.seed), table)
    if before is None or results(before, table.workdir) is None:
      return None
  return cell


def train(cell: Cell, table: Table) -> bool:
  """Trains a run; False: another process is at it."""
  return attempt(config(cell, table), cell.folder(table.workdir))


def attempt(cfg: Any, folder: str) -> bool:
  """Trains a run of such settings; False: another process is at it."""
  path = os.path.join(folder, pretraining.RESULTS)
  try:
    pretraining.pretrain(cfg, folder)
  except watchdog.AlarmError as error:
    command.say(f'{folder}: {error}')
    metrics.write_json(path, {'alarm': str(error), 'seconds': 0.0, 'step': 0})
  except UserError as error:
    if 'Another job works' not in str(error):
      raise
    return False
  command.say(f'{folder}: {metrics.read_json(path)}')
  return True


def work(plan: Sequence[Cell], table: Table) -> None:
  """Trains whatever is ready and nobody else's, until all is finished."""

  def left():
    now = [ready(cell, table) for cell in plan]
    return [x for x in now if x is None or results(x, table.workdir) is None]

  until_done(left, lambda cell: train(cell, table))


def until_done(
  left: Callable[[], Sequence[Any]], one: Callable[[Any], bool]
) -> None:
  """Trains runs one by one, beside other processes that do.

  Args:
    left: () -> runs that are not finished; None: one that waits for another.
    one: run -> whether it was trained; False: another process is at it.
  """
  while waiting := left():
    if not any(one(run) for run in waiting if run is not None):
      time.sleep(5)  # others are at what is left
