"""Which image stands where in a run: a pure function of seed and position.

A stream is one random permutation of its images per epoch, epochs joined end to
end. Global batch s of B images is positions sB .. (s+1)B - 1, so it may
straddle two epochs. Nothing here knows of hosts, workers or time.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from semppl_jax.errors import UserError

# Streams have permutations of their own, and so has the order in a batch.
_ALL, _LABELLED, _UNLABELLED, _MIX, _STAND_IN, SUPPORT, CLASSES = range(7)
OF_CLASS = 7  # of class 0; those of the others follow
_SMALL = 2048  # images


def row(position: int, *, num_rows: int, seed: int, stream: int = 0) -> int:
  """The row of 0 .. num_rows - 1 that stands at `position` of a stream."""
  epoch, offset = divmod(position, num_rows)
  return _shuffle(offset, num_rows, _seed(seed, stream, epoch))


def stand_in(rows: np.ndarray, row: int, *, seed: int, attempt: int) -> int:
  """One of `rows` in place of `row`, by seed, row and attempt alone."""
  entropy = (seed & (2**64 - 1), _STAND_IN, row, attempt)
  drawn = np.random.SeedSequence(entropy).generate_state(1)[0]
  return int(rows[int(drawn) % len(rows)])


@dataclasses.dataclass(frozen=True)
class Order:
  """Which image stands where, for every batch of a run.

  Attributes:
    seed: of the run.
    batch_size: B, global.
    labelled: [L] rows of the images with a label; empty without a share.
    others: [M] rows of the rest; without a share, of all images.
    num_labelled: images of each batch that come from `labelled`.
  """

  seed: int
  batch_size: int
  labelled: np.ndarray
  others: np.ndarray
  num_labelled: int

  def row(self, step: int, offset: int) -> int:
    """The row in the source of image `offset` (0 .. B-1) of batch `step`."""
    if not self.num_labelled:
      position = step * self.batch_size + offset
      return self._draw(self.others, position, _ALL)
    # Mixed, so that every host and device has its part of the labelled images.
    place = _shuffle(offset, self.batch_size, _seed(self.seed, _MIX, step))
    if place < self.num_labelled:
      position = step * self.num_labelled + place
      return self._draw(self.labelled, position, _LABELLED)
    rest = self.batch_size - self.num_labelled
    position = step * rest + place - self.num_labelled
    return self._draw(self.others, position, _UNLABELLED)

  def stand_in(self, row: int, attempt: int) -> int:
    """Another image of the row's own stream: labelled ones are kept apart.

    Drawn anew for each attempt: neighbours in a damaged file are damaged too.
    """
    for rows in (self.labelled, self.others):  # both are sorted
      place = int(np.searchsorted(rows, row))
      if place < len(rows) and rows[place] == row:
        return stand_in(rows, row, seed=self.seed, attempt=attempt)
    raise ValueError(f'Row {row} is in no stream.')

  def _draw(self, rows: np.ndarray, position: int, stream: int) -> int:
    return int(
      rows[row(position, num_rows=len(rows), seed=self.seed, stream=stream)]
    )


def make_sampler(
  labels: np.ndarray, *, seed: int, batch_size: int, labelled_share: float
) -> Order:
  """Lays out a run's batches.

  Args:
    labels: [N] labels that training sees, -1: none.
    seed: of the run.
    batch_size: B, global.
    labelled_share: 0: images as they come, labelled or not. Above 0: every
      batch holds round(labelled_share x B) labelled images, and the others
      come from the images without a label. 1: labelled images only.

  Returns:
    The order of all batches.

  Raises:
    UserError: a share out of range, or one that the labels cannot fill.
  """
  if not 0 <= labelled_share <= 1:
    raise UserError(
      f'labels.share is {labelled_share}; it must be from 0 to 1.'
    )
  count = round(labelled_share * batch_size)
  if not labelled_share:
    labelled, others = np.arange(0), np.arange(len(labels))
  else:
    labelled, others = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    _check_share(labelled_share, batch_size, count, len(labelled), len(others))
  return Order(seed, batch_size, labelled, others, count)


def _check_share(
  share: float, batch_size: int, count: int, labelled: int, others: int
) -> None:
  if not count:
    raise UserError(
      f'labels.share {share} of batch_size {batch_size} is less than one '
      f'image; it must be 0 or at least {1 / batch_size:.2g}.'
    )
  if not labelled:
    raise UserError(
      f'labels.share is {share}, but no image has a label: set '
      'labels.per_class or labels.fraction.'
    )
  if count < batch_size and not others:
    raise UserError(
      f'labels.share is {share}, but all {labelled} images have a label: '
      'set it to 0 or 1.'
    )


def _shuffle(index: int, size: int, seed: int) -> int:
  """Image of `index` under a random permutation of 0 .. size - 1."""
  # Not grain's index_shuffle: it repeats an index where size - 1 is a power of
  # four (grain 0.2.18), and takes milliseconds a call for sizes below 100.
  if size <= _SMALL:
    return int(_small_permutation(size, seed)[index])
  return int(_permutations(size)(seed)[index])


@functools.lru_cache(maxsize=8)
def _permutations(size: int) -> Callable[[int], np.ndarray]:
  # A cache for each size, else the many short epochs of a few labelled images
  # would drive out the long one. At most 16 MiB, or two epochs.
  keep = min(256, max(2, 2**22 // size))
  return functools.lru_cache(keep)(functools.partial(_permutation, size))


# The classes of a support have many sizes. At most 8 MiB.
@functools.lru_cache(maxsize=1024)
def _small_permutation(size: int, seed: int) -> np.ndarray:
  return _permutation(size, seed)


def _permutation(size: int, seed: int) -> np.ndarray:
  # RandomState's numbers are frozen for ever: so is a run's order.
  return np.random.RandomState(seed).permutation(size).astype(np.int32)


@functools.lru_cache(maxsize=256)
def _seed(seed: int, stream: int, number: int) -> int:
  """32 bits for a stream's epoch. Mixed: seed 1 is not seed 0 an epoch on."""
  entropy = (seed & (2**64 - 1), stream, number)
  return int(np.random.SeedSequence(entropy).generate_state(1)[0])
