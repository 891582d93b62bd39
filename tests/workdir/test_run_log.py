"""What is logged of a step, and when a run is stopped."""

import numpy as np
import pytest

from semppl_jax.workdir import run_log


def test_pseudo_label_accuracy_judges_unlabelled_images_with_one():
  labels = np.array([[0, 1, 2], [1, -1, 0]])
  given = np.array([-1, -1, 2, -1, -1, -1])
  truth = np.array([0, 2, 0, 1, 1, -1])
  # Judged: 0 right, 1 wrong, 3 right; not: labelled, none, unknown truth.
  accuracy = run_log.pseudo_label_accuracy(labels, given, truth)
  assert accuracy == pytest.approx(2 / 3)
  assert run_log.pseudo_label_accuracy(labels, labels.ravel(), truth) is None


def test_means_over_nobody_are_none():
  scalars = {'loss': 1.0, 'labelled_vote_accuracy': 0.0, 'vote_share': 0.0}
  seen = lambda *given: run_log.without_empty_means(scalars, np.array(given))
  assert seen(-1, 2) == scalars
  assert seen(-1, -1) == scalars | {'labelled_vote_accuracy': None}
  assert seen(0, 2) == scalars | {'vote_share': None}


def test_purity_is_of_pairs_of_other_images_whose_labels_are_known():
  truth = np.array([0, 0, 1, -1, 1, 0])
  ids = np.array([0, 4, 3])
  one = np.array(
    [
      [0, 1, 2, 3, 5],  # of class 0, itself left out: 1 and 5 are, 2 is not
      [4, 2, 4, 0, -1],  # of class 1: 2 is, 0 is not
      [3, 0, 1, 2, 4],  # of an unknown one
    ]
  )
  none = np.full((3, 1), -1)
  found = run_log.purity(
    {'a': one, 'b': none, 'c': one[:1, :2].repeat(3, 0)}, ids, truth
  )
  assert found['a'] == pytest.approx(3 / 5) and found['b'] is None
  # 1 to image 0; 0 and 1 to image 4.
  assert found['c'] == pytest.approx(1 / 3)


def test_unreadable_images_are_counted_over_the_lives_of_a_run(tmp_path):
  path = tmp_path / 'unreadable.jsonl'
  run_log.Unreadable(path)('a', 'cut')
  with path.open('a') as file:
    file.write('[1]\n{"name": "b", "rea')  # damage; a kill
  second = run_log.Unreadable(path)
  assert len(second) == 1
  for name in ('a', 'b', 'c'):
    second(name, 'cut')
  assert len(run_log.Unreadable(path)) == 3
