"""Neighbours, votes and ranks: by hand, and against a sort of all keys."""

import numpy as np
import pytest
from sklearn import neighbors

from semppl_jax.evaluation import knn
from tests.helpers import golden


def test_knn_by_hand():
  keys = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], np.float32)
  labels = np.array([7, 5, 5])
  queries = np.array([[9.0, 1.0], [-1.0, 0.5], [0.1, 0.2]], np.float32)
  one = knn.predict(queries, keys, labels, 1)
  np.testing.assert_array_equal(one, [7, 5, 5])
  # With all three, label 5 has two votes of three whatever the query.
  np.testing.assert_array_equal(
    knn.predict(queries, keys, labels, 9), [5, 5, 5]
  )


def test_knn_ranks_by_hand():
  keys = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]], 'f4')
  labels = np.array([2, 0, 1, 1])
  query = np.array([[1.0, 0.1]], np.float32)
  rank = lambda k: knn.ranks(query, keys, labels, k=k, num_classes=4)[
    0
  ].tolist()
  # One vote, for 0, its key is nearest; then by nearest key; 3 has none.
  assert rank(1) == [3, 1, 2, 0]
  # With all four keys class 1 has two votes.
  assert rank(9) == [2, 3, 1, 0]


def test_knn_ties_go_to_the_smaller_id():
  keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], 'f4')
  labels = np.array([1, 0, 3, 2])
  query = np.array([[1.0, 0.0]], np.float32)
  ranks = knn.ranks(query, keys, labels, k=2, num_classes=5)
  assert ranks[0].tolist() == [4, 3, 2, 1, 0]
  assert knn.predict(query, keys, labels, 2)[0] == 0


@pytest.mark.parametrize('k', [1, 3, 50])
def test_the_first_rank_is_the_methods_vote(k, monkeypatch):
  monkeypatch.setattr(knn, '_QUERIES', 16)
  random = np.random.RandomState(0)
  keys, queries = (random.randn(n, 4).astype(np.float32) for n in (50, 37))
  labels = random.randint(0, 6, 50)
  found = knn.ranks(queries, keys, labels, k=k, num_classes=6)
  assert sorted(found[0]) == [0, 1, 2, 3, 4, 5]
  voted = knn.predict(queries, keys, labels, k)
  np.testing.assert_array_equal(found.argmax(axis=1), voted)


def test_leave_one_out_by_hand():
  # On a circle: 0 and 10 degrees of class 0, 15 and 40 of 1, 90 of 2 alone.
  angles = np.radians([0, 10, 15, 40, 90])
  x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
  labels = np.array([0, 0, 1, 1, 2])
  # Nearest others: 10, 15, 10, 15; the last cannot be right and is not asked.
  assert knn.leave_one_out(x, labels, 1) == 2 / 4
  assert knn.leave_one_out(x, labels, 1, np.array([1, 2, 4])) == 0
  assert knn.leave_one_out(x, labels, 1, np.array([4])) is None
  # Of four others each: two of the other class are the most.
  assert knn.leave_one_out(x, labels, 9) == 0
  assert knn.leave_one_out(x[:2], np.array([0, 1]), 1) is None
  assert knn.leave_one_out(x[:2], np.array([1, 1]), 7) == 1


@pytest.mark.parametrize('k', [1, 2, 3])
def test_leave_one_out_is_knn_without_the_image(k):
  """Also where many are equal, so that it does not find itself."""
  random = np.random.RandomState(1)
  x = random.randn(9, 3).astype(np.float32)
  x = np.concatenate([x, x[:1].repeat(6, 0), 2 * x[:3]])
  labels = random.randint(0, 3, len(x))
  right = []
  for i in range(len(x)):
    rest = np.delete(np.arange(len(x)), i)
    right.append(knn.predict(x[i, None], x[rest], labels[rest], k) == labels[i])
  assert knn.leave_one_out(x, labels, k) == np.mean(right)
  assert 0 < np.mean(right) < 1


def test_has_another():
  found = knn.has_another(np.array([2, -1, 0, 2, -1, 1]))
  np.testing.assert_array_equal(found, [1, 0, 0, 1, 0, 0])
  assert not knn.has_another(np.full(3, -1)).any()


def by_sorting(queries, keys, k):
  """All similarities and a stable sort of them: how it was computed once."""
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1)[:, None], 1e-6)
  similarity = unit(queries) @ unit(keys).T
  nearest = np.argsort(-similarity, axis=1, kind='stable')[:, :k]
  return nearest, np.take_along_axis(similarity, nearest, axis=1)


def ranks_by_sorting(queries, keys, labels, k, num_classes):
  nearest, similarity = by_sorting(queries, keys, len(keys))
  found = []
  for rows, near in zip(nearest, similarity):
    votes, summed = np.zeros((2, num_classes))
    np.add.at(votes, labels[rows[:k]], 1)
    np.add.at(summed, labels[rows[:k]], near[:k])
    own = np.full(num_classes, -np.inf)
    np.maximum.at(own, labels[rows], near)
    own[votes > 0] = 0
    order = sorted(
      range(num_classes), key=lambda c: (votes[c], summed[c], own[c], -c)
    )
    found.append(np.argsort(order))
  return np.array(found)


def exact(count, seed):
  """Rows of +-1/4 times a power of two: every sum is exact, many are equal."""
  random = np.random.RandomState(seed)
  signs = random.choice([-1.0, 1.0], (count, 16))
  return (signs * 2.0 ** random.randint(-3, 3, (count, 1))).astype('f4')


@pytest.mark.parametrize('k', [1, 5, 40, 300])
@pytest.mark.parametrize('num_keys', [300, 301, 256, 7])
def test_blocks_find_what_a_stable_sort_finds(k, num_keys, monkeypatch):
  """The earlier key of equals, within a block and of several."""
  monkeypatch.setattr(knn, '_KEYS', 32)
  monkeypatch.setattr(knn, '_QUERIES', 8)
  queries, keys = exact(21, 0), exact(num_keys, 1)
  rows, similarity = knn.neighbours(queries, keys, k)
  wanted, near = by_sorting(queries, keys, k)
  assert len(np.unique(near)) < 20  # equals abound
  np.testing.assert_array_equal(rows, wanted)
  np.testing.assert_array_equal(similarity, near)
  labels = np.random.RandomState(2).randint(0, 9, num_keys)
  np.testing.assert_array_equal(
    knn.ranks(queries, keys, labels, k=k, num_classes=10),
    ranks_by_sorting(queries, keys, labels, k, 10),
  )


def test_equal_keys_are_equal_wherever_they_stand(monkeypatch):
  """Products of 2,048 numbers that no float holds exactly."""
  monkeypatch.setattr(knn, '_KEYS', 64)
  random = np.random.RandomState(0)
  queries = random.randn(9, 2048).astype(np.float32)
  key = 3 * queries.mean(axis=0) + random.randn(2048).astype(np.float32)
  keys = random.randn(201, 2048).astype(np.float32)
  places = [3, 63, 64, 100, 127, 128, 191, 192, 200]
  keys[places] = key
  rows, similarity = knn.neighbours(queries, keys, len(places))
  _, near = by_sorting(queries, keys, len(places))
  np.testing.assert_array_equal(rows, np.tile(places, (9, 1)))
  np.testing.assert_allclose(similarity, near, rtol=1e-5)


def test_keys_without_a_label_are_nobodys_neighbours():
  queries, keys = exact(11, 0), exact(80, 1)
  labels = np.random.RandomState(2).randint(-1, 4, 80)
  used = labels >= 0
  assert 0 < used.sum() < 80
  np.testing.assert_array_equal(
    knn.predict(queries, keys, labels, 3),
    knn.predict(queries, keys[used], labels[used], 3),
  )
  ranks = lambda *of: knn.ranks(*of, k=100, num_classes=4)
  np.testing.assert_array_equal(
    ranks(queries, keys, labels), ranks(queries, keys[used], labels[used])
  )


def test_one_program_for_all_blocks(monkeypatch):
  monkeypatch.setattr(knn, '_KEYS', 16)
  monkeypatch.setattr(knn, '_QUERIES', 4)
  knn._update.clear_cache()
  knn.neighbours(exact(11, 0), exact(100, 1), 3)
  assert knn._update._cache_size() == 1


def test_no_query_and_a_similarity_that_is_no_number():
  keys = np.array([[np.nan, 1], [0, 1], [1, 0]], np.float32)
  assert knn.neighbours(keys[:0], keys, 2)[0].shape == (0, 2)
  rows, _ = knn.neighbours(np.array([[1.0, 0]], np.float32), keys, 3)
  assert rows.tolist() == [[2, 1, 0]]


def test_similarities_are_of_full_precision_on_any_device():
  # On a CPU all precisions are equal; a TPU's usual one has bfloat16 factors.
  found = knn._Found(
    *(np.zeros((4, 2), dtype) for dtype in ('float32', 'int32')),
    np.zeros((4, 0), 'float32'),
  )
  keys, labels = np.ones((8, 3), 'float32'), np.zeros(8, 'int32')
  program = knn._update.trace(found, keys[:4], keys, labels, labels)
  assert 'Precision.HIGHEST' in str(program.jaxpr)


# -- Weighted votes --


def weighted(queries, keys, labels, ks, num_classes=4, temperature=0.07):
  return knn.ranks_of_each(
    queries, keys, labels, ks=ks, num_classes=num_classes,
    temperature=temperature,
  )  # fmt: skip


def test_weighted_votes_by_hand():
  """Class 1 has the nearest key, class 0 two of the next: cosines 1, .8, .8."""
  keys = np.array([[1.0, 0], [0.8, 0.6], [0.8, -0.6], [0, 1]], np.float32)
  labels = np.array([1, 0, 0, 2])
  query = np.array([[2.0, 0]], np.float32)
  # exp(1 / T) against 2 exp(0.8 / T): equal at T = 0.2 / ln 2 = 0.2885.
  vote = lambda temperature, k=3: weighted(
    query, keys, labels, (k,), temperature=temperature
  )[0][0].tolist()
  assert vote(0.07) == vote(0.28) == [2, 3, 1, 0]
  assert vote(0.30) == [3, 2, 1, 0]
  # With one vote class 0 comes next by its nearest key; 3 has no key.
  assert vote(0.07, k=1) == [2, 3, 1, 0]
  # However cold it is, votes count for something, and no sum is infinite.
  assert vote(1e-6) == [2, 3, 1, 0]
  majority = knn.ranks(query, keys, labels, k=3, num_classes=4)
  assert majority[0].tolist() == [3, 2, 1, 0]


def test_equal_weights_go_to_the_smaller_id():
  keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], 'f4')
  query = np.array([[1.0, 0.0]], np.float32)
  (ranks,) = weighted(query, keys, np.array([1, 0, 3, 2]), (4,), 5)
  assert ranks[0].tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_weighted_votes_are_those_of_scikit_learn(temperature, monkeypatch):
  """All numbers of neighbours by one search, in several blocks."""
  monkeypatch.setattr(knn, '_KEYS', 64)
  monkeypatch.setattr(knn, '_QUERIES', 32)
  random = np.random.RandomState(0)
  keys, queries = (random.randn(n, 5).astype(np.float32) for n in (300, 70))
  labels = random.randint(0, 7, 300)
  ks, searches = (10, 20, 200), []
  search = knn._search
  monkeypatch.setattr(
    knn, '_search', lambda *of: searches.append(of[3]) or search(*of)
  )
  found = weighted(queries, keys, labels, ks, 7, temperature)
  assert searches == [200]
  majority = []
  for k, ranks in zip(ks, found, strict=True):
    theirs = neighbors.KNeighborsClassifier(
      n_neighbors=k,
      metric='cosine',
      weights=lambda far: np.exp((1 - far) / temperature),
    ).fit(keys, labels)
    shares = theirs.predict_proba(queries)  # [N, K]; 0: no vote
    np.testing.assert_array_equal(ranks.argmax(1), shares.argmax(1))
    order = np.argsort(-ranks, axis=1)
    sorted_shares = np.take_along_axis(shares, order, axis=1)
    assert (np.diff(sorted_shares, axis=1) <= 1e-5).all()
    majority.append(knn.predict(queries, keys, labels, k))
  # Weights change votes, or this would show nothing.
  assert (found[2].argmax(1) != majority[2]).any()


def test_weighted_votes_do_not_depend_on_the_order_of_the_keys():
  queries, keys = exact(21, 0), exact(80, 1)
  labels = np.random.RandomState(2).randint(-1, 4, 80)
  order = np.random.RandomState(3).permutation(80)
  k = int((labels >= 0).sum())  # all of them: equals at the end are all in
  whole = weighted(queries, keys, labels, (k,))[0]
  used = labels >= 0
  assert 0 < k < 80
  for one in (
    weighted(queries, keys[order], labels[order], (k,))[0],
    weighted(queries, keys[used], labels[used], (k,))[0],
  ):
    np.testing.assert_array_equal(one, whole)


def test_majorities_of_several_numbers_are_those_of_each():
  queries, keys = exact(21, 0), exact(80, 1)
  labels = np.random.RandomState(2).randint(0, 4, 80)
  several = knn.ranks_of_each(
    queries, keys, labels, ks=(3, 40, 7), num_classes=4
  )
  for k, ranks in zip((3, 40, 7), several, strict=True):
    alone = knn.ranks(queries, keys, labels, k=k, num_classes=4)
    np.testing.assert_array_equal(ranks, alone)


# -- Soft nearest neighbours --


def soft(queries, keys, labels, num_classes=3, temperature=0.1):
  return np.exp(
    knn.soft_scores(
      queries, keys, labels, num_classes=num_classes, temperature=temperature
    )
  )


@pytest.mark.parametrize('keys_at_a_time', [2**14, 4])
def test_soft_neighbours_are_those_of_pawss_release(
  keys_at_a_time, monkeypatch
):
  """golden_data/paws_parts.npz, snn/: make_snn of src/snn_eval.py."""
  monkeypatch.setattr(knn, '_KEYS', keys_at_a_time)
  monkeypatch.setattr(knn, '_QUERIES', 2)
  file = golden.load('paws_parts.npz')
  given = [file[f'snn/{x}'] for x in ('queries', 'embeddings', 'labels')]
  wanted = file['snn/probs']
  np.testing.assert_allclose(soft(*given), wanted, rtol=1e-5, atol=1e-7)
  # Images without a label are left out, and a class without images is last.
  queries, keys, labels = given
  more = np.concatenate([queries, keys])
  none = np.concatenate([np.full(len(queries), -1), labels])
  found = knn.soft_scores(queries, more, none, num_classes=4, temperature=0.1)
  np.testing.assert_allclose(np.exp(found[:, :3]), wanted, rtol=1e-5, atol=1e-7)
  assert np.isfinite(found).all() and (found.argmin(axis=1) == 3).all()


def test_soft_neighbours_by_hand():
  keys, labels = np.eye(2, dtype=np.float32), np.array([2, 0])
  # e^10 against e^0, then equal ones; the length of a vector does not count.
  queries = np.array([[3.0, 0.0], [1.0, 1.0]], np.float32)
  found = soft(queries, keys, labels)
  first = 1 / (1 + np.exp(-10))
  wanted = [[1 - first, 0, first], [0.5, 0, 0.5]]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
  # However cold it is, no sum is 0 or infinite.
  found = soft(-queries, keys, labels, temperature=1e-4)
  np.testing.assert_allclose(found, [[1, 0, 0], [0.5, 0, 0.5]])
