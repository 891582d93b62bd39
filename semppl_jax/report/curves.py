"""The curves of one run, or of several over each other."""

from collections.abc import Sequence

import numpy as np

from semppl_jax.report import charts, markup
from semppl_jax.report.charts import Line
from semppl_jax.report.markup import Html, tag
from semppl_jax.report.run_files import RunFiles
from semppl_jax.workdir import panels

_HELP = (
  'Embedding spread: about 1 in health, towards 0 in a collapse. Vote share: '
  'how far the nearest labelled images agree. Queue fill: how much of the '
  'queue of labelled embeddings is in use. A pseudo-label that most images '
  'get is a sign of a collapse. RankMe: how many directions the embeddings '
  'use.'
)


def of_one(run: RunFiles) -> Html:
  """Series of one kind share a chart."""
  shares = panels.shares(run.rows)
  found = {}
  for title, keys in (panels.numbers(run.rows) | shares).items():
    lines = [_line(run, *names, i) for i, names in enumerate(keys.items())]
    if lines := [line for line in lines if len(line.steps)]:
      found[title] = lines
  if not found:
    raise markup.Absent(_absent([run]))
  marks = [
    one['back_to']
    for one in run.rollbacks
    if isinstance(one.get('back_to'), int)
  ]
  figures = [
    charts.line_chart(title, lines, share=title in shares, marks=marks)
    for title, lines in found.items()
  ]
  rolled = 'Vertical lines: steps that the watchdog went back to. '
  return markup.join(
    tag('div', *figures, class_='charts'),
    markup.note((rolled if marks else '') + _HELP),
    _numbers([line for lines in found.values() for line in lines]),
  )


def of_several(runs: Sequence[RunFiles]) -> Html:
  """A chart for each series, a line for each run."""
  figures = []
  rows = [row for run in runs for row in run.rows]
  shares = panels.shares(rows)
  for title, keys in (panels.numbers(rows) | shares).items():
    for key, name in keys.items():
      lines = [_line(run, key, run.name, i) for i, run in enumerate(runs)]
      if lines := [line for line in lines if len(line.steps)]:
        figures.append(
          charts.line_chart(
            title if len(keys) == 1 else f'{title}: {name}', lines,
            share=title in shares, legend=False,
          )
        )  # fmt: skip
  if not figures:
    raise markup.Absent(_absent(runs))
  nothing = np.zeros(0)
  legend = charts.keys(
    [Line(run.name, i, nothing, nothing) for i, run in enumerate(runs)]
  )
  return markup.join(
    tag('div', legend, class_='legend'),
    tag('div', *figures, class_='charts'),
    markup.note(
      _HELP + ' Losses of runs with other weights are not of one scale.'
    ),
  )


def _absent(runs: Sequence[RunFiles]) -> str:
  if not any(run.rows for run in runs):
    return 'There is no metrics.jsonl, or nothing in it yet: no curves.'
  return 'metrics.jsonl has no series that is drawn here.'


def _line(run: RunFiles, key: str, name: str, number: int) -> Line:
  """A series without its gaps."""
  steps, values = panels.series(run.rows, key)
  known = np.isfinite(values)
  return Line(name, number, steps[known], values[known])


def _numbers(lines: Sequence[Line]) -> Html:
  """First, last and extreme values of the series: the charts as a table."""
  head = ('Series', 'first', 'last', 'lowest', 'highest', 'logged steps')
  rows = []
  for line in lines:
    x = line.values
    found = map(charts.number, (x[0], x[-1], x.min(), x.max()))
    rows.append((line.name, *found, f'{len(x):,}'))
  label = 'The curves in numbers'
  return markup.details(label, markup.table(head, rows, label=label))
