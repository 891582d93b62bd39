"""Data sets as tfds prepares them: found, read, indexed; what is missing."""

import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from semppl_jax import config
from semppl_jax.data import (
  datasets,
  images,
  tfds_files,
  tfds_index,
)
from semppl_jax.data import (
  labels as labels_lib,
)
from semppl_jax.errors import UserError
from tests.helpers import tfds_data

IMAGENET = [0, 3, 3, 7, 999, 0, 3]


@pytest.fixture
def imagenet(tmp_path):
  """Seven training images and three of validation."""
  name = 'imagenet2012'
  tfds_data.write(
    tmp_path,
    name,
    {
      'train': tfds_data.examples(name, IMAGENET),
      'validation': tfds_data.examples(name, [0, 7, 3], 1, 'validation'),
    },
    shards=2,
  )
  return tmp_path


def load(**kwargs):
  cfg = config.default().dataset
  cfg.update(kwargs)
  return datasets.load(cfg)


def load_imagenet(path, **kwargs):
  return load(name='imagenet2012', path=str(path), image_size=64, **kwargs)


def test_imagenet(imagenet):
  data = load_imagenet(imagenet)
  assert data.num_classes == 1000 and data.class_names[0] == 'n01440764'
  assert data.image_shape == (64, 64, 3)
  assert sorted(data.train.labels) == sorted(IMAGENET)
  assert sorted(data.test.labels) == [0, 3, 7]  # the official validation set
  for source in (data.train, data.test):
    assert source.encoded and source.labels.dtype == np.int32
    for i in range(len(source)):
      record = source[i]
      assert record['id'] == i and record['label'] == source.labels[i]
      assert record['image'][:2] == b'\xff\xd8'
      # A photo's colours tell its class: image and label belong together.
      assert images.decode(record['image']).ndim == 3
  written = {e['file_name']: e for e in tfds_data.examples(
    'imagenet2012', IMAGENET)}  # fmt: skip
  for i, name in enumerate(data.train.names):
    assert data.train[i]['image'] == written[name]['image']
    assert data.train.labels[i] == written[name]['label']


def test_an_index_is_written_once_and_read_again(imagenet, monkeypatch):
  first = load_imagenet(imagenet)
  folder = next(imagenet.glob('imagenet2012/*'))
  assert len(list(folder.glob('semppl_jax_index_train_*.npz'))) == 1
  monkeypatch.setattr(tfds_index, '_read', None)  # is not called
  again = load_imagenet(imagenet)
  np.testing.assert_array_equal(again.train.labels, first.train.labels)
  assert again.train.names == first.train.names


@pytest.mark.parametrize('content', [b'PK broken', b'', b'PK\x03\x04 cut'])
def test_a_broken_index_is_made_anew(imagenet, content):
  first = load_imagenet(imagenet)
  folder = next(imagenet.glob('imagenet2012/*'))
  for path in folder.glob('semppl_jax_index_*'):
    path.write_bytes(content)
  again = load_imagenet(imagenet)
  np.testing.assert_array_equal(again.train.labels, first.train.labels)


def test_slices_have_indices_of_their_own(tmp_path):
  labels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
  splits = {'train': tfds_data.examples('cifar10', labels)}
  tfds_data.write(tmp_path, 'cifar10', splits, shuffle=False)
  found = tfds_files.find('cifar10', str(tmp_path))
  for split, wanted in (('train[:5]', labels[:5]), ('train[-5:]', labels[5:])):
    for _ in range(2):  # read, and from the index
      assert found.open(split).source.labels.tolist() == wanted


def test_an_index_of_another_preparation_is_not_used(imagenet):
  load_imagenet(imagenet)
  name = 'imagenet2012'
  kept = next(imagenet.glob(f'{name}/*/semppl_jax_index_train_*'))
  content = kept.read_bytes()
  shutil.rmtree(imagenet / name)
  tfds_data.write(
    imagenet, name, {'train': tfds_data.examples(name, [5] * 7),
                     'validation': tfds_data.examples(name, [1])}
  )  # fmt: skip
  kept.write_bytes(content)
  os.utime(kept.parent / 'dataset_info.json', (1, 1))
  assert set(load_imagenet(imagenet).train.labels) == {5}


def test_where_the_data_may_not_be_written_the_index_goes_to_the_cache(
  imagenet, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  write = tfds_index.files.write_arrays

  def refuse(path, **arrays):
    if 'imagenet2012' in path.parts:
      raise PermissionError(13, 'Permission denied', str(path))
    write(path, **arrays)

  monkeypatch.setattr(tfds_index.files, 'write_arrays', refuse)
  first = load_imagenet(imagenet)
  assert len(list((tmp_path / 'cache/semppl_jax').iterdir())) == 2
  monkeypatch.setattr(tfds_index, '_read', None)
  again = load_imagenet(imagenet)
  np.testing.assert_array_equal(again.train.labels, first.train.labels)


def test_sources_go_to_workers(imagenet):
  train = load_imagenet(imagenet).train
  copy = pickle.loads(pickle.dumps(train))
  assert copy[3] == train[3]


def test_a_version_or_a_folder_can_be_named(imagenet):
  folder = next(imagenet.glob('imagenet2012/*'))
  named = load(name=f'tfds:imagenet2012:{folder.name}', path=str(imagenet))
  direct = load_imagenet(folder)
  assert named.train.names == direct.train.names
  assert tfds_files.data_dir(str(folder)) == str(imagenet)
  assert tfds_files.data_dir('') == ''
  with pytest.raises(UserError, match='no version 1.2.3, but '):
    load(name='tfds:imagenet2012:1.2.3', path=str(imagenet))


def test_the_newest_version_is_taken(tmp_path):
  features = {'image': tfds.features.Image()}
  for version in ('2.0.0', '10.0.0', '9.9.9'):
    example = {'image': np.zeros((4, 4, 3), np.uint8)}
    tfds_data.write_custom(
      tmp_path, 'mine', features, {'train': [example]}, version=version
    )
  (tmp_path / 'mine/incomplete.X_11.0.0').mkdir()
  (tmp_path / 'mine/incomplete.X_11.0.0/dataset_info.json').write_text('{}')
  assert tfds_files.locate('mine', str(tmp_path)).name == '10.0.0'
  data = load(name='tfds:mine', path=str(tmp_path))
  assert data.num_classes == 0 and data.train.labels.tolist() == [-1]
  assert data.test is None and data.train.names is None


def test_unlabelled_split_joins_training_without_its_labels(tmp_path):
  name = 'stl10'
  splits = {
    'train': tfds_data.examples(name, [0, 1, 2]),
    'test': tfds_data.examples(name, [4, 5]),
    'unlabelled': tfds_data.examples(name, [-1] * 4),
  }
  tfds_data.write(tmp_path, name, splits, shuffle=False)
  data = load(name='tfds:stl10', path=str(tmp_path))
  assert data.train.labels.tolist() == [0, 1, 2, -1, -1, -1, -1]
  assert [data.train[i]['id'] for i in range(7)] == list(range(7))
  assert data.train[5]['image'] == splits['unlabelled'][2]['image']
  assert data.num_classes == 10 and data.test.labels.tolist() == [4, 5]
  # Any split can be used so, and what labels it has stay unseen.
  more = load(
    name='tfds:stl10', path=str(tmp_path), unlabelled_split='test',
    test_split='train[:2]',
  )  # fmt: skip
  assert more.train.labels.tolist() == [0, 1, 2, -1, -1]
  assert more.test.labels.tolist() == [0, 1]


def test_environment_says_where_data_lies(imagenet, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(imagenet))
  assert len(load_imagenet('').train) == 7


def test_imagenets_test_set_is_its_validation_split(tmp_path):
  """Also where its own test split, which has no labels, was prepared."""
  name = 'imagenet2012'
  splits = {
    'train': tfds_data.examples(name, [0, 1]),
    'validation': tfds_data.examples(name, [5], 1, 'validation'),
    'test': tfds_data.examples(name, [-1, -1], 2, 'test'),
  }
  tfds_data.write(tmp_path, name, splits)
  assert load_imagenet(tmp_path).test.labels.tolist() == [5]
  data = load(name='tfds:imagenet2012', path=str(tmp_path))
  assert data.test.labels.tolist() == [5]


def test_fingerprint_tells_orders_apart(tmp_path):
  found = []
  for shuffle in (True, False):
    folder = tmp_path / str(shuffle)
    splits = {'train': tfds_data.examples('imagenet2012', IMAGENET)}
    tfds_data.write(folder, 'imagenet2012', splits, shuffle=shuffle)
    found.append(load_imagenet(folder).fingerprint)
  assert found[0] != found[1]


# -- labelled subsets --


def test_listed_images_that_are_held_out_are_not_trained_on(imagenet):
  data = load_imagenet(imagenet, validation=3, validation_rule='first')
  whole = load_imagenet(imagenet)
  lines = imagenet / 'list.txt'
  lines.write_text('\n'.join(whole.train.names[1:5]))
  cfg = config.default()
  cfg.labels.file = str(lines)
  labels = labels_lib.visible_labels(cfg.labels, data)
  seen = {data.train.names[i] for i in np.flatnonzero(labels >= 0)}
  assert seen == set(whole.train.names[3:5])
  lines.write_text('n00000000_1.JPEG')
  with pytest.raises(UserError, match='1 of 1 names are not in the data'):
    labels_lib.visible_labels(cfg.labels, data)


def test_subset_of_tfds_is_that_of_its_file_names(imagenet):
  names = [e['file_name'] for e in tfds_data.examples('imagenet2012', IMAGENET)]
  name = 'imagenet2012_subset/1pct'
  chosen = tfds_data.examples(name, [3, 7])
  for example, wanted in zip(chosen, (names[2], names[3])):
    example['file_name'] = wanted
  tfds_data.write(imagenet, name, {'train': chosen})
  data = load_imagenet(imagenet)
  cfg = config.default()
  cfg.labels.subset = name
  assert config.uses_labels(cfg)
  folder = next(imagenet.glob('imagenet2012/*'))
  for path in (imagenet, folder):
    labels = labels_lib.visible_labels(cfg.labels, data, str(path))
    seen = {data.train.names[i]: labels[i] for i in np.flatnonzero(labels >= 0)}
    assert seen == {names[2]: 3, names[3]: 7}
  # The same as SimCLR's list of these names.
  lines = imagenet / 'list.txt'
  lines.write_text('\n'.join([names[3], names[2]]) + '\n')
  cfg.labels.update(subset='', file=str(lines))
  np.testing.assert_array_equal(
    labels_lib.visible_labels(cfg.labels, data), labels
  )


def test_subset_with_a_name_that_is_not_in_the_data(imagenet):
  name = 'imagenet2012_subset/1pct'
  stranger = tfds_data.examples(name, [3])
  stranger[0]['file_name'] = 'n01440764_99999.JPEG'
  tfds_data.write(imagenet, name, {'train': stranger})
  cfg = config.default()
  cfg.labels.subset = name
  with pytest.raises(UserError, match='1pct: 1 of 1 names are not in the data'):
    labels_lib.visible_labels(
      cfg.labels, load_imagenet(imagenet), str(imagenet)
    )
  cfg.labels.subset = 'imagenet2012_subset/10pct'
  with pytest.raises(UserError, match='tfds build imagenet2012_subset/10pct'):
    labels_lib.visible_labels(
      cfg.labels, load_imagenet(imagenet), str(imagenet)
    )


# -- what is missing or damaged --


def test_missing_data_set_says_where_and_how(tmp_path, monkeypatch):
  with pytest.raises(UserError) as e:
    load_imagenet(tmp_path)
  message = str(e.value)
  assert f'{tmp_path}/imagenet2012/VERSION/dataset_info.json' in message
  assert (
    f'tfds build imagenet2012 --data_dir={tmp_path} --file_format=array_record'
  ) in message
  assert '\n' not in message
  monkeypatch.setenv('TFDS_DATA_DIR', '')
  with pytest.raises(UserError, match='/tensorflow_datasets'):
    tfds_files.locate('no_such_set')


def test_a_config_must_be_named(tmp_path):
  for corruption in ('fog_1', 'snow_3'):
    name = f'imagenet2012_corrupted/{corruption}'
    examples = tfds_data.examples(name, [0])
    tfds_data.write(tmp_path, name, {'validation': examples})
  with pytest.raises(UserError, match='none was named: fog_1, snow_3 are in'):
    tfds_files.find('imagenet2012_corrupted', str(tmp_path))
  found = tfds_files.find('imagenet2012_corrupted/snow_3', str(tmp_path))
  assert len(found.open('validation').source) == 1


def test_tfrecord_has_no_random_access(tmp_path):
  folder = tfds_data.write(
    tmp_path, 'cifar10', {'train': tfds_data.examples('cifar10', [1])},
    file_format='tfrecord',
  )  # fmt: skip
  with pytest.raises(UserError) as e:
    load(name='tfds:cifar10', path=str(tmp_path))
  assert 'is stored as tfrecord, which has no random access' in str(e.value)
  assert f'python -m semppl_jax.to_array_record {folder}' in str(e.value)


def test_array_record_beside_tfrecord_is_found(tmp_path):
  tfds_data.write(
    tmp_path, 'cifar10', {'train': tfds_data.examples('cifar10', [1, 2])},
    file_format='tfrecord', alternatives=['array_record'],
  )  # fmt: skip
  assert len(load(name='tfds:cifar10', path=str(tmp_path)).train) == 2


@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
def test_damaged_descriptions(imagenet, file):
  path = next(imagenet.glob(f'imagenet2012/*/{file}'))
  path.write_text('{"name": ')
  with pytest.raises(
    UserError, match='is not a data set that tfds can read'
  ) as e:
    load_imagenet(imagenet)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('damage', ['cut', 'gone', 'garbage'])
def test_damaged_shard(imagenet, damage):
  for shard in imagenet.glob('imagenet2012/*/*-train.array_record*'):
    if damage == 'gone':
      shard.unlink()
    elif damage == 'cut':
      shard.write_bytes(shard.read_bytes()[:70_000])
    else:
      shard.write_bytes(b'x' * shard.stat().st_size)
  with pytest.raises(UserError, match='train is damaged: ') as e:
    load_imagenet(imagenet)
  assert '\n' not in str(e.value)


def test_shard_that_breaks_later_is_unreadable(imagenet):
  load_imagenet(imagenet)  # leaves an index
  for shard in imagenet.glob('imagenet2012/*/*-train.array_record*'):
    shard.write_bytes(b'x' * shard.stat().st_size)
  train = load_imagenet(imagenet).train
  with pytest.raises(images.Unreadable) as e:
    train[0]
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'key', ['train_split', 'test_split', 'unlabelled_split']
)
def test_unknown_split(imagenet, key):
  with pytest.raises(
    UserError, match="'trian'.*train, validation.*'train'"
  ) as e:
    load_imagenet(imagenet, **{key: 'trian'})
  assert '\n' not in str(e.value)


def test_data_set_without_images(tmp_path):
  tfds_data.write_custom(
    tmp_path,
    'words',
    {'text': tfds.features.Text()},
    {'train': [{'text': 'a'}]},
  )
  with pytest.raises(UserError, match='words.* has no images.* are text'):
    load(name='tfds:words', path=str(tmp_path))


@pytest.mark.parametrize('name', ['../x', 'a b', '', 'x:1'])
def test_names_that_are_none(name, tmp_path):
  with pytest.raises(UserError):
    tfds_files.locate(name, str(tmp_path))


def test_home_is_expanded(imagenet, monkeypatch):
  monkeypatch.setenv('HOME', str(imagenet.parent))
  assert pathlib.Path('~').expanduser() == imagenet.parent
  assert len(load_imagenet(f'~/{imagenet.name}').train) == 7
