"""The sections that need a run's data and its network, as far as there are."""

import functools
from typing import Any, NamedTuple

import numpy as np

from semppl_jax.errors import UserError
from semppl_jax.evaluation import labelling, run_network
from semppl_jax.report import charts, markup, pictures, predictions, results
from semppl_jax.report.markup import Absent, Html, tag
from semppl_jax.report.run_files import RunFiles
from semppl_jax.train import run as run_lib
from semppl_jax.utils.text import first_line
from semppl_jax.workdir import plots

_MOST_POINTS = 1000  # of the t-SNE
_FEWEST_POINTS = 5


class Seen(NamedTuple):
  """What there is of a run beside its files; else the reason."""

  run: run_lib.TrainRun | None  # None: no data
  unlabelled: predictions.Predictions | None
  test: predictions.Predictions | None
  tested: str  # which images `test` is about
  reasons: list[str]  # why what is None is so
  doubtful: labelling.Labelling | None = None  # unlabelled images


def look(run: RunFiles, most: int) -> Seen:
  """Data and network of a run, as far as they can be had."""
  if not run.config or run.is_evaluation:
    reason = (
      'This is an evaluation; its checkpoint’s run has a report of its own.'
      if run.is_evaluation
      else 'Without config.json, neither data nor networks are known.'
    )
    return Seen(None, None, None, '', [reason])
  prepared, reasons = None, []
  # Whatever goes wrong with data and network, the rest of the page stands.
  try:
    prepared = run_network.prepare(run.config)
    found = run_network.restore(prepared, run.folder)
    unlabelled, test, tested = _ask(found, most)
    doubtful = _doubtful(found, most)
  except Exception as error:
    return Seen(prepared, None, None, '', [first_line(error)[:500]])
  if found.step != run.step:
    reasons.append(f'Of the checkpoint of step {found.step:,}.')
  return Seen(prepared, unlabelled, test, tested, reasons, doubtful)


def _ask(found: run_network.Network, most: int):
  run, seed = found.run, found.run.cfg.seed
  hidden = predictions.some(np.flatnonzero(run.labels < 0), most, seed)
  support = predictions.labelled(found)
  ask = functools.partial(predictions.predict, found, support=support)
  unlabelled = ask(run.data.train, hidden) if len(hidden) else None
  held_out = run.cfg.dataset.validation > 0
  tested = 'validation images' if held_out else 'test images'
  source = run.data.test
  if source is None:
    source, tested = run.data.train, 'training images (there is no test set)'
  rows = predictions.some(np.arange(len(source)), min(most, _MOST_POINTS), seed)
  return unlabelled, ask(source, rows), tested


def _doubtful(
  found: run_network.Network, most: int
) -> labelling.Labelling | None:
  run = found.run
  hidden = predictions.some(np.flatnonzero(run.labels < 0), most, run.cfg.seed)
  if not len(hidden):
    return None
  try:
    job = labelling.of_run(found, predictions.MOST_LABELLED)
    return labelling.label(job, hidden)
  except UserError:  # nothing can vote
    return None


def _need(seen: Seen, part: Any, otherwise: str) -> None:
  if part is None:
    reason = seen.reasons[0] if seen.test is None and seen.reasons else ''
    raise Absent(reason or otherwise)


def _which(seen: Seen, *content: Any) -> Html:
  return markup.note(*content, ' '.join(['', *seen.reasons]))


def tsne(seen: Seen) -> Html:
  """The map of embeddings, by true class and by predicted class."""
  _need(seen, seen.test, 'There are no images to embed.')
  said = seen.test
  usable = np.isfinite(said.embeddings).all(axis=1)
  if usable.sum() < _FEWEST_POINTS:
    raise Absent(f'Fewer than {_FEWEST_POINTS} images: no map of embeddings.')
  points = plots.project(said.embeddings[usable])
  truth, guesses = said.truth[usable], said.labels[usable]
  draw = functools.partial(charts.scatter, points, names=_names(seen))
  wrong = (truth >= 0) & (guesses >= 0) & (truth != guesses)
  figures = [draw(truth, title='True class')]
  if (guesses >= 0).any():
    figures.append(draw(guesses, title='Predicted class', wrong=wrong))
  crossed = ' ✗ marks a wrong prediction.' if wrong.any() else ''
  return markup.join(
    tag('div', *figures, class_='pair'),
    _which(
      seen, f't-SNE of {usable.sum():,} {seen.tested}; the axes have no unit.',
      crossed,
    ),
  )  # fmt: skip


def gallery(seen: Seen) -> Html:
  """Queries beside their nearest labelled images."""
  _need(seen, seen.unlabelled, 'Every training image has a label.')
  return markup.join(
    pictures.gallery(seen.run, seen.unlabelled),
    _which(
      seen,
      'Left: an unlabelled image, and its true class, which training never '
      'saw. Right: the labelled images whose embeddings are nearest to its; '
      'cos: their cosine.',
    ),
  )


def doubtful(seen: Seen) -> Html:
  """The pseudo-labels that are least sure, and how sure the others are."""
  _need(
    seen, seen.doubtful, 'There are no labelled images that vote on others.'
  )
  found = seen.doubtful
  return markup.join(
    pictures.doubtful(seen.run, found),
    results.shares(found.summary),
    _which(
      seen,
      f'Of {len(found.rows):,} unlabelled images. Share: of the votes of '
      'labelled images, by the encoder. labels.csv has them all, and '
      'semppl-jax label tells which to label next.',
    ),
  )


def views(seen: Seen) -> Html:
  """Training images as the networks see them."""
  _need(seen, seen.run, 'The data set is not at hand.')
  try:
    return pictures.views_of(seen.run)
  except (UserError, OSError) as error:
    raise Absent(str(error)) from error


def confusion(seen: Seen) -> Html:
  """True classes against pseudo-labels, of unlabelled and of test images."""
  parts = []
  if seen.unlabelled is not None:
    hidden = int((seen.run.labels < 0).sum())
    which = 'unlabelled training images'
    parts.append(_confusion(seen, seen.unlabelled, which, hidden))
  if seen.test is not None and seen.run.data.test is not None:
    count = len(seen.run.data.test)
    parts.append(_confusion(seen, seen.test, seen.tested, count))
  if not parts:
    _need(seen, None, 'Every training image has a label.')
  return markup.join(*parts)


def _confusion(
  seen: Seen, said: predictions.Predictions, which: str, count: int
) -> Html:
  guesses = said.labels
  matrix = results.confusion(said.truth, guesses, _names(seen), which)
  chosen = f'{len(said.rows):,} of {count:,} {which}.'
  return markup.join(matrix, _which(seen, chosen))


def _names(seen: Seen) -> list[str]:
  return [str(name) for name in seen.run.data.class_names]
