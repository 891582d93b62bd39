"""Soft votes: by hand, and what must not change them."""

import numpy as np

from semppl_jax.evaluation import votes
from semppl_jax.memory.label_queue import LabelQueue

_KEYS = np.eye(4, dtype=np.float32)[:3]


def _voters(keys=_KEYS, labels=(0, 1, 1)):
  labels = np.array(labels, np.int32)
  return votes.Voters(np.asarray(keys)[None], labels, 10 + np.arange(len(keys)))


def test_shares_by_hand():
  """A class's vote is a mean over its labels: two of them are not twice one."""
  keys = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
  query = np.array([[0.8, 0.6]], np.float32)
  cosines = np.array([0.8, 0.96, 0.6])
  between = np.array([0.6, 0.0, 0.8] * 2)
  scale = 0.3 * between.std()
  assert np.isclose(votes.temperature(keys), scale, rtol=1e-5)
  e = np.exp(cosines / scale)
  sums = np.array([e[0], e[1:].mean()])
  found = votes.shares(query[None], _voters(keys), 3)
  np.testing.assert_allclose(found[0, :2], sums / sums.sum(), rtol=1e-4)
  assert found[0, 2] == 0  # nobody has that label


def test_shares_are_means_over_views():
  random = np.random.RandomState(0)
  queries = random.normal(size=(2, 5, 4)).astype(np.float32)
  both = votes.shares(queries, _voters(), 2)
  each = [votes.shares(queries[i : i + 1], _voters(), 2) for i in range(2)]
  np.testing.assert_allclose(both, np.mean(each, axis=0), rtol=1e-5)
  np.testing.assert_allclose(both.sum(axis=1), 1, rtol=1e-5)


def test_the_scale_of_cosines_does_not_change_shares():
  """Embeddings that share a large component have cosines close together."""
  random = np.random.RandomState(0)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  keys, query = random.normal(size=(6, 8)), random.normal(size=(1, 3, 8))
  labels = [0, 0, 1, 1, 2, 2]
  found = []
  for common in (0.0, 5.0):
    join = lambda x, c=common: np.concatenate(
      [unit(x), np.full((*x.shape[:-1], 1), c)], axis=-1
    ).astype(np.float32)
    voters = _voters(unit(join(keys)), labels)
    found.append(votes.shares(unit(join(query)), voters, 3))
  np.testing.assert_allclose(*found, atol=0.01)


def test_a_vote_by_hand():
  queries = np.array([[[0.9, 0.1, 0, 0], [0, 0, 1, 0.1]]], np.float32)
  found = votes.vote(queries, _voters(labels=[2, 0, 1]), 3)
  np.testing.assert_array_equal(found.labels, [2, 1])
  assert (found.share > 0.5).all()
  assert found.runner_up[0] == 0
  np.testing.assert_array_equal(found.neighbours[0, :2], [10, 11])
  assert (np.diff(found.similarity) <= 0).all()


def test_another_vote_may_choose_the_label():
  """Where the two differ, the share is small and the runner-up is larger."""
  queries = np.array([[[1, 0, 0, 0]]], np.float32)
  chosen_by = np.array([[0.1, 0.9]])
  found = votes.vote(queries, _voters(), 2, chosen_by)
  assert found.labels == [1] and found.runner_up == [0]
  assert found.share < found.runner_up_share
  np.testing.assert_allclose(found.share + found.runner_up_share, 1, rtol=1e-5)


def test_one_label_alone():
  found = votes.vote(np.ones((1, 2, 4), np.float32), _voters(_KEYS[:1], [1]), 2)
  np.testing.assert_array_equal(found.labels, [1, 1])
  np.testing.assert_array_equal(found.share, [1, 1])
  np.testing.assert_array_equal(found.runner_up, [-1, -1])


def test_of_the_queue_each_images_newest_entry_counts():
  queue = LabelQueue(
    embeddings=np.arange(2 * 6 * 1, dtype=np.float32).reshape(2, 6, 1),
    labels=np.array([0, 2, 1, 1, 0, -1]),
    ids=np.array([8, 9, 7, 7, 8, -1]),
    count=np.array(2 + 6),  # slots 1, 0, 5, 4, 3, 2 from the newest on
  )
  found = votes.of_queue(queue, {7: 70, 8: 80})
  np.testing.assert_array_equal(found.rows, [70, 80])
  np.testing.assert_array_equal(found.labels, [1, 0])
  np.testing.assert_array_equal(found.keys[:, :, 0], [[3, 0], [9, 6]])
