"""The second stream: which labelled images come with every batch."""

import functools
import types
from collections import Counter

import numpy as np
import pytest
from absl import flags

from semppl_jax.data import pipeline, sources, support
from semppl_jax.data import workers as workers_lib
from semppl_jax.errors import UserError
from tests.data import test_pipeline as helpers

HIDDEN = 9  # a label that the source knows and the subset hides
NAMES = ('ant', 'bee', 'cat', 'dog')
# Labels that training sees of 40 images: 3, 5, 4 and 6 of the classes.
LABELS = np.full(40, -1)
for label, count in enumerate((3, 5, 4, 6)):
  LABELS[7 * label : 7 * label + count] = label


def section(any_class=0, classes=0, images_per_class=0):
  return types.SimpleNamespace(
    images=any_class, classes=classes, images_per_class=images_per_class
  )


ANY, BY_CLASS = section(12), section(classes=4, images_per_class=3)


def make(cfg, labels=LABELS, seed=0):
  return support.make_support(cfg, labels, NAMES, seed=seed)


def read(cfg, labels=LABELS, source=None, **settings):
  """Batches of 20 images and their support, on one host or of one host."""
  if source is None:
    source = sources.Records(
      np.full(len(labels), HIDDEN), lambda i: np.full((2, 3, 3), i, np.uint8)
    )
  given = dict(seed=0, batch_size=20, start_step=0, num_steps=4, threads=0)
  made = pipeline.batches(
    source, labels, support=cfg and make(cfg, labels), **(given | settings)
  )
  return [(batch, truth) for batch, truth in made]


def supports(found):
  """(images, labels, ids) of each step's support."""
  return [batch.support[:3] for batch, _ in found]


@functools.cache
def reference(by_class):
  return supports(read(BY_CLASS if by_class else ANY))


def assert_same(found, wanted):
  assert len(found) == len(wanted)
  for some, others in zip(found, wanted):
    for x, y in zip(some, others):
      np.testing.assert_array_equal(x, y)


both = pytest.mark.parametrize('by_class', [False, True])


def of(by_class):
  return BY_CLASS if by_class else ANY


# -- which images --


def test_every_epoch_has_every_labelled_image_once():
  order = make(ANY)
  rows = np.array([order.row(s, i) for s in range(9) for i in range(12)])
  epochs = rows.reshape(6, 18)  # 9 steps of 12 are 6 epochs of 18
  known = np.flatnonzero(LABELS >= 0)
  np.testing.assert_array_equal(np.sort(epochs), [known] * 6)
  assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize('classes, each', [(4, 3), (2, 3), (3, 2), (1, 1)])
def test_classes_times_images_are_exact(classes, each):
  order = make(section(classes=classes, images_per_class=each))
  seen = Counter()
  for step in range(24):
    rows = [order.row(step, i) for i in range(classes * each)]
    assert len(set(rows)) == len(rows), 'an image stands twice'
    labels = LABELS[rows].reshape(classes, each)
    assert np.all(labels == labels[:, :1]), 'images of a class stand together'
    assert len(set(labels[:, 0])) == classes, 'a class stands twice'
    seen.update(labels[:, 0].tolist())
  # A round is 4 // C_s steps, and has a class once at most.
  rounds = 24 // (4 // classes)
  assert set(seen) == {0, 1, 2, 3} and max(seen.values()) <= rounds
  if 4 % classes == 0:
    assert set(seen.values()) == {rounds}


def test_a_class_shows_all_its_images_before_one_comes_again():
  """Of each of its epochs, as many as make whole turns."""
  order = make(section(classes=2, images_per_class=2))
  turns = {label: [] for label in range(4)}
  for step in range(24):
    for place in range(2):
      rows = [order.row(step, 2 * place + i) for i in range(2)]
      turns[int(LABELS[rows[0]])].append(rows)
  for label, count in enumerate((3, 5, 4, 6)):
    in_epoch = count // 2
    for first in range(0, 12 - in_epoch + 1, in_epoch):
      rows = np.concatenate(turns[label][first : first + in_epoch])
      assert len(set(rows)) == 2 * in_epoch
    # Which one is left out changes.
    assert len(set(np.concatenate(turns[label]))) == count


@both
def test_the_order_is_the_seeds_and_not_the_batchs(by_class):
  found = lambda **kwargs: [
    x[2].tolist() for x in supports(read(of(by_class), **kwargs))
  ]
  assert found() == [x[2].tolist() for x in reference(by_class)]
  assert found(batch_size=8) == found()
  rows = lambda seed: [
    make(of(by_class), seed=seed).row(step, i)
    for step in range(4)
    for i in range(12)
  ]
  assert rows(0) != rows(1)
  # It says nothing of the main stream, nor changes it.
  for (batch, truth), (alone, same) in zip(read(of(by_class)), read(None)):
    assert_same([batch[:3]], [alone[:3]])
    np.testing.assert_array_equal(truth, same)
    assert alone.support is None


@pytest.mark.parametrize(
  'cfg, rows',
  [
    (ANY, [10, 21, 11, 23, 8, 22, 14, 15, 2, 24, 9, 7]),
    (BY_CLASS, [22, 21, 25, 14, 16, 15, 2, 0, 1, 11, 8, 10]),
  ],
)
def test_the_order_is_frozen(cfg, rows):
  """A change here breaks every run that is taken up again."""
  assert [make(cfg).row(3, i) for i in range(12)] == rows


# -- the promises of the input --


@both
def test_hidden_labels_are_never_in_it(by_class):
  for images, labels, ids in reference(by_class):
    np.testing.assert_array_equal(labels, LABELS[ids])
    assert np.all(labels >= 0) and HIDDEN not in labels
    np.testing.assert_array_equal(images[:, 1, 2, 0], ids)
    assert labels.dtype == ids.dtype == np.int32 and images.dtype == np.uint8
    assert images.shape == (12, 2, 3, 3)


@both
@pytest.mark.parametrize('hosts', [2, 4])
def test_number_of_hosts_changes_nothing(hosts, by_class):
  parts = [
    supports(read(of(by_class), host_index=h, host_count=hosts))
    for h in range(hosts)
  ]
  joined = [
    tuple(np.concatenate(arrays) for arrays in zip(*step))
    for step in zip(*parts)
  ]
  assert_same(joined, reference(by_class))


@both
@pytest.mark.parametrize('start', [1, 3])
def test_starting_at_a_step_continues_the_run(start, by_class):
  rest = read(of(by_class), start_step=start, num_steps=4 - start)
  assert_same(supports(rest), reference(by_class)[start:])


@both
@pytest.mark.parametrize('most', [1, 7, 32])
def test_threads_and_pieces_change_nothing(most, by_class, monkeypatch):
  monkeypatch.setattr(workers_lib, '_MOST_IN_A_PIECE', most)
  assert_same(supports(read(of(by_class), threads=3)), reference(by_class))


@pytest.mark.long
def test_workers_change_nothing():
  flags.FLAGS.mark_as_parsed()  # as `main` does; grain's workers ask for it
  source = sources.Records(np.full(40, HIDDEN), helpers.read)
  settings = dict(source=source, host_index=1, host_count=2, start_step=1,
                  num_steps=3)  # fmt: skip
  found = read(BY_CLASS, workers=2, **settings)
  assert_same(
    [tuple(np.array(x) for x in batch[:3]) for batch, _ in found],
    [batch[:3] for batch, _ in read(BY_CLASS, **settings)],
  )
  assert_same(
    supports(found), [[x[6:] for x in step] for step in reference(True)[1:]]
  )


@both
def test_a_stand_in_is_of_the_same_class(by_class):
  broken = (0, 7, 8, 9, 23)  # of three classes; of one, three of five
  source = helpers.encoded([(2, 2)] * 40, broken=broken)
  cfg, told = of(by_class), []
  kwargs = dict(source=source, images=helpers.CANVAS)
  tell = lambda name, reason: told.append(name)
  found = read(cfg, num_steps=9, on_unreadable=tell, **kwargs)
  assert {f'{i}.png' for i in broken} <= set(told)
  assert len(told) == len(set(told))
  order = make(cfg)
  for step, (batch, _) in enumerate(found):
    wanted = np.array([order.row(step, i) for i in range(12)])
    readable = ~np.isin(wanted, broken)
    np.testing.assert_array_equal(batch.support.ids[readable], wanted[readable])
    assert not np.isin(batch.support.ids, broken).any()
    np.testing.assert_array_equal(batch.support.labels, LABELS[wanted])
    np.testing.assert_array_equal(
      batch.support.labels, LABELS[batch.support.ids]
    )
    assert batch.support.sizes.shape == (12, 2)
  # Wherever it was started, and on whatever host.
  second = read(
    cfg, start_step=5, num_steps=2, host_index=1, host_count=2, **kwargs
  )
  assert_same(
    supports(second), [[x[6:] for x in s] for s in supports(found[5:7])]
  )


def test_masks_come_with_it():
  canvas = pipeline.Images(canvas=(4, 4), masks=helpers.OddMasks())
  source = helpers.encoded([(3, 3)] * 40)
  for batch, _ in read(ANY, source=source, images=canvas):
    whole = batch.support.masks[:, :3, :3].all((1, 2))
    np.testing.assert_array_equal(whole, batch.support.ids % 2 == 1)


# -- what cannot work --


@pytest.mark.parametrize(
  'cfg, words',
  [
    (section(19), 'support.images is 19, but only 18 training images'),
    (section(classes=5, images_per_class=1), 'support.classes is 5, .* has 4'),
    (
      section(classes=2, images_per_class=4),
      "images_per_class is 4, but class 'ant' has only 3",
    ),
  ],
)
def test_more_than_the_labels_give_is_refused(cfg, words):
  with pytest.raises(UserError, match=words):
    make(cfg)


@pytest.mark.parametrize('cfg', [section(4), BY_CLASS])
def test_a_class_without_a_labelled_image_is_refused(cfg):
  labels = np.where(LABELS == 2, -1, LABELS)
  with pytest.raises(UserError, match="1 of the 4 classes, 'cat' the first"):
    make(cfg, labels)


def test_hosts_that_do_not_divide_it_are_refused():
  with pytest.raises(ValueError, match='5 hosts do not divide 12 images'):
    read(ANY, host_count=5)
