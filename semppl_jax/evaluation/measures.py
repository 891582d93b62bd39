"""Accuracies: how good predicted classes are, as a share in [0, 1]."""

from collections.abc import Callable

import numpy as np

# (predicted [N] int, truth [N] int) -> a share.
Measure = Callable[[np.ndarray, np.ndarray], float]


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float | None:
  """Top-1 accuracy among images whose class is known.

  Args:
    predicted: [N] int.
    truth: [N] int, -1: unknown.

  Returns:
    A share in [0, 1]; None: no class is known.
  """
  known = truth >= 0
  return top1(predicted[known], truth[known]) if any(known) else None


def top1(predicted: np.ndarray, truth: np.ndarray) -> float:
  """Top-1 accuracy: the share of right predictions."""
  return float(np.mean(predicted == truth))


def mean_per_class(predicted: np.ndarray, truth: np.ndarray) -> float:
  """Mean per-class accuracy, over the classes that `truth` has."""
  classes = np.unique(truth)
  right = predicted == truth
  return float(np.mean([right[truth == label].mean() for label in classes]))


MEASURES: dict[str, Measure] = {
  'top-1': top1,
  'mean per class': mean_per_class,
}
