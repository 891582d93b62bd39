"""Accuracies of predictions, counted by hand."""

import numpy as np
import pytest

from semppl_jax.evaluation import measures


def test_accuracy_counts_known_images_only():
  accuracy = measures.accuracy(np.array([1, 2, 3]), np.array([1, 0, -1]))
  assert accuracy == 0.5
  assert measures.accuracy(np.array([1]), np.array([-1])) is None


def test_measures_of_unbalanced_predictions():
  truth = np.array([0] * 8 + [1] * 2 + [3])
  predicted = np.array([0] * 8 + [0, 1] + [2])
  assert measures.top1(predicted, truth) == pytest.approx(9 / 11)
  # Classes 0, 1 and 3: all, half and none of their images; 2 has no image.
  assert measures.mean_per_class(predicted, truth) == pytest.approx(1.5 / 3)
