"""The data sets of transfer: their parts, and what is said of missing ones."""

import pickle
import shutil

import numpy as np
import pytest

from semppl_jax import config
from semppl_jax.config import eval_config
from semppl_jax.data import images, transfer_sets
from semppl_jax.data.transfer_sets import SETS
from semppl_jax.errors import UserError
from semppl_jax.evaluation import measures
from tests.helpers import transfer_data
from tests.helpers.transfer_data import (
  CLASSES,
  OWN,
  OWN_PER_CLASS,
  PER_CLASS,
  TEST_PER_CLASS,
)

TRAIN = CLASSES * PER_CLASS


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('data')
  transfer_data.write(path)
  return path


def section(path, **changes):
  cfg = config.default().dataset
  cfg.update(path=str(path), image_size=64, **changes)
  return cfg


def load(name, path, **changes):
  return transfer_sets.load(name, section(path, **changes))


def test_the_sets_are_those_of_the_config():
  assert tuple(SETS) == eval_config.default().transfer.sets
  assert {spec.measure for spec in SETS.values()} == set(measures.MEASURES)
  per_class = {n for n, spec in SETS.items() if spec.measure != 'top-1'}
  assert per_class == {'pets', 'aircraft', 'caltech101', 'flowers'}


@pytest.mark.parametrize('name', SETS)
def test_parts(name, data_dir):
  """Every image is in one part; photos show the classes of their labels."""
  data, validation = load(name, data_dir)
  own = OWN_PER_CLASS * CLASSES if name in OWN else 0
  assert len(data.train) == TRAIN + own
  assert len(data.test) == CLASSES * TEST_PER_CLASS
  assert 0 < len(validation) < len(data.train)
  assert sorted(set(validation)) == list(validation)
  if own:
    assert list(validation) == list(range(TRAIN, TRAIN + own))
  assert data.num_classes == len(data.class_names) >= CLASSES
  assert data.image_shape == (64, 64, 3)
  seen = set()
  for source in (data.train, data.test):
    colours = [[] for _ in range(CLASSES)]
    for i in range(len(source)):
      record = source[i]
      assert record['id'] == i and record['label'] == source.labels[i]
      seen.add(bytes(record['image']))
      pixels = images.decode(record['image']) / 255
      colours[record['label']].append(pixels.mean((0, 1)) / pixels.mean())
    spread = max(np.std(c, axis=0).max() for c in colours)
    means = np.array([np.mean(c, axis=0) for c in colours])
    apart = min(np.abs(means[i] - means[i - 1]).max() for i in range(CLASSES))
    assert apart > 3 * spread
  # No image of the test set, and none of validation, is trained on too.
  assert len(seen) == len(data.train) + len(data.test)
  copy = pickle.loads(pickle.dumps(data.train))  # as worker processes get it
  assert copy[3] == data.train[3]
  names = data.train.names + data.test.names
  assert len(set(names)) == len(names)
  assert names[0].startswith(f'{name}/train[0]')


def test_names_tell_what_the_data_set_calls_an_image(data_dir):
  data = load('caltech101', data_dir).data
  assert data.test.names[2].startswith('caltech101/test[2] image_00')
  data = load('birdsnap', data_dir).data
  assert data.train.names[0] == 'birdsnap/train[0] class_0/0.jpg'


@pytest.mark.parametrize(
  'name, sizes, wanted',
  [
    ('cifar10', [5_000] * 10, [500] * 10),
    ('cifar100', [500] * 100, 5_067),
    ('food101', [750] * 101, [75] * 101),
    ('birdsnap', [94] * 258 + [95] * 242 + [144], 4_981),
    ('sun397', [50] * 397, [10] * 397),
    ('cars', [41] * 108 + [42] * 88 + [20], 1_650),
    ('aircraft', [66] * 33 + [67] * 67, 3_333),
    ('pets', [93, 100, 99] + [100] * 34, [20] * 37),
    ('caltech101', [30] * 102, [5] * 102),
    ('pets', [7, 1, 100], [3, 0, 20]),  # a few images: at most half
  ],
)
def test_sizes_are_those_of_byols_table(name, sizes, wanted):
  random = np.random.RandomState(0)
  labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
  hold_out = transfer_sets._hold_out
  rows = hold_out(labels, SETS[name].held_out, seed=3)
  np.testing.assert_array_equal(rows, np.unique(rows))
  counts = np.bincount(labels[rows], minlength=len(sizes))
  if isinstance(wanted, list):
    assert counts.tolist() == wanted
  else:
    assert counts.sum() == wanted
    share = wanted / sum(sizes)
    assert np.abs(counts - share * np.array(sizes)).max() < 1
  same = hold_out(labels, SETS[name].held_out, seed=3)
  np.testing.assert_array_equal(rows, same)
  other = hold_out(labels, SETS[name].held_out, seed=4)
  assert set(rows) != set(other)


def test_the_seed_of_the_config_draws_the_held_out_images(data_dir):
  rows = [set(load('pets', data_dir, seed=s).validation) for s in (0, 0, 1)]
  assert rows[0] == rows[1] != rows[2]


def test_the_folder_of_a_version_stands_for_all_of_its_data_dir(data_dir):
  version = next(data_dir.glob('cifar10/*'))
  assert load('dtd', version).data.num_classes == 47
  assert load('cifar10', version).data.num_classes == 10


@pytest.mark.parametrize(
  'name, words',
  [
    ('sun397', 'tfds build sun397/standard-part1-120k --data_dir='),
    ('flowers', 'tfds build oxford_flowers102 --data_dir='),
    ('birdsnap', 'birdsnap is not in tfds, but a folder with images'),
  ],
)
def test_what_is_not_there(name, words, tmp_path):
  with pytest.raises(transfer_sets.NotThereError) as error:
    load(name, tmp_path / 'nowhere')
  assert words in str(error.value) and '\n' not in str(error.value)
  assert str(tmp_path / 'nowhere') in str(error.value)


def test_folders_need_a_path():
  with pytest.raises(transfer_sets.NotThereError, match='dataset.path=PATH'):
    load('aircraft', '')


def test_what_is_there_in_part(data_dir, tmp_path):
  """Not as if it were missing: `skip` shall not hide it."""
  shutil.copytree(data_dir / 'aircraft', tmp_path / 'aircraft')
  shutil.rmtree(tmp_path / 'aircraft' / 'validation')
  data, validation = load('aircraft', tmp_path)
  assert len(data.train) == TRAIN and len(validation) == TRAIN // 2
  shutil.rmtree(tmp_path / 'aircraft' / 'test')
  transfer_data.write(tmp_path, ['cars'])
  for file in tmp_path.glob('cars196/*/*test*'):
    file.unlink()
  for name, words in (
    ('aircraft', 'has no images in test/CLASS/'),
    ('cars', 'damaged'),
  ):
    with pytest.raises(UserError, match=words) as error:
      load(name, tmp_path)
    assert not isinstance(error.value, transfer_sets.NotThereError)


def test_too_few_images(data_dir, tmp_path):
  folder = tmp_path / 'birdsnap'
  shutil.copytree(data_dir / 'birdsnap', folder)
  for file in folder.glob('train/*/*.jpg'):
    if file.stem != '0':
      file.unlink()
  with pytest.raises(UserError, match='birdsnap has 1 training images'):
    load('birdsnap', tmp_path)
