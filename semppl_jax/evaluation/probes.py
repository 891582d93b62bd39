"""Logistic regression on frozen features, as BYOL transfers them.

Its measures are functions of (predicted [N], truth [N]), both int, to a share
in [0, 1].
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from semppl_jax.errors import UserError

Measure = Callable[[np.ndarray, np.ndarray], float]


def top1(predicted: np.ndarray, truth: np.ndarray) -> float:
  """Share of right predictions."""
  return float(np.mean(predicted == truth))


def mean_per_class(predicted: np.ndarray, truth: np.ndarray) -> float:
  """The mean over the classes of `truth` of their shares of right ones."""
  classes = np.unique(truth)
  right = predicted == truth
  return float(np.mean([right[truth == label].mean() for label in classes]))


MEASURES: dict[str, Measure] = {
  'top-1': top1,
  'mean per class': mean_per_class,
}


class Chosen(NamedTuple):
  """What came out of `regression`."""

  l2: float  # the strength that was best
  scores: np.ndarray  # [V] of all strengths, on the held-out rows
  predicted: np.ndarray  # [T] int, classes of the queries
  unfinished: int  # fits that had not converged when they stopped


def regression(
  features: np.ndarray,
  labels: np.ndarray,
  held_out: np.ndarray,
  queries: np.ndarray,
  *,
  strengths: Sequence[float],
  measure: Measure,
  max_iterations: int,
) -> Chosen:
  """Multinomial logistic regression, its L2 penalty chosen on held-out rows.

  Minimises the sum of the cross-entropies + strength / 2 x |weights|^2, the
  bias free, by L-BFGS. Each fit starts at the one before; the last one, with
  the chosen strength on all rows, at the chosen one.

  Args:
    features: [N, e] float.
    labels: [N] int.
    held_out: [N] bool: rows that choose the strength.
    queries: [T, e] float, what is asked about in the end.
    strengths: [V] of the penalty, the strongest first: of equally good ones
      the first is taken.
    measure: how good predictions are.
    max_iterations: of L-BFGS, in each fit.

  Raises:
    UserError: only one class to learn.
  """
  # The bias takes up a shift, and the strength a scale: the minimum is that of
  # the features as they are, and L-BFGS, which likes spheres, gets there.
  centre = features.mean(axis=0, dtype=np.float64)
  x = features - centre
  scale = np.sqrt(np.mean(x**2)) or 1.0
  x /= scale
  fits = _Fits(max_iterations)
  known, truth = x[~held_out], labels[held_out]
  scores, kept = [], ()
  for strength in strengths:
    fits.fit(known, labels[~held_out], strength / scale**2)
    scores.append(measure(fits.model.predict(x[held_out]), truth))
    if scores[-1] > max(scores[:-1], default=-1.0):
      kept = fits.model.coef_, fits.model.intercept_
  best = float(strengths[int(np.argmax(scores))])
  fits.model.coef_, fits.model.intercept_ = kept
  fits.fit(x, labels, best / scale**2)
  predicted = fits.model.predict((queries - centre) / scale)
  return Chosen(best, np.array(scores), predicted, fits.unfinished)


class _Fits:
  """Fits of one model, each from where the one before has ended."""

  def __init__(self, max_iterations: int):
    # Late: it takes seconds to import.
    from sklearn import linear_model

    self.unfinished = 0
    self.model = linear_model.LogisticRegression(
      solver='lbfgs', max_iter=max_iterations, warm_start=True
    )

  def fit(self, x: np.ndarray, labels: np.ndarray, strength: float) -> None:
    from sklearn import exceptions

    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) < 2:
      raise UserError('All images to learn from are of one class.')
    if not np.array_equal(getattr(self.model, 'classes_', None), classes):
      self._start(classes, np.log(sizes), x.shape[1])
    # Of two classes scikit-learn fits the difference w of their weights, which
    # are w / 2 and -w / 2: half of the penalty.
    self.model.C = (2 if len(classes) == 2 else 1) / strength
    # Of the gradient's size at the start, which is about 1 / K, with rows of
    # unit size [ours].
    self.model.tol = 1e-3 / len(classes)
    with warnings.catch_warnings(record=True) as told:
      warnings.simplefilter('always', exceptions.ConvergenceWarning)
      self.model.fit(x, labels)
    kinds = [w.category for w in told]
    self.unfinished += exceptions.ConvergenceWarning in kinds

  def _start(
    self, classes: np.ndarray, log_sizes: np.ndarray, num_features: int
  ) -> None:
    """The minimum for an infinite strength, where L-BFGS is slowest."""
    bias = log_sizes - log_sizes.mean()
    if len(classes) == 2:
      bias = bias[1:] - bias[:1]
    self.model.classes_ = classes
    self.model.coef_ = np.zeros((len(bias), num_features))
    self.model.intercept_ = bias
