"""Which labelled images come with every batch: the support.

A second stream beside the sampler's, as pure a function of seed and step. Its S
images of a step are either labelled images of any class, or so many images of
each of some classes.

Shapes: S images a step, over all hosts; L labelled images; K classes of the
data set, C_s of them in a step, n images of each.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from semppl_jax.data import sampler
from semppl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Support:
  """Which labelled image stands where, for every step of a run.

  Without classes: one random permutation of the labelled images per epoch,
  epochs joined end to end. With classes: a round is one random permutation of
  the K classes, C_s a step; K mod C_s of them, others in each round, are left
  out of it. In each round a class shows its next n images of a random
  permutation of its own, and begins another where fewer than n are left, so
  that no image stands twice in a step.

  Attributes:
    seed: of the run.
    size: S, over all hosts.
    rows: [L] rows of the labelled images, rising.
    labels: [L] their classes.
    by_class: [K] rows of each class, rising.
    classes: C_s; 0: of any class.
    images_per_class: n.
  """

  seed: int
  size: int
  rows: np.ndarray
  labels: np.ndarray
  by_class: tuple[np.ndarray, ...]
  classes: int = 0
  images_per_class: int = 0

  def row(self, step: int, offset: int) -> int:
    """The row in the source of image `offset` (0 .. S-1) of the step."""
    if not self.classes:
      position = step * self.size + offset
      return self._draw(self.rows, position, sampler.SUPPORT)
    place, image = divmod(offset, self.images_per_class)
    number = len(self.by_class)
    turn, in_round = divmod(step, number // self.classes)
    position = turn * number + in_round * self.classes + place
    label = sampler.row(
      position, num_rows=number, seed=self.seed, stream=sampler.CLASSES
    )
    rows, count = self.by_class[label], self.images_per_class
    epoch, in_epoch = divmod(turn, len(rows) // count)
    position = epoch * len(rows) + in_epoch * count + image
    return self._draw(rows, position, sampler.OF_CLASS + label)

  def stand_in(self, row: int, attempt: int) -> int:
    """Another image of the row's class."""
    rows = self.by_class[self.labels[np.searchsorted(self.rows, row)]]
    return sampler.stand_in(rows, row, seed=self.seed, attempt=attempt)

  def _draw(self, rows: np.ndarray, position: int, stream: int) -> int:
    place = sampler.row(
      position, num_rows=len(rows), seed=self.seed, stream=stream
    )
    return int(rows[place])


def make_support(
  cfg: Any, labels: np.ndarray, class_names: Sequence[str], *, seed: int
) -> Support:
  """Lays out the support of a run.

  Args:
    cfg: the `support` section of the config: images, or classes and
      images_per_class.
    labels: [N] labels that training sees, -1: none.
    class_names: [K] of the data set.
    seed: of the run.

  Raises:
    UserError: a class without a labelled image, or more images than the labels
      can give.
  """
  rows = np.flatnonzero(labels >= 0)
  known = np.asarray(labels)[rows]
  by_class = tuple(rows[known == k] for k in range(len(class_names)))
  _check(cfg, [len(some) for some in by_class], class_names)
  size = cfg.images or cfg.classes * cfg.images_per_class
  return Support(
    seed, size, rows, known, by_class, cfg.classes, cfg.images_per_class
  )


def _check(cfg: Any, counts: Sequence[int], names: Sequence[str]) -> None:
  """Refuses what the labels, `counts` of each class, cannot give."""
  fewest = int(np.argmin(counts))
  if not counts[fewest]:
    raise UserError(
      f'{counts.count(0):,} of the {len(counts):,} classes, {names[fewest]!r} '
      'the first, have no labelled training image, but the support is to show '
      'all: label some of each, as labels.per_class does.'
    )
  if cfg.images > sum(counts):
    raise UserError(
      f'support.images is {cfg.images}, but only {sum(counts):,} training '
      'images have a label: set it to no more, or label more.'
    )
  if cfg.classes > len(counts):
    raise UserError(
      f'support.classes is {cfg.classes}, but the data set has {len(counts):,} '
      'classes: set it to no more.'
    )
  if cfg.images_per_class > counts[fewest]:
    raise UserError(
      f'support.images_per_class is {cfg.images_per_class}, but class '
      f'{names[fewest]!r} has only {counts[fewest]} labelled training images: '
      'set it to no more, or label more.'
    )
