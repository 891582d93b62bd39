"""Logistic regression on frozen features: for transfer, and linear probes."""

import concurrent.futures
import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import threadpoolctl

from semppl_jax.errors import UserError
from semppl_jax.evaluation.measures import Measure

# Threads of a fit, each with rows of its own. BLAS has one meanwhile: it splits
# products of few columns badly, and short sums at a loss.
_THREADS = os.cpu_count() or 1
_one_thread = functools.partial(threadpoolctl.threadpool_limits, 1, 'blas')

# A fit has converged when so much of the mean loss is left to gain [ours].
_RELATIVE, _ABSOLUTE = 1e-5, 1e-7


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
  bias free, by preconditioned L-BFGS. Each fit starts at the one before; the
  last one, with the chosen strength on all rows, at the chosen one. Products
  are of float32, sums and the weights of float64.

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
  space = _Space(features)
  x = space.of(features)
  fits = _Fits(space.variances, max_iterations)
  known, truth = x[~held_out], labels[held_out]
  scores, kept = [], fits.model
  for strength in strengths:
    fits.fit(known, labels[~held_out], strength / space.scale**2)
    scores.append(measure(fits.model.predict(x[held_out]), truth))
    if scores[-1] > max(scores[:-1], default=-1.0):
      kept = fits.model
  best = float(strengths[int(np.argmax(scores))])
  fits.model = kept
  fits.fit(x, labels, best / space.scale**2)
  predicted = fits.model.predict(space.of(queries))
  return Chosen(best, np.array(scores), predicted, fits.unfinished)


class _Space:
  """Principal axes of features: where their covariance is diagonal.

  The bias takes up a shift, the strength a scale, and a rotation keeps the
  penalty: the minimum is that of the features as they are.
  """

  scale: float  # of the features, their root mean square
  variances: np.ndarray  # [r] float64 of the scaled features along the axes

  def __init__(self, features: np.ndarray):
    self._centre = features.mean(axis=0, dtype=np.float64)
    self.scale, self._axes = 1.0, None
    x = self.of(features)
    self.scale = float(np.sqrt(np.mean(x**2, dtype=np.float64))) or 1.0
    x /= self.scale
    covariance = x.T @ x / np.float32(len(x))
    with _one_thread():
      variances, axes = np.linalg.eigh(covariance)
    rank = min(x.shape)  # r: nothing is along the others
    self.variances = np.maximum(variances[-rank:], 0).astype(np.float64)
    self._axes = axes[:, -rank:]

  def of(self, features: np.ndarray) -> np.ndarray:
    """Coordinates of N features: [N, e] float -> [N, r] float32."""
    x = ((features - self._centre) / self.scale).astype(np.float32)
    return x if self._axes is None else x @ self._axes


class _Model(NamedTuple):
  """A multinomial logistic regression."""

  classes: np.ndarray  # [K], sorted
  weights: np.ndarray  # [r, K] float64
  bias: np.ndarray  # [K] float64

  def logits(self, x: np.ndarray) -> np.ndarray:
    """[N, r] float32 -> [N, K] float32; the largest of each row is 0."""
    return _logits(x, self.weights.astype(np.float32), self.bias)

  def predict(self, x: np.ndarray) -> np.ndarray:
    """[N, r] float32 -> [N], of the classes."""
    return self.classes[self.logits(x).argmax(axis=1)]


class _Fits:
  """Fits of one model, each from where the one before has ended."""

  def __init__(self, variances: np.ndarray, max_iterations: int):
    self.model = _Model(np.zeros(0), np.zeros((0, 0)), np.zeros(0))
    self.unfinished = 0
    self._variances = variances
    self._max_iterations = max_iterations

  def fit(self, x: np.ndarray, labels: np.ndarray, strength: float) -> None:
    """Sets the model to the minimum for N rows x, [N, r] float32."""
    from scipy import optimize  # late: it takes time to import

    classes, truth, sizes = np.unique(
      labels, return_inverse=True, return_counts=True
    )
    if len(classes) < 2:
      raise UserError('All images to learn from are of one class.')
    if not np.array_equal(self.model.classes, classes):
      # The minimum for an infinite strength.
      nothing = np.zeros((x.shape[1], len(classes)))
      self.model = _Model(classes, nothing, np.log(sizes / len(labels)))
    with (
      concurrent.futures.ThreadPoolExecutor(_THREADS) as threads,
      _one_thread(),
    ):
      loss = _Loss(
        x, truth, strength / len(x), self.model, self._variances, threads
      )
      place = loss.place(self.model)
      loss(place)

      def stop_if_done(unused_place):
        if loss.is_done:
          raise StopIteration

      if not loss.is_done:
        place = optimize.minimize(
          loss,
          place,
          jac=True,
          method='L-BFGS-B',
          callback=stop_if_done,
          options={
            'maxiter': self._max_iterations, 'gtol': 0, 'ftol': 0, 'maxls': 50,
            'maxfun': np.inf,
          },
        ).x  # fmt: skip
        loss(place)
    self.unfinished += not loss.is_done
    self.model = loss.model(place)


class _Loss:
  """The mean loss, in coordinates in which its Hessian is about the identity.

  The Hessian is that of p (1 - p) for each class, averaged over the rows where
  the fit begins, along each axis: so L-BFGS meets a sphere, and half the
  squared length of the gradient is about what there is left to gain.
  """

  def __init__(
    self,
    x: np.ndarray,
    truth: np.ndarray,
    strength: float,
    start: _Model,
    variances: np.ndarray,
    threads: concurrent.futures.Executor,
  ):
    """The loss of N rows.

    Args:
      x: [N, r] float32.
      truth: [N] int, places of the classes.
      strength: of the penalty of the mean loss.
      start: where the fit begins.
      variances: [r] of the axes.
      threads: among which the rows are shared.
    """
    self.is_done = False  # at the place that was asked about last
    self._count, self._strength, self._classes = len(x), strength, start.classes
    size = -(-len(x) // _THREADS)
    self._parts = [
      (x[at : at + size], truth[at : at + size])
      for at in range(0, len(x), size)
    ]
    self._map = threads.map
    p = np.exp(start.logits(x))
    p /= p.sum(axis=1, keepdims=True)
    curvature = np.mean(p * (1 - p), axis=0, dtype=np.float64)  # [K]
    curvature = np.maximum(curvature, 1e-9)
    self._weight_scale = np.sqrt(variances[:, None] * curvature + strength)
    self._bias_scale = np.sqrt(curvature)

  def __call__(self, place: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss, and its gradient, [(r + 1) K] float64."""
    model = self.model(place)
    weights, bias = model.weights.astype(np.float32), model.bias
    sums = self._map(lambda part: _sums(*part, weights, bias), self._parts)
    loss, of_weights, of_bias = (sum(of_parts) for of_parts in zip(*sums))
    loss = loss / self._count + self._strength / 2 * np.sum(model.weights**2)
    of_weights = of_weights / self._count + self._strength * model.weights
    of_bias = of_bias / self._count
    gradient = np.concatenate(
      [(of_weights / self._weight_scale).ravel(), of_bias / self._bias_scale]
    )
    left = gradient @ gradient / 2
    self.is_done = bool(left <= _RELATIVE * loss + _ABSOLUTE)
    return loss, gradient

  def place(self, model: _Model) -> np.ndarray:
    """Coordinates of a model: [(r + 1) K] float64."""
    weights = model.weights * self._weight_scale
    return np.concatenate([weights.ravel(), model.bias * self._bias_scale])

  def model(self, place: np.ndarray) -> _Model:
    """The model there."""
    shape = self._weight_scale.shape
    weights = place[: -shape[1]].reshape(shape) / self._weight_scale
    return _Model(self._classes, weights, place[-shape[1] :] / self._bias_scale)


def _sums(
  x: np.ndarray, truth: np.ndarray, weights: np.ndarray, bias: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
  """Sums over rows, of their cross-entropy and of its gradients.

  Args:
    x: [n, r] float32.
    truth: [n] int, places of the classes.
    weights: [r, K] float32.
    bias: [K] float64.

  Returns:
    The loss; its gradient by the weights, [r, K] float32; by the bias, [K].
  """
  own = np.arange(len(x)), truth
  p = _logits(x, weights, bias)  # without further copies: they are large
  of_own = p[own]
  np.exp(p, out=p)
  total = p.sum(axis=1)
  loss = np.sum(np.log(total) - of_own, dtype=np.float64)
  p /= total[:, None]
  p[own] -= 1
  return loss, x.T @ p, p.sum(axis=0, dtype=np.float64)


def _logits(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
  """[n, r] float32 -> [n, K] float32; the largest of each row is 0."""
  logits = x @ weights
  logits += bias.astype(np.float32)
  logits -= logits.max(axis=1, keepdims=True)
  return logits


def linear_probe(
  train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float
) -> np.ndarray:
  """Logistic regression on standardised frozen features.

  Args:
    train: [M, e] float32.
    labels: [M] int.
    test: [N, e] float32.
    c: inverse strength of the L2 penalty.

  Returns:
    [N] predicted labels. With one class only, that class.
  """
  if len(np.unique(labels)) < 2:
    return np.full(len(test), labels[0])
  # Late: it takes seconds to import, and a training needs it at its end only.
  from sklearn import linear_model, preprocessing
  from sklearn import pipeline as sk_pipeline

  probe = sk_pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=c, max_iter=2000),
  )
  return probe.fit(train, labels).predict(test)
