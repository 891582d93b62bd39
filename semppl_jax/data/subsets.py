"""Which training images have a label that training may see."""

from collections.abc import Sequence

import numpy as np
from absl import logging

from semppl_jax.errors import UserError


def select_labels(
  labels: np.ndarray,
  *,
  per_class: int = 0,
  fraction: float = 0.0,
  seed: int,
  class_names: Sequence[str] | None = None,
) -> np.ndarray:
  """Hides all labels but those of a subset, drawn class by class.

  Subsets are nested: with one seed, a smaller one lies inside a larger one,
  since every class's images stand in one random order and the first are taken.

  Args:
    labels: [N] known labels, -1: unknown.
    per_class: so many images of each class; all of a class that has fewer.
    fraction: or this share of each class's images with a known label, rounded,
      at least one. Both 0: no labels.
    seed: of the orders.
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
  missing, short = [], []
  for label, name in enumerate(names):
    rows = _ordered(labels, label, seed)
    wanted = per_class or max(1, round(fraction * len(rows)))
    selected[rows[:wanted]] = label
    if not len(rows):
      missing.append(name)
    elif len(rows) < wanted:
      short.append(f'{name} ({len(rows)})')
  if missing:
    logging.warning('Classes without labels: %s', ', '.join(missing))
  if short:
    logging.warning(
        'Classes with fewer than labels.per_class=%d labels: %s',
        per_class, ', '.join(short),
    )  # fmt: skip
  return selected


def _ordered(labels: np.ndarray, label: int, seed: int) -> np.ndarray:
  """A class's rows in the random order that the seed gives them."""
  # One generator for each class: a class does not change another one's order.
  # RandomState's numbers are frozen for ever, as a subset must be.
  random = np.random.RandomState([seed % 2**32, label])
  return random.permutation(np.flatnonzero(labels == label))


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
