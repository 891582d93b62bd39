"""The table as a page of the report: scores, what decided, settings, curves."""

import collections
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import method_table
from benchmarks.method_runs import Cell
from benchmarks.method_settings import Table
from semppl_jax.report import curves, markup, page, run_files, settings
from semppl_jax.utils import files


def write(
  names: Sequence[str], found: method_table.Found, table: Table
) -> pathlib.Path:
  """Writes WORKDIR/table.html.

  Args:
    names: of the trained rows.
    found: what the table shows.
    table: where the runs lie.

  Returns:
    The file.
  """
  runs = [
    _mean_run(name, [Cell(name, row['trial'], seed).folder(table.workdir)
                     for seed, row in found[name].items()])
    for name in names
    if name in found
  ]  # fmt: skip
  sections = [
    ('scores', 'Scores', lambda: _scores(found)),
    ('decided', 'What decided', lambda: _decided(names, table)),
    ('curves', 'Curves', lambda: _curves(runs)),
    (
      'settings',
      'Settings that differ',
      lambda: settings.of_several(runs),
    ),
    ('environment', 'Environment', lambda: settings.environment(runs)),
  ]
  data = 'digits' if table.is_digits else os.path.basename(table.data)
  share = 'of the labels' if table.labels.endswith('%') else 'labels per class'
  head = markup.tag('p', f'{data} · {table.labels} {share}', class_='facts')
  path = pathlib.Path(table.workdir, 'table.html')
  files.write_text(path, page.document('SemPPL and others', head, sections))
  return path


def _scores(found: method_table.Found) -> markup.Html:
  return markup.join(
    markup.table(
      *method_table.rows_of(found), label='Scores of all rows', kind='numbers'
    ),
    markup.note(
      'Test top-1 in percent, mean ± standard error over seeds; differences '
      'are paired by seed.'
    ),
  )


def _decided(names: Sequence[str], table: Table) -> markup.Html:
  heads, rows = method_table.choices(names, table)
  if not rows:
    raise markup.Absent('No row had several settings to choose from.')
  return markup.table(heads, rows, label='Every validation score')


def _curves(runs: Sequence[run_files.RunFiles]) -> markup.Html:
  note = markup.note('Each line: the mean over the seeds of a row.')
  return markup.join(note, curves.of_several(runs))


def _mean_run(name: str, folders: Sequence[str]) -> run_files.RunFiles:
  """The first run with the name of its row and the mean curves of all."""
  runs = run_files.read(folders)
  return runs[0]._replace(name=name, rows=mean_rows([r.rows for r in runs]))


def mean_rows(
  seeds: Sequence[Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
  """The mean of each metric at each step, over the seeds that have it there.

  Args:
    seeds: of each, its rows of metrics.jsonl.
  """
  values: dict[int, dict[str, list[float]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for row in (row for rows in seeds for row in rows):
    for key, value in row.items():
      if isinstance(value, (int, float)) and math.isfinite(value):
        values[row['step']][key].append(value)
  return [
    {key: float(np.mean(known)) for key, known in values[step].items()}
    | {'step': step}
    for step in sorted(values)
  ]
