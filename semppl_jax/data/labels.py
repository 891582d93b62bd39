"""Which training images have a label that training may see."""

import codecs
import difflib
import itertools
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging

from semppl_jax.data import tfds_files
from semppl_jax.errors import UserError


def largest_class(labels: np.ndarray, num_classes: int) -> float:
  """The share of images that one pseudo-label may have by right.

  That of the most frequent label. Labels of one class only say nothing of how
  often it is, unless the data set has no other.

  Args:
    labels: [N] int, -1: none.
    num_classes: K, of the data set.

  Returns:
    0 where no image has a label, or where all labels are of one class of many.
  """
  counts = np.bincount(labels[labels >= 0])
  if np.count_nonzero(counts) <= 1 < num_classes:
    return 0.0
  return float(counts.max() / counts.sum()) if len(counts) else 0.0


def class_share(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """How often each class is among the labels: [K] float32, of sum 1 or 0."""
  counts = np.bincount(labels[labels >= 0], minlength=num_classes)
  return (counts / max(counts.sum(), 1)).astype(np.float32)


def visible_labels(cfg: Any, data: Any, path: str = '') -> np.ndarray:
  """The labels that the `labels` section of a config lets training see.

  Args:
    cfg: file, subset, or per_class or fraction, rule and seed; all empty: no
      labels.
    data: the data set, a `sources.Dataset`.
    path: the data set's, where the subset is looked for too.

  Returns:
    [N] int32, one for each training image, -1: none.

  Raises:
    UserError: a value out of range, or a list that does not fit the images.
  """
  if not cfg.file and not cfg.subset:
    return select_labels(
      data.train.labels,
      per_class=cfg.per_class,
      fraction=cfg.fraction,
      seed=cfg.seed,
      rule=cfg.rule,
      class_names=data.class_names,
    )
  key = 'file' if cfg.file else 'subset'
  if data.train.names is None:
    raise UserError(
      f'labels.{key} is {cfg[key]}, but the images of this data set have no '
      'names: set labels.per_class or labels.fraction.'
    )
  if cfg.file:
    wanted = read_list(cfg.file)
  else:
    wanted = _names_in_tfds(cfg.subset, path)
  if data.held_out:  # known, but not to be trained on
    elsewhere = _places(data.held_out)
    wanted = [name for name in wanted if name not in elsewhere]
  return select_listed(
    data.train.labels, data.train.names, wanted, f'labels.{key} {cfg[key]}'
  )


def select_listed(
  labels: np.ndarray, names: Sequence[str], wanted: Sequence[str], what: str
) -> np.ndarray:
  """Hides all labels but those of the images in a list.

  Args:
    labels: [N] known labels, -1: unknown.
    names: [N] 'CLASS/FILE' or 'FILE'.
    wanted: the list; the class may be left out where the file's name tells.
    what: the list is, for messages.

  Returns:
    [N] int32 labels that training sees, -1: none.

  Raises:
    UserError: a name that is not among the images, that fits several, or whose
      image has no label.
  """
  labels = np.asarray(labels)
  known = np.flatnonzero(labels >= 0)
  # An unlabelled image's name is asked for last: the list cannot mean it.
  places = _places(names) | _places([names[row] for row in known], known)
  selected = np.full(len(labels), -1, np.int32)
  wanted = [_as_named(name, places) for name in wanted]
  missing = [name for name in wanted if name not in places]
  if missing:
    close = difflib.get_close_matches(missing[0], places, n=1, cutoff=0.8)
    hint = f'; did you mean {close[0]!r}?' if close else '.'
    raise UserError(
      f'{what}: {len(missing):,} of {len(wanted):,} names are not '
      f'in the data, the first {missing[0][:200]!r}{hint}'
    )
  for name in wanted:
    row = places[name]
    if row is None:
      raise UserError(
        f'{what}: several images are called {name!r}: write CLASS/FILE.'
      )
    if labels[row] < 0:
      raise UserError(f'{what}: image {name!r} has no label.')
    selected[row] = labels[row]
  return selected


def _places(
  names: Sequence[str], rows: Iterable[int] | None = None
) -> dict[str, int | None]:
  """The row of every name, with and without its class; None: of several."""
  places: dict[str, int | None] = {}
  for row, name in zip(itertools.count() if rows is None else rows, names):
    for key in {name, name.rpartition('/')[2]}:
      places[key] = None if key in places else int(row)
  return places


def _as_named(name: str, places: Collection[str]) -> str:
  """A list's name as the data has it: perhaps it was a path."""
  if name in places:
    return name
  parts = name.replace('\\', '/').split('/')
  short = '/'.join(parts[-2:])
  return short if short in places else name


def read_list(path: str) -> list[str]:
  """A text file's lines, such as SimCLR's lists of 1% and 10% of ImageNet.

  A name that stands twice counts once. UTF-8, or UTF-16 with its mark.

  Raises:
    UserError: a list that cannot be read, or is empty.
  """
  try:
    data = pathlib.Path(path).expanduser().read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode('utf-16' if wide else 'utf-8-sig')
  except (OSError, ValueError, RuntimeError) as error:
    reason = getattr(error, 'strerror', None) or 'it is no text'
    raise UserError(f'labels.file {path} cannot be read: {reason}.') from error
  lines = (line.strip() for line in text.splitlines())
  wanted = list(dict.fromkeys(line for line in lines if line))
  if not wanted:
    raise UserError(f'labels.file {path} is empty.')
  return wanted


def _names_in_tfds(name: str, path: str) -> Sequence[str]:
  """The names of the training images of `imagenet2012_subset/1pct`, say."""
  found = tfds_files.find(name, tfds_files.data_dir(path))
  names = found.open('train').source.names
  if names is None:
    raise UserError(f'labels.subset {name}: its images have no file_name.')
  return names


def select_labels(
  labels: np.ndarray,
  *,
  per_class: int = 0,
  fraction: float = 0.0,
  seed: int,
  rule: str = 'stratified',
  class_names: Sequence[str] | None = None,
) -> np.ndarray:
  """Hides all labels but those of a subset, drawn class by class or at random.

  Subsets are nested: with one seed and rule, a smaller one lies inside a larger
  one, since every class's images (at random: all) stand in one random order and
  the first are taken.

  Args:
    labels: [N] known labels, -1: unknown.
    per_class: so many images of each class; all of a class that has fewer.
    fraction: or this share of each class's images with a known label, rounded,
      at least one. Both 0: no labels.
    seed: of the orders.
    rule: 'stratified', or 'random': as many images as that, K times per_class
      or this share of all with a known label, whatever their classes. Some
      class may have none then.
    class_names: for the warnings, and so that classes without any image are
      named too; default the labels' numbers.

  Returns:
    [N] int32 labels that training sees, -1: none.

  Raises:
    UserError: a value out of range, or both above 0.
  """
  _check(per_class, fraction)
  labels = np.asarray(labels)
  selected = np.full(labels.shape, -1, np.int32)
  if not per_class and not fraction:
    return selected
  names = class_names
  if names is None:
    names = [str(i) for i in range(labels.max(initial=-1) + 1)]
  if rule == 'random':
    rows = _draw(labels, per_class * len(names), fraction, seed)
    selected[rows] = labels[rows]
    _warn_of_missing(selected, names)
    return selected
  by_label = np.argsort(labels, kind='stable')  # rows, class after class
  ends = np.searchsorted(labels[by_label], np.arange(len(names) + 1))
  random = np.random.RandomState()
  missing, short = [], []
  for label, name in enumerate(names):
    rows = by_label[ends[label] : ends[label + 1]]
    if not len(rows):
      missing.append(name)
      continue
    wanted = per_class or max(1, round(fraction * len(rows)))
    # Seeded for each class: none changes another one's order. RandomState's
    # numbers are frozen for ever, as a subset must be.
    random.seed([seed % 2**32, label])
    selected[random.permutation(rows)[:wanted]] = label
    if len(rows) < wanted:
      short.append(f'{name} ({len(rows)})')
  if missing:
    logging.warning('Classes without labels: %s', _some(missing))
  if short:
    logging.warning(
        'Classes with fewer than labels.per_class=%d labels: %s',
        per_class, _some(short),
    )  # fmt: skip
  return selected


def _draw(
  labels: np.ndarray, number: int, fraction: float, seed: int
) -> np.ndarray:
  """Rows with a known label, so many or this share of them, at random."""
  known = np.flatnonzero(labels >= 0)
  wanted = number or max(1, round(fraction * len(known)))
  return np.random.RandomState(seed % 2**32).permutation(known)[:wanted]


def _warn_of_missing(selected: np.ndarray, names: Sequence[str]) -> None:
  counts = np.bincount(selected[selected >= 0], minlength=len(names))
  missing = [name for name, count in zip(names, counts) if not count]
  if missing:
    logging.warning('Classes without labels: %s', _some(missing))


def _some(names: Sequence[str], most: int = 10) -> str:
  """The first names, and how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def _check(per_class: int, fraction: float) -> None:
  if per_class < 0:
    raise UserError(f'labels.per_class is {per_class}; it must be at least 0.')
  if not 0 <= fraction <= 1:
    raise UserError(f'labels.fraction is {fraction}; it must be from 0 to 1.')
  if per_class and fraction:
    raise UserError(
      f'labels.per_class is {per_class} and labels.fraction is {fraction}; '
      'only one of them may be above 0.'
    )
