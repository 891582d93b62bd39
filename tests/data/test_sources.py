"""Parts of sources, and sources of parts."""

import numpy as np
import pytest

from semppl_jax.data import sources


def make(count, start=0, names=True):
  read = lambda i: np.full((1, 1, 3), start + i, np.uint8)
  called = [f'n{start + i}' for i in range(count)] if names else None
  return sources.Records(np.arange(start, start + count), read, names=called)


def test_joined_sources_go_on_counting():
  joined = sources.Joined([make(3), make(0), make(2, start=50)])
  assert len(joined) == 5 and joined.labels.tolist() == [0, 1, 2, 50, 51]
  assert [joined[i]['id'] for i in range(5)] == list(range(5))
  pixels = [int(joined[i]['image'][0, 0, 0]) for i in range(5)]
  assert pixels == joined.labels.tolist()
  assert joined.names == ['n0', 'n1', 'n2', 'n50', 'n51']
  assert sources.Joined([make(2), make(2, names=False)]).names is None


def test_relabelled_images_are_the_same_images():
  hidden = sources.Relabelled(make(3), np.array([-1, 7, -1]))
  assert hidden.labels.dtype == np.int32
  assert [hidden[i]['label'] for i in range(3)] == [-1, 7, -1]
  assert hidden[2]['image'][0, 0, 0] == 2 and hidden[2]['id'] == 2


def test_rows_keep_ids_and_names():
  rows = sources.Rows(make(5), np.array([4, 1]))
  assert [rows[i]['id'] for i in range(2)] == [4, 1]
  assert rows.names == ['n4', 'n1'] and rows.labels.tolist() == [4, 1]
  assert sources.name(rows, 0) == 'n4'
  unnamed = sources.Rows(make(5, names=False), np.array([4, 1]))
  assert sources.name(unnamed, 0) == 'image 4'  # its id, not its row
  hidden = sources.Relabelled(unnamed, np.array([-1, -1]))
  assert sources.number(hidden, 1) == 1


def test_labels_stand_at_ids():
  source = sources.Relabelled(make(5), np.array([3, 1, 4, -1, 5]))
  np.testing.assert_array_equal(sources.labels_by_id(source), [3, 1, 4, -1, 5])
  some = sources.Rows(
    sources.Rows(source, np.array([4, 3, 0])), np.array([2, 1])
  )
  assert [some[i]['id'] for i in range(2)] == [0, 3]
  np.testing.assert_array_equal(sources.labels_by_id(some), [3, -1, -1, -1])
  joined = sources.Joined([make(2), make(1, start=7)])
  np.testing.assert_array_equal(sources.labels_by_id(joined), [0, 1, 7])


@pytest.mark.parametrize('count', [0, 7, 12])
def test_split_shares_add_up(count):
  labels = np.array([0] * 10 + [1] * 5 + [-1] * 4 + [2] * 3)
  rest, part = sources.split(labels, count, seed=3)
  assert len(part) == count and len(rest) == len(labels) - count
  assert not set(rest) & set(part) and np.all(labels[part] >= 0)
  taken = np.bincount(labels[part], minlength=3)
  assert np.all(np.abs(taken - np.array([10, 5, 3]) * count / 18) < 1)
