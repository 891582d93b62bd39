"""The table itself: scores, differences from SemPPL, costs, what decided."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import method_runs, scores, without_training
from benchmarks.method_rows import BASELINE, ROWS
from benchmarks.method_runs import VALIDATION_SEED, Cell
from benchmarks.method_settings import Table
from semppl_jax.workdir import config_file

COLUMNS = {
  'pseudo_label_accuracy': 'pseudo-labels',
  'prediction_top1': 'own prediction',
  'knn_top1': 'kNN',
  'linear_labelled_top1': 'linear, labelled',
  'linear_all_top1': 'linear, all labels',
}

Found = dict[str, dict[int, dict[str, Any]]]  # results by row and seed


def collect(names: Sequence[str], seeds: int, table: Table) -> Found:
  """Results of what is finished, with what each run took."""
  found: Found = {}
  for name in names:
    for seed in range(seeds):
      now = method_runs.ready(Cell(name, -1, seed), table)
      one = now and method_runs.results(now, table.workdir)
      if one:
        took = _took(now, table)
        found.setdefault(name, {})[seed] = one | took | {'trial': now.trial}
  for name in without_training.NAMES:
    for seed in range(seeds):
      cfg = method_runs.settings(Cell(BASELINE, 0, seed), table)
      one = without_training.results(name, cfg, table.workdir)
      found.setdefault(name, {})[seed] = one | {'images': 0, 'seconds': 0.0}
  return found


def _took(cell: Cell, table: Table) -> dict[str, Any]:
  """Images seen and seconds, with those of the run that it begins with."""
  found = method_runs.results(cell, table.workdir)
  batch = config_file.read(cell.folder(table.workdir))['batch_size']
  took = {'images': found['step'] * batch, 'seconds': found['seconds']}
  if start := ROWS[cell.row].begins_with:
    before = _took(method_runs.ready(Cell(start, -1, cell.seed), table), table)
    took = {key: value + before[key] for key, value in took.items()}
  return took


def rows_of(found: Found) -> tuple[list[str], list[list[str]]]:
  """Heads and cells of the table."""
  heads = ['objective', 'seeds', *COLUMNS.values()]
  heads += [f'{column}, less {BASELINE}' for column in ('kNN', 'linear')]
  heads += ['images seen', 'seconds']
  rows = []
  for name, by_seed in found.items():
    stopped = sum('alarm' in row for row in by_seed.values())
    number = f'{len(by_seed)}, {stopped} stopped' if stopped else len(by_seed)
    scored = _scores(by_seed, found.get(BASELINE, {}))
    rows.append([name, f'{number}', *scored, *_costs(by_seed)])
  return heads, rows


def _scores(
  by_seed: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]
) -> list[str]:
  cells = [
    _percent([row.get(key) for row in by_seed.values()]) for key in COLUMNS
  ]
  for key in ('knn_top1', 'linear_labelled_top1'):
    pairs = [
      (row.get(key), baseline[seed].get(key))
      for seed, row in by_seed.items()
      if seed in baseline
    ]
    known = [a - b for a, b in pairs if None not in (a, b)]
    cells.append(_percent(known, '+') if by_seed is not baseline else '')
  return cells


def _percent(values: Sequence[float | None], sign: str = '') -> str:
  known = [value for value in values if value is not None]
  return scores.percent(known, sign) if known else ''


def _costs(by_seed: dict[int, dict[str, Any]]) -> list[str]:
  """Medians over seeds; nothing of what is not trained."""
  of = lambda key: np.median([row[key] for row in by_seed.values()])
  return [f'{of(k):,.0f}' if of(k) else '' for k in ('images', 'seconds')]


def choices(
  names: Sequence[str], table: Table
) -> tuple[list[str], list[list[str]]]:
  """Heads and cells of a table of every validation score that decided."""
  rows = []
  for name in names:
    for trial, settings in enumerate(method_runs.trials(name, table)):
      one = method_runs.results(
        Cell(name, trial, VALIDATION_SEED), table.workdir
      )
      if one:
        told = ', '.join(f'{k}={v}' for k, v in settings.items())
        taken = 'yes' if method_runs.best_trial(name, table) == trial else ''
        score = (
          'stopped'
          if 'alarm' in one
          else f'{100 * method_runs.judged(one):.1f}'
        )
        rows.append([name, told, score, taken])
  return ['objective', 'settings', 'kNN and linear, validation', 'taken'], rows
