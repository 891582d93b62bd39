"""The curves of one run, or of several over each other."""

from collections.abc import Sequence

import numpy as np

from semppl_jax.report import charts, markup
from semppl_jax.report.charts import Line
from semppl_jax.report.markup import Html, tag
from semppl_jax.report.run_files import RunFiles

# Title -> {key in metrics.jsonl: name in the legend}; shares, and others.
_NUMBERS = {
  'Loss': {'loss': 'total'},
  'Contrastive terms': {
    'loss/augmentation': 'augmentation positives',
    'loss/semantic': 'semantic positives',
  },
  'Invariance terms': {
    'invariance/augmentation': 'augmentation positives',
    'invariance/semantic': 'semantic positives',
  },
  'Embedding spread': {'embedding_std': 'embedding spread'},
}
_SHARES = {
  'Accuracy during training': {
    'pseudo_label_accuracy': 'pseudo-labels, unlabelled images',
    'labelled_vote_accuracy': 'votes, labelled images',
    'classifier_accuracy': 'classifier, labelled images',
  },
  'Queue and votes': {
    'vote_share': 'vote share of the winner',
    'queue_fill': 'queue fill',
    'top_label_share': 'most frequent pseudo-label',
  },
}
_PANELS = _NUMBERS | _SHARES
_HELP = (
  'Embedding spread: about 1 in health, towards 0 in a collapse. Vote share: '
  'how far the nearest labelled images agree. Queue fill: how much of the '
  'queue of labelled embeddings is in use. A pseudo-label that most images '
  'get is a sign of a collapse.'
)


def of_one(run: RunFiles) -> Html:
  """Series of one kind share a chart."""
  panels = []
  for title, series in _PANELS.items():
    lines = [
      line
      for number, (key, name) in enumerate(series.items())
      if (line := _line(run, key, name, number))
    ]
    if lines:
      panels.append((title, lines))
  if not panels:
    raise markup.Absent(_absent([run]))
  marks = [
    one['back_to']
    for one in run.rollbacks
    if isinstance(one.get('back_to'), int)
  ]
  figures = [
    charts.line_chart(title, lines, share=title in _SHARES, marks=marks)
    for title, lines in panels
  ]
  rolled = 'Vertical lines: steps that the watchdog went back to. '
  return markup.join(
    tag('div', *figures, class_='charts'),
    markup.note((rolled if marks else '') + _HELP),
    _numbers([line for _, lines in panels for line in lines]),
  )


def of_several(runs: Sequence[RunFiles]) -> Html:
  """A chart for each series, a line for each run."""
  figures = []
  for title, series in _PANELS.items():
    for key, name in series.items():
      lines = [
        line
        for number, run in enumerate(runs)
        if (line := _line(run, key, run.name, number))
      ]
      if lines:
        whole = title if len(series) == 1 else f'{title}: {name}'
        share = title in _SHARES
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
