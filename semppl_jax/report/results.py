"""Scores: of one run, of several, and which classes are mistaken."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from semppl_jax.evaluation import verdict
from semppl_jax.report import markup
from semppl_jax.report.markup import Html, tag
from semppl_jax.report.pictures import name as class_name
from semppl_jax.report.run_files import RunFiles
from semppl_jax.workdir import plots

# Key of results.json -> what it is called, and what it is.
SCORES = {
  'pseudo_label_accuracy': (
    'Pseudo-labels',
    'what the run predicts for unlabelled training images',
  ),
  'knn_top1': (
    'kNN',
    'test images named after their nearest labelled images; nothing is trained',
  ),
  'linear_labelled_top1': (
    'Linear, labelled',
    'logistic regression on the frozen encoder, from the labelled images alone',
  ),
  'linear_all_top1': (
    'Linear, all labels',
    'the same from all training labels: what the embeddings could give',
  ),
  'classifier_top1': (
    'Classifier',
    'the classifier that trained along with the encoder, on test images',
  ),
  'prediction_top1': (
    'Own prediction',
    'what the objective predicts for test images, by votes or by prototypes',
  ),
  'top1': ('Top-1', 'test images whose class is the first guess'),
  'top5': ('Top-5', 'test images whose class is among five guesses'),
}
# What needs no network, beside them; not among a run's own scores.
BASELINES = {
  'baseline_pixels_top1': (
    'Pixels',
    'logistic regression on 16 x 16 pixels of the labelled images',
  ),
  'baseline_histogram_top1': (
    'Colours',
    'logistic regression on colour histograms of the labelled images',
  ),
}
_MOST_CLASSES = 20  # of a confusion matrix; more: the worst pairs
_MOST_PAIRS = 20


def headline(run: RunFiles) -> Html:
  """The scores as a row of numbers; of an unfinished run, the last logged."""
  tiles = [
    (title, _percent(run.results[key]))
    for key, (title, _) in SCORES.items()
    if _is_number(run.results.get(key))
  ]
  if not run.results and run.rows:
    last = run.rows[-1]
    tiles = [
      (title, plots.number_text(key, last[key]))
      for key, title in (
        ('pseudo_label_accuracy', 'Pseudo-labels, last batch'),
        ('loss', 'Loss, last'),
      )
      if _is_number(last.get(key))
    ]
  if _is_number(run.results.get('seconds')):
    tiles.append(('Training', duration(run.results['seconds'])))
  if not tiles:
    raise markup.Absent('No score was written yet.')
  return tag(
    'dl',
    *(tag('div', tag('dt', t), tag('dd', v)) for t, v in tiles),
    class_='tiles',
  )


def scores(run: RunFiles, num_classes: int) -> Html:
  """Bars with an explanation each, and the other numbers.

  Args:
    run: its files.
    num_classes: K: chance is 1 / K; 0: not known.
  """
  if not run.results:
    raise markup.Absent(
      'There is no results.json: the run is not finished, or was stopped.'
    )
  rows = [
    (
      tag('b', title),
      tag('span', text, class_='what'),
      _bar(run.results[key], num_classes),
      tag('span', _percent(run.results[key]), class_='value'),
    )
    for key, (title, text) in (SCORES | BASELINES).items()
    if _is_number(run.results.get(key))
  ]
  bars = tag(
    'ul', *(tag('li', *row) for row in rows), class_='bars'
  )  # fmt: skip
  absent = [
    title
    for key, (title, _) in SCORES.items()
    if key in run.results and run.results[key] is None
  ]
  chance = f' The thin line is chance, 1 in {num_classes}.'
  judged = verdict.line(run.results)
  return markup.join(
    tag('p', judged) if judged else None,
    bars if rows else None,
    markup.note(
      ('Not measured here: ' + ', '.join(absent) + '.') if absent else '',
      chance if rows and num_classes > 1 else '',
    ),
    _others(run),
  )


def _others(run: RunFiles) -> Html | None:
  rows = [
    (key.replace('_', ' '), plots.number_text(key, value))
    for key, value in run.results.items()
    if key not in SCORES | BASELINES and not isinstance(value, (dict, list))
  ]
  label = 'All other numbers of results.json'
  if not rows:
    return None
  return markup.details(
    label, markup.table(('Name', 'Value'), rows, label=label)
  )


def comparison(runs: Sequence[RunFiles]) -> Html:
  """A row for each run; the best of each column is marked."""
  keys = [
    key
    for key in SCORES
    if any(_is_number(run.results.get(key)) for run in runs)
  ]
  if not keys:
    raise markup.Absent('None of the runs has a results.json with scores.')
  best = {
    key: max(
      run.results[key] for run in runs if _is_number(run.results.get(key))
    )
    for key in keys
  }
  rows = []
  for run in runs:
    step = '-' if run.step is None else f'{run.step:,}'
    cells = [_cell(run.results.get(key), best[key]) for key in keys]
    rows.append((run.name, step, *cells))
  head = ('Run', 'Steps', *(SCORES[key][0] for key in keys))
  label = 'Scores of the runs'
  return markup.join(
    markup.table(head, rows, label=label, kind='numbers'),
    markup.note('★ marks the best of a column; - was not measured.'),
    tag(
      'dl',
      *(part for key in keys for part in map(tag, ('dt', 'dd'), SCORES[key])),
      class_='terms',
    ),
  )


def _cell(value: Any, best: float) -> Html | str:
  if not _is_number(value):
    return '-'
  if value < best:
    return _percent(value)
  star = tag('span', '★', aria_label='best', role='img')
  return tag('strong', _percent(value), ' ', star)


def _bar(value: float, num_classes: int) -> Html:
  chance = f'{1 / num_classes:.4f}' if num_classes > 1 else None
  return tag(
    'span',
    tag('span', style=f'--v:{value:.4f}', class_='filled'),
    chance and tag('span', style=f'--v:{chance}', class_='chance'),
    class_='bar',
    aria_hidden='true',
  )


def confusion(
  truth: np.ndarray, guesses: np.ndarray, names: Sequence[str], which: str
) -> Html:
  """Rows: the true classes; columns: the guessed ones.

  Args:
    truth: [n] int, -1: unknown, does not count.
    guesses: [n] int, -1: none, does not count.
    names: of the classes.
    which: images they are.
  """
  judged = (truth >= 0) & (guesses >= 0)
  if not judged.any():
    return markup.note(
      f'None of the {which} has both a pseudo-label and a known class.'
    )
  counts = np.zeros((len(names), len(names)), int)
  np.add.at(counts, (truth[judged], guesses[judged]), 1)
  right = f'{np.trace(counts):,} of {judged.sum():,} are right'
  share = _percent(np.trace(counts) / judged.sum())
  said = tag('p', tag('b', share), f' of the {which}: {right}.')
  if len(names) > _MOST_CLASSES:
    return markup.join(said, _worst_pairs(counts, names))
  return markup.join(
    said,
    _matrix(counts, names, which),
    markup.note('Rows: true class. Columns: pseudo-label. Last: share right.'),
  )


def _matrix(counts: np.ndarray, names: Sequence[str], which: str) -> Html:
  rows = []
  for i, row in enumerate(counts):
    total = max(row.sum(), 1)
    cells = [
      tag(
        'td', f'{n:,}' if n else '·', style=f'--v:{(n / total) ** 0.5:.3f}',
        class_='right' if i == j else None if n else 'zero',
      )
      for j, n in enumerate(row)
    ]  # fmt: skip
    share = _percent(row[i] / total) if row.sum() else '-'
    recall = tag('td', share, class_='share')
    head = tag('th', class_name(names, i), scope='row')
    rows.append(tag('tr', head, *cells, recall))
  head = [
    tag('th', class_name(names, i), scope='col') for i in range(len(names))
  ]
  columns = tag('tr', tag('td'), *head, tag('th', 'right', scope='col'))
  whole = tag(
    'table', tag('thead', columns), tag('tbody', *rows), class_='confusion'
  )
  return markup.scrolling(whole, f'Confusion matrix, {which}')


def _worst_pairs(counts: np.ndarray, names: Sequence[str]) -> Html:
  wrong = counts * (1 - np.eye(len(counts), dtype=int))
  order = np.argsort(-wrong, axis=None, kind='stable')[:_MOST_PAIRS]
  rows = [
    (class_name(names, i), class_name(names, j), f'{wrong[i, j]:,}')
    for i, j in zip(*np.unravel_index(order, wrong.shape))
    if wrong[i, j]
  ]
  head = ('True class', 'Pseudo-label', 'Images')
  return markup.table(head, rows, label='The most frequent mistakes')


def duration(seconds: float) -> str:
  """Seconds for people."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  return f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'


def shares(summary: dict[str, Any]) -> Html | None:
  """How many pseudo-labels are right by how sure they are; None: not known.

  Args:
    summary: of a `labelling.Labelling`.
  """
  parts = summary['tenths_by_share']
  if not parts:
    return None
  rows = [
    (f'{i}', f'{part["confidence"]:.0%}', _percent(part['accuracy']))
    for i, part in enumerate(parts, 1)
  ]
  label = 'Pseudo-labels by the share of the votes'
  return markup.table(
    ('Tenth, most doubtful first', 'Mean share', 'Right'),
    rows,
    label=label,
    kind='numbers',
  )


def _percent(value: float) -> str:
  return f'{value:.1%}'


def _is_number(value: Any) -> bool:
  usable = isinstance(value, (int, float)) and not isinstance(value, bool)
  return usable and math.isfinite(value)
