import pickle

import numpy as np
import pytest
from PIL import Image

from semppl_jax import config
from semppl_jax.data import datasets, images, sources
from semppl_jax.data import labels as labels_lib
from semppl_jax.errors import UserError
from tests.helpers import photos


def load(**kwargs):
  cfg = config.default().dataset
  cfg.update(kwargs)
  return datasets.load(cfg)


def ids(source):
  return [source[i]['id'] for i in range(len(source))]


def assert_contract(source, shape):
  """Every record is what the module promises."""
  for i in range(len(source)):
    record = source[i]
    assert isinstance(record['image'], bytes) == source.encoded
    image = images.load(record['image'], side=max(shape[:2]))
    assert image.dtype == np.uint8
    if source.encoded:  # whole, in an array of that shape
      assert max(image.shape[:2]) <= shape[0] and image.shape[2] == 3
    else:
      assert image.shape == shape
    assert record['label'] == source.labels[i]
    assert type(record['label']) is type(record['id']) is int
  assert source.labels.shape == (len(source),)
  assert source.labels.dtype == np.int32


def test_unknown_name():
  with pytest.raises(UserError) as e:
    load(name='digts')
  assert str(e.value) == (
    "dataset.name is 'digts'; known: digits, arrays, folder, imagenet2012, "
    "synthetic, tfds:NAME; did you mean 'digits'?"
  )


# -- digits --


def test_digits_are_the_real_ones_in_255_greys():
  from sklearn import datasets

  data = load(name='digits')
  assert (len(data.train), len(data.test), data.num_classes) == (1500, 297, 10)
  assert data.class_names == tuple('0123456789')
  assert data.image_shape == (8, 8, 3)
  digits = datasets.load_digits()
  for source in (data.train, data.test):
    assert_contract(source, (8, 8, 3))
    for i in (0, 100, len(source) - 1):
      record = source[i]
      assert record['label'] == digits.target[record['id']]
      grey = digits.images[record['id']]  # 0 .. 16
      for channel in range(3):
        image = record['image'][..., channel].astype(float)
        np.testing.assert_allclose(image, grey * 255 / 16, atol=0.5)
  brightest = max(data.train[i]['image'].max() for i in range(50))
  assert brightest == 255


def test_digits_split_is_fixed_and_stratified():
  data = load(name='digits')
  train, test = ids(data.train), ids(data.test)
  assert sorted(train + test) == list(range(1797))
  assert set(np.bincount(data.test.labels)) == {29, 30}
  again = load(name='digits', seed=7)
  assert (ids(again.train), ids(again.test)) == (train, test)
  # A change here makes new numbers of the demo incomparable with old ones.
  assert test[:5] == [3, 7, 13, 19, 36]


# -- validation --


@pytest.mark.parametrize('count', [1, 100, 299])
def test_validation_is_held_out_of_training_only(count):
  whole = load(name='digits')
  data = load(name='digits', validation=count)
  train, held_out = set(ids(data.train)), set(ids(data.test))
  assert len(data.test) == count and len(data.train) == 1500 - count
  assert train | held_out == set(ids(whole.train))
  assert not train & held_out
  assert not held_out & set(ids(whole.test))
  sizes = np.bincount(data.test.labels, minlength=10)
  wanted = np.bincount(whole.train.labels) * count / 1500
  assert np.all(np.abs(sizes - wanted) < 1)
  assert_contract(data.test, (8, 8, 3))


def test_validation_depends_on_the_seed_only():
  first, again, other = (
    ids(load(name='digits', validation=100, seed=s).test) for s in (0, 0, 1)
  )
  assert first == again != other


def test_validation_takes_labelled_images_only(tmp_path):
  labels = np.array([-1, 0, 1, -1, 0, 1, 0, 1])
  path = save(tmp_path, train_images=noise(8), train_labels=labels)
  data = load(name='arrays', path=path, validation=4)
  assert sorted(data.test.labels) == [0, 0, 1, 1]
  assert sorted(data.train.labels) == [-1, -1, 0, 1]


@pytest.mark.parametrize('validation', [-1, 1500, 9999])
def test_validation_out_of_range(validation):
  with pytest.raises(UserError, match=f'{validation}; .* less than the 1500'):
    load(name='digits', validation=validation)


def test_the_first_images_can_be_held_out():
  """As the release holds out the first 10,000 of ImageNet."""
  data = load(name='digits', validation=100, validation_rule='first')
  whole = ids(load(name='digits').train)
  assert ids(data.test) == whole[:100] and ids(data.train) == whole[100:]


# -- synthetic --


def test_synthetic():
  settings = dict(num_examples=10, num_classes=3, image_size=5)
  data = load(name='synthetic', **settings)
  assert (len(data.train), len(data.test), data.num_classes) == (10, 2, 3)
  assert data.image_shape == (5, 5, 3) and data.class_names == ('0', '1', '2')
  assert_contract(data.train, (5, 5, 3))
  assert_contract(data.test, (5, 5, 3))
  assert set(data.train.labels) == {0, 1, 2}
  again = load(name='synthetic', **settings)
  other = load(name='synthetic', seed=1, **settings)
  pixels = lambda source: source[0]['image'].tobytes()
  assert pixels(data.train) == pixels(again.train)
  different = {pixels(s) for s in (data.train, data.test, other.train)}
  assert len(different) == 3


@pytest.mark.parametrize('key', ['num_examples', 'num_classes', 'image_size'])
def test_synthetic_mistakes(key):
  with pytest.raises(UserError, match=f'dataset.{key} is 0; .* at least 1'):
    load(name='synthetic', **{key: 0})


# -- arrays --


def noise(count, shape=(4, 5, 3), dtype=np.uint8):
  random = np.random.RandomState(count)
  return random.randint(0, 256, (count, *shape)).astype(dtype)


def save(folder, **arrays):
  path = folder / 'data.npz'
  np.savez(path, **arrays)
  return str(path)


@pytest.mark.parametrize('shape', [(4, 5, 3), (4, 5, 1), (4, 5)])
def test_arrays(tmp_path, shape):
  train, test = noise(6, shape), noise(3, shape)
  path = save(
    tmp_path,
    train_images=train,
    train_labels=np.array([0, -1, 2, 1, 0, 0]),
    test_images=test,
    test_labels=np.array([3, 1, 1], np.uint8),
  )
  data = load(name='arrays', path=path)
  assert data.image_shape == (4, 5, 3)
  assert data.num_classes == 4 and data.class_names == ('0', '1', '2', '3')
  assert ids(data.train) == list(range(6))
  assert_contract(data.train, (4, 5, 3))
  assert_contract(data.test, (4, 5, 3))
  np.testing.assert_array_equal(data.train.labels, [0, -1, 2, 1, 0, 0])
  for channel in range(3):
    np.testing.assert_array_equal(
      data.test[1]['image'][..., channel],
      test.reshape(3, 4, 5, -1)[1, ..., channel % (shape[2:] or (1,))[0]],
    )


def test_arrays_without_test_and_without_labels(tmp_path):
  path = save(
    tmp_path, train_images=noise(3), train_labels=np.array([-1, -1, -1])
  )
  data = load(name='arrays', path=path)
  assert data.test is None
  assert data.num_classes == 0 and data.class_names == ()


GOOD = dict(
  train_images=noise(3),
  train_labels=np.arange(3),
  test_images=noise(2),
  test_labels=np.arange(2),
)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(train_images=None), "no array 'train_images', but train_labels"),
    (dict(train_labels=None), "no array 'train_labels'"),
    (dict(test_labels=None), "no array 'test_labels'"),
    (dict(test_images=None), "no array 'test_images'"),
    (dict(train_images=noise(3, dtype=np.float32)), 'float32 .* be uint8'),
    (dict(train_images=noise(3, (5,))), r'uint8 \(3, 5\); it must be'),
    (dict(train_images=noise(3, (4, 5, 2))), r'\(3, 4, 5, 2\); it must be'),
    (dict(train_images=noise(3, (1, 4, 5, 3))), r'\(3, 1, 4, 5, 3\); it must'),
    (dict(train_images=noise(0)), 'not empty'),
    (dict(train_labels=np.arange(4)), r'\(4,\); it must be integers \[3\]'),
    (dict(train_labels=np.arange(3.0)), 'float64 .* be integers'),
    (dict(train_labels=np.arange(3)[:, None]), r'\(3, 1\); it must be'),
    (dict(train_labels=np.array([0, 1, -2])), 'from -2 to 1; .* from -1'),
    (dict(train_labels=np.array([0, 1, 2**40])), f'to {2**40}; '),
    (
      dict(train_labels=np.array([0, 45_000, 90_000])),
      'go up to 90000, but only 3 different .* return_inverse',
    ),
    (dict(test_labels=np.array([0, -1])), 'test_labels go from -1 .* from 0'),
    (dict(test_images=noise(2, (4, 6, 3))), 'must have one size'),
    (dict(train_labels=np.array([{}, 1, 2])), 'not a readable .npz file'),
  ],
)
def test_arrays_mistakes(tmp_path, change, message):
  arrays = {k: v for k, v in (GOOD | change).items() if v is not None}
  with pytest.raises(UserError, match=message) as e:
    load(name='arrays', path=save(tmp_path, **arrays))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('content', [None, b'', b'PK\x03\x04 broken', 'npy'])
def test_arrays_file_that_is_none(tmp_path, content):
  path = tmp_path / 'data.npz'
  if content == 'npy':
    with path.open('wb') as file:
      np.save(file, noise(2))
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match='data.npz.* not a readable .npz'):
    load(name='arrays', path=str(path))


@pytest.mark.parametrize('name', ['arrays', 'folder'])
def test_path_is_missing(name):
  with pytest.raises(UserError, match=f'path is empty; dataset.name={name}'):
    load(name=name, path='')


# -- folder --


def write(path, pixels, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **kwargs)


def plain(value, height=12, width=12):
  """One colour, or one grey, all over the image."""
  return np.full((height, width, *np.shape(value)), value, np.uint8)


@pytest.fixture
def folder(tmp_path):
  write(tmp_path / 'train/cat/b.jpg', plain((200, 10, 30), 30, 17), quality=95)
  write(tmp_path / 'train/cat/a.PNG', plain((1, 2, 3)))
  write(tmp_path / 'train/cat/.hidden.png', plain(0))
  write(tmp_path / 'train/dog/grey.jpeg', plain(90, 8, 31))
  write(tmp_path / 'train/dog/notes.png.txt', plain(0), format='png')
  write(tmp_path / 'test/dog/x.png', plain((7, 8, 9, 255), 9, 12))
  write(tmp_path / 'unlabelled/more/deep/y.png', plain((4, 5, 6), 3, 2))
  write(tmp_path / 'unlabelled/z.png', plain(250))
  return tmp_path


def load_folder(path, **kwargs):
  return load(**(dict(name='folder', path=str(path), image_size=12) | kwargs))


def test_folder(folder):
  data = load_folder(folder)
  assert data.class_names == ('cat', 'dog') and data.num_classes == 2
  assert data.image_shape == (12, 12, 3)
  np.testing.assert_array_equal(data.train.labels, [0, 0, 1, -1, -1])
  np.testing.assert_array_equal(data.test.labels, [1])
  assert ids(data.train) == [0, 1, 2, 3, 4]
  assert_contract(data.train, (12, 12, 3))
  assert_contract(data.test, (12, 12, 3))
  # Sorted by class and name: a.PNG, b.jpg, grey.jpeg, z.png, more/deep/y.png.
  colours = [(1, 2, 3), (200, 10, 30), (90,) * 3, (250,) * 3, (4, 5, 6)]
  for i, colour in enumerate(colours):
    image = images.decode(data.train[i]['image']).astype(int)
    np.testing.assert_allclose(
      image, np.broadcast_to(colour, image.shape), atol=3
    )
  assert data.train.names[1] == 'cat/b.jpg'
  test = images.decode(data.test[0]['image'])
  np.testing.assert_array_equal(test, plain((7, 8, 9), 9, 12))


def test_fingerprint_is_that_of_the_training_images(folder):
  first = load_folder(folder).fingerprint
  write(folder / 'test/dog/another.png', plain(0))
  assert load_folder(folder, image_size=24).fingerprint == first
  write(folder / 'train/dog/another.png', plain(0))
  assert load_folder(folder).fingerprint != first


def test_a_list_names_the_labelled_images_of_a_folder(folder, tmp_path):
  """Through the config, as SimCLR's lists do; the rest is unlabelled."""
  train = load_folder(folder).train
  labelled = np.flatnonzero(train.labels >= 0)
  path = tmp_path / 'list.txt'
  path.write_text(train.names[labelled[-1]] + '\n')
  cfg = config.default()
  cfg.labels.file = str(path)
  selected = labels_lib.visible_labels(cfg.labels, load_folder(folder))
  assert config.uses_labels(cfg)
  assert np.flatnonzero(selected >= 0).tolist() == [labelled[-1]]
  assert selected[labelled[-1]] == train.labels[labelled[-1]]
  rows = sources.Rows(train, labelled[::-1])
  assert rows.names[0] == train.names[labelled[-1]]
  cfg.labels.per_class = 1
  with pytest.raises(UserError, match='only one of them may be set'):
    config.check_one_subset(cfg)
  cfg.labels.per_class = 0
  with pytest.raises(UserError, match='have no names'):
    labels_lib.visible_labels(cfg.labels, load(name='synthetic'))


def test_folder_can_go_to_a_worker(folder):
  train = pickle.loads(pickle.dumps(load_folder(folder).train))
  assert train.encoded
  np.testing.assert_array_equal(
    images.decode(train[0]['image']), plain((1, 2, 3))
  )


def test_folder_of_images_is_unlabelled(tmp_path):
  for name in ('b', 'a'):
    write(tmp_path / f'{name}.png', plain(ord(name)))
  write(tmp_path / 'unlabelled/c.png', plain(ord('c')))
  data = load_folder(tmp_path)
  assert data.test is None and data.num_classes == 0
  np.testing.assert_array_equal(data.train.labels, [-1, -1, -1])
  values = [images.decode(data.train[i]['image'])[0, 0, 0] for i in range(3)]
  assert values == [ord(c) for c in 'abc']


def test_vanished_image_cannot_be_read(tmp_path):
  write(tmp_path / 'a.png', plain(0))
  train = load_folder(tmp_path).train
  (tmp_path / 'a.png').unlink()
  with pytest.raises(images.Unreadable, match='No such file'):
    train[0]


def test_empty_class_keeps_its_number_and_is_warned_of(folder, caplog):
  (folder / 'train/cow').mkdir()
  with caplog.at_level('WARNING'):
    data = load_folder(folder)
  assert data.class_names == ('cat', 'cow', 'dog')
  assert data.train.labels.tolist() == [0, 0, 2, -1, -1]
  assert 'train/cow has no images' in caplog.text


@pytest.mark.parametrize(
  'stray, message',
  [
    ('test/dgo/a.png', "test/dgo is no class of train/; did you mean 'dog'"),
    (
      'train/a.png',
      'train/a.png is in no class; it belongs in .*/train/CLASS/',
    ),
    ('test/a.png', 'test/a.png is in no class'),
  ],
)
def test_images_in_the_wrong_place(folder, stray, message):
  write(folder / stray, plain(0))
  with pytest.raises(UserError, match=message):
    load_folder(folder)


def test_folder_mistakes(tmp_path):
  with pytest.raises(UserError, match='nowhere.* is not a folder'):
    load_folder(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='has no images: they belong in train/'):
    load_folder(tmp_path)
  write(tmp_path / 'a.png', plain(0))
  with pytest.raises(UserError, match='image_size is 0; .* at least 1'):
    load_folder(tmp_path, image_size=0)


# -- duplicates --


def _folder_with_copies(path):
  """Of ten training images 0, 4 and 5 have a copy in test, and 9 is broken."""
  images_of = [photos.photo(i) for i in range(10)]
  for i, image in enumerate(images_of):
    file = path / 'train' / 'ab'[i % 2] / f'{i}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
  (path / 'train/b/9.png').write_bytes(b'no image')
  for name, image in (
    ('a/x', photos.cropped(images_of[0])),
    ('a/y', photos.flipped(images_of[4])),
    ('b/z', images_of[5]),
    ('b/w', photos.photo(99)),
  ):
    file = path / 'test' / f'{name}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


def test_training_images_with_a_copy_in_test_are_left_out(tmp_path):
  _folder_with_copies(tmp_path)
  whole = load(name='folder', path=str(tmp_path))
  less = load(name='folder', path=str(tmp_path), drop_duplicates=True)
  wanted = [
    i
    for i, name in enumerate(whole.train.names)
    if name not in ('a/0.png', 'a/4.png', 'b/5.png')
  ]
  assert ids(sources.Rows(less.train, np.arange(7))) == wanted
  assert less.train.labels.tolist() == whole.train.labels[wanted].tolist()
  assert len(less.test) == 4 and less.fingerprint == whole.fingerprint
  (note,) = less.notes
  assert note.endswith('test images: a/0.png, a/4.png, b/5.png')
  assert '3 of 10 training images' in note


def test_copies_of_held_out_images_are_left_out(tmp_path):
  made = np.stack([photos.photo(i, 32) for i in range(6)])
  train = np.concatenate([made, made, made[:2]])
  path = tmp_path / 'a.npz'
  np.savez(path, train_images=train, train_labels=np.zeros(14, int))
  whole = load(name='arrays', path=str(path), drop_duplicates=True)
  assert len(whole.train) == 14  # nothing to test with
  less = load(
    name='arrays', path=str(path), drop_duplicates=True, validation=2,
    validation_rule='first',
  )  # fmt: skip
  assert ids(less.test) == [0, 1]
  assert ids(less.train) == [2, 3, 4, 5, 8, 9, 10, 11]


def test_images_are_read_once_for_it(tmp_path, monkeypatch):
  _folder_with_copies(tmp_path)
  asked, search = [], datasets.duplicates.of_test

  def counted(*arguments):
    asked.append(arguments)
    return search(*arguments)

  monkeypatch.setattr(datasets.duplicates, 'of_test', counted)
  known = {'name': 'folder', 'path': str(tmp_path), 'drop_duplicates': True}
  assert len(load(**known).train) == len(load(**known, image_size=9).train) == 7
  assert len(asked) == 1
  assert len(load(**known, validation=3).train) == 7 and len(asked) == 2
