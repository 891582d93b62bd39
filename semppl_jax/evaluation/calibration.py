"""Calibration: what a share of the votes is worth as a probability."""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

# Fewer images than these say too little [ours].
FEWEST = 50
_FOLDS = 5
_SLOPE_SPREAD = 0.5  # of the slope's normal prior, around 1 [ours]
_CLOSEST = 1e-3  # to 0 and 1, of a share whose logit is taken


class Platt(NamedTuple):
  """Platt scaling: probability = sigmoid(slope * logit(share) + intercept)."""

  slope: float
  intercept: float

  def __call__(self, share: np.ndarray) -> np.ndarray:
    """[n] shares in [0, 1] -> [n] float32 probabilities of being right."""
    z = self.slope * _logit(share) + self.intercept
    return special.expit(z).astype(np.float32)


class Bin(NamedTuple):
  """Images whose confidence lies between two bounds."""

  count: int
  confidence: float  # their mean
  accuracy: float  # the share that is right


def fit(share: np.ndarray, right: np.ndarray) -> Platt:
  """Platt scaling (Platt, 1999), of few images.

  With his targets, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), that keep a few images
  from being taken for certainty. The slope has a prior, for 50 images of which
  a handful is wrong say little of it [ours]; and it is not negative: a larger
  share is never a smaller probability.

  Args:
    share: [n] float in [0, 1], of the votes that the pseudo-label has.
    right: [n] bool, whether the pseudo-label is the true class.
  """
  good = int(np.sum(right))
  bad = len(right) - good
  target = np.where(right, (good + 1) / (good + 2), 1 / (bad + 2))
  x = _logit(share)

  def loss(parameters):
    z = parameters[0] * x + parameters[1]
    error = special.expit(z) - target
    away = (parameters[0] - 1) / _SLOPE_SPREAD
    value = np.sum(np.logaddexp(0, z) - target * z) + away**2 / 2
    slope = error @ x + away / _SLOPE_SPREAD
    return value, np.array([slope, error.sum()])

  found = optimize.minimize(
    loss, (1.0, 0.0), jac=True, bounds=[(0, None), (None, None)]
  )
  return Platt(*map(float, found.x))


def cross_validated(share: np.ndarray, right: np.ndarray) -> np.ndarray:
  """[n] probabilities of `fit`, each of the other four fifths of the images.

  Args:
    share: see `fit`.
    right: see `fit`.
  """
  fold = np.random.RandomState(0).permutation(len(share)) % _FOLDS
  found = np.zeros(len(share), np.float32)
  for i in range(_FOLDS):
    own = fold == i
    found[own] = fit(share[~own], right[~own])(share[own])
  return found


def bins(
  confidence: np.ndarray, right: np.ndarray, number: int = 10
) -> list[Bin]:
  """The reliability diagram, in bins of equal width; empty ones are left out.

  Args:
    confidence: [n] float in [0, 1].
    right: [n] bool.
    number: of bins.
  """
  place = np.minimum((np.asarray(confidence) * number).astype(int), number - 1)
  parts = [np.flatnonzero(place == i) for i in range(number)]
  return [_bin(confidence, right, part) for part in parts if len(part)]


def tenths(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
  """The same in ten bins of as many images each, the least confident first."""
  order = np.argsort(confidence, kind='stable')
  parts = np.array_split(order, 10)
  return [_bin(confidence, right, part) for part in parts if len(part)]


def _bin(confidence, right, part):
  mean = lambda x: float(np.mean(x[part]))
  return Bin(len(part), mean(confidence), mean(right))


def expected_calibration_error(
  confidence: np.ndarray, right: np.ndarray
) -> float:
  """ECE: mean |accuracy - confidence| of ten bins, weighted by their images.

  Guo et al. (arXiv 1706.04599), equation (3).

  Args:
    confidence: [n] float in [0, 1].
    right: [n] bool.
  """
  found = bins(confidence, right)
  gaps = sum(b.count * abs(b.accuracy - b.confidence) for b in found)
  return gaps / max(len(confidence), 1)


def _logit(share: np.ndarray) -> np.ndarray:
  clipped = np.clip(np.asarray(share, float), _CLOSEST, 1 - _CLOSEST)
  return special.logit(clipped)
