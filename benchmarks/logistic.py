"""Transfer's logistic regression against scikit-learn's, in turns.

  python -m benchmarks.logistic --classes=37

Features as a network's: not negative, correlated (ReLU of a random product of
low rank plus noise). A path of strengths, each fit from the one before, as
`evaluation.logistic.regression` takes it; scikit-learn's is what it was before:
L-BFGS on centred float64 features. There it stopped at --tolerance=1e-3, far
above the minimum where the penalty is weak; 1e-6 comes nearer. Prints seconds
and the losses of both, and the smallest ratio of a round; --json=FILE writes
the numbers.
"""

import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn import linear_model

from benchmarks import command
from semppl_jax.evaluation import logistic

# (weights [e, K], bias [K]) of the features as they are.
Fit = tuple[np.ndarray, np.ndarray]


def draw(
  rows: int, size: int, classes: int, rank: int = 200
) -> tuple[np.ndarray, np.ndarray]:
  """Features [rows, size] float32 and labels [rows]."""
  random = np.random.RandomState(0)
  labels = random.randint(0, classes, rows)
  decay = np.arange(1, rank + 1) ** -0.5
  means = 0.6 * random.randn(classes, rank)
  hidden = (means[labels] + random.randn(rows, rank)) * decay
  mixed = hidden @ random.randn(rank, size) / np.linalg.norm(decay)
  noise = 0.3 * random.randn(rows, size) - 0.3
  return (np.maximum(mixed + noise, 0) / 2).astype(np.float32), labels


def before(
  features: np.ndarray,
  labels: np.ndarray,
  strengths: Sequence[float],
  tolerance: float,
  dtype: type = np.float64,
) -> list[Fit]:
  """scikit-learn's path, as `regression` took it until it was replaced."""
  centre = features.mean(axis=0, dtype=np.float64)
  x = features - centre
  scale = np.sqrt(np.mean(x**2))
  x = (x / scale).astype(dtype)
  classes, sizes = np.unique(labels, return_counts=True)
  model = linear_model.LogisticRegression(
    max_iter=10_000, warm_start=True, tol=tolerance / len(classes)
  )
  model.classes_ = classes
  model.coef_ = np.zeros((len(classes), x.shape[1]), dtype)
  model.intercept_ = np.log(sizes / len(labels)).astype(dtype)
  found = []
  for strength in strengths:
    model.C = scale**2 / strength
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      model.fit(x, labels)
    weights = model.coef_.T.astype(np.float64) / scale
    found.append((weights, model.intercept_ - centre @ weights))
  return found


def before_float32(*args) -> list[Fit]:
  """The same with float32 features."""
  return before(*args, np.float32)


def now(
  features: np.ndarray,
  labels: np.ndarray,
  strengths: Sequence[float],
  unused_tolerance: float,
) -> list[Fit]:
  """The package's path."""
  space = logistic._Space(features)
  x = space.of(features)
  fits = logistic._Fits(space.variances, 1000)
  found = []
  for strength in strengths:
    fits.fit(x, labels, strength / space.scale**2)
    weights = space._axes @ fits.model.weights / space.scale
    found.append((weights, fits.model.bias - space._centre @ weights))
  command.say(f'unfinished: {fits.unfinished}')
  return found


def loss(
  features: np.ndarray, labels: np.ndarray, strength: float, fit: Fit
) -> float:
  """The mean loss with its penalty, in float64."""
  weights, bias = fit
  logits = features.astype(np.float64) @ weights + bias
  logits -= logits.max(axis=1, keepdims=True)
  own = logits[np.arange(len(labels)), labels]
  penalty = strength / 2 * np.sum(weights**2)
  losses = np.log(np.exp(logits).sum(axis=1)) - own
  return float((losses.sum() + penalty) / len(labels))


def main() -> None:
  """Runs both and prints the table."""
  parser = command.parser(__doc__)
  parser.add_argument('--rows', type=int, default=6800)
  parser.add_argument('--size', type=int, default=2048)
  parser.add_argument('--classes', type=int, default=37)
  parser.add_argument('--strengths', type=int, default=10)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument(
    '--tolerance', type=float, default=1e-3, help="scikit-learn's, x classes"
  )
  args = parser.parse_args()
  features, labels = draw(args.rows, args.size, args.classes)
  strengths = np.geomspace(1e5, 1e-6, args.strengths)
  paths: list[Callable[..., list[Fit]]] = [before, before_float32, now]
  seconds: dict[str, list[float]] = {path.__name__: [] for path in paths}
  fits = {}
  for i in range(args.rounds):
    for path in paths if i % 2 == 0 else reversed(paths):
      begun = time.perf_counter()
      fits[path.__name__] = path(features, labels, strengths, args.tolerance)
      seconds[path.__name__].append(time.perf_counter() - begun)
      command.say(f'{path.__name__}: {seconds[path.__name__][-1]:.1f} s')
  losses = {
    name: [
      loss(features, labels, strength, fit)
      for strength, fit in zip(strengths, found, strict=True)
    ]
    for name, found in fits.items()
  }
  print(f'| strength | {" | ".join(losses)} |')
  print('| --- ' * (len(losses) + 1) + '|')
  for i, strength in enumerate(strengths):
    row = ' | '.join(f'{values[i]:.6g}' for values in losses.values())
    print(f'| {strength:.3g} | {row} |')
  for name, values in seconds.items():
    print(f'{name}: {np.median(values):.1f} s ({min(values):.1f} to '
          f'{max(values):.1f})')  # fmt: skip
  ratios = np.divide(seconds['before'], seconds['now'])
  print(f'before / now: {np.median(ratios):.1f}, at least {ratios.min():.1f}')
  command.finish(args, {'seconds': seconds, 'losses': losses})


if __name__ == '__main__':
  main()
