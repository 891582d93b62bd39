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
