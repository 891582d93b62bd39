import functools
import io
import threading
import time
from collections import Counter

import numpy as np
import pytest
from absl import flags
from PIL import Image

from semppl_jax.data import pipeline, sampler, sources
from semppl_jax.data import workers as workers_lib
from semppl_jax.errors import UserError

HIDDEN = 5  # a label that the source knows and the subset hides


def read(index):
  return np.full((2, 3, 3), index, np.uint8)


def broken(index):
  if index == 4:
    raise UserError('image 4 is broken')
  return read(index)


def make(size, read=read):
  """A source of `size` images, and labels that show every fifth image's."""
  source = sources.Records(np.full(size, HIDDEN), read)
  labels = np.where(np.arange(size) % 5 == 0, np.arange(size) % 3, -1)
  return source, labels


def one_host(size, **kwargs):
  source, labels = make(size)
  settings = dict(seed=0, batch_size=24, start_step=0, num_steps=4, threads=0)
  return list(pipeline.batches(source, labels, **(settings | kwargs)))


def all_hosts(size, hosts, **kwargs):
  """Global batches: [steps] of (images, labels, ids, truth), joined."""
  parts = [
    one_host(size, host_index=h, host_count=hosts, **kwargs)
    for h in range(hosts)
  ]
  flat = [[(*batch[:3], truth) for batch, truth in part] for part in parts]
  return [
    tuple(np.concatenate(arrays) for arrays in zip(*step))
    for step in zip(*flat)
  ]


def assert_same(actual, expected):
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected):
    for x, y in zip(a, e):
      np.testing.assert_array_equal(x, y)


@functools.cache
def reference(size, **kwargs):
  return all_hosts(size, 1, **kwargs)


@pytest.mark.parametrize('hosts', [1, 2, 3, 8])
@pytest.mark.parametrize('size', [1, 7, 24, 61])
def test_every_epoch_has_every_image_once(size, hosts):
  steps = all_hosts(size, hosts, num_steps=-(-3 * size // 24))
  ids = np.concatenate([step[2] for step in steps])
  epochs = ids[: 3 * size].reshape(3, size)
  np.testing.assert_array_equal(np.sort(epochs), [np.arange(size)] * 3)
  if size > 7:
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


@pytest.mark.parametrize('share', [0.0, 0.25, 1.0])
@pytest.mark.parametrize('hosts', [2, 3, 8])
def test_number_of_hosts_changes_nothing(hosts, share):
  actual = all_hosts(61, hosts, labelled_share=share)
  assert_same(actual, reference(61, labelled_share=share))


def test_threads_change_nothing():
  assert_same(all_hosts(61, 2, threads=3), reference(61))


def test_a_bucket_is_read_by_many_threads_but_not_far_ahead():
  """A read takes a while: many wait at once; few images are in memory."""
  lock, running, most, begun = threading.Lock(), 0, 0, 0

  def slow(index):
    nonlocal running, most, begun
    with lock:
      running, begun = running + 1, begun + 1
      most = max(most, running)
    time.sleep(0.01)
    with lock:
      running -= 1
    return read(index)

  settings = dict(seed=0, batch_size=20, start_step=0, num_steps=99)
  disk, labels = make(61)
  remote = sources.Records(disk.labels, slow, remote=True)
  every = pipeline.batches(remote, labels, **settings)
  seen = [next(every)]
  time.sleep(0.5)
  # 32 threads have 7 images each, of a third of a batch; three batches wait.
  assert 16 <= most <= 32 and 60 < begun <= 20 + 32 * 7 + 3 * 20
  seen += every
  here = list(pipeline.batches(disk, labels, **settings))
  assert_same(*([(*b[:3], t) for b, t in x] for x in (seen, here)))


@pytest.fixture
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # as `main` does; grain's workers ask for it


def test_workers_change_nothing(parsed_flags):
  # 5 batches for 2 processes: one of them has one batch less.
  run = dict(num_steps=5, start_step=3, labelled_share=0.25)
  source, labels = make(61)
  settings = dict(seed=0, batch_size=24, host_index=1, host_count=2, **run)
  seen = [
    (*(np.array(x) for x in batch[:3]), np.array(truth))
    for batch, truth in pipeline.batches(source, labels, workers=2, **settings)
  ]
  expected = [tuple(x[12:] for x in step) for step in all_hosts(61, 1, **run)]
  assert_same(seen, expected)


@pytest.mark.long
def test_worker_that_fails_and_iterator_that_is_dropped(parsed_flags):
  source, labels = make(61, broken)
  settings = dict(seed=0, batch_size=24, start_step=0, num_steps=9, workers=2)
  with pytest.raises(UserError, match='image 4 is broken'):
    list(pipeline.batches(source, labels, **settings))
  source, labels = make(61)
  one = list(pipeline.batches(source, labels, **settings | {'num_steps': 1}))
  assert_same([one[0][0][:3]], [reference(61)[0][:3]])
  iterator = pipeline.batches(source, labels, **settings)
  batch, _ = next(iterator)
  iterator.close()
  np.testing.assert_array_equal(batch.ids, reference(61)[0][2])


@pytest.mark.parametrize('share', [0.0, 0.25])
@pytest.mark.parametrize('start', [1, 3])
def test_starting_at_a_step_continues_the_run(start, share):
  run = functools.partial(all_hosts, 61, 2, labelled_share=share)
  rest = run(start_step=start, num_steps=4 - start)
  assert_same(rest, reference(61, labelled_share=share)[start:])


@pytest.mark.parametrize('most', [1, 5, 11, 24])
@pytest.mark.parametrize('threads', [0, 3])
def test_pieces_of_a_batch_are_joined_in_order(most, threads, monkeypatch):
  """Also where they do not divide it; and the short batch of evaluation."""
  expected = reference(61)
  monkeypatch.setattr(workers_lib, '_MOST_IN_A_PIECE', most)
  assert_same(all_hosts(61, 2, threads=threads), expected)
  crop = pipeline.Images(crop=(2, 1.0))
  found = list(
    pipeline.in_order(
      encoded([(2, 2)] * 31), batch_size=13, images=crop, threads=threads
    )
  )
  assert [len(known) for _, known in found] == [13, 13, 5]
  pixels = np.concatenate([arrays[:, 0, 0, 0] for arrays, _ in found])
  np.testing.assert_allclose(pixels, np.arange(31) / 255)


def test_no_steps_left():
  assert one_host(61, start_step=9, num_steps=0) == []


def test_contract_of_a_batch():
  batch, truth = one_host(61, host_index=1, host_count=2, num_steps=1)[0]
  assert batch.images.shape == (12, 2, 3, 3) and batch.images.dtype == np.uint8
  for x in (batch.labels, batch.ids, truth):
    assert x.shape == (12,) and x.dtype == np.int32
  # The arrays of a batch belong together.
  np.testing.assert_array_equal(batch.images[:, 1, 2, 0], batch.ids)


@pytest.mark.parametrize('share', [0.0, 0.25, 1.0])
def test_labels_outside_the_subset_stay_on_the_host(share):
  _, labels = make(61)
  for _, given, ids, truth in reference(61, labelled_share=share):
    np.testing.assert_array_equal(given, labels[ids])
    assert HIDDEN not in given
    np.testing.assert_array_equal(truth, np.full(24, HIDDEN))


@pytest.mark.parametrize('share, count', [(0.25, 6), (0.1, 2), (1.0, 24)])
def test_share_gives_exact_counts(share, count):
  for _, labels, ids, _ in all_hosts(61, 1, labelled_share=share, num_steps=9):
    assert np.sum(labels >= 0) == count
    assert np.all((ids % 5 == 0) == (labels >= 0))


def test_share_streams_go_through_all_their_images():
  steps = all_hosts(61, 1, labelled_share=0.25, num_steps=26)
  ids = np.concatenate([step[2] for step in steps])
  counts = Counter(ids.tolist())
  # 26 x 6 = 12 x 13 labelled and 26 x 18 = 9 x 48 + 36 other positions.
  assert {counts[i] for i in range(0, 61, 5)} == {12}
  assert {counts[i] for i in range(61) if i % 5} == {9, 10}


def test_share_is_mixed_into_the_batch():
  steps = all_hosts(61, 1, labelled_share=0.5, num_steps=40)
  places = np.mean([step[1] >= 0 for step in steps], axis=0)  # [B]
  # 40 draws of a half: 6 standard deviations are 0.47.
  assert places.min() > 0.03 and places.max() < 0.97
  assert len({tuple(step[1] >= 0) for step in steps}) == 40


def test_natural_share_is_that_of_the_data():
  steps = all_hosts(60, 1, num_steps=5)
  assert sum(int(np.sum(step[1] >= 0)) for step in steps) == 2 * 60 // 5


@pytest.mark.parametrize('threads', [0, 3])
def test_broken_image_stops_the_run(threads):
  source, labels = make(61, broken)
  settings = dict(seed=0, batch_size=24, start_step=0, num_steps=9)
  with pytest.raises(UserError, match='image 4 is broken'):
    list(pipeline.batches(source, labels, threads=threads, **settings))


def test_dropped_iterator_stops_its_threads():
  before = threading.active_count()
  source, labels = make(61)
  iterator = pipeline.batches(
    source, labels, seed=0, batch_size=24, start_step=0, num_steps=99, threads=3
  )
  next(iterator)
  assert threading.active_count() > before
  iterator.close()
  for thread in threading.enumerate():
    if 'grain' in thread.name:
      thread.join(timeout=10)
  assert not [t for t in threading.enumerate() if 'grain-prefetch' in t.name]


@pytest.mark.parametrize(
  'size, kwargs, message',
  [
    (0, dict(), 'no training image'),
    (61, dict(labelled_share=1.5), 'labels.share is 1.5.* from 0 to 1'),
    (61, dict(labelled_share=-0.1), 'labels.share is -0.1'),
    (61, dict(labelled_share=float('nan')), 'labels.share is nan'),
    (61, dict(labelled_share=0.01), '0.01 of batch_size 24 .* at least 0.042'),
    (1, dict(labelled_share=0.5), 'all 1 images have a label'),
  ],
)
def test_mistakes(size, kwargs, message):
  with pytest.raises(UserError, match=message) as e:
    one_host(size, **kwargs)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('kwargs', [{'host_count': 7}, {'parts': 5}])
def test_hosts_and_parts_divide_the_batch(kwargs):
  with pytest.raises(ValueError, match='. hosts and . parts do not divide 24'):
    one_host(61, **kwargs)


def test_share_without_labels():
  with pytest.raises(UserError, match='no image has a label'):
    sampler.make_sampler(
      np.full(9, -1), seed=0, batch_size=4, labelled_share=0.5
    )


def test_wrong_number_of_labels():
  source, labels = make(61)
  with pytest.raises(ValueError, match='60 labels for 61 images'):
    pipeline.batches(
      source, labels[1:], seed=0, batch_size=4, start_step=0, num_steps=1
    )


@pytest.mark.parametrize('size', [1, 2, 17, 257, 2**16 + 1])
def test_an_epoch_is_a_permutation(size):
  rows = [sampler.row(i, num_rows=size, seed=3) for i in range(size)]
  np.testing.assert_array_equal(np.sort(rows), np.arange(size))


@pytest.mark.parametrize('size', [10, 70_000])
def test_permutations_are_uniform(size):
  rows = np.array([
    [sampler.row(i, num_rows=size, seed=seed) for i in range(2)]
    for seed in range(500)
  ])  # fmt: skip
  # Means of 500 uniform draws: standard deviation 0.29 / sqrt(500) = 0.013.
  np.testing.assert_allclose(np.mean(rows / (size - 1), axis=0), 0.5, atol=0.07)
  tenths = np.bincount(rows[:, 0] * 10 // size, minlength=10)
  assert tenths.min() > 20 and tenths.max() < 85  # 50 expected, s.d. 6.7
  assert abs(np.corrcoef(rows.T)[0, 1]) < 0.27  # -1/9 expected at size 10


def test_epochs_streams_and_seeds_differ():
  def epoch(number, **kwargs):
    first = 50 * number
    settings = dict(num_rows=50, seed=0) | kwargs
    return tuple(sampler.row(first + i, **settings) for i in range(50))

  orders = [
    epoch(number, seed=seed, stream=stream)
    for number in range(3)
    for seed in (-1, 0, 1, 2, 2**40)
    for stream in range(3)
  ]
  assert len(set(orders)) == len(orders)


def test_order_is_frozen():
  """A change here breaks every run that is taken up again."""
  rows = [sampler.row(i, num_rows=10, seed=0) for i in range(20)]
  assert rows == [4, 9, 7, 3, 5, 6, 0, 8, 1, 2, 4, 9, 2, 6, 0, 3, 1, 5, 7, 8]
  rows = [sampler.row(i, num_rows=1_281_167, seed=0) for i in range(4)]
  assert rows == [259357, 1047460, 474112, 804728]


# -- encoded images --


def encoded(sizes, broken=()):
  """PNG files of these sizes; the pixels of image i are i; some broken."""
  files = []
  for i, size in enumerate(sizes):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), i, np.uint8)).save(file, 'PNG')
    whole = file.getvalue()
    files.append(whole[: len(whole) // 2] if i in broken else whole)
  names = [f'{i}.png' for i in range(len(sizes))]
  labels = np.arange(len(sizes)) % 3
  return sources.Records(labels, files.__getitem__, True, names)


SIZES = [(6, 9), (9, 6), (3, 3), (40, 20), (1, 1), (8, 9), (2, 7)]
CANVAS = pipeline.Images(canvas=(10, 10))


def read_encoded(source, labels=None, batch_size=14, steps=1, **kwargs):
  return list(
    pipeline.batches(
      source,
      source.labels if labels is None else labels,
      seed=0, batch_size=batch_size, start_step=0, num_steps=steps, **kwargs,
    )
  )  # fmt: skip


def test_images_of_many_sizes_lie_in_a_corner():
  ((batch, _),) = read_encoded(encoded(SIZES), images=CANVAS)
  assert batch.images.shape == (14, 10, 10, 3)
  assert batch.sizes.dtype == np.int32 and batch.masks is None
  assert sorted(batch.ids) == sorted(list(range(7)) * 2)
  for image, (height, width), i in zip(batch.images, batch.sizes, batch.ids):
    expected = (10, 5) if i == 3 else SIZES[i]  # the large one is shrunk
    assert (height, width) == expected
    assert np.all(image[:height, :width] == i)
    assert not image[height:].any() and not image[:, width:].any()


def test_middle_crops_in_order():
  source = encoded(SIZES)
  crop = pipeline.Images(crop=(4, 1.0))
  found = list(pipeline.in_order(source, batch_size=3, images=crop))
  assert [len(known) for _, known in found] == [3, 3, 1]
  images = np.concatenate([arrays for arrays, _ in found])
  assert images.dtype == np.float32 and images.shape == (7, 4, 4, 3)
  expected = np.arange(7)[:, None, None, None] / 255
  np.testing.assert_allclose(
    images, np.broadcast_to(expected, images.shape), atol=1e-6
  )
  assert all(known.all() for _, known in found)


@pytest.mark.parametrize(
  'size, batch_size',
  [
    (7, 3),
    (2, 5),
    pytest.param(6, 3, marks=pytest.mark.long),
    pytest.param(9, 2, marks=pytest.mark.long),
  ],
)
def test_workers_keep_the_order_of_evaluation(parsed_flags, size, batch_size):
  source = encoded([(2, 2)] * size)
  crop = pipeline.Images(crop=(2, 1.0))
  found = list(
    pipeline.in_order(source, batch_size=batch_size, images=crop, workers=2)
  )
  pixels = np.concatenate([arrays[:, 0, 0, 0] for arrays, _ in found])
  np.testing.assert_allclose(pixels, np.arange(size) / 255)


# -- images that cannot be decoded --


def test_a_broken_image_is_replaced_by_another_and_told_of_once():
  source = encoded([(2, 2)] * 7, broken=(2, 5))
  labels = np.array([0, -1, 2, -1, 1, -1, -1])
  told = []
  found = read_encoded(
    source, labels, batch_size=7, steps=4, images=CANVAS,
    on_unreadable=lambda name, reason: told.append((name, reason)),
  )  # fmt: skip
  assert sorted(name for name, _ in told) == ['2.png', '5.png']
  assert all(reason and '\n' not in reason for _, reason in told)
  assert all('(id ' in reason for _, reason in told)
  for batch, truth in found:
    # Another image stands in, with its own label and truth, not the other's.
    assert {0, 1, 3, 4, 6} == set(batch.ids) and len(batch.ids) == 7
    np.testing.assert_array_equal(batch.labels, labels[batch.ids])
    np.testing.assert_array_equal(truth, source.labels[batch.ids])
    np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.ids)


def test_a_damaged_stretch_of_a_file_stops_no_run():
  """150 neighbours: more than the images in a row that end a run."""
  source = encoded([(1, 1)] * 200, broken=range(150))
  found = read_encoded(source, batch_size=200, images=CANVAS)
  ids = found[0][0].ids
  assert ids.min() >= 150
  # No single image stands in for all of them.
  assert np.bincount(ids)[150:].max() < 20


def test_a_labelled_image_is_replaced_by_a_labelled_one():
  source = encoded([(2, 2)] * 7, broken=(4,))
  labels = np.array([0, -1, -1, -1, 1, -1, -1])
  for batch, _ in read_encoded(
    source, labels, batch_size=4, steps=5, images=CANVAS, labelled_share=0.5
  ):
    assert np.sum(batch.labels >= 0) == 2 and 4 not in batch.ids
  with pytest.raises(UserError, match='0.png|4.png'):
    read_encoded(
      encoded([(2, 2)] * 7, broken=(0, 4)), labels, batch_size=4, steps=5,
      images=CANVAS, labelled_share=0.5,
    )  # fmt: skip


@pytest.mark.parametrize('hosts', [2, 7])
def test_stand_ins_do_not_depend_on_hosts_start_and_workers(
  hosts, parsed_flags
):
  source = encoded([(2, 2)] * 7, broken=(2, 3, 5))
  run = functools.partial(
    pipeline.batches, source, source.labels, seed=0, batch_size=14,
    images=CANVAS,
  )  # fmt: skip
  whole = np.stack([b.ids for b, _ in run(start_step=0, num_steps=3)])
  parts = [
    np.stack([
      b.ids
      for b, _ in run(start_step=1, num_steps=2, host_index=h, host_count=hosts)
    ])
    for h in range(hosts)
  ]  # fmt: skip
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[1:])
  if hosts == 2:
    told = []
    mine = run(
      start_step=0, num_steps=3, workers=2,
      on_unreadable=lambda name, _: told.append(name),
    )  # fmt: skip
    np.testing.assert_array_equal(np.stack([b.ids for b, _ in mine]), whole)
    assert sorted(told) == ['2.png', '3.png', '5.png']


def test_on_corrupt_error_stops_and_names_the_image():
  source = encoded([(2, 2)] * 7, broken=(3,))
  images = pipeline.Images(canvas=(4, 4), on_corrupt='error')
  with pytest.raises(UserError, match='3.png cannot be decoded: '):
    read_encoded(source, images=images)
  crop = pipeline.Images(crop=(2, 1.0), on_corrupt='error')
  with pytest.raises(UserError, match='3.png cannot be decoded'):
    list(pipeline.in_order(source, batch_size=3, images=crop))


def test_a_disk_that_is_gone_is_no_accident():
  source = encoded([(2, 2)] * 7, broken=range(7))
  with pytest.raises(UserError, match='100 images in a row cannot be decoded'):
    read_encoded(source, images=CANVAS)


def test_evaluation_leaves_broken_images_out():
  source = encoded([(2, 2)] * 5, broken=(1, 4))
  crop = pipeline.Images(crop=(2, 1.0))
  told = []
  found = list(
    pipeline.in_order(
      source, batch_size=2, images=crop,
      on_unreadable=lambda name, _: told.append(name),
    )
  )  # fmt: skip
  known = np.concatenate([known for _, known in found])
  assert known.tolist() == [True, False, True, True, False]
  assert not found[0][0][1].any() and told == ['1.png', '4.png']


# -- masks --


class FakeMasks:
  """The left half of the image; none for image 2."""

  def read(self, image_id):
    if image_id == 2:
      return None
    return np.array([[True, False]])


def test_masks_are_joined_by_id_and_lie_on_the_canvas():
  images = pipeline.Images(canvas=(10, 10), masks=FakeMasks())
  ((batch, _),) = read_encoded(encoded(SIZES), images=images)
  assert batch.masks.shape == (14, 10, 10) and batch.masks.dtype == bool
  for mask, (height, width), i in zip(batch.masks, batch.sizes, batch.ids):
    expected = np.zeros((10, 10), bool)
    half = np.arange(width) < width / 2 - 0.5 + (width % 2 == 0) * 0.5
    expected[:height, :width] = True if i == 2 else half
    agree = np.mean(mask == expected)
    assert agree > 0.9 and not mask[height:].any() and not mask[:, width:].any()
    if i == 2:
      assert mask[:height, :width].all()


class OddMasks:
  """All of an image with an odd id is foreground, nothing of the others."""

  def read(self, image_id):
    return np.full((1, 1), image_id % 2 == 1)


@pytest.mark.parametrize('kind', ['held out', 'joined'])
def test_masks_fit_where_rows_are_not_ids(kind):
  """With a validation part held out, and with an unlabelled split."""
  source = encoded([(3, 3)] * 9)
  if kind == 'held out':
    source = sources.Rows(source, np.array([1, 2, 4, 5, 8]))
  else:
    source = sources.Joined([encoded([(3, 3)] * 4), source])
  images = pipeline.Images(canvas=(4, 4), masks=OddMasks())
  ((batch, _),) = read_encoded(source, batch_size=len(source), images=images)
  assert batch.masks[:, :3, :3].all((1, 2)).tolist() == [
    i % 2 == 1 for i in batch.ids
  ]
  pixels = batch.images[:, 0, 0, 0]
  if kind == 'held out':
    np.testing.assert_array_equal(pixels, batch.ids)
  else:
    np.testing.assert_array_equal(pixels, np.where(
      batch.ids < 4, batch.ids, batch.ids - 4))  # fmt: skip


@pytest.mark.parametrize('hosts, parts', [(2, 2), (3, 4)])
def test_parts_are_shared_by_all_hosts(hosts, parts):
  """Part j of all hosts is the j-th slice of the batch that one host gets."""
  whole = one_host(61, num_steps=2)
  slices = [
    one_host(61, num_steps=2, host_index=h, host_count=hosts, parts=parts)
    for h in range(hosts)
  ]
  for step, (batch, _) in enumerate(whole):
    ids = [own[step][0].ids.reshape(parts, -1) for own in slices]
    joined = np.concatenate(ids, axis=1)  # [m, B/m]
    np.testing.assert_array_equal(joined.reshape(-1), batch.ids)
