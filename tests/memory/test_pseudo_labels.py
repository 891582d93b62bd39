"""Votes: most frequent, then summed similarity, then the smallest id."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.memory import pseudo_labels
from tests.helpers import queue_model

NO_VOTE = -np.inf


def vote(labels, similarity):
  label, share = jax.jit(pseudo_labels.vote)(
    jnp.asarray(labels, jnp.int32), jnp.asarray(similarity, jnp.float32)
  )
  return np.asarray(label), np.asarray(share)


@pytest.mark.parametrize(
  'labels, similarity, winner, share',
  [
    # The most frequent wins, however far away.
    ([7, 7, 3, -1], [-0.9, -0.8, 1.0, NO_VOTE], 7, 2 / 3),
    # Two each: 3 has 0.5 + 0.25, 7 has 0.25 + 0.25.
    ([7, 3, 7, 3], [0.25, 0.5, 0.25, 0.25], 3, 1 / 2),
    ([3, 7, 3, 7], [0.25, 0.5, 0.25, 0.25], 7, 1 / 2),
    # Sums of negative similarities: -0.5 beats -0.75.
    ([1, 2, 1, 2], [-0.5, -0.25, -0.25, -0.25], 2, 1 / 2),
    # Equal sums: the smallest id, wherever it stands.
    ([9, 4, 9, 4], [0.5, 0.25, 0.25, 0.5], 4, 1 / 2),
    ([4, 9, 0, 5], [0.5, 0.5, 0.5, 0.5], 0, 1 / 4),
    # A sum of 0 and of -0 are equal; so is one vote of 0.
    ([6, 2, 5, -1], [0.0, -0.0, 0.0, NO_VOTE], 2, 1 / 3),
    # Empty slots have no vote, though there are more of them.
    ([-1, -1, -1, 8], [NO_VOTE] * 3 + [-1.0], 8, 1.0),
    # What stands beside an empty slot is never summed.
    ([-1, 5, -1, 6], [9.0, 0.5, np.nan, 0.25], 5, 1 / 2),
    ([-1, -1, -1, -1], [NO_VOTE] * 4, -1, 0.0),
    # A diverged network's votes still give one of the labels.
    ([3, 8, 8, -1], [np.nan] * 3 + [NO_VOTE], 8, 2 / 3),
  ],
)
def test_by_hand(labels, similarity, winner, share):
  got = vote(labels, similarity)
  assert got[0] == winner
  assert got[0].dtype == np.int32
  assert got[1] == np.float32(share)


def test_plain_model():
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, 4, (2, 50, 4))
  similarity = rng.integers(-2, 3, (2, 50, 4)) / 4  # many ties
  winner, share = vote(labels, similarity)
  for at in np.ndindex(2, 50):
    assert (winner[at], share[at]) == pytest.approx(
      queue_model.vote(labels[at], similarity[at])
    )


def test_order_of_votes_changes_no_bit():
  # Two labels with the same similarities in other orders: sums taken as they
  # come differ in the last bit, and rounding would choose the winner.
  rng = np.random.default_rng(1)
  similarity = np.tile(rng.uniform(-1, 1, (40, 8)).astype(np.float32), 2)
  labels = np.repeat([[5, 2]], 8, axis=1).repeat(40, axis=0)
  order = rng.permuted(np.tile(np.arange(16), (40, 1)), axis=1)
  shuffle = lambda x: np.take_along_axis(x, order, axis=1)
  winner, _ = vote(shuffle(labels), shuffle(similarity))
  np.testing.assert_array_equal(winner, 2)


def test_assign():
  got = pseudo_labels.assign(
    votes=jnp.array([4, 4, 4, 4, -1, -1]),
    share=jnp.array([1.0, 0.3, 0.25, 0.0, 0.0, 0.0]),
    labels=jnp.array([-1, -1, -1, 2, 3, -1]),
    min_share=0.3,
  )
  np.testing.assert_array_equal(got, [4, 4, -1, 2, 3, -1])


def test_assign_without_a_threshold():
  votes, labels = jnp.array([4, -1, 1]), jnp.array([-1, -1, 2])
  got = pseudo_labels.assign(votes, jnp.array([0.1, 0.0, 1.0]), labels, 0.0)
  np.testing.assert_array_equal(got, [4, -1, 2])


@pytest.mark.parametrize(
  'labels, share',
  [
    ([3, 3, 0, 7], 1 / 2),
    ([3, -1, -1, -1], 1.0),
    ([-1, 5, -1, 5, 2, -1], 2 / 3),
    ([0, 1, 2, 3], 1 / 4),
    ([-1, -1], 0.0),
  ],
)
def test_share_of_the_most_frequent_label(labels, share):
  found = jax.jit(pseudo_labels.top_share)(jnp.asarray(labels, jnp.int32))
  assert float(found) == pytest.approx(share)


def balance(labels, share, counted=None, strength=1.0):
  counted = np.ones(len(labels), bool) if counted is None else counted
  # A function of its own: what is compiled of one stays, whatever is patched.
  balanced = lambda *x: pseudo_labels.balance(*x, strength=strength)
  winner, won = jax.jit(balanced)(
    jnp.asarray(labels, jnp.int32),
    jnp.asarray(counted),
    jnp.asarray(share, jnp.float32),
  )
  assert winner.dtype == np.int32
  return np.asarray(winner), np.asarray(won)


def test_a_hub_gives_images_to_whom_they_lie_next():
  # Label 0 has most votes of all four; the last two also voted for label 1.
  votes = [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]]
  winner, share = balance(votes, [0.5, 0.5])
  np.testing.assert_array_equal(winner, [0, 0, 1, 1])
  np.testing.assert_allclose(share, [1, 1, 1 / 3, 1 / 3], rtol=1e-6)  # as voted
  # Hardly balanced: as voted.
  winner, share = balance(votes, [0.5, 0.5], strength=1e-6)
  np.testing.assert_array_equal(winner, [0, 0, 0, 0])
  np.testing.assert_allclose(share, [1, 1, 2 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize(
  'strength, of_zero, winner',
  [(1.0, 0.78, 1), (1.0, 0.82, 0), (0.5, 0.65, 1), (0.5, 0.68, 0)],
)
def test_a_round_of_balance_by_hand(strength, of_zero, winner, monkeypatch):
  monkeypatch.setattr(pseudo_labels, '_ROUNDS', 1)
  monkeypatch.setattr(pseudo_labels, '_HEAD_START', 0.0)
  # The third image gives 2/3 and 1/3, so the labels have 8/3 and 1/3 of three
  # votes. Wanted are 3a and 3(1 - a): it changes sides where 2/3 (9a/8)^s is
  # 1/3 (9(1 - a))^s, at a = 0.8 for s = 1 and at 2/3 for s = 1/2.
  votes = [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
  found, _ = balance(votes, [of_zero, 1 - of_zero], strength=strength)
  np.testing.assert_array_equal(found, [0, 0, winner])


def test_a_label_that_is_nearest_to_all_loses_most_of_them():
  rng = np.random.default_rng(1)
  votes = rng.choice([0, 1, 1, 1], (4000, 16))
  votes[:, 0] = rng.choice([0, 1, 3], 4000)
  plain, _ = vote(votes, np.zeros(votes.shape))
  assert np.mean(plain == 1) > 0.9
  winner, _ = balance(votes, np.array([0.5, 0.3, 0.0, 0.2]))
  found = np.bincount(winner, minlength=4) / 4000
  assert found[1] < 0.3 and found[0] > 0.5 and found[3] > 0.03
  assert found[2] == 0  # a class without labels


def test_who_does_not_count_takes_no_share():
  votes = [[0], [0], [1], [1], [1], [1]]
  counted = np.array([True, True, True, True, False, False])
  winner, share = balance(votes, [0.5, 0.5], counted)
  np.testing.assert_array_equal(winner, [0, 0, 1, 1, 1, 1])
  np.testing.assert_allclose(share[3], share[5])
  alone, alone_share = balance(votes[:4], [0.5, 0.5])
  np.testing.assert_allclose(share[:4], alone_share, rtol=1e-6)


def test_images_without_votes_get_none():
  winner, share = balance([[-1, -1], [-1, 0], [1, 1]], [0.5, 0.5])
  np.testing.assert_array_equal(winner, [-1, 0, 1])
  assert share[0] == 0
  winner, share = balance([[-1], [-1]], [0.5, 0.5])  # an empty queue
  np.testing.assert_array_equal(winner, [-1, -1])
  winner, _ = balance([[0], [1]], [0.5, 0.5], np.zeros(2, bool))
  np.testing.assert_array_equal(winner, [0, 1])
