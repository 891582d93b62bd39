"""The scores of results.json, on features written by hand."""

import numpy as np
import pytest

from semppl_jax.evaluation import features as features_lib
from semppl_jax.evaluation import final_scores
from tests.helpers import tiny


def _features(rows):
  rows = np.asarray(rows, np.float32)
  votes = np.arange(len(rows), dtype=np.int32) % 2
  return features_lib.Features(rows, votes, 1 - votes, np.ones(len(rows), bool))


def test_scores_by_hand():
  train = _features([[1, 0], [0, 1], [2, 0.1], [0.1, 2]])
  test = _features([[1, 0.2], [0.2, 1]])
  cfg = tiny.frozen(tiny.make_config(evaluation__k=1))
  scores = lambda cfg, **kw: final_scores.scores(
    train, test, truth=np.array([0, 1, 0, 0]), test_truth=np.array([0, 1]),
    cfg=cfg, **kw,
  )  # fmt: skip
  result = scores(cfg, labels=np.array([0, 1, -1, -1]))
  # Votes 0, 1 for the unlabelled images, whose truth is 0, 0.
  assert result['pseudo_label_accuracy'] == 0.5
  assert result['knn_top1'] == result['linear_labelled_top1'] == 1
  assert result['classifier_top1'] == 0
  assert result['prediction_top1'] == 1  # votes 0, 1
  supervised = tiny.frozen(tiny.make_config(classifier__detached=False))
  result = scores(supervised, labels=np.array([0, -1, -1, -1]))
  # The classifier's guesses 0, 1, 0 against 1, 0, 0.
  assert result['pseudo_label_accuracy'] == pytest.approx(1 / 3)
  # Without labels only the probe on all known labels is left.
  result = scores(cfg, labels=np.full(4, -1))
  assert {k for k, v in result.items() if v is not None} == {'linear_all_top1'}


def test_a_method_that_predicts_nothing_has_no_score_for_it():
  train, test = (
    _features([[1, 0], [0, 1]])._replace(votes=np.full(2, -1)) for _ in range(2)
  )
  known = np.array([0, 1])
  result = final_scores.scores(
    train, test, labels=known, truth=known, test_truth=known,
    cfg=tiny.frozen(tiny.make_config(evaluation__k=1)),
  )  # fmt: skip
  assert result['knn_top1'] == 1 and 'prediction_top1' not in result


def test_without_a_test_split_and_without_any_truth():
  train = _features([[1, 0], [0, 1]])
  cfg = tiny.frozen(tiny.make_config())
  result = final_scores.scores(
    train, None, labels=np.array([0, -1]), truth=np.array([0, -1]),
    test_truth=None, cfg=cfg,
  )  # fmt: skip
  assert set(result.values()) == {None}


def test_no_probe_learns_from_what_is_kept_back():
  train = _features([[1, 0], [0, 1], [2, 0.1], [0.1, 2]])
  test = _features([[1, 0.2], [0.2, 1]])
  wrong = np.array([0, 1, 1, 0])  # in the last two
  score = lambda kept: final_scores.scores(
    train, test, labels=np.full(4, -1), truth=wrong,
    test_truth=np.array([0, 1]), kept_back=kept,
    cfg=tiny.frozen(tiny.make_config()),
  )['linear_all_top1']  # fmt: skip
  assert score(np.array([False, False, True, True])) == 1
  assert score(False) < 1
