"""Negatives are admissible, uniform, and blind to the number of devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from semppl_jax.losses import negatives

DRAWS = 20_000
LABELS = np.array([3, -1, 0, 3, 3, -1, 0, 3, 3, 7], np.int32)  # [B]
SAME = np.zeros(10, np.int32)

# Compiled once per batch size, number and rule: tests share their shapes.
sample = functools.partial(
  jax.jit, static_argnames=('num_negatives', 'exclude_same_label')
)(negatives.sample)


@functools.cache
def make_keys(seed):
  return jax.random.split(jax.random.key(seed), DRAWS)


def draw(places, labels, num, exclude, seed=0):
  """One draw per place, from the seed's first keys, as NumPy arrays."""
  padded = np.zeros(DRAWS, np.int32)
  padded[: len(places)] = places
  index, mask = sample(
    make_keys(seed),
    padded,
    labels,
    num_negatives=num,
    exclude_same_label=exclude,
  )
  return np.asarray(index)[: len(places)], np.asarray(mask)[: len(places)]


def admissible(m, labels, exclude):
  """Plain reading of the rule."""
  same = lambda n: exclude and labels[m] >= 0 and labels[n] == labels[m]
  return {n for n in range(len(labels)) if n != m and not same(n)}


@pytest.mark.parametrize(
  'labels, num, exclude',
  [
    (LABELS, 3, False),
    (LABELS[:4], 3, False),  # the smallest batch: everyone else
    (LABELS, 3, True),
    (LABELS, 6, True),  # five are not of label 3
  ],
)
def test_admissible_distinct_and_as_many_as_there_are(labels, num, exclude):
  places = np.tile(np.arange(len(labels)), 50)
  index, mask = draw(places, labels, num, exclude)
  assert index.shape == mask.shape == (len(places), num)
  assert index.dtype == np.int32
  assert mask.dtype == bool
  assert set(index[~mask]) <= {0}
  fewest = min(len(admissible(m, labels, exclude)) for m in places)
  assert mask.all() == (fewest >= num)
  for m, row, counts in zip(places, index, mask, strict=True):
    allowed = admissible(m, labels, exclude)
    chosen = row[counts].tolist()
    assert len(chosen) == min(num, len(allowed))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= allowed


def test_all_others_are_alike():
  assert not draw(np.arange(10), SAME, 3, True)[1].any()
  # Without a label nobody is left out, and the rule changes no draw.
  index, mask = draw(np.arange(10), SAME - 1, 3, True)
  assert mask.all()
  plain, _ = draw(np.arange(10), SAME, 3, False)
  np.testing.assert_array_equal(index, plain)


# The image at either end of the batch and inside; others of the same label on
# both sides; a label of few; no label.
@pytest.mark.parametrize(
  'labels, m, exclude',
  [
    (SAME, 0, False),
    (SAME, 4, False),
    (SAME, 9, False),
    (LABELS, 4, True),
    (LABELS, 2, True),
    (LABELS, 5, True),
  ],
)
def test_all_sets_are_equally_likely(labels, m, exclude):
  index, mask = draw(np.full(DRAWS, m), labels, 3, exclude, seed=1)
  assert mask.all()
  allowed = sorted(admissible(m, labels, exclude))
  sets = itertools.combinations(allowed, 3)
  seen = dict.fromkeys(sets, 0)
  for row in np.sort(index, axis=1):
    seen[tuple(row.tolist())] += 1
  assert scipy.stats.chisquare(list(seen.values())).pvalue > 1e-4
  pairs = {pair: 0 for pair in itertools.combinations(allowed, 2)}
  for row, count in seen.items():
    for pair in itertools.combinations(row, 2):
      pairs[pair] += count
  # Pairs of one set hang together, which only lowers their statistic.
  assert scipy.stats.chisquare(list(pairs.values())).pvalue > 1e-4


def test_large_batch_is_uniform():
  m, batch = 77, 200
  labels = np.zeros(batch, np.int32)
  index, _ = draw(np.full(DRAWS, m), labels, 10, False, seed=1)
  counts = np.bincount(index.ravel(), minlength=batch)
  assert counts[m] == 0
  # Draws without replacement vary less, by (N - n) / (N - 1).
  statistic = scipy.stats.chisquare(np.delete(counts, m)).statistic * 198 / 189
  assert scipy.stats.chi2.sf(statistic, 198) > 1e-4
  # Every image has a key, hence a draw, of its own.
  assert len(np.unique(index[:100], axis=0)) == 100


@pytest.mark.parametrize('devices, exclude', [(2, False), (5, True)])
def test_number_of_devices_changes_nothing(devices, exclude):
  whole = draw(np.arange(10), LABELS, 3, exclude)
  mapped = jax.pmap(
    lambda keys, places: negatives.sample(
      keys,
      places,
      jnp.asarray(LABELS),
      num_negatives=3,
      exclude_same_label=exclude,
    ),
    devices=jax.devices()[:devices],
  )
  parts = mapped(
    make_keys(0)[:10].reshape(devices, -1),
    np.arange(10, dtype=np.int32).reshape(devices, -1),
  )
  for part, expected in zip(parts, whole, strict=True):
    np.testing.assert_array_equal(part.reshape(10, 3), expected)


# Others that an image names, and which of these count.
_EXCLUDED = np.array([9, 4, 0], np.int32)
_COUNTS = np.array([True, False, True])

sample_without = functools.partial(
  jax.jit, static_argnames=('num_negatives', 'batch_size')
)(negatives.sample_without)


def _without(places, counts, num):
  tile = lambda x: np.tile(x, (len(places), 1))
  index, mask = sample_without(
    make_keys(1)[: len(places)], np.asarray(places, np.int32),
    tile(_EXCLUDED), tile(counts), num_negatives=num, batch_size=10,
  )  # fmt: skip
  return np.asarray(index), np.asarray(mask)


@pytest.mark.parametrize('m', [3, 1, 8])
def test_those_that_an_image_names_are_left_out(m):
  index, mask = _without(np.full(2000, m), _COUNTS, 3)
  assert mask.all() and index.dtype == np.int32
  allowed = sorted(set(range(10)) - {m, 9, 0})
  sets = {tuple(row.tolist()): 0 for row in np.sort(index, axis=1)}
  assert set(sets) == set(itertools.combinations(allowed, 3))
  for row in np.sort(index, axis=1):
    sets[tuple(row.tolist())] += 1
  assert scipy.stats.chisquare(list(sets.values())).pvalue > 1e-4
  index, mask = _without(np.full(50, m), _COUNTS, 9)
  assert mask.sum(axis=1).tolist() == [len(allowed)] * 50
  assert all(set(row[there]) == set(allowed) for row, there in zip(index, mask))
  assert not index[~mask].any()


def test_naming_nobody_draws_as_ever():
  places = np.arange(10)
  index, mask = _without(places, np.zeros(3, bool), 4)
  wanted, _ = draw(places, LABELS, 4, False, seed=1)
  assert mask.all()
  np.testing.assert_array_equal(index, wanted)


@pytest.mark.parametrize('exclude', [False, True])
@pytest.mark.parametrize('num', [10, 11])
def test_too_small_a_batch(num, exclude):
  with pytest.raises(ValueError, match=rf'batch_size 10 .*\b{num}\b'):
    draw(np.arange(10), LABELS, num, exclude)
