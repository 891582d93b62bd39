"""Which training images have a label that training may see."""

import codecs
import difflib
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from semppl_jax import storage
from semppl_jax.data import label_list, sources, tfds_files
from semppl_jax.errors import UserError
from semppl_jax.utils.text import nearest_name

# Beside the classes' numbers, which seed the orders of `select_labels`.
_CALIBRATION = 2**32 - 1


class Known(NamedTuple):
  """A data set, and which of its labels may be used for what."""

  data: sources.Dataset  # with the classes that labels.file gives
  labels: np.ndarray  # [N] int32 labels that training sees, -1: none
  calibration: np.ndarray  # [N] int32 labels kept back from it, -1: none


def known(cfg: Any, data: sources.Dataset, path: str = '') -> Known:
  """What the `labels` section of a config makes of a data set.

  Args:
    cfg: see `visible_labels`, and calibration, how many are kept back.
    data: the data set.
    path: the data set's.

  Raises:
    UserError: see `visible_labels`, `with_given_classes` and `keep_back`.
  """
  data = with_given_classes(cfg, data)
  visible = visible_labels(cfg, data, path)
  left, kept = keep_back(
    visible, cfg.calibration, seed=cfg.seed, class_names=data.class_names
  )
  return Known(data, left, kept)


def with_given_classes(cfg: Any, data: sources.Dataset) -> sources.Dataset:
  """A data set with the classes that labels.file gives to training images.

  They overrule those of the data set, and are as known as these: scores count
  them. Of a data set without classes, those of the file are the classes, in
  alphabetical order.

  Args:
    cfg: the `labels` section.
    data: the data set.

  Raises:
    UserError: a list that cannot be read, a class that the data set does not
      have, or a name that several images have; those of no image are left to
      `visible_labels`.
  """
  if not cfg.file or data.train.names is None:
    return data
  what, names = f'labels.file {cfg.file}', data.train.names
  entries = [e for e in _entries(cfg, data) if e.label is not None]
  if not entries:
    return data
  classes = data.class_names
  if not data.num_classes:
    classes = tuple(sorted({e.label for e in entries}))
  numbers = {name: i for i, name in enumerate(classes)}
  places = _preferred_places(data.train.labels, names)
  labels, changed = np.array(data.train.labels, np.int32), []
  given: dict[int, int] = {}
  for name, label in entries:
    if label not in numbers:
      raise UserError(
        f'{what}: {label[:200]!r}, the class of {name[:200]!r}, is none of the '
        f'{len(classes)} classes{nearest_name(label, numbers)} (in a folder, '
        'a new class is a new train/CLASS/, which may be empty).'
      )
    found = _as_named(name, places)
    if found not in places:
      continue
    row = places[found]
    if row is None:
      raise UserError(_several(what, name))
    if given.setdefault(row, numbers[label]) != numbers[label]:
      raise UserError(f'{what}: {name!r} stands there with two classes.')
    if labels[row] not in (-1, numbers[label]):
      changed.append(f'{name} ({label})')
    labels[row] = numbers[label]
  notes = list(data.notes)
  if changed:
    notes.append(
      f'{what} gives {len(changed):,} images another class than the data set, '
      f'and overrules it: {_some(changed, 3)}'
    )
  return data._replace(
    train=sources.Relabelled(data.train, labels),
    num_classes=len(classes),
    class_names=classes,
    notes=notes,
  )


def _entries(cfg: Any, data: sources.Dataset) -> list[label_list.Entry]:
  """The lines of labels.file."""
  lines = read_list(cfg.file)
  names: set[str] = set()
  if any(',' in line for line in lines):
    names = {*_places(data.train.names), *_places(data.held_out)}
  is_name = lambda name: _as_named(name, names) in names
  return label_list.parse(lines, is_name, f'labels.file {cfg.file}')


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
    wanted = [entry.name for entry in _entries(cfg, data)]
  else:
    wanted = _names_in_tfds(cfg.subset, path)
  if data.held_out:  # known, but not to be trained on
    elsewhere = _places(data.held_out)
    wanted = [name for name in wanted if name not in elsewhere]
  return select_listed(
    data.train.labels, data.train.names, wanted, f'labels.{key} {cfg[key]}'
  )


def keep_back(
  labels: np.ndarray, count: int, *, seed: int, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Calibration set: some labels that training does not see.

  Drawn uniformly among the labelled images, whatever their classes are: what
  is right of them is, on average, what is right of all.

  Args:
    labels: [N] int32 labels that training would see, -1: none.
    count: of those that are kept back.
    seed: of the draw.
    class_names: [K], for the warning.

  Returns:
    [N] int32 labels that training sees, and [N] int32 those kept back; -1:
    none.

  Raises:
    UserError: no label would be left.
  """
  rows = np.flatnonzero(labels >= 0)
  kept = np.full(labels.shape, -1, np.int32)
  if not count:
    return labels, kept
  if count >= len(rows):
    raise UserError(
      f'labels.calibration is {count}, but only {len(rows):,} training images '
      'have a label, and some must be left to train with: set it to less.'
    )
  # RandomState's numbers are frozen for ever, as a draw must be.
  random = np.random.RandomState([seed % 2**32, _CALIBRATION])
  drawn = random.permutation(rows)[:count]
  kept[drawn] = labels[drawn]
  left = labels.copy()
  left[drawn] = -1
  lost = np.setdiff1d(kept[drawn], left[left >= 0])
  if len(lost):
    logging.warning(
      'labels.calibration=%d leaves no label to these classes, which nothing '
      'will be taken for: %s', count, _some([class_names[i] for i in lost]),
    )  # fmt: skip
  return left, kept


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
  places = _preferred_places(labels, names)
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
      raise UserError(_several(what, name))
    if labels[row] < 0:
      raise UserError(f'{what}: image {name!r} has no label.')
    selected[row] = labels[row]
  return selected


def _several(what: str, name: str) -> str:
  return f'{what}: several images are called {name!r}: write CLASS/FILE.'


def _preferred_places(
  labels: np.ndarray, names: Sequence[str]
) -> dict[str, int | None]:
  """`_places`; what has a label comes before what has none."""
  known = np.flatnonzero(np.asarray(labels) >= 0)
  return _places(names) | _places([names[row] for row in known], known)


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


def read_list(path: str, what: str = 'labels.file') -> list[str]:
  """A text file's lines, such as SimCLR's lists of 1% and 10% of ImageNet.

  A name that stands twice counts once. UTF-8, or UTF-16 with its mark.

  Raises:
    UserError: a list that cannot be read, or is empty.
  """
  try:
    data = storage.path(path).expanduser().read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode('utf-16' if wide else 'utf-8-sig')
  except storage.StorageError:
    raise
  except (OSError, ValueError, RuntimeError) as error:
    reason = getattr(error, 'strerror', None) or 'it is no text'
    raise UserError(f'{what} {path} cannot be read: {reason}.') from error
  lines = (line.strip() for line in text.splitlines())
  wanted = list(dict.fromkeys(line for line in lines if line))
  if not wanted:
    raise UserError(f'{what} {path} is empty.')
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
