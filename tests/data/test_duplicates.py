"""Duplicates: what counts as a copy, what does not, and the exact search."""

import numpy as np
import pytest

from semppl_jax.data import alignment, duplicates, sources, thumbnails
from semppl_jax.errors import UserError
from tests.helpers import photos
from tests.helpers.photos import photo


def source(pictures):
  return sources.Records(np.zeros(len(pictures)), pictures.__getitem__)


def seen(pictures):
  return thumbnails.make(source(pictures))


@pytest.fixture(scope='module')
def originals():
  return [photo(i) for i in range(30)]


CHANGES = {
  'recompressed': photos.recompressed,
  'smaller': lambda image: photos.resized(image, 40),
  'larger': lambda image: photos.resized(image, 150),
  'cropped by 5% a side': photos.cropped,
  'cropped by 5% on one': lambda image: photos.cropped(image, 0.05, 0, 0, 0),
  'flipped': photos.flipped,
  'all at once': lambda image: photos.recompressed(
    photos.cropped(photos.resized(photos.flipped(image), 80), 0, 0.03, 0.05, 0)
  ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(originals, change):
  copies = [CHANGES[change](image) for image in originals[:10]]
  pairs = duplicates.find(seen(originals), seen(copies))
  turned = change in ('flipped', 'all at once')
  assert [pair[:3] for pair in pairs] == [
    (i, 30 + i, 'mirrored' if turned else 'near') for i in range(10)
  ]
  assert all(duplicates.LEAST <= pair.score <= 1.0001 for pair in pairs)
  # The same from the other side: a test image may be the larger one.
  assert len(duplicates.find(seen(copies), seen(originals))) == 10


def test_copies_within_training_images_are_found_once(originals):
  pictures = originals + [photos.cropped(originals[3])]
  pairs = duplicates.find(seen(pictures), None)
  assert [pair[:3] for pair in pairs] == [(3, 30, 'near')]
  pictures = [photos.flipped(originals[3])] + originals
  pairs = duplicates.find(seen(pictures), None)
  assert [pair[:3] for pair in pairs] == [(0, 4, 'mirrored')]


@pytest.mark.parametrize(
  'change',
  [
    lambda image: 255 - image,
    lambda image: image[..., [1, 2, 0]],
    lambda image: (image / 2 + image.mean() / 2).astype(np.uint8),
    lambda image: np.minimum(image, 215) + np.uint8(40),
    lambda image: np.ascontiguousarray(image[::-1]),
    lambda image: np.ascontiguousarray(image[:, 32:]),
  ],
  ids=[
    'negative',
    'other colours',
    'less contrast',
    'brighter',
    'upside down',
    'two thirds',
  ],
)
def test_another_picture_is_no_copy(originals, change):
  others = [change(image) for image in originals[:10]]
  assert duplicates.find(seen(originals), seen(others)) == []


def test_pictures_that_show_nothing_are_no_copies_of_each_other():
  flat = []
  for i in range(3):  # hardly to be seen, and the same one
    faint = photo(0).astype(float) / 40 + 100
    flat.append(faint.round().astype(np.uint8))
    flat[i][0, 0] += np.uint8(i)
  assert duplicates.find(seen(flat), None) == []
  pairs = duplicates.find(seen(flat + [flat[1].copy()]), None)
  assert pairs == [(1, 3, 'same bytes', 1.0)]


def test_small_images_must_be_nearly_equal():
  images = [photo(i, 8) for i in range(20)]
  by_two_levels = [
    (image.astype(int) + np.indices(image.shape).sum(0) % 3 - 1)
    .clip(0, 255)
    .astype(np.uint8)
    for image in images
  ]
  shifted = [np.roll(image, 1, axis=1) for image in images]
  pairs = duplicates.find(seen(images), seen(by_two_levels))
  assert [pair[:3] for pair in pairs] == [
    (i, 20 + i, 'near') for i in range(20)
  ]
  assert duplicates.find(seen(images), seen(shifted)) == []


def test_of_the_same_bytes_not_all_pairs_but_all_images(originals):
  a, b = originals[:2]
  train = seen([a, b, a.copy(), a.copy()])
  test = seen([originals[2], a.copy(), a.copy()])
  assert duplicates.find(train, test) == [
    (0, 2, 'same bytes', 1.0), (0, 3, 'same bytes', 1.0),
    (0, 5, 'same bytes', 1.0), (0, 6, 'same bytes', 1.0),
    (2, 5, 'same bytes', 1.0), (3, 5, 'same bytes', 1.0),
  ]  # fmt: skip


def test_the_same_numbers_in_another_shape_are_not_the_same_bytes():
  image = np.zeros((4, 16, 3), np.uint8)
  assert duplicates.find(seen([image, image.reshape(16, 4, 3)]), None) == []


def test_files_are_compared_by_their_bytes(originals):
  file = photos.recompressed(originals[0])
  again = photos.recompressed(originals[0], quality=90)
  pairs = duplicates.find(seen([file, again, bytes(file)]), None)
  kinds = [pair[:3] for pair in pairs]
  assert kinds == [(0, 1, 'near'), (0, 2, 'same bytes')]


def test_all_training_images_with_a_copy_in_test(originals):
  a, b, c = originals[:3]
  train = [a, b, photos.cropped(a), b.copy(), c, photos.flipped(c)]
  rows = duplicates.in_test(
    seen(train), seen([photos.recompressed(b), originals[9], c.copy()])
  )
  # All of the same bytes as one that is near.
  assert rows.tolist() == [1, 3, 4, 5]


def test_unreadable_images_are_told_and_no_copies_of_each_other(originals):
  pictures = [b'no image', originals[0], b'no image', originals[0].copy()]
  train = seen(pictures)
  assert list(train.unreadable) == [0, 2]
  assert 'no image' in train.unreadable[0]
  assert duplicates.find(train, seen([b'no image'])) == [
    (1, 3, 'same bytes', 1.0)
  ]
  assert duplicates.in_test(train, seen([b'no image'])).tolist() == []
  assert duplicates.find(seen([b'no image'] * 2), None) == []


@pytest.mark.parametrize('within', [True, False])
def test_the_search_is_exact_over_blocks(monkeypatch, within):
  monkeypatch.setattr(duplicates, '_ROWS', 5)
  monkeypatch.setattr(duplicates, '_COLUMNS', 7)
  random = np.random.RandomState(0)
  a, b = random.normal(size=(2, 23, 4)).astype(np.float32)
  others = a if within else b
  found, ended = {}, 0
  for rows, columns, values, done in duplicates.similar(
    a, others, 1.5, rising=within
  ):
    ended += done
    for i, j, value in zip(rows.tolist(), columns.tolist(), values):
      assert (i, j) not in found
      found[i, j] = value
  products = a @ others.T
  wanted = {
    (i, j)
    for i in range(23)
    for j in range(23)
    if products[i, j] >= 1.5 and (i < j or not within)
  }
  assert found.keys() == wanted and len(wanted) > 20 and ended == 23
  for place, value in found.items():
    assert value == pytest.approx(products[place], rel=1e-5)


def test_of_too_many_candidates_the_largest_are_taken():
  a = np.ones((2, 1), np.float32)
  b = np.arange(1, 41, dtype=np.float32)[:, None]
  ((rows, columns, values, _),) = duplicates.similar(a, b, 1.0)
  for i in (0, 1):
    assert sorted(columns[rows == i]) == list(range(24, 40))
  np.testing.assert_array_equal(values, columns + 1)


def test_alignment_finds_scale_and_shift():
  image = photo(5, 128)
  # The right 90% and the lower 95%.
  part = photos.cropped(image, 0.1, 0.05, 0, 0)
  first, second = seen([image]).pixels, seen([part]).pixels
  as_is = alignment.compare(first, second, np.array([False]))
  aligned = alignment.compare(first, second, np.array([True]))
  assert as_is.details[0] < 0.5 < 0.9 < aligned.details[0]
  assert as_is.pixels[0] < aligned.pixels[0] > 0.95
  # What the smaller one does not show is not compared.
  back = alignment.compare(second, first, np.array([True]))
  assert back.details[0] > 0.95 and back.pixels[0] > 0.98
  grey = lambda x: x.astype(np.float32).mean(-1)
  scale_x, shift_x, scale_y, shift_y = alignment._warp(
    grey(first), grey(second)
  )[0]
  # From -1 ... 1 to -0.8 ... 1, and to -0.9 ... 1.
  np.testing.assert_allclose([scale_x, shift_x], [-0.1, 0.1], atol=0.01)
  np.testing.assert_allclose([scale_y, shift_y], [-0.05, 0.05], atol=0.01)


def test_what_is_left_out_is_named_and_the_others_keep_their_ids(originals):
  data = sources.Dataset(
    source(originals), source(originals[:2]), 1, ('a',), (96, 96, 3), 'print',
    notes=('before',),
  )  # fmt: skip
  left = duplicates.leave_out(data, np.array([0, 1, 29]))
  assert [left.train[i]['id'] for i in range(27)] == list(range(2, 29))
  assert left.fingerprint == 'print' and left.test is data.test
  assert left.notes == (
    'before',
    'dataset.drop_duplicates leaves out 3 of 30 training images, which have a '
    'copy among the test images: image 0, image 1, image 29',
  )
  assert duplicates.leave_out(data, np.array([], int)) is data
  with pytest.raises(UserError, match='leaves none of 30 training images'):
    duplicates.leave_out(data, np.arange(30))
