"""Settings that can run but can hardly be meant, for these images and labels.

A line for each; what cannot run at all is refused by `config.validate`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from semppl_jax import methods
from semppl_jax.data import images as images_lib
from semppl_jax.workdir import run_log

_LOOKED_AT = 8  # images whose size is looked up


def tell(run: Any) -> None:
  """Says what the data set left out, and all doubts, a line each."""
  for note in run.data.notes:
    run_log.info(f'Note: {note}.')
  for doubt in doubts(run):
    run_log.info(f'Warning: {doubt}.')


def doubts(run: Any) -> list[str]:
  """What a user would want to know before the first step.

  Args:
    run: a `run.TrainRun`.
  """
  of_method = methods.doubts(run.cfg, run.facts)
  return [*_batch(run), *of_method, *_views(run), *_neighbours(run)]


def _batch(run: Any) -> Iterator[str]:
  size, count = run.cfg.batch_size, len(run.data.train)
  if size > count:
    yield (
      f'batch_size {size} is larger than the {count:,} training images: images '
      'come more than once in a batch, and copies of an image are among its '
      'negatives'
    )


def _views(run: Any) -> Iterator[str]:
  size, side = run.cfg.views.large_size, _shorter_side(run)
  if side and size > side:
    yield (
      f'views.large_size {size} is larger than the images, which have '
      f'{side} pixels on their shorter side (dataset.image_size '
      f'{run.cfg.dataset.image_size} at most): a smaller one says as much'
    )


def _shorter_side(run: Any) -> int | None:
  """The largest of some training images; None: none could be decoded."""
  source, sides = run.data.train, []
  count = len(source)
  for row in np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(int)):
    try:
      image = run.images.array(source[int(row)]['image'])
    except images_lib.Unreadable:
      continue
    sides.append(min(image.shape[:2]))
  return max(sides, default=None)


def _neighbours(run: Any) -> Iterator[str]:
  k, known = run.cfg.evaluation.k, int(np.sum(run.labels >= 0))
  if 0 < known < k:
    yield (
      f'evaluation.k is {k}, but only {known} images have a label: all of them '
      'vote on every image'
    )
