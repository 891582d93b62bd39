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
  'get is a sign of a collapse.'
)


def of_one(run: RunFiles) -> Html:
  """Series of one kind share a chart."""
  found = []
  shares = panels.shares(run.rows)
  for title, series in (panels.numbers(run.rows) | shares).items():
    lines = [
      line
      for number, (key, name) in enumerate(series.items())
      if (line := _line(run, key, name, number))
    ]
    if lines:
      found.append((title, lines))
  if not found:
    raise markup.Absent(_absent([run]))
  marks = [
    one['back_to']
    for one in run.rollbacks
    if isinstance(one.get('back_to'), int)
  ]
  figures = [
    charts.line_chart(title, lines, share=title in shares, marks=marks)
    for title, lines in found
  ]
  rolled = 'Vertical lines: steps that the watchdog went back to. '
  return markup.join(
    tag('div', *figures, class_='charts'),
    markup.note((rolled if marks else '') + _HELP),
    _numbers([line for _, lines in found for line in lines]),
  )


def of_several(runs: Sequence[RunFiles]) -> Html:
  """A chart for each series, a line for each run."""
  figures = []
  rows = [row for run in runs for row in run.rows]
  shares = panels.shares(rows)
  for title, series in (panels.numbers(rows) | shares).items():
    for key, name in series.items():
      lines = [
        line
        for number, run in enumerate(runs)
        if (line := _line(run, key, run.name, number))
      ]
      if lines:
        whole = title if len(series) == 1 else f'{title}: {name}'
        share = title in shares
        figures.append(
          charts.line_chart(whole, lines, share=share, legend=False)
        )
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


def _line(run: RunFiles, key: str, name: str, number: int) -> Line | None:
  """A series without its gaps; None if nothing is left."""
  pairs = [(row['step'], row.get(key)) for row in run.rows]
  known = [
    pair
    for pair in pairs
    if isinstance(pair[1], (int, float)) and np.isfinite(pair[1])
  ]
  if not known:
    return None
  steps, values = np.array(known, np.float64).T
  return Line(name, number, steps, values)


def _numbers(lines: Sequence[Line]) -> Html:
  """First, last and extreme values of the series: the charts as a table."""
  head = ('Series', 'first', 'last', 'lowest', 'highest', 'logged steps')
  rows = [
    (
      line.name,
      *(
        charts.number(x)
        for x in (
          line.values[0],
          line.values[-1],
          line.values.min(),
          line.values.max(),
        )
      ),
      f'{len(line.values):,}',
    )
    for line in lines
  ]
  label = 'The curves in numbers'
  return markup.details(label, markup.table(head, rows, label=label))
