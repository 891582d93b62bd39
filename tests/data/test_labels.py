import types

import numpy as np
import pytest
from absl import logging

from semppl_jax import config
from semppl_jax.data import labels as labels_lib
from semppl_jax.data import sources
from semppl_jax.errors import UserError

# 40 images of class 0, 20 of class 1, 3 of class 2, 7 unknown, shuffled.
LABELS = np.random.RandomState(0).permutation(
  np.repeat([0, 1, 2, -1], [40, 20, 3, 7])
)


@pytest.fixture
def warnings(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: lines.append(text % args)
  )
  return lines


def select(**kwargs):
  return labels_lib.select_labels(LABELS, **(dict(seed=0) | kwargs))


def counts(selected):
  return np.bincount(selected[selected >= 0], minlength=3).tolist()


@pytest.mark.parametrize(
  'kwargs, expected',
  [
    (dict(per_class=1), [1, 1, 1]),
    (dict(per_class=3), [3, 3, 3]),
    (dict(fraction=0.25), [10, 5, 1]),
    (dict(fraction=0.01), [1, 1, 1]),  # at least one of each class
    (dict(fraction=0.5), [20, 10, 2]),
    (dict(fraction=1.0), [40, 20, 3]),
    (dict(), [0, 0, 0]),
  ],
)
def test_counts_of_each_class(kwargs, expected, warnings):
  selected = select(**kwargs)
  assert selected.dtype == np.int32 and selected.shape == LABELS.shape
  assert counts(selected) == expected
  seen = selected >= 0
  np.testing.assert_array_equal(selected[seen], LABELS[seen])
  assert np.all(selected[~seen] == -1)
  assert not warnings


def test_subsets_are_nested():
  settings = [
    dict(per_class=1), dict(fraction=0.2), dict(fraction=0.4),
    dict(per_class=19), dict(fraction=1.0),
  ]  # fmt: skip
  chosen = [set(np.flatnonzero(select(**s) >= 0)) for s in settings]
  for small, large in zip(chosen, chosen[1:]):
    assert small < large


def test_seed_chooses_the_images():
  subset = select(per_class=2)
  np.testing.assert_array_equal(subset, select(per_class=2))
  others = [select(per_class=2, seed=seed) for seed in (-1, 1, 2)]
  assert all((subset != other).any() for other in others)


def test_choice_is_uniform():
  chosen = [select(per_class=4, seed=seed) == 1 for seed in range(500)]
  share = np.mean(chosen, axis=0)[LABELS == 1]
  # 4 of 20; standard deviation sqrt(.2 x .8 / 500) = 0.018.
  np.testing.assert_allclose(share, 0.2, atol=0.08)


def test_a_class_does_not_change_another_one():
  without = np.where(LABELS == 0, -1, LABELS)
  alone = labels_lib.select_labels(without, per_class=2, seed=0)
  np.testing.assert_array_equal(alone == 1, select(per_class=2) == 1)


def test_subset_is_frozen():
  """A change here changes which labels a published number was made with."""
  selected = labels_lib.select_labels(
    np.arange(20) % 2, per_class=3, seed=0, class_names=('cat', 'dog')
  )
  assert np.flatnonzero(selected >= 0).tolist() == [1, 6, 9, 12, 14, 19]


@pytest.mark.parametrize(
  'kwargs, number',
  [
    (dict(per_class=5), 15),  # three classes
    (dict(per_class=1), 3),
    (dict(fraction=0.5), 32),  # of 63, rounded
    (dict(fraction=0.001), 1),
    (dict(fraction=1.0), 63),
    (dict(per_class=30), 63),
    (dict(), 0),
  ],
)
def test_random_draws_so_many_of_all(kwargs, number):
  selected = select(rule='random', **kwargs)
  seen = selected >= 0
  assert selected.dtype == np.int32 and np.sum(seen) == number
  np.testing.assert_array_equal(selected[seen], LABELS[seen])


def test_random_is_uniform_over_images():
  chosen = [
    select(rule='random', per_class=3, seed=seed) >= 0 for seed in range(500)
  ]
  share = np.mean(chosen, axis=0)
  # 9 of 63; standard deviation sqrt(.14 x .86 / 500) = 0.016.
  np.testing.assert_allclose(share[LABELS >= 0], 1 / 7, atol=0.07)
  assert not share[LABELS < 0].any()


def test_random_subsets_are_nested_and_frozen(warnings):
  """A change here changes which labels a published number was made with."""
  draw = lambda per_class, **changes: np.flatnonzero(
    labels_lib.select_labels(
      np.arange(20) % 2, per_class=per_class,
      class_names=('cat', 'dog', 'eel'), rule='random', **{'seed': 0} | changes,
    ) >= 0
  ).tolist()  # fmt: skip
  assert draw(1) == [1, 18, 19]
  assert set(draw(1)) < set(draw(3))
  assert draw(1) != draw(1, seed=1)
  assert all('Classes without labels: ' in line for line in warnings)
  assert all('eel' in line for line in warnings)


def test_small_class_gives_what_it_has_and_is_named(warnings):
  names = ('cat', 'dog', 'eel')
  selected = select(per_class=15, class_names=names)
  assert counts(selected) == [15, 15, 3]
  assert len(warnings) == 1
  assert 'eel (3)' in warnings[0] and 'dog' not in warnings[0]


def test_classes_without_labels_are_named(warnings):
  names = ('cat', 'dog', 'eel', 'fox', 'gnu')
  select(fraction=0.1, class_names=names)
  assert warnings == ['Classes without labels: fox, gnu']
  warnings.clear()
  # Without names, the labels' numbers.
  labels_lib.select_labels(np.array([0, 2]), per_class=1, seed=0)
  assert warnings == ['Classes without labels: 1']


def test_no_known_label():
  labels = labels_lib.select_labels(np.full(5, -1), per_class=2, seed=0)
  np.testing.assert_array_equal(labels, np.full(5, -1))


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(per_class=-1), 'labels.per_class is -1; .* at least 0'),
    (dict(fraction=1.5), 'labels.fraction is 1.5; .* from 0 to 1'),
    (dict(fraction=float('nan')), 'labels.fraction is nan'),
    (dict(per_class=2, fraction=0.1), 'per_class is 2 .*fraction is 0.1'),
  ],
)
def test_mistakes(kwargs, message):
  with pytest.raises(UserError, match=message) as e:
    select(**kwargs)
  assert '\n' not in str(e.value)


NAMES = [f'n{i % 3:08d}/n{i % 3:08d}_{i}.JPEG' for i in range(12)]
KNOWN = np.arange(12) % 3


def listed(tmp_path, text, labels=KNOWN, names=NAMES):
  path = tmp_path / 'list.txt'
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  data = types.SimpleNamespace(
    train=types.SimpleNamespace(labels=labels, names=names), held_out=()
  )
  cfg = config.default().labels
  cfg.file = str(path)
  return labels_lib.visible_labels(cfg, data)


def test_a_list_as_simclrs(tmp_path):
  """One name a line, without the class; the order does not matter."""
  selected = listed(tmp_path, 'n00000001_4.JPEG\nn00000000_9.JPEG\n')
  assert selected.dtype == np.int32
  assert dict(enumerate(selected)) == {
    i: {4: 1, 9: 0}.get(i, -1) for i in range(12)
  }


def test_a_list_with_classes_blanks_and_repetitions(tmp_path):
  text = f'\n{NAMES[3]}\r\n  {NAMES[3]}\n{NAMES[5]}  '
  selected = listed(tmp_path, text)
  np.testing.assert_array_equal(np.flatnonzero(selected >= 0), [3, 5])


@pytest.mark.parametrize(
  'text, words',
  [
    ('', 'is empty'),
    ('\n \n', 'is empty'),
    ('\udce9\udce8', 'it is no text'),
    ('n00000001_4.JPG', "did you mean 'n00000001_4.JPEG'?"),
    ('zzz\nn00000001_4.JPEG\nyyy', "2 of 3 names are not in the data"),
  ],
)  # fmt: skip
def test_lists_that_do_not_fit(text, words, tmp_path):
  with pytest.raises(UserError) as error:
    listed(tmp_path, text)
  assert words in str(error.value) and 'list.txt' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_list_that_is_not_there(tmp_path):
  for path in (tmp_path / 'none', tmp_path, '~nobody_of_this_name/x'):
    with pytest.raises(UserError, match='cannot be read'):
      labels_lib.read_list(str(path))


def test_names_that_fit_several_images_and_images_without_label(tmp_path):
  names = ['a/1.png', 'b/1.png', 'b/2.png']
  labels = np.array([0, 1, -1])
  with pytest.raises(UserError, match="several images are called '1.png'"):
    listed(tmp_path, '1.png', labels, names)
  selected = listed(tmp_path, 'b/1.png', labels, names)
  np.testing.assert_array_equal(selected, [-1, 1, -1])
  with pytest.raises(UserError, match="'2.png' has no label"):
    listed(tmp_path, '2.png', labels, names)


@pytest.mark.parametrize(
  'labels, num_classes, share',
  [
    ([2, 2, 0, 2, -1, -1], 3, 0.75),
    ([1, 1, -1], 1, 1.0),
    ([1, 1, -1], 2, 0.0),  # a mistake, maybe: it excuses nothing
    ([-1, -1], 5, 0.0),
  ],
)
def test_the_share_that_one_pseudo_label_may_have(labels, num_classes, share):
  assert labels_lib.largest_class(np.array(labels), num_classes) == share


def kept_back(labels, count, seed=0):
  return labels_lib.keep_back(
    np.asarray(labels, np.int32), count, seed=seed, class_names='abc'
  )


def test_calibration_labels_are_kept_back_whole():
  labels = np.where(np.arange(60) % 4, np.arange(60) % 3, -1)
  left, kept = kept_back(labels, 12)
  assert (kept >= 0).sum() == 12 and left.dtype == kept.dtype == np.int32
  np.testing.assert_array_equal(np.maximum(left, kept), labels)
  assert not np.any((left >= 0) & (kept >= 0))
  assert (kept_back(labels, 12, seed=1)[1] != kept).any()
  np.testing.assert_array_equal(kept_back(labels, 0)[0], labels)


def test_which_are_kept_back_does_not_hang_on_their_classes():
  labels = np.arange(60) % 3
  _, kept = kept_back(labels, 20)
  _, others = kept_back(labels[::-1], 20)
  np.testing.assert_array_equal(kept >= 0, others >= 0)


def test_calibration_labels_are_drawn_uniformly():
  labels = np.array([0] * 30 + [1] * 10)
  drawn = [kept_back(labels, 8, seed)[1] >= 0 for seed in range(500)]
  # 8 of 40; standard deviation sqrt(.2 x .8 / 500) = 0.018.
  np.testing.assert_allclose(np.mean(drawn, axis=0), 0.2, atol=0.08)


def test_some_label_must_be_left(warnings):
  with pytest.raises(UserError, match='calibration is 3, but only 3 training'):
    kept_back([0, 1, 2, -1], 3)
  kept_back([0, 1, -1], 1)
  assert len(warnings) == 1
  assert 'labels.calibration=1 leaves no label' in warnings[0]


def given(tmp_path, text, labels, names, class_names=('cat', 'dog')):
  path = tmp_path / 'list.csv'
  path.write_text(text)
  cfg = config.default().labels
  cfg.file = str(path)
  source = sources.Records(labels, lambda i: b'', names=names)
  number = len(class_names)
  data = sources.Dataset(source, None, number, class_names, (1, 1, 3), '')
  return labels_lib.known(cfg, data)


def test_a_class_in_the_list_overrules_the_folders(tmp_path):
  names = ['cat/1.png', 'cat/2.png', 'unlabelled/3.png']
  text = 'cat/1.png,dog\nunlabelled/3.png,cat\ncat/2.png\n'
  found = given(tmp_path, text, [0, 0, -1], names)
  np.testing.assert_array_equal(found.labels, [1, 0, 0])
  np.testing.assert_array_equal(found.data.train.labels, [1, 0, 0])
  (note,) = found.data.notes
  assert 'gives 1 images another class' in note and 'cat/1.png (dog)' in note
  assert found.data.train[0]['label'] == 1


def test_only_what_the_list_names_has_a_label(tmp_path):
  found = given(
    tmp_path, '2.png,dog', [0, 0, -1], ['cat/1.png', 'b/2.png', 'c']
  )
  np.testing.assert_array_equal(found.labels, [-1, 1, -1])
  np.testing.assert_array_equal(found.data.train.labels, [0, 1, -1])


def test_classes_of_a_data_set_without_any_are_the_lists(tmp_path):
  text = 'name,class\na.png,dog\nb.png,cat\nc.png,\n'
  names = ['u/a.png', 'u/b.png', 'u/c.png']
  found = given(tmp_path, text, [-1] * 3, names, ())
  assert (
    found.data.class_names == ('cat', 'dog') and found.data.num_classes == 2
  )
  np.testing.assert_array_equal(found.labels, [1, 0, -1])


@pytest.mark.parametrize(
  'text, words',
  [
    ('cat/1.png,dgo', "'dgo', the class of 'cat/1.png', is none of the 2"),
    ('cat/1.png,dgo', "did you mean 'dog'?"),
    ('dog/22.png,dog', "did you mean 'dog/2.png'?"),
    ('1.png,dog\ncat/1.png,cat', "'cat/1.png' stands there with two classes"),
    ('2.png,dog', "several images are called '2.png'"),
    ('u/3.png', "'u/3.png' has no label"),
  ],
)
def test_lists_with_classes_that_do_not_fit(text, words, tmp_path):
  names = ['cat/1.png', 'cat/2.png', 'dog/2.png', 'u/3.png']
  with pytest.raises(UserError) as error:
    given(tmp_path, text, [0, 0, 1, -1], names)
  assert words in str(error.value) and 'list.csv' in str(error.value)
  assert '\n' not in str(error.value)
