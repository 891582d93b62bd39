"""Embeddings in order for any number of devices; neighbours; probes."""

import jax
import numpy as np
import pytest

from semppl_jax.data import sources
from semppl_jax.evaluation import encoder_scores
from semppl_jax.models import multicrop
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from tests.helpers import tiny


def test_accuracy_counts_known_images_only():
  accuracy = encoder_scores.accuracy(np.array([1, 2, 3]), np.array([1, 0, -1]))
  assert accuracy == 0.5
  assert encoder_scores.accuracy(np.array([1]), np.array([-1])) is None


def test_knn_by_hand():
  keys = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], np.float32)
  labels = np.array([7, 5, 5])
  queries = np.array([[9.0, 1.0], [-1.0, 0.5], [0.1, 0.2]], np.float32)
  one = encoder_scores.knn_predict(queries, keys, labels, 1)
  np.testing.assert_array_equal(one, [7, 5, 5])
  # With all three, label 5 has two votes of three whatever the query.
  np.testing.assert_array_equal(
    encoder_scores.knn_predict(queries, keys, labels, 9), [5, 5, 5]
  )


def test_knn_ranks_by_hand():
  keys = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]], 'f4')
  labels = np.array([2, 0, 1, 1])
  query = np.array([[1.0, 0.1]], np.float32)
  rank = lambda k: encoder_scores.knn_scores(
    query, keys, labels, k=k, num_classes=4
  )[0].tolist()
  # One vote, for 0, its key is nearest; then by nearest key; 3 has none.
  assert rank(1) == [3, 1, 2, 0]
  # With all four keys class 1 has two votes.
  assert rank(9) == [2, 3, 1, 0]


def test_knn_ties_go_to_the_smaller_id():
  keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], 'f4')
  labels = np.array([1, 0, 3, 2])
  query = np.array([[1.0, 0.0]], np.float32)
  ranks = encoder_scores.knn_scores(query, keys, labels, k=2, num_classes=5)
  assert ranks[0].tolist() == [4, 3, 2, 1, 0]
  assert encoder_scores.knn_predict(query, keys, labels, 2)[0] == 0


@pytest.mark.parametrize('k', [1, 3, 50])
def test_the_first_rank_is_the_methods_vote(k):
  random = np.random.RandomState(0)
  keys, queries = (random.randn(n, 4).astype(np.float32) for n in (50, 37))
  labels = random.randint(0, 6, 50)
  found = encoder_scores.knn_scores(
    queries, keys, labels, k=k, num_classes=6, block_size=10
  )
  assert sorted(found[0]) == [0, 1, 2, 3, 4, 5]
  voted = encoder_scores.knn_predict(queries, keys, labels, k)
  np.testing.assert_array_equal(found.argmax(axis=1), voted)


def test_linear_probe_separates_what_is_separable():
  random = np.random.RandomState(0)
  labels = np.arange(40) % 2
  features = random.randn(40, 5).astype(np.float32)
  features[:, 0] += 20 * labels
  predicted = encoder_scores.linear_probe(
    features[:20], labels[:20], features, 1.0
  )
  np.testing.assert_array_equal(predicted, labels)
  only_one = encoder_scores.linear_probe(
    features[:3], np.full(3, 4), features, 1.0
  )
  np.testing.assert_array_equal(only_one, np.full(40, 4))


def _features(rows):
  rows = np.asarray(rows, np.float32)
  votes = np.arange(len(rows), dtype=np.int32) % 2
  return encoder_scores.Features(
    rows, votes, 1 - votes, np.ones(len(rows), bool)
  )


def test_scores_by_hand():
  train = _features([[1, 0], [0, 1], [2, 0.1], [0.1, 2]])
  test = _features([[1, 0.2], [0.2, 1]])
  cfg = tiny.frozen(tiny.make_config(evaluation__k=1))
  scores = lambda cfg, **kw: encoder_scores.scores(
    train, test, truth=np.array([0, 1, 0, 0]), test_truth=np.array([0, 1]),
    cfg=cfg, **kw,
  )  # fmt: skip
  result = scores(cfg, labels=np.array([0, 1, -1, -1]))
  # Votes 0, 1 for the unlabelled images, whose truth is 0, 0.
  assert result['pseudo_label_accuracy'] == 0.5
  assert result['knn_top1'] == result['linear_labelled_top1'] == 1
  assert result['classifier_top1'] == 0
  supervised = tiny.frozen(tiny.make_config(classifier__detached=False))
  result = scores(supervised, labels=np.array([0, -1, -1, -1]))
  # The classifier's guesses 0, 1, 0 against 1, 0, 0.
  assert result['pseudo_label_accuracy'] == pytest.approx(1 / 3)
  # Without labels only the probe on all known labels is left.
  result = scores(cfg, labels=np.full(4, -1))
  assert {k for k, v in result.items() if v is not None} == {'linear_all_top1'}


def test_without_a_test_split_and_without_any_truth():
  train = _features([[1, 0], [0, 1]])
  cfg = tiny.frozen(tiny.make_config())
  result = encoder_scores.scores(
    train, None, labels=np.array([0, -1]), truth=np.array([0, -1]),
    test_truth=None, cfg=cfg,
  )  # fmt: skip
  assert set(result.values()) == {None}


def test_features_are_in_order_for_any_number_of_devices():
  """40 images in batches of 16: the last one is short."""
  run = tiny.prepare(evaluation__batch_size=15)
  whole = tiny.portable(run)
  random = np.random.RandomState(0)
  rows = random.randn(2, 16, 8).astype(np.float32)
  queue = whole.memory._replace(
    embeddings=np.asarray(multicrop.l2_normalize(rows)),
    labels=np.r_[np.arange(12) % 3, [-1] * 4].astype(np.int32),
    ids=np.arange(16, dtype=np.int32),
    count=np.int32(12),
  )
  whole = whole._replace(memory=queue)
  found = []
  for num_devices in (1, 4):
    state = state_lib.from_host(
      whole, run.setup.method, jax.devices()[:num_devices]
    )
    devices = jax.devices()[:num_devices]
    found.append(
      encoder_scores.features(
        state,
        run.setup.method,
        run.setup.nets,
        run.cfg,
        run.data.train,
        devices,
      )
    )
  one, four = found
  assert one.embeddings.shape == (40, 16) and one.votes.shape == (40,)
  np.testing.assert_allclose(one.embeddings, four.embeddings, atol=1e-5)
  np.testing.assert_array_equal(one.votes, four.votes)
  np.testing.assert_array_equal(one.guesses, four.guesses)
  assert set(one.votes) <= {0, 1, 2} and len(set(one.votes)) > 1
  # In the source's order: the third image on its own.
  images = np.stack([run.data.train[i]['image'] for i in range(40)])
  assert len(np.unique(images.reshape(40, -1), axis=0)) == 40
  alone = encoder_scores.features(
    state_lib.from_host(whole, run.setup.method, jax.devices()[:1]),
    run.setup.method, run.setup.nets, run.cfg,
    sources.Rows(run.data.train, np.array([2])), jax.devices()[:1],
  )  # fmt: skip
  np.testing.assert_allclose(alone.embeddings[0], one.embeddings[2], atol=1e-5)
  assert isinstance(run, run_lib.TrainRun)
