"""The files that labels for all the rest are written to."""

import csv
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from semppl_jax import storage
from semppl_jax.data import sources
from semppl_jax.errors import UserError
from semppl_jax.evaluation import calibration
from semppl_jax.evaluation.labelling import Job, Labelling
from semppl_jax.utils import files
from semppl_jax.workdir import metrics

NAME = 'labels.csv'  # of a run


def write(path: str | os.PathLike, job: Job, found: Labelling) -> None:
  """Writes the CSV, and what is to be known of it as JSON beside it.

  The most doubtful image comes first. Column `class` is the user's: the labels
  that were given (these images come last) and empty elsewhere, so that the
  file, with corrections in that column, is a `labels.file` whole.

  Args:
    path: of the CSV; that of the JSON has .json in place of its ending.
    job: names of images and classes.
    found: labels of them.
  """
  path = storage.path(path)
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(_rows(job, found))
  files.write_text(path, text.getvalue())
  metrics.write_json(path.with_suffix('.json'), found.summary)


def check_replaceable(path: str | os.PathLike, job: Job) -> None:
  """Refuses to replace a file that holds what a user wrote.

  Args:
    path: where the CSV is to be written.
    job: whose labels it would have.

  Raises:
    UserError: another file is there, or a table of labels with a class that is
      none of these labels.
  """
  path = storage.path(path)
  if not path.exists():
    return
  advice = 'move it away, or write to another file'
  try:
    text = path.read_text('utf-8-sig').splitlines()
    # A comma, or what another program has made of it.
    delimiter = max(',;\t', key=text[0].count)
    first, *rows = csv.reader(text, delimiter=delimiter)
    at, of = first.index('name'), first.index('class')
    written = {row[at]: row[of] for row in rows if row[of]}
  except storage.StorageError:
    raise
  except (IndexError, ValueError, csv.Error):
    raise UserError(
      f'{path} is there already and is no table of labels: {advice}.'
    ) from None
  known = np.where(job.labels >= 0, job.labels, job.calibration)
  own = {
    sources.name(job.source, int(row)): _class(job, known[row])
    for row in np.flatnonzero(known >= 0)
  }
  new = [name for name, label in written.items() if own.get(name) != label]
  if new:
    raise UserError(
      f'{path} has a class of yours for {new[0]!r} ({len(new):,} in all): use '
      f'it as labels.file; {advice}.'
    )


def heads(job: Job, found: Labelling) -> list[str]:
  """The columns' names."""
  known = [] if found.probability is None else ['probability']
  nearest = range(1, found.votes.neighbours.shape[1] + 1)
  return [
    'name', 'class', 'pseudo_label', 'share', *known, 'runner_up',
    'runner_up_share',
    *(head for i in nearest for head in (f'nearest_{i}', f'similarity_{i}')),
  ]  # fmt: skip


def _rows(job: Job, found: Labelling) -> Iterator[list[Any]]:
  yield heads(job, found)
  votes = found.votes
  name = lambda row: sources.name(job.source, int(row))
  for i, row in enumerate(found.rows):
    cells = [
      name(row), _class(job, job.calibration[row]),
      _class(job, votes.labels[i]), _number(votes.share[i]),
    ]  # fmt: skip
    if found.probability is not None:
      cells.append(_number(found.probability[i]))
    cells += [
      _class(job, votes.runner_up[i]),
      _number(votes.runner_up_share[i]),
    ]
    for near, cosine in zip(votes.neighbours[i], votes.similarity[i]):
      cells += [name(near), _number(cosine)]
    yield cells
  empty = [''] * (len(heads(job, found)) - 2)
  for row in np.flatnonzero(job.labels >= 0):
    yield [name(row), _class(job, job.labels[row]), *empty]


def _class(job: Job, label: int) -> str:
  return str(job.class_names[int(label)]) if label >= 0 else ''


def _number(value: float) -> str:
  return f'{value:.4f}'


def next_path(path: str | os.PathLike) -> pathlib.Path:
  """Where a CSV's images to label next are listed: NAME_next.txt."""
  path = storage.path(path)
  return path.with_name(f'{path.stem}_next.txt')


def write_next(path: str | os.PathLike, job: Job, rows: np.ndarray) -> None:
  """Writes what to label next, one name a line, as labels.file reads them.

  Args:
    path: of the CSV.
    job: names of images.
    rows: the images.
  """
  called = [sources.name(job.source, int(row)) for row in rows]
  files.write_text(next_path(path), '\n'.join(called) + '\n')


def lines(summary: dict[str, Any]) -> list[str]:
  """What a user is told of the labels.

  Args:
    summary: of a `Labelling`.
  """
  said = [
    f'{summary["images"]:,} images labelled by {summary["labelled_images"]:,} '
    'that have a label, the most doubtful first.'
  ]
  if summary['unreadable_images']:
    said.append(
      f'{summary["unreadable_images"]:,} images cannot be decoded and are left '
      'out.'
    )
  if summary['images_of_shared_names']:
    said.append(
      f'{summary["images_of_shared_names"]:,} images share their name with '
      'another one, so that labels.file cannot name them.'
    )
  if summary['accuracy'] is not None:
    parts = summary['tenths_by_share']
    said.append(
      f'Of the {summary["images_of_known_class"]:,} whose class is known, '
      f'{summary["accuracy"]:.1%} are right: {parts[0]["accuracy"]:.0%} of the '
      f'most doubtful tenth, {parts[-1]["accuracy"]:.0%} of the surest.'
    )
  count = summary['calibration_images']
  if 'platt' in summary:
    said.append(
      f'By {count} calibration images, shares are off by '
      f'{summary["ece_of_share"]:.1%} on average, probabilities by '
      f'{summary["ece_of_probability"]:.1%} (expected calibration error, '
      'cross-validated).'
    )
  else:
    said.append(
      f'Shares are no probabilities: with labels.calibration of '
      f'{calibration.FEWEST} or more (here {count}) a training keeps labels '
      'back that tell what they are worth.'
    )
  return said
