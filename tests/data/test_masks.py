"""The store of saliency masks: writing, resuming, reading, refusing."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from semppl_jax.data import masks
from semppl_jax.errors import UserError
from semppl_jax.tools import mask_store

LAYOUT = masks.Layout('folder x', 'abc', 13, 5, 'by hand; 1')
# Sides that are no multiples of 8, the bits of a byte; one long row and column.
SIZES = [(1, 1), (3, 5), (193, 255), (256, 7), (1, 9), (9, 1), (8, 16)]


def mask_of(image_id):
  """Its mask, unlike those of its neighbours; None for 4 and 9."""
  if image_id in (4, 9):
    return None
  random = np.random.RandomState(image_id)
  return random.uniform(size=SIZES[image_id % len(SIZES)]) < 0.5


def write(folder, shards=(0, 1, 2), layout=LAYOUT):
  layout = mask_store.create(folder, layout)
  for shard in shards:
    mask_store.write_shard(
      folder, layout, shard, map(mask_of, layout.ids(shard))
    )
  return folder


@pytest.fixture
def store(tmp_path):
  return write(tmp_path / 'masks')


def check_all(opened):
  for i in range(13):
    found, wanted = opened.read(i), mask_of(i)
    assert opened.has(i) == (wanted is not None)
    if wanted is None:
      assert found is None
    else:
      assert found.dtype == bool
      np.testing.assert_array_equal(found, wanted)


def refused(folder, *words, fingerprint='abc', num_images=13):
  """That the store is refused by one line with these words."""
  with pytest.raises(UserError) as caught:
    masks.Masks(folder, fingerprint, num_images)
  check_line(caught, *words)


def check_line(caught, *words):
  line = str(caught.value)
  assert '\n' not in line
  for word in words:
    assert str(word) in line


def test_masks_come_back_by_id(store):
  assert len(list(store.glob('*.array_record'))) == 3
  opened = masks.Masks(store, 'abc', 13)
  assert len(opened) == 13
  check_all(opened)
  check_all(masks.Masks(str(store), 'abc'))
  assert opened.read(np.int64(12)).shape == mask_of(12).shape


@pytest.mark.parametrize('image_id', [-1, 13])
def test_other_ids_are_an_error(store, image_id):
  with pytest.raises(ValueError, match='0 .. 12'):
    masks.Masks(store, 'abc', 13).read(image_id)


def test_one_bit_a_pixel(tmp_path):
  layout = mask_store.create(tmp_path, masks.Layout('', 'x', 1, 1, ''))
  noise = np.random.RandomState(0).uniform(size=(256, 256)) < 0.5
  mask_store.write_shard(tmp_path, layout, 0, [noise])
  reader = array_record_module.ArrayRecordReader(
    str(masks.shard_path(tmp_path, 0))
  )
  assert len(reader.read([0])[0]) < 1.1 * 256 * 256 / 8


def test_shards_are_few_and_hold_every_image_once():
  for count in (1, 64, 65, 1500, 1_281_167, 20_000_000):
    layout = masks.Layout('', '', count, mask_store.shard_size(count), '')
    assert layout.num_shards <= 256
    ranges = [layout.ids(s) for s in range(layout.num_shards)]
    assert [r.start for r in ranges[1:]] == [r.stop for r in ranges[:-1]]
    assert (ranges[0].start, ranges[-1].stop) == (0, count)
    assert all(ranges)


def test_an_interrupted_store_goes_on(store):
  lost, kept = masks.shard_path(store, 1), masks.shard_path(store, 0)
  whole = lost.read_bytes()
  lost.unlink()
  lost.with_name(f'{lost.name}.part').write_bytes(whole[: len(whole) // 2])
  refused(store, store, '2 of 3 shards', 'same command again')
  assert masks.missing(store, LAYOUT) == [1]
  before = kept.stat().st_mtime_ns
  write(store, shards=masks.missing(store, LAYOUT))
  assert kept.stat().st_mtime_ns == before
  assert not list(store.glob('*.part'))
  check_all(masks.Masks(store, 'abc', 13))


def test_a_shard_that_fails_is_not_there(tmp_path):
  mask_store.create(tmp_path, LAYOUT)

  def failing():
    yield from map(mask_of, range(3))
    raise RuntimeError('power cut')

  with pytest.raises(RuntimeError, match='power cut'):
    mask_store.write_shard(tmp_path, LAYOUT, 0, failing())
  with pytest.raises(ValueError, match='4 masks for 5'):
    mask_store.write_shard(tmp_path, LAYOUT, 0, map(mask_of, range(4)))
  assert masks.missing(tmp_path, LAYOUT) == [0, 1, 2]


def test_a_shard_that_cannot_be_written_is_named(tmp_path):
  mask_store.create(tmp_path, LAYOUT)
  shard = masks.shard_path(tmp_path, 2)
  shard.with_name(f'{shard.name}.part').mkdir()
  with pytest.raises(UserError) as caught:
    write(tmp_path, shards=[2])
  check_line(caught, shard, 'cannot be written')


def test_a_store_keeps_its_shard_size(store):
  wanted = masks.Layout('moved', 'abc', 13, 64, LAYOUT.method)
  assert mask_store.create(store, wanted) == LAYOUT


@pytest.mark.parametrize(
  'key, value, word',
  [
    ('fingerprint', 'other', 'fingerprint'),
    ('num_images', 14, 'has 14'),
    ('method', 'network', "'network'"),
  ],
)
def test_other_masks_are_not_mixed_in(store, key, value, word):
  before = (store / 'masks.json').read_text()
  other = dataclasses.replace(LAYOUT, **{key: value})
  with pytest.raises(UserError) as caught:
    mask_store.create(store, other)
  check_line(caught, store / 'masks.json', word, 'another folder')
  assert (store / 'masks.json').read_text() == before


def test_shards_of_nobody_are_not_taken_over(store):
  (store / 'masks.json').unlink()
  with pytest.raises(UserError) as caught:
    mask_store.create(store, LAYOUT)
  check_line(caught, masks.shard_path(store, 0), 'delete')


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError) as caught:
    mask_store.create(tmp_path / 'file', LAYOUT)
  check_line(caught, tmp_path / 'file', 'another folder')


def test_one_writer_at_a_time(store):
  with mask_store.locked(store):
    with (
      pytest.raises(UserError, match='another process'),
      mask_store.locked(store),
    ):
      pass
    check_all(masks.Masks(store, 'abc', 13))  # readers need not wait
  with mask_store.locked(store):
    pass


def test_no_store_names_the_tool(tmp_path):
  for folder in (tmp_path / 'none', tmp_path):
    refused(folder, folder, 'python -m semppl_jax.saliency --help')


def test_masks_of_other_images_are_refused(store):
  path = store / 'masks.json'
  refused(store, path, '13 images', 'has 12', 'folder x', num_images=12)
  refused(store, path, 'folder x', "not 'abd'", fingerprint='abd')


def _without(key):
  return lambda said: {k: v for k, v in said.items() if k != key}


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda said: said | {'format': 2}, ['format 2, not 1']),
    (_without('format'), ['format None']),
    (_without('fingerprint'), ['fingerprint']),
    (lambda said: said | {'num_images': '13'}, ['num_images']),
    (lambda said: said | {'shard_size': 0}, ['shard_size']),
    (lambda said: [1], ['JSON']),
  ],
)
def test_a_wrong_masks_json_is_refused(store, change, words):
  path = store / 'masks.json'
  path.write_text(json.dumps(change(json.loads(path.read_text()))))
  refused(store, path, *words, 'delete the folder')


@pytest.mark.parametrize('content', [b'', b'{"format": 1,', b'\xff\xfe\x00'])
def test_an_unreadable_masks_json_is_refused(store, content):
  (store / 'masks.json').write_bytes(content)
  refused(store, store / 'masks.json', 'JSON')


def damaged(folder, image_id, *words):
  opened = masks.Masks(folder, 'abc', 13)
  with pytest.raises(UserError) as caught:
    opened.read(image_id)
  path = masks.shard_path(folder, image_id // 5)
  check_line(caught, f'{path} is damaged', 'delete it', *words)


def test_a_damaged_record_is_named(store):
  path = masks.shard_path(store, 0)
  content = bytearray(path.read_bytes())
  place = content.index(b'IHDR')
  content[place : place + 8] = bytes(8)
  path.write_bytes(content)
  damaged(store, 0, 'image 0')
  masks.Masks(store, 'abc', 13).read(5)  # other shards are as they were


def test_records_that_are_no_masks_are_named(store, tmp_path):
  grey = tmp_path / 'grey.png'
  Image.new('L', (4, 4), 200).save(grey)
  path = masks.shard_path(store, 1)
  good = array_record_module.ArrayRecordReader(str(path)).read([0])[0]
  records = [b'hello', grey.read_bytes(), good[:-25], b'', good]
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()
  damaged(store, 5, 'image 5')
  damaged(store, 6, 'image 6', 'mode is L')
  damaged(store, 7, 'image 7')
  opened = masks.Masks(store, 'abc', 13)
  assert opened.read(8) is None
  np.testing.assert_array_equal(opened.read(9), mask_of(5))


@pytest.mark.parametrize('content', [b'', b'hello', 'half'])
def test_a_shard_that_is_not_whole_is_named(store, content):
  path = masks.shard_path(store, 2)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2] if content == 'half' else content)
  with pytest.raises(UserError) as caught:
    masks.Masks(store, 'abc', 13).read(12)
  check_line(caught, path, '0 of 3 records', 'Delete it')


def test_a_shard_of_another_size_is_named(store):
  path = masks.shard_path(store, 1)
  path.write_bytes(masks.shard_path(store, 2).read_bytes())
  with pytest.raises(UserError) as caught:
    masks.Masks(store, 'abc', 13).read(5)
  check_line(caught, path, '3 of 5 records')


def test_masks_travel_to_other_processes(store):
  opened = masks.Masks(store, 'abc', 13)
  check_all(opened)  # with open readers, which cannot travel
  content = pickle.dumps(opened)
  assert len(content) < 1000
  check_all(pickle.loads(content))
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
    found = pool.submit(opened.read, 2).result()
  np.testing.assert_array_equal(found, mask_of(2))


def test_threads_share_a_reader(store):
  opened = masks.Masks(store, 'abc', 13)
  start = threading.Barrier(8)

  def read(seed):
    start.wait()
    for i in np.random.RandomState(seed).randint(0, 13, 100):
      found, wanted = opened.read(i), mask_of(i)
      assert (found is None) == (wanted is None)
      assert wanted is None or (found == wanted).all()

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(read, range(8)))


def test_opening_reads_no_shard(store):
  masks.shard_path(store, 0).write_bytes(b'hello')
  opened = pickle.loads(pickle.dumps(masks.Masks(store, 'abc', 13)))
  np.testing.assert_array_equal(opened.read(6), mask_of(6))


def test_fit_by_hand():
  mask = np.array([[1, 0], [0, 1]], bool)
  twice = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
  np.testing.assert_array_equal(masks.fit(mask, 4, 4), np.array(twice, bool))
  # Of three new pixels, the middle one's centre lies on the border: right.
  three = masks.fit(mask, 2, 3)
  np.testing.assert_array_equal(three, np.array([[1, 0, 0], [0, 1, 1]], bool))
  assert masks.fit(mask, 2, 2).dtype == bool


@pytest.mark.parametrize('seed', range(20))
def test_fit_is_nearest_neighbour(seed):
  random = np.random.RandomState(seed)
  height, width, new_height, new_width = random.randint(1, 90, 4)
  mask = random.uniform(size=(height, width)) < 0.5
  found = masks.fit(mask, new_height, new_width)
  assert found.shape == (new_height, new_width)
  for row in range(new_height):
    old_row = int((row + 0.5) / new_height * height)
    for column in range(0, new_width, 7):
      old_column = int((column + 0.5) / new_width * width)
      assert found[row, column] == mask[old_row, old_column]
