"""Logistic regression and its measures, against cases worked by hand."""

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import linear_model, preprocessing
from sklearn import pipeline as sk_pipeline

from semppl_jax import errors
from semppl_jax.evaluation import logistic, measures

# Training: three of class 0 at -1, one of class 1 at +1; held out: one of each.
X = np.array([[-1.0], [-1], [-1], [1], [-1], [1]])
LABELS = np.array([0, 0, 0, 1, 0, 1])
HELD_OUT = np.array([False] * 4 + [True] * 2)


def regression(x=X, labels=LABELS, held_out=HELD_OUT, queries=X, **kwargs):
  settings = {'measure': measures.top1, 'max_iterations': 1000} | kwargs
  return logistic.regression(x, labels, held_out, queries, **settings)


@pytest.mark.parametrize('scale, shift', [(1, 0), (10, 0), (0.1, 0), (1, 7)])
def test_the_strength_is_that_of_the_papers_sum(scale, shift):
  """Where the penalty begins to hide the rare class.

  With f = w x + b and p = sigmoid(f), the difference of two classes' weights
  being w: sum of losses + strength / 4 w^2. At the minimum 3 p(-1) + p(1) = 1
  and w = 4 (1 - p(1)) / strength. The class at +1 is just found when
  p(1) = 1/2, that is b = -w, hence p(-1) = 1/6 = sigmoid(-2 w), w = ln(5) / 2:
  strength = 2 / w = 4 / ln(5) = 2.485. It grows with the square of a feature.
  """
  edge = 4 / np.log(5) * scale**2
  strengths = edge * np.array([100, 3, 1.01, 0.99, 0.5, 0.001])
  found = regression(scale * X + shift, strengths=strengths)
  # The strongest of those that find it: ties go to the stronger penalty.
  assert found.scores.tolist() == [0.5, 0.5, 0.5, 1, 1, 1]
  assert found.l2 == strengths[3]


def test_the_choice_is_trained_anew_on_all_rows():
  """With the held-out ones, four rows and two, instead of three and one.

  As above: 4 p(-1) + 2 p(1) = 2 and w = 8 (1 - p(1)) / strength. The edge:
  p(-1) = 1/4, w = ln(3) / 2, strength = 8 / ln(3) = 7.28 instead of 2.485.
  """
  for strength, rare in ((5.0, 1), (7.2, 1), (7.4, 0)):
    found = regression(strengths=[strength], queries=np.array([[-1.0], [1]]))
    assert found.scores == [0.5]  # without them, it is always hidden
    assert found.predicted.tolist() == [0, rare]


def test_three_classes_as_another_optimiser_finds_them():
  random = np.random.RandomState(0)
  labels = np.arange(60) % 3
  x = random.normal(size=(60, 4)) * 3 + 0.7 * labels[:, None] + 5
  held_out = np.arange(60) >= 45
  strength = 0.5

  def objective(theta):
    w, b = theta[:12].reshape(4, 3), theta[12:]
    scores = x @ w + b
    losses = special.logsumexp(scores, 1) - scores[np.arange(60), labels]
    return losses.sum() + strength / 2 * np.sum(w**2)

  best = optimize.minimize(objective, np.zeros(15), tol=1e-9).x
  queries = random.normal(size=(400, 4)) * 3 + 5.7
  scores = queries @ best[:12].reshape(4, 3) + best[12:]
  found = regression(x, labels, held_out, queries, strengths=[strength])
  gap = np.sort(scores, axis=1)
  clear = gap[:, 2] - gap[:, 1] > 0.01
  assert clear.sum() > 380
  np.testing.assert_array_equal(found.predicted[clear], scores.argmax(1)[clear])


def test_a_class_that_only_held_out_rows_have():
  labels = np.array([0, 0, 0, 1, 2, 1])
  found = regression(
    np.array([[-1.0], [-1], [-1], [1], [9], [1]]), labels, strengths=[0.01],
    queries=np.array([[9.0], [1]]),
  )  # fmt: skip
  assert found.scores == [0.5]
  assert found.predicted.tolist() == [2, 1]


def test_one_class_is_refused_and_constant_features_are_not():
  with pytest.raises(errors.UserError, match='of one class'):
    regression(labels=np.zeros(6, int), strengths=[1.0])
  found = regression(np.ones((6, 1)), strengths=[1.0])
  assert found.predicted.tolist() == [0] * 6  # the frequent one


def test_fits_that_stop_too_early_are_counted():
  random = np.random.RandomState(0)
  x, labels = random.normal(size=(40, 10)), np.arange(40) % 3
  held_out = np.arange(40) >= 30
  for most, count in ((1, 3), (1000, 0)):
    found = regression(
      x, labels, held_out, x, strengths=[0.1, 0.01], max_iterations=most
    )
    assert found.unfinished == count


def test_the_measure_chooses():
  """The same rows: top-1 likes the frequent class, the mean does not."""
  x = np.array([[-1.0]] * 4 + [[1]] + [[-1.0]] * 2 + [[1.0]] * 4)
  labels = np.array([0] * 4 + [1] + [0] * 2 + [1] + [0] * 3)
  held_out = np.arange(11) >= 5
  strengths = [100.0, 0.01]
  found = {
    name: regression(x, labels, held_out, strengths=strengths, measure=measure)
    for name, measure in measures.MEASURES.items()
  }
  # All are called 0: 5 of 6, and (1 + 0) / 2. By their place: 3 of 6, and
  # (2 / 5 + 1) / 2.
  assert found['top-1'].scores == pytest.approx([5 / 6, 1 / 2])
  assert found['top-1'].l2 == 100
  assert found['mean per class'].scores == pytest.approx([0.5, 0.7])
  assert found['mean per class'].l2 == 0.01


def test_linear_probe_separates_what_is_separable():
  random = np.random.RandomState(0)
  labels = np.arange(40) % 2
  features = random.randn(40, 5).astype(np.float32)
  features[:, 0] += 20 * labels
  predicted = logistic.linear_probe(features[:20], labels[:20], features, 1.0)
  np.testing.assert_array_equal(predicted, labels)
  only_one = logistic.linear_probe(features[:3], np.full(3, 4), features, 1.0)
  np.testing.assert_array_equal(only_one, np.full(40, 4))


def test_a_linear_probe_is_scikit_learns():
  """On standardised features, to the last label."""
  random = np.random.RandomState(1)
  labels = np.arange(60) % 4
  x = (random.randn(90, 8) * np.arange(1, 9)).astype(np.float32)
  x[:60, :4] += 3 * np.eye(4)[labels]
  model = sk_pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=0.3, max_iter=2000),
  )
  np.testing.assert_array_equal(
    logistic.linear_probe(x[:60], labels, x, 0.3),
    model.fit(x[:60], labels).predict(x),
  )


def correlated(rows, size, classes):
  """Features as a network's: not negative, of few directions, with noise."""
  random = np.random.RandomState(0)
  labels = random.randint(0, classes, rows)
  hidden = random.randn(classes, 20)[labels] + random.randn(rows, 20)
  mixed = hidden @ random.randn(20, size) * np.geomspace(1, 0.01, size)
  x = np.maximum(mixed + 0.1 * random.randn(rows, size) - 1, 0)
  return x.astype(np.float32), labels


@pytest.mark.parametrize('rows, size', [(400, 60), (50, 120)])
@pytest.mark.parametrize('classes', [2, 7])
def test_fits_reach_the_minimum_of_scikit_learn(rows, size, classes):
  """More rows than features and fewer; the loss to 1e-3 of itself."""
  x, labels = correlated(rows, size, classes)
  space = logistic._Space(x)
  fits = logistic._Fits(space.variances, 1000)

  def loss(weights, bias, strength):
    scores = np.float64(x) @ weights + bias
    losses = special.logsumexp(scores, 1) - scores[np.arange(rows), labels]
    return losses.sum() + strength / 2 * np.sum(weights**2)

  for strength in np.geomspace(1e4, 0.1, 6):
    fits.fit(space.of(x), labels, strength / space.scale**2)
    weights = space._axes @ fits.model.weights / space.scale
    bias = fits.model.bias - space._centre @ weights
    # Of two classes it fits the difference of their weights.
    model = linear_model.LogisticRegression(
      C=(2 if classes == 2 else 1) / strength, tol=1e-7, max_iter=10_000
    ).fit(x.astype(np.float64), labels)
    w, b = model.coef_.T, model.intercept_
    if classes == 2:
      w, b = np.concatenate([-w, w], 1) / 2, np.concatenate([-b, b]) / 2
    best = loss(w, b, strength)
    assert abs(loss(weights, bias, strength) - best) < 1e-3 * best
  assert fits.unfinished == 0


@pytest.mark.parametrize('threads', [1, 3, 64])
def test_threads_change_nothing(threads, monkeypatch):
  """Rows are shared evenly, unevenly, and among more threads than rows."""
  x, labels = correlated(40, 6, 3)

  def fit():
    fits = logistic._Fits(np.ones(6), 1000)
    fits.fit(x, labels, 1.0)
    return fits.model

  alone = fit()
  monkeypatch.setattr(logistic, '_THREADS', threads)
  shared = fit()
  np.testing.assert_allclose(shared.weights, alone.weights, atol=1e-4)
  np.testing.assert_allclose(shared.bias, alone.bias, atol=1e-4)


@pytest.mark.parametrize('rows', [12, 200])
def test_coordinates_have_the_variances_that_precondition(rows):
  features = correlated(rows, 30, 3)[0]
  space = logistic._Space(features)
  found = space.of(features).astype(np.float64)
  assert found.shape == (rows, min(rows, 30))
  np.testing.assert_allclose(
    (found**2).mean(axis=0), space.variances, rtol=1e-3, atol=1e-5
  )
