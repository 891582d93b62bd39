"""Duplicates: images that are the same file, or nearly the same picture.

Candidates are pairs whose grey thumbnails of 8 x 8 correlate, also mirrored;
the search is exact, over blocks. What correlates is then aligned and compared
in colour at 32 x 32 (`alignment`), so that a copy may be recompressed, resized
or cropped, but other light or other colours make another picture. Thresholds
are ours; docs/duplicates.md says what they find.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tqdm

from semppl_jax.data import alignment, sources, thumbnails
from semppl_jax.data.thumbnails import Thumbnails
from semppl_jax.errors import UserError

SAME, NEAR, MIRRORED = 'same bytes', 'near', 'mirrored'
LEAST = 0.85  # correlation of details
# Images below so many pixels have few details: more is asked of them, and as a
# shift by a pixel would make many alike, they are not aligned.
SMALL, _LEAST_OF_SMALL = 32, 0.98
_LEAST_PIXELS = 0.95  # correlation of pixels, after alignment
_CANDIDATE, _CANDIDATE_OF_SMALL = 0.8, 0.96  # of 8 x 8 pixels, before
_COLOURS = 0.7  # the same in colours
_MEAN = 24.0  # of 255 levels: largest difference of a colour's mean
_RATIO = 1.35  # largest ratio of contrasts
_FLAT = 3.0  # of 255 levels: images of less contrast show nothing to compare
_CELLS = 8  # a side of the descriptor
_ROWS, _COLUMNS = 1024, 4096  # of a block of similarities, 16 MB
_MOST = 16  # candidates of an image in a block, the best ones
_AT_ONCE = 1024  # pairs that are aligned
_NAMED = 10  # images that a note names


class Pair(NamedTuple):
  """Two images; rows go on from training to test images."""

  first: int
  second: int
  kind: str  # SAME, NEAR, MIRRORED, or what a tool adds
  score: float  # correlation of details; 1: the same bytes


def find(
  train: Thumbnails,
  test: Thumbnails | None,
  *,
  least: float = LEAST,
  progress: bool = False,
) -> list[Pair]:
  """Duplicates within training images, and between them and test images.

  Of several training images of the same bytes each is paired with the first one
  only, which alone is compared with others. With test images all are paired:
  each with the first of those of the same bytes.

  Args:
    train: of N training images.
    test: of M test images, rows N ... N + M - 1 of pairs; None: there are none.
    least: correlation of details.
    progress: whether a bar is shown, on a terminal.

  Returns:
    Pairs, sorted by their rows.
  """
  pairs = [
    Pair(rows[0], other, SAME, 1.0)
    for rows in _copies(train).values()
    for other in rows[1:]
  ]
  pairs += [Pair(*found) for found in _near(train, None, least, progress)]
  if test is not None:
    number = len(train.digests)
    pairs += [
      pair._replace(second=number + pair.second)
      for pair in _across(train, test, least, progress)
    ]
  return sorted(pairs)


def in_test(
  train: Thumbnails, test: Thumbnails, progress: bool = False
) -> np.ndarray:
  """Rows of the training images that have a duplicate among test images."""
  found = {pair.first for pair in _across(train, test, LEAST, progress)}
  return np.array(sorted(found), int)


def of_test(train: sources.Source, test: sources.Source) -> np.ndarray:
  """`in_test` of images that are not read yet; shows its progress."""
  seen = (thumbnails.make(source, progress=True) for source in (train, test))
  return in_test(*seen, progress=True)


def leave_out(data: sources.Dataset, rows: np.ndarray) -> sources.Dataset:
  """The data set less some training images; the others keep their ids.

  A note names those that are left out.

  Raises:
    UserError: no training image is left.
  """
  if not len(rows):
    return data
  total = len(data.train)
  if len(rows) == total:
    raise UserError(
      f'dataset.drop_duplicates leaves none of {total:,} training images: all '
      'have a copy among the test images.'
    )
  named = [sources.name(data.train, int(row)) for row in rows[:_NAMED]]
  more = ', ...' if len(rows) > _NAMED else ''
  note = (
    f'dataset.drop_duplicates leaves out {len(rows):,} of {total:,} training '
    f'images, which have a copy among the test images: {", ".join(named)}{more}'
  )
  rest = np.setdiff1d(np.arange(total), rows)
  return data._replace(
    train=sources.Rows(data.train, rest), notes=(*data.notes, note)
  )


def similar(
  first: np.ndarray, second: np.ndarray, least: float, *, rising: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
  """Pairs of large inner products, exactly, block by block.

  Args:
    first: [N, d] float32.
    second: [M, d] float32.
    least: inner product. Of more than 16 of an image in a block of 4,096 the
      largest ones are taken.
    rising: whether only pairs count whose second row is larger: within one
      data set each is there once then.

  Yields:
    Of each block rows of both, [p] int, their products, [p] float32, and for
    how many rows of `first` the search has now ended.
  """
  for top in range(0, len(first), _ROWS):
    block = first[top : top + _ROWS]
    for left in range(top if rising else 0, len(second), _COLUMNS):
      products = block @ second[left : left + _COLUMNS].T
      if rising and left < top + len(block):
        products[np.tri(*products.shape, top - left, dtype=bool)] = -np.inf
      rows, columns = np.nonzero(products >= least)
      values = products[rows, columns]
      kept = _largest(rows, values)
      last = left + _COLUMNS >= len(second)
      yield (
        rows[kept] + top, columns[kept] + left, values[kept],
        len(block) if last else 0,
      )  # fmt: skip


def _largest(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Which entries to keep, so that no row has more than _MOST."""
  order = np.lexsort((-values, rows))
  rows = rows[order]
  place = np.arange(len(rows)) - np.searchsorted(rows, rows)
  return np.sort(order[place < _MOST])


def _copies(one: Thumbnails) -> dict[int, list[int]]:
  """Digest -> rows of the images of these bytes that can be read."""
  copies: dict[int, list[int]] = {}
  for row in np.flatnonzero(one.sides > 0).tolist():
    copies.setdefault(int(one.digests[row]), []).append(row)
  return copies


def _firsts(one: Thumbnails) -> np.ndarray:
  """Rows of images that can be read, of the same bytes the first one."""
  return np.array([rows[0] for rows in _copies(one).values()], int)


def _across(
  train: Thumbnails, test: Thumbnails, least: float, progress: bool
) -> Iterator[Pair]:
  """Pairs of a training and a test image; rows of these count from 0."""
  mine, theirs = _copies(train), _copies(test)
  for digest in mine.keys() & theirs.keys():
    yield from _each(mine[digest], theirs[digest], SAME, 1.0)
  for i, j, kind, score in _near(train, test, least, progress):
    digest, other = int(train.digests[i]), int(test.digests[j])
    if digest != other:
      yield from _each(mine[digest], theirs[other], kind, score)


def _each(
  mine: list[int], theirs: list[int], kind: str, score: float
) -> Iterator[Pair]:
  """Every image of both lists once or more, but not all their pairs."""
  yield from (Pair(row, theirs[0], kind, score) for row in mine)
  yield from (Pair(mine[0], row, kind, score) for row in theirs[1:])


class _Descriptors(NamedTuple):
  grey: np.ndarray  # [N, 8, 8] float32, of mean 0 and length 1
  colours: np.ndarray  # [N, 8, 8, 3] float32, likewise, each colour of mean 0
  mean: np.ndarray  # [N, 3] float32
  contrast: np.ndarray  # [N] float32


def _describe(pixels: np.ndarray, rows: np.ndarray) -> _Descriptors:
  """Of some of [N, s, s, 3] uint8, a block at a time."""
  parts = [
    _describe_block(pixels[rows[i : i + _COLUMNS]])
    for i in range(0, max(1, len(rows)), _COLUMNS)
  ]
  return _Descriptors(*map(np.concatenate, zip(*parts, strict=True)))


def _describe_block(pixels: np.ndarray) -> _Descriptors:
  size = pixels.shape[1] // _CELLS
  cells = pixels.reshape(-1, _CELLS, size, _CELLS, size, 3)
  cells = cells.mean((2, 4), dtype=np.float32)
  mean = cells.mean((1, 2))
  colours = cells - mean[:, None, None]
  grey = colours.mean(-1)
  unit = lambda x: (
    x
    / np.maximum(
      np.sqrt((x * x).sum(tuple(range(1, x.ndim)), keepdims=True)), 1e-6
    )
  )
  return _Descriptors(
    unit(grey), unit(colours), mean, alignment.contrast(pixels)
  )


def _near(
  first: Thumbnails, second: Thumbnails | None, least: float, progress: bool
) -> list[tuple[int, int, str, float]]:
  """(row, row, kind, score) of near pairs; `second` None: within `first`.

  Of images of the same bytes the first one is compared.
  """
  rows = _firsts(first)
  mine = _describe(first.pixels, rows)
  other, columns, theirs = first, rows, mine
  if second is not None:
    other, columns = second, _firsts(second)
    theirs = _describe(other.pixels, columns)
  found: dict[tuple[int, int], tuple[str, float]] = {}
  flat = lambda x: x.reshape(len(x), _CELLS**2)
  with tqdm.tqdm(
    total=2 * len(rows),
    desc='within train' if second is None else 'with test',
    unit='image',
    disable=None if progress else True,
  ) as bar:
    for kind in (NEAR, MIRRORED):
      turned = mine.grey[:, :, :: -1 if kind == MIRRORED else 1]
      for i, j, value, done in similar(
        flat(turned), flat(theirs.grey), _CANDIDATE, rising=second is None
      ):
        sides = first.sides[rows[i]], other.sides[columns[j]]
        small = np.minimum(*sides) < SMALL
        kept = value >= np.where(small, _CANDIDATE_OF_SMALL, _CANDIDATE)
        i, j, small = i[kept], j[kept], small[kept]
        kept = _may_be(mine, theirs, i, j, kind == MIRRORED)
        i, j, small = i[kept], j[kept], small[kept]
        i, j = rows[i], columns[j]
        scores = _verify(first.pixels, other.pixels, i, j, small, kind)
        good = scores >= np.where(small, max(least, _LEAST_OF_SMALL), least)
        for a, b, score in zip(
          i[good].tolist(), j[good].tolist(), scores[good].tolist()
        ):
          if score > found.get((a, b), ('', -1.0))[1]:
            found[a, b] = kind, score
        bar.update(done)
  return [(a, b, *said) for (a, b), said in found.items()]


def _may_be(
  mine: _Descriptors,
  theirs: _Descriptors,
  i: np.ndarray,
  j: np.ndarray,
  mirrored: bool,
) -> np.ndarray:
  """[p] bool, of candidates: colours, contrast and more colours fit."""
  a, b = mine.contrast[i], theirs.contrast[j]
  fits = (np.minimum(a, b) >= _FLAT) & (
    np.maximum(a, b) <= _RATIO * np.minimum(a, b)
  )
  fits &= np.abs(mine.mean[i] - theirs.mean[j]).max(-1, initial=0) <= _MEAN
  left = np.flatnonzero(fits)
  for start in range(0, len(left), _COLUMNS):
    rows = left[start : start + _COLUMNS]
    one = mine.colours[i[rows]]
    one = one[:, :, ::-1] if mirrored else one
    cosine = np.einsum('pyxc,pyxc->p', one, theirs.colours[j[rows]])
    fits[rows] = cosine >= _COLOURS
  return fits


def _verify(
  first: np.ndarray,
  second: np.ndarray,
  i: np.ndarray,
  j: np.ndarray,
  small: np.ndarray,
  kind: str,
) -> np.ndarray:
  """[p] float32: correlation of details, 0 where pixels do not correlate."""
  scores = np.zeros(len(i), np.float32)
  for start in range(0, len(i), _AT_ONCE):
    part = slice(start, start + _AT_ONCE)
    a, b, align = first[i[part]], second[j[part]], ~small[part]
    a = a[:, :, ::-1] if kind == MIRRORED else a
    # A crop is enlarged, and of the two the sharper one is better moved.
    for one, other in ((a, b), (b, a)):
      like = alignment.compare(one, other, align)
      score = np.where(like.pixels >= _LEAST_PIXELS, like.details, 0)
      scores[part] = np.maximum(scores[part], score)
  return scores
