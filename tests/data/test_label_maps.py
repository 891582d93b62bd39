"""Which ImageNet classes those of ImageNet-R and ObjectNet are."""

import pickle

import numpy as np
import pytest

from semppl_jax.data import images, label_maps
from semppl_jax.errors import UserError
from tests.helpers import objectnet_data, tfds_data
from tests.helpers.objectnet_data import FOLDERS, LINES, MEANINGS, NAMES


@pytest.fixture(scope='module')
def photos():
  photo = lambda seed: tfds_data.photos(1, seed, size=(9, 11))[0]
  return {
    'squeegee': [photo(0)],
    'chair': [photo(1)],
    'alarm_clock': [photo(2), photo(3)],
    'banana': [photo(4)],
  }


def test_imagenet_r_has_200_classes():
  """First, last and sum of timm's imagenet_r_indices.txt @88a5b849."""
  names = tfds_data.class_names('imagenet_r')
  found = label_maps.imagenet_r(names)
  assert len(found) == 200 and np.all(np.diff(found) > 0)
  assert found[:10].tolist() == [1, 2, 4, 6, 8, 9, 11, 13, 22, 23]
  assert found[-5:].tolist() == [967, 980, 981, 983, 988]
  assert found.sum() == 86_135
  backwards = label_maps.imagenet_r(names[::-1])
  np.testing.assert_array_equal(backwards, 999 - found[::-1])


def test_imagenet_r_needs_the_names():
  with pytest.raises(UserError, match=r'no class n01443537.*are 0, 1, 2\. Is'):
    label_maps.imagenet_r([str(i) for i in range(1000)])


@pytest.mark.parametrize('first_line', [0, 1])
def test_objectnet_by_hand(first_line, photos, tmp_path):
  files = objectnet_data.mappings(first_line)
  objectnet_data.write(tmp_path / 'o', photos, files)
  found = label_maps.objectnet(str(tmp_path / 'o'))
  assert found.class_names == ('alarm_clock', 'banana', 'chair')
  assert found.meanings.shape == (3, 1000)
  for row, classes in zip(found.meanings, objectnet_data.CLASSES.values()):
    assert set(np.flatnonzero(row)) == classes
  assert found.source.labels.tolist() == [0, 0, 1, 2]
  assert found.source.names[1:3] == ['alarm_clock/0001.png', 'banana/0000.png']


def test_the_border_is_cut_off(photos, tmp_path):
  objectnet_data.write(tmp_path / 'o', photos)
  source = label_maps.objectnet(str(tmp_path / 'o')).source
  expected = [*photos['alarm_clock'], *photos['banana'], *photos['chair']]
  assert len(source) == 4
  source = pickle.loads(pickle.dumps(source))  # as worker processes get it
  for i, image in enumerate(expected):
    np.testing.assert_array_equal(source[i]['image'], image)
    assert source[i]['id'] == i and source[i]['label'] == source.labels[i]


def test_images_that_cannot_be_read(photos, tmp_path):
  objectnet_data.write(tmp_path / 'o', photos)
  folder = tmp_path / 'o' / 'images' / 'alarm_clock'
  (folder / '0000.png').write_bytes(b'no image')
  thin = np.zeros((4, 20, 3), np.uint8)  # a border and nothing in it
  (folder / '0001.png').write_bytes(tfds_data.png(thin))
  source = label_maps.objectnet(str(tmp_path / 'o')).source
  for i, words in ((0, 'no image'), (1, 'no more than its border')):
    with pytest.raises(images.Unreadable, match=words):
      source[i]


def _changed(name, **changes):
  return lambda files: files[name].update(changes)


def _without(name, key):
  return lambda files: files[name].pop(key)


def _spoil(name, content):
  return lambda files: files.update({name: content})


@pytest.mark.parametrize(
  'change, words',
  [
    (_changed(MEANINGS, Banana='bananna'), ("'bananna'", '0', "'banana'?")),
    (_changed(MEANINGS, Banana='crane'), ("'crane'", 'there are 2')),
    (_changed(MEANINGS, Hat='banana'), ("'Hat'", f'not in {FOLDERS}')),
    (_changed(MEANINGS, Banana=['banana']), (MEANINGS, 'of type str')),
    (_spoil(MEANINGS, {}), (MEANINGS, 'no class')),
    (_spoil(MEANINGS, 'text'), (MEANINGS, 'JSON object')),
    (_without(FOLDERS, 'chair'), ("'Chair'", f'not in {FOLDERS}')),
    (_without(FOLDERS, 'squeegee'), ('images/squeegee', 'no class of')),
    (_spoil(FOLDERS, []), (FOLDERS, 'JSON')),
    (_without(NAMES, 5), (NAMES, '999 lines, not 1,000')),
    (_without(LINES, '5'), (LINES, 'a line of its own')),
    (_changed(LINES, **{'5': 3}), (LINES, 'a line of its own')),
    (_changed(LINES, **{'5': '38'}), (LINES, 'of type int')),
    (lambda files: files[LINES].update(tench=files[LINES].pop('0')), (LINES,)),
  ],
)  # fmt: skip
def test_files_that_do_not_fit(change, words, photos, tmp_path):
  files = objectnet_data.mappings()
  change(files)
  objectnet_data.write(tmp_path / 'o', photos, files)
  _refused(tmp_path / 'o', *words)


@pytest.mark.parametrize('name', [FOLDERS, MEANINGS, NAMES, LINES])
def test_files_that_are_missing_or_damaged(name, photos, tmp_path):
  objectnet_data.write(tmp_path / 'o', photos)
  path = tmp_path / 'o' / 'mappings' / name
  path.write_text(path.read_text()[:50])
  _refused(tmp_path / 'o', str(path), 'lines' if name == NAMES else 'not JSON')
  path.write_bytes(b'\xff\xfe\x00')
  _refused(tmp_path / 'o', str(path), 'is not text')
  path.unlink()
  _refused(tmp_path / 'o', str(path), 'cannot be read: No such file')


def test_folders_of_images_that_do_not_fit(photos, tmp_path):
  objectnet_data.write(tmp_path / 'o', photos)
  folder = tmp_path / 'o' / 'images'
  (folder / 'chair').rename(folder / 'chairs')
  _refused(tmp_path / 'o', 'images/chairs', "did you mean 'chair'?")
  (folder / 'chairs').rename(tmp_path / 'elsewhere')
  _refused(tmp_path / 'o', 'images/chair has no images')
  (folder / 'chair').mkdir()
  _refused(tmp_path / 'o', 'images/chair has no images')


def _refused(folder, *words):
  with pytest.raises(UserError) as error:
    label_maps.objectnet(str(folder))
  text = str(error.value)
  assert '\n' not in text
  for word in words:
    assert word in text, text
