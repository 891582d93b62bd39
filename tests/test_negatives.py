"""Negatives are admissible, uniform, and blind to the number of devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from semppl_jax import errors
from semppl_jax import negatives

LABELS = np.array([3, -1, 0, 3, 3, -1, 0, 3, 3, 7], np.int32)


def draw(keys, places, labels, num, exclude):
  index, mask = negatives.sample(
    keys,
    jnp.asarray(places, jnp.int32),
    jnp.asarray(labels, jnp.int32),
    num_negatives=num,
    exclude_same_label=exclude,
  )
  return np.asarray(index), np.asarray(mask)


def admissible(m, labels, exclude):
  """Plain reading of the rule."""
  same = lambda n: exclude and labels[m] >= 0 and labels[n] == labels[m]
  return {n for n in range(len(labels)) if n != m and not same(n)}


@pytest.mark.parametrize('exclude', [False, True])
@pytest.mark.parametrize('num', [1, 4, 6, 9])
def test_admissible_distinct_and_as_many_as_there_are(num, exclude):
  repeats = 20
  places = np.tile(np.arange(len(LABELS)), repeats)
  keys = jax.random.split(jax.random.key(num), len(places))
  index, mask = draw(keys, places, LABELS, num, exclude)
  assert index.shape == mask.shape == (len(places), num)
  assert index.dtype == np.int32
  assert mask.dtype == bool
  assert index.min() >= 0
  assert index.max() < len(LABELS)
  for m, row, counts in zip(places, index, mask, strict=True):
    allowed = admissible(m, LABELS, exclude)
    chosen = row[counts].tolist()
    assert len(chosen) == min(num, len(allowed))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= allowed


def test_all_others_are_alike():
  labels = np.zeros(6)
  keys = jax.random.split(jax.random.key(0), 6)
  assert not draw(keys, np.arange(6), labels, 4, True)[1].any()
  # Without a label nobody is left out.
  index, mask = draw(keys, np.arange(6), labels - 1, 4, True)
  assert mask.all()
  np.testing.assert_array_equal(
    index, draw(keys, np.arange(6), labels, 4, False)[0]
  )


# (global batch, image, negatives, exclude): sets of 1, pairs, larger sets, and
# images at either end of the batch.
@pytest.mark.parametrize(
  'labels, m, num, exclude',
  [
    (np.zeros(7), 0, 1, False),
    (np.zeros(16), 15, 2, False),
    (np.zeros(7), 2, 3, False),
    (np.zeros(6), 3, 4, False),
    (LABELS, 4, 2, True),  # others of label 3 on both sides
    (LABELS, 4, 3, True),
    (LABELS, 5, 2, True),  # no label: 9 admissible
  ],
)
def test_all_sets_are_equally_likely(labels, m, num, exclude):
  draws = 20_000
  keys = jax.random.split(jax.random.key(1), draws)
  index, mask = draw(keys, np.full(draws, m), labels, num, exclude)
  assert mask.all()
  allowed = sorted(admissible(m, labels, exclude))
  cells = {c: 0 for c in itertools.combinations(allowed, num)}
  for row in np.sort(index, axis=1):
    cells[tuple(row.tolist())] += 1
  assert scipy.stats.chisquare(list(cells.values())).pvalue > 1e-4


def test_large_batch_is_uniform():
  draws, batch, num, m = 20_000, 200, 10, 77
  keys = jax.random.split(jax.random.key(2), draws)
  index, _ = draw(keys, np.full(draws, m), np.zeros(batch), num, False)
  counts = np.delete(np.bincount(index.ravel(), minlength=batch), m)
  # Draws without replacement vary less, by (N - n) / (N - 1).
  statistic = scipy.stats.chisquare(counts).statistic * (198 / 189)
  assert scipy.stats.chi2.sf(statistic, 198) > 1e-4


@pytest.mark.parametrize('exclude', [False, True])
def test_number_of_devices_changes_nothing(exclude):
  batch = 16
  labels = np.random.RandomState(0).randint(-1, 3, batch)
  keys = jax.random.split(jax.random.key(3), batch)
  sample = jax.jit(negatives.sample, static_argnames=STATIC)
  split = lambda x, devices: x.reshape((devices, -1) + x.shape[1:])
  whole = draw(keys, np.arange(batch), labels, 5, exclude)
  for devices in (1, 2, 8):
    parts = [
      sample(k, i, labels, num_negatives=5, exclude_same_label=exclude)
      for k, i in zip(split(keys, devices), split(np.arange(batch), devices))
    ]
    joined = [np.concatenate(x) for x in zip(*parts, strict=True)]
    np.testing.assert_array_equal(joined[0], whole[0])
    np.testing.assert_array_equal(joined[1], whole[1])
  mapped = jax.pmap(
    lambda k, i: draw_traced(k, i, labels, exclude), devices=jax.devices()[:4]
  )
  index, mask = mapped(split(keys, 4), split(np.arange(batch), 4))
  np.testing.assert_array_equal(index.reshape(batch, 5), whole[0])
  np.testing.assert_array_equal(mask.reshape(batch, 5), whole[1])


STATIC = ('num_negatives', 'exclude_same_label')


def draw_traced(keys, places, labels, exclude):
  return negatives.sample(
    keys,
    places,
    jnp.asarray(labels),
    num_negatives=5,
    exclude_same_label=exclude,
  )


def test_images_draw_from_their_own_keys():
  keys = jax.random.split(jax.random.key(4), 64)
  index, _ = draw(keys, np.full(64, 0), np.zeros(100), 10, False)
  assert len({tuple(row) for row in index.tolist()}) == 64
  again, _ = draw(keys, np.full(64, 0), np.zeros(100), 10, False)
  np.testing.assert_array_equal(index, again)


@pytest.mark.parametrize('exclude', [False, True])
@pytest.mark.parametrize('batch', [9, 10])
def test_too_small_a_batch(batch, exclude):
  keys = jax.random.split(jax.random.key(0), batch)
  with pytest.raises(errors.UserError, match=rf'\b{batch}\b.*\b10\b'):
    draw(keys, np.arange(batch), np.arange(batch), 10, exclude)


def test_the_smallest_batch_takes_everyone():
  keys = jax.random.split(jax.random.key(0), 11)
  index, mask = draw(keys, np.arange(11), np.zeros(11), 10, False)
  assert mask.all()
  for m, row in enumerate(np.sort(index, axis=1)):
    np.testing.assert_array_equal(row, np.delete(np.arange(11), m))
