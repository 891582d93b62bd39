"""Folders as people have them: what is taken for what, and what is left out."""

import os

import numpy as np
import pytest
from PIL import Image

from semppl_jax import config
from semppl_jax.data import datasets, folders
from semppl_jax.data import labels as labels_lib
from semppl_jax.errors import UserError


def put(root, *names):
  """Small grey images, and empty files of other kinds."""
  for name in names:
    path = os.path.join(os.fsencode(root), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image = Image.new('L', (4, 4), 99)
    if name.endswith(('.png', '.jpg', '.jfif', '.jpe')):
      image.save(os.fsdecode(path), 'PNG' if '.png' in name else 'JPEG')
    else:
      open(path, 'w').close()
  return root


@pytest.fixture
def usual(tmp_path):
  return put(tmp_path, 'train/cat/1.png', 'train/dog/1.png')


def search(root):
  found = folders.search(str(root))
  relative = lambda paths: [os.path.relpath(path, root) for path in paths]
  return found._replace(train=relative(found.train), test=relative(found.test))


def test_nothing_to_say_of_a_usual_folder(usual):
  put(usual, 'test/cat/2.png', 'unlabelled/a/3.png', 'unlabelled/4.jpg')
  found = search(usual)
  assert found.train[:2] == ['train/cat/1.png', 'train/dog/1.png']
  assert found.labels == [0, 1, -1, -1] and found.test == ['test/cat/2.png']
  assert found.notes == []


@pytest.mark.parametrize(
  'name', ['val', 'valid', 'validation', 'Val', 'testing', 'TEST']
)
def test_other_names_of_a_test_set(name, usual):
  put(usual, f'{name}/dog/2.png')
  found = search(usual)
  assert found.test == [f'{name}/dog/2.png'] and found.test_labels == [1]
  assert found.notes == [f'{name}/ is taken for test/']


def test_a_test_set_beside_a_validation_set(usual):
  put(usual, 'val/dog/2.png', 'val/dog/3.png', 'test/cat/2.png')
  found = search(usual)
  assert found.test == ['test/cat/2.png']
  assert found.notes == ['val/ with 2 images left out (test/ is there)']


@pytest.mark.parametrize('name', ['unlabeled', 'Unlabelled', 'UNLABELED'])
def test_other_spellings_of_unlabelled(name, usual):
  put(usual, f'{name}/x/2.png')
  found = search(usual)
  assert found.train[2:] == [f'{name}/x/2.png'] and found.labels[2:] == [-1]
  assert found.notes == [f'{name}/ is taken for unlabelled/']


def test_another_name_of_the_training_set(tmp_path):
  put(tmp_path, 'Training/cat/1.png', 'val/cat/2.png')
  found = search(tmp_path)
  assert found.class_names == ['cat'] and found.labels == [0]
  assert 'Training/ is taken for train/' in found.notes


def test_classes_without_a_train_folder(tmp_path):
  put(
    tmp_path, 'dog/1.png', 'cat/1.png', 'cat/2.png', 'test/cat/3.png', '4.png'
  )
  put(tmp_path, 'notes/readme.txt')
  found = search(tmp_path)
  assert found.class_names == ['cat', 'dog']
  assert found.labels == [0, 0, 1, -1] and found.train[-1] == '4.png'
  assert found.test_labels == [0]
  assert found.notes == ['there is no train/: cat/, dog/ are taken for classes']


def test_what_is_left_out_is_told_by_kind(usual):
  put(usual, '5.png', 'more/a/6.png', 'more/7.png', 'runs/log.txt')
  put(usual, 'train/cat/8.heic', 'train/cat/9.HEIC', 'train/dog/x.txt')
  assert search(usual).notes == [
    'more/ with 2 images left out (they may go to train/CLASS/, test/CLASS/ or '
    'unlabelled/)',
    '1 image directly in it left out (they may go to unlabelled/)',
    '3 files of other kinds left out (.heic 2, .txt 1); convert images to JPEG '
    'or PNG',
  ]


def test_what_systems_leave_behind_is_no_class_and_no_image(usual):
  put(usual, 'train/__MACOSX/cat/._1.png', 'train/__MACOSX/2.png')
  put(usual, '__MACOSX/train/cat/._1.jpg', 'train/cat/@eaDir/1.png')
  put(usual, 'train/.ipynb_checkpoints/1.png', 'train/cat/._1.png')
  put(usual, 'train/cat/Thumbs.db', 'train/.DS_Store', 'desktop.ini')
  found = search(usual)
  assert found.class_names == ['cat', 'dog'] and len(found.train) == 2
  assert found.notes == []


def test_masks_and_runs_in_it_are_no_data(tmp_path):
  put(tmp_path, 'cat/1.png', 'masks/masks.json', 'masks/contact_sheet.png')
  put(tmp_path, 'run/metrics.jsonl', 'run/plots/curves.png')
  found = search(tmp_path)
  assert found.class_names == ['cat'] and found.train == ['cat/1.png']
  put(tmp_path, 'train/dog/1.png')
  assert search(tmp_path).notes == [
    'cat/ with 1 image left out (they may go to train/CLASS/, test/CLASS/ or '
    'unlabelled/)'
  ]


def test_jpegs_have_many_suffixes(usual):
  put(usual, 'train/cat/2.jfif', 'train/cat/3.jpe', 'train/cat/4.JPG'.lower())
  assert len(search(usual).train) == 5


def test_a_folder_of_other_files_says_so(tmp_path):
  put(tmp_path, 'train/cat/1.heic')
  with pytest.raises(UserError, match=r'no images: .* \(\.heic 1\); convert'):
    folders.search(str(tmp_path))


def load(root):
  cfg = config.default().dataset
  cfg.update(name='folder', path=str(root), image_size=8)
  return datasets.load(cfg)


def test_names_that_are_not_utf8(usual):
  """As a zip made on Windows has them; they are shown with a sign."""
  put(usual, os.fsdecode(b'train/caf\xe9/\xe9.png'))
  data = load(usual)
  assert data.class_names == ('caf�', 'cat', 'dog')
  assert data.train.names[0] == 'caf�/�.png'
  assert len(data.train[0]['image']) > 0
  data.fingerprint.encode()


def listed(root, text, encoding='utf-8'):
  path = root / 'list.txt'
  path.write_bytes(text.encode(encoding))
  cfg = config.default().labels
  cfg.file = str(path)
  data = load(root)
  seen = labels_lib.visible_labels(cfg, data, str(root))
  return [data.train.names[i] for i in np.flatnonzero(seen >= 0)]


@pytest.mark.parametrize(
  'text, encoding',
  [
    ('cat/1.png\r\ndog/1.png\r\n', 'utf-8'),
    ('cat/1.png\ndog/1.png\n', 'utf-8-sig'),
    ('cat/1.png\r\ndog/1.png', 'utf-16'),
    ('train/cat/1.png\ntrain/dog/1.png', 'utf-8'),
    ('./train/cat/1.png\n./dog/1.png', 'utf-8'),
    ('cat\\1.png\ntrain\\dog\\1.png', 'utf-8'),
    ('{root}/train/cat/1.png\n{root}/train/dog/1.png', 'utf-8'),
    ('/elsewhere/data/train/cat/1.png\n/elsewhere/dog/1.png', 'utf-8'),
  ],
)
def test_lists_as_people_write_them(text, encoding, usual):
  text = text.format(root=usual)
  assert listed(usual, text, encoding) == ['cat/1.png', 'dog/1.png']


def test_a_list_means_the_training_image_of_two_of_one_name(usual):
  put(usual, 'unlabelled/cat/1.png')
  assert listed(usual, 'cat/1.png\n') == ['cat/1.png']


def test_an_unlabelled_image_in_a_list_is_named(usual):
  put(usual, 'unlabelled/cow/7.png')
  with pytest.raises(UserError, match="'cow/7.png' has no label"):
    listed(usual, 'cow/7.png\n')


def test_a_list_that_is_no_text(usual):
  with pytest.raises(UserError, match='list.txt cannot be read: it is no text'):
    listed(usual, 'cat/\xe9.png', 'latin-1')
