"""USL: numbers of its release, cases by hand, invariants, wrong input."""

import numpy as np
import pytest

import semppl_jax
from semppl_jax.errors import UserError
from semppl_jax.evaluation import knn
from semppl_jax.selection import blocks, density, k_means, rounds, usl
from tests.helpers import golden

# rounds, weight, momentum, horizon, power, nearest, own_cluster
_GOLDEN = {
  'density_only': (1, 0.0, 0.0, 0.0, 1.0, 0, False),
  'cifar_default': (10, 0.5, 0.9, 4.0, 0.5, 0, False),
  'cifar100': (10, 1.0, 0.9, 1.0, 1.0, 0, False),
  'strong': (10, 5.0, 0.9, 0.0, 1.0, 0, False),
  'imagenet': (2, 1.5, 0.0, 0.0, 0.5, 4, True),
  'imagenet_exclude': (2, 1.5, 0.0, 0.0, 0.5, 4, False),
}


@pytest.fixture(scope='module')
def release():
  return golden.load('usl.npz')


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of 7 rows: 60 images take nine, the last one filled up."""
  monkeypatch.setattr(blocks, '_LARGEST', 7)
  monkeypatch.setattr(density, '_QUERIES', 16)


def _unit(count, size, seed=0):
  rows = np.random.RandomState(seed).standard_normal((count, size))
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_and_density_are_the_releases(release, small_blocks):
  features, k = release['features'], int(release['k'])
  rows, similarity = knn.neighbours(features, features, k)
  np.testing.assert_array_equal(rows, release['knn_index'])
  np.testing.assert_allclose(
    2 - 2 * similarity, release['knn_sq_distance'], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    density.mean_squared_distances(features, k),
    release['mean_sq_distance'],
    rtol=1e-5,
    atol=1e-6,
  )


def test_clusters_are_the_releases(release, small_blocks):
  clusters, centres = k_means.cluster(
    release['features'],
    release['kmeans_init'],
    int(release['kmeans_iterations']),
  )
  np.testing.assert_array_equal(clusters, release['clusters'])
  np.testing.assert_allclose(centres, release['centres'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', _GOLDEN)
def test_selections_are_the_releases(name, release, small_blocks):
  settings = zip(
    ('rounds', 'weight', 'momentum', 'horizon', 'power', 'nearest',
     'own_cluster'), _GOLDEN[name], strict=True,
  )  # fmt: skip
  rows, scores = rounds.choose(
    release['features'],
    1 / release['mean_sq_distance'],
    release['clusters'],
    **dict(settings),
  )
  np.testing.assert_array_equal(rows, release[f'selected_{name}'])
  if name == 'density_only':
    np.testing.assert_allclose(scores, 1 / release['mean_sq_distance'][rows])


def test_presets_are_the_releases():
  made = {name: one._asdict() for name, one in usl.PRESETS.items()}
  assert made['cifar10'] == dict(
    k=400, iterations=200, rounds=10, weight=0.5, momentum=0.9, power=0.5,
    horizon=4.0, nearest=0, own_cluster=False,
  )  # fmt: skip
  assert made['cifar100'] == made['cifar10'] | dict(
    weight=1.0, power=1.0, horizon=1.0
  )
  assert made['imagenet'] == dict(
    k=20, iterations=100, rounds=2, weight=1.5, momentum=0.0, power=0.5,
    horizon=0.0, nearest=128, own_cluster=True,
  )  # fmt: skip
  assert made['small'] == made['cifar10'] | dict(k=20)


def test_rounds_by_hand():
  """Two clusters on a circle: the dense images are neighbours, and part."""
  degrees = np.deg2rad([0, 60, 70, 180])
  features = np.stack([np.cos(degrees), np.sin(degrees)], 1).astype(np.float32)
  dense = np.array([3.0, 4.0, 5.0, 1.0], np.float32)
  clusters = np.array([0, 0, 1, 1], np.int32)
  choose = lambda **changes: rounds.choose(
    features, dense, clusters, **(
      dict(rounds=2, weight=1.0, momentum=0.0, power=0.5, horizon=0.0,
           nearest=0, own_cluster=False) | changes
    ),
  )  # fmt: skip
  assert choose(rounds=1)[0].tolist() == [1, 2]
  rows, scores = choose()
  # Of image 0 to image 2: 2 sin 35 degrees; of image 1: 2 sin 5 degrees.
  assert rows.tolist() == [0, 3]
  far = 3 - 1 / (2 * np.sin(np.deg2rad(35)))
  near = 1 - 1 / (2 * np.sin(np.deg2rad(60)))  # of image 3, to image 1
  np.testing.assert_allclose(scores, [far, near], rtol=1e-5)
  # So near that they count less than their density: nothing changes.
  assert choose(weight=0.1)[0].tolist() == [1, 2]
  # Farther than the horizon: likewise.
  squared = (2 * np.sin(np.deg2rad(5))) ** 2
  assert choose(horizon=squared * 0.99)[0].tolist() == [1, 2]
  assert choose(horizon=squared * 1.01)[0].tolist() == [0, 3]


def test_equal_scores_go_to_the_first_image():
  rows = rounds._best(np.ones(6), np.array([1, 0, 1, 0, 0, 1]), 2)
  assert rows.tolist() == [1, 0]


def test_an_empty_cluster_takes_the_farthest_image():
  points = np.array([[0.0], [0.1], [0.2], [9.0], [10.0]], np.float32)
  # Images 0 and 0 begin two clusters: the second is empty at once.
  features = np.concatenate([points, points[:1]])
  clusters, centres = k_means.cluster(features, np.array([0, 5]), 1)
  assert clusters.tolist() == [0, 0, 0, 0, 1, 0]
  np.testing.assert_allclose(centres[1], [10.0])
  clusters, _ = k_means.cluster(features, np.array([0, 5]), 10)
  assert clusters.tolist() == [0, 0, 0, 1, 1, 0]


def test_clusters_of_equal_images_have_one_each():
  features = np.repeat(_unit(2, 4), 4, axis=0)
  chosen = usl.select(features, 8)
  assert sorted(chosen.rows.tolist()) == list(range(8))
  assert np.isfinite(chosen.scores).all() and np.isfinite(chosen.density).all()
  chosen = usl.select(features, 2)
  assert len(set(chosen.rows // 4)) == 2


def test_choice_is_a_pure_function_of_the_seed(small_blocks):
  features = _unit(50, 6)
  before = features.copy()
  first, again = (usl.select(features, 9, seed=3) for _ in range(2))
  for one, other in zip(first[:4], again[:4], strict=True):
    np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(features, before)
  scaled = usl.select(features * 4, 9, seed=3)  # lengths do not matter
  np.testing.assert_array_equal(first.rows, scaled.rows)
  assert set(usl.select(features, 9, seed=4).rows) != set(first.rows)


def test_choice_is_frozen(release):
  """A change here changes which images a published list names."""
  chosen = usl.select(release['features'], 6, seed=0, k=8)
  assert chosen.rows.tolist() == [26, 33, 58, 38, 53, 49]


def test_order_of_the_images_does_not_matter(release, monkeypatch):
  """But for the images that k-means begins with, the same ones here."""
  features = release['features']
  order = np.random.RandomState(1).permutation(len(features))
  places = np.argsort(order)  # old row -> new row
  first = usl.select(features, 6, seed=2, k=8)
  start = np.random.RandomState(2).permutation(60)[:6]
  real = k_means.cluster
  monkeypatch.setattr(
    k_means, 'cluster',
    lambda rows, _, *args, **kwargs: real(
      rows, places[start], *args, **kwargs
    ),
  )  # fmt: skip
  second = usl.select(features[order], 6, seed=2, k=8)
  np.testing.assert_array_equal(order[second.rows], first.rows)
  np.testing.assert_array_equal(second.clusters, first.clusters[order])


def test_each_cluster_gives_one_image():
  features = _unit(40, 5)
  for budget in (1, 7, 40):
    chosen = semppl_jax.select(features, budget)
    assert chosen.rows.shape == chosen.scores.shape == (budget,)
    assert chosen.clusters[chosen.rows].tolist() == list(range(budget))
    assert chosen.settings.k == 20
  assert usl.select(features, 3, preset='cifar10').settings.k == 40


@pytest.mark.parametrize(
  'features, budget, changes, message',
  [
    (_unit(5, 3), 6, {}, 'budget is 6; .* from 1 to 5, the number of images'),
    (_unit(5, 3), 0, {}, 'budget is 0'),
    (_unit(5, 3), 2.5, {}, 'budget is 2.5; .* whole number'),
    (_unit(1, 3), 1, {}, 'There is 1 image: a choice takes at least 2'),
    (_unit(5, 3), 2, {'preset': 'imagnet'}, "did you mean 'imagenet'"),
    (_unit(5, 3), 2, {'round': 3}, "round is no setting.*mean 'rounds'"),
    (_unit(5, 3), 2, {'k': 0}, 'k is 0; .* whole number at least 1'),
    (_unit(5, 3), 2, {'k': 2.0}, 'k is 2.0'),
    (_unit(5, 3), 2, {'power': 0}, 'power is 0; .* above 0'),
    (_unit(5, 3), 2, {'momentum': 1.5}, 'momentum is 1.5; .* at most 1'),
    (_unit(5, 3), 2, {'weight': float('nan')}, 'weight is nan'),
    (_unit(5, 3), 2, {'seed': 'x'}, "seed is 'x'"),
    (np.zeros((5, 3)), 2, {}, 'features of image 0 have the length 0.0'),
    (np.full((5, 3), np.nan), 2, {}, 'image 0 have the length nan'),
    (np.zeros(5), 2, {}, r'features are float64\[5\]'),
  ],
)  # fmt: skip
def test_mistakes(features, budget, changes, message):
  with pytest.raises(UserError, match=message) as error:
    usl.select(features, budget, **changes)
  assert '\n' not in str(error.value)
