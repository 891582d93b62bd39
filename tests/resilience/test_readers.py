"""Readers of bytes from outside: changed files, and what they once let pass."""

import io
import json
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from semppl_jax import main
from semppl_jax.data import (
  array_files,
  images,
  label_maps,
  masks,
  tfds_files,
  tfds_index,
)
from semppl_jax.errors import UserError
from semppl_jax.utils import diff
from semppl_jax.weights import match_names
from semppl_jax.workdir import lock, metrics
from tests.helpers import tfds_data
from tests.resilience import fuzz_readers

DEEP = '[' * 100_000
# All that needs no compiling; the images last, for their memory.
QUICK = (
  'lists', 'label_maps', 'masks', 'npz', 'tfrecords', 'json', 'commands',
  'safetensors', 'tfds', 'to_array_record', 'checkpoints', 'images',
)  # fmt: skip


def check(tmp_path, readers, **options):
  found, failures = fuzz_readers.run(readers, keep=tmp_path, **options)
  assert not failures, '\n'.join(failures)
  return found


def test_changed_files(tmp_path):
  found = check(tmp_path, QUICK, seed=0, count=12, seconds=600)
  assert all(len(cases) == 12 for cases in found.values())
  loaded = sum(not text for cases in found.values() for text, *_ in cases)
  assert 20 < loaded < 110  # of 144, or little of it is tested


@pytest.mark.long
@pytest.mark.parametrize('reader', QUICK)
def test_many_changed_files(reader, tmp_path):
  check(tmp_path, [reader], seed=1, count=2000, seconds=10)


def test_a_fuzzer_that_finds_nothing_would_show_nothing(tmp_path, monkeypatch):
  """A case that kills its process is kept, and the rest goes on."""
  deaths = iter([('npz', '0', -11), ('npz', '4', 1), (None, None, 0)])

  def start(left, seed, count, seconds, work):
    reader, number, status = next(deaths)
    seen.append(dict(left))
    if status:
      (work / 'current').write_text(f'{reader} {number}')
      fuzz_readers.write({'x.npz': number.encode()}, work / 'kept')
    return status, 'words'

  seen = []
  monkeypatch.setattr(fuzz_readers, '_start', start)
  _, failures = fuzz_readers.run(
    ['lists', 'npz', 'json'], seed=3, count=9, seconds=1, keep=tmp_path
  )
  assert seen == [
    {'lists': 0, 'npz': 0, 'json': 0},
    {'npz': 1, 'json': 0},
    {'npz': 5, 'json': 0},
  ]
  assert (tmp_path / 'npz-3-0/x.npz').read_bytes() == b'0'
  assert 'npz-3-4, exit status 1: words' in failures[1]


# -- What was found --


def one_line(error):
  text = str(error.value)
  assert len(text.splitlines()) == 1 and text.isprintable(), repr(text)
  return text


@pytest.mark.parametrize('text', [DEEP, '{"a":' * 100_000, '9' * 5000, '"x"'])
def test_json_that_no_parser_likes(text, tmp_path):
  for name in ('config.json', 'masks.json', 'mapping.json'):
    (tmp_path / name).write_text(text)
  for read in (
    lambda: lock.claim(str(tmp_path), {}),
    lambda: masks.Masks(tmp_path, 'x'),
    lambda: match_names._read(str(tmp_path / 'mapping.json')),
    lambda: label_maps._read_json(tmp_path / 'config.json', str),
  ):
    with pytest.raises(UserError) as error:
      read()
    one_line(error)
  if text != '"x"':
    with pytest.raises(UserError, match='is not JSON'):
      metrics.read_json(tmp_path / 'config.json')


def test_lines_of_metrics_that_are_none(tmp_path):
  lines = [DEEP, '{"step": "3"}', '{"step": 1' + '0' * 5000 + '}', '[1]']
  lines += ['{"step": [1]}', '{"step": 2, "loss": 0.5}']
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines))
  assert metrics.read(str(tmp_path)) == [{'step': 2, 'loss': 0.5}]
  metrics.MetricsWriter(str(tmp_path), step=2).close()
  assert metrics.read(str(tmp_path)) == [{'step': 2, 'loss': 0.5}]


def test_a_name_in_a_file_makes_no_second_line():
  (phrase,) = diff.between({'a\nb': 'x' * 999}, {})
  assert phrase.startswith('a?b is "xx') and len(phrase) < 300


@pytest.mark.parametrize('member', ['train_images', 'train_labels'])
def test_members_of_an_npz_that_are_no_arrays(member, tmp_path):
  path = tmp_path / 'x.npz'
  arrays = {'train_images': np.zeros((1, 2, 2), np.uint8)}
  arrays |= {'train_labels': np.zeros(1, int)}
  del arrays[member]
  np.savez(path, **arrays)
  with zipfile.ZipFile(path, 'a') as file:
    file.writestr(f'{member}.npy', b'no array')
  with pytest.raises(UserError) as error:
    array_files.read(str(path))
  assert f'{member} is no array' in one_line(error)


def test_names_in_an_npz(tmp_path):
  np.savez(tmp_path / 'x.npz', **{'a\nb': np.zeros(1), 'c' * 999: np.ones(1)})
  with pytest.raises(UserError, match="has no array 'train_images'") as error:
    array_files.read(str(tmp_path / 'x.npz'))
  assert len(one_line(error)) < 700


def test_postscript_is_no_image():
  """Pillow would start Ghostscript for it."""
  file = io.BytesIO()
  Image.new('RGB', (2, 2)).save(file, 'EPS')
  with pytest.raises(images.Unreadable, match='no image that can be decoded'):
    images.decode(file.getvalue())


def test_a_jpeg_of_many_scans_is_not_decoded_for_hours():
  file = io.BytesIO()
  Image.new('L', (64, 64)).save(file, 'JPEG', progressive=True)
  data = file.getvalue()
  size, scans = data.index(b'\xff\xc2') + 5, data.index(b'\xff\xda')
  huge = data[:size] + (8000).to_bytes(2, 'big') * 2 + data[size + 4 : scans]
  with pytest.raises(images.Unreadable, match='600 scans of 8000 x 8000'):
    images.decode(huge + data[scans:-2] * 100 + b'\xff\xd9')
  assert images.decode(data).shape == (64, 64, 3)


def test_a_mask_that_is_huge():
  file = io.BytesIO()
  Image.new('1', (9000, 2)).save(file, 'PNG')
  with pytest.raises(ValueError, match='9000 x 2 pixels'):
    masks._decode(file.getvalue())


@pytest.fixture
def version(tmp_path, monkeypatch):
  """The folder of a data set."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  examples = tfds_data.examples('imagenet_v2', [0, 1, 1, 2])
  return tfds_data.write(tmp_path, 'imagenet_v2', {'test': examples})


@pytest.mark.parametrize('key', ['pythonClassName', 'python_class_name'])
def test_no_module_is_imported_that_a_file_names(key, version, monkeypatch):
  module = 'wsgiref.simple_server'
  monkeypatch.delitem(sys.modules, module, raising=False)
  path = version / 'features.json'
  text = path.read_text().replace(
    '"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"',
    f'"{key}": "{module}.Text"',
  )
  assert module in text
  path.write_text(text)
  with pytest.raises(UserError) as error:
    tfds_files.find('', str(version))
  assert f"names '{module}.Text', no class of tfds" in one_line(error)
  assert module not in sys.modules


def test_old_descriptions_of_features_name_classes_too():
  inner = json.dumps({'type': 'os.X', 'content': {}})
  tree = {'type': 'a.B', 'content': [{'json': {'json': inner}}]}
  assert list(tfds_files._classes(tree)) == ['a.B', 'os.X']


@pytest.mark.parametrize('text', [DEEP, '[', '[1]', '"x"'])
def test_damaged_descriptions_of_a_data_set(text, version):
  for name in ('features.json', 'dataset_info.json'):
    whole = (version / name).read_text()
    (version / name).write_text(text)
    with pytest.raises(UserError) as error:
      tfds_files.find('', str(version))
    assert str(version) in one_line(error)
    if name == 'dataset_info.json':
      with pytest.raises(UserError):
        tfds_files.data_dir(str(version))
    (version / name).write_text(whole)


@pytest.mark.parametrize(
  'arrays',
  [
    {'labels': np.zeros(4)},
    {'labels': np.full(4, 10**6, np.int32)},
    {'labels': np.zeros((4, 2), np.int32)},
    {'labels': np.int32(4)},
    {'names': np.zeros(3, 'U2')},
    {'names': np.zeros(4)},
  ],
)
def test_an_index_of_other_kinds_is_made_anew(arrays, version):
  opened = tfds_files.find('', str(version)).open('test').source
  (path,) = version.glob('semppl_jax_index_*')
  np.savez(path, **dict(np.load(path)) | arrays)
  again = tfds_files.find('', str(version)).open('test').source
  np.testing.assert_array_equal(again.labels, opened.labels)
  assert again.labels.dtype == np.int32 and again.names == opened.names


def test_a_record_with_a_label_of_no_class(version):
  found = tfds_files.find('', str(version))
  data = found._builder.as_data_source('test')
  records = _Records([data.data_source[i] for i in range(4)])
  labels, names = tfds_index._read(records, ('label', 'file_name'), 1000, 'x')
  assert sorted(labels) == [0, 1, 1, 2] and len(names) == 4
  with pytest.raises(UserError, match='x is damaged: a label is 2, of 2'):
    tfds_index._read(records, ('label', None), 2, 'x')
  for broken in (b'', b'\xff' * 9):
    with pytest.raises(UserError, match='x is damaged') as error:
      tfds_index._read(_Records([broken]), ('label', None), 1000, 'x')
    one_line(error)


class _Records(list):
  def __getitems__(self, rows):
    return [self[row] for row in rows]


@pytest.mark.parametrize('error', [AssertionError(), MemoryError(' ')])
def test_a_config_file_that_says_nothing_of_its_error(error):
  assert type(error).__name__ in main._explain(['main'], error)
