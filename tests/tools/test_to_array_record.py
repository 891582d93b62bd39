"""From tfrecord to array_record: the same records, or a line that says why."""

import json
import os
import resource
import shutil
from concurrent.futures import process

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorboardX import crc32c as their_crc32c
from tensorboardX import record_writer

from semppl_jax.data import images, tfds_files
from semppl_jax.data import tfrecords as tfrecords_lib
from semppl_jax.tools import to_array_record
from semppl_jax.utils import files
from tests.helpers import tfds_data

NAME = 'cifar10'
SPLITS = {
  'train': tfds_data.examples(NAME, [0, 1, 2, 3, 4, 5, 6]),
  'test': tfds_data.examples(NAME, [7, 8, 9, 0], 1, 'test'),
}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """As tfds leaves it; `there` is as `tfds convert_format` would."""
  root = tmp_path_factory.mktemp('prepared')
  for name, alternatives in (('here', ()), ('there', ['array_record'])):
    tfds_data.write(
      root / name, NAME, SPLITS, shards=3,
      file_format='tfrecord', alternatives=alternatives,
    )  # fmt: skip
  return root


@pytest.fixture
def folder(prepared, tmp_path):
  """Of a version in tfrecord."""
  shutil.copytree(prepared / 'here', tmp_path, dirs_exist_ok=True)
  return next(tmp_path.glob(f'{NAME}/*.*.*'))


def run(*arguments):
  return to_array_record.main([str(a) for a in arguments])


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def shards(folder, file_format):
  """In the order of the description: training first."""
  paths = folder.glob(f'{NAME}-*.{file_format}-*')
  return sorted(paths, key=lambda path: ('test' in path.name, path.name))


def array_records(path):
  reader = array_record_module.ArrayRecordReader(str(path))
  return reader.read_all()


def refused(capsys, folder, *options):
  """Fails and leaves nothing half done; returns the line."""
  before = names(folder)
  told = (folder / 'dataset_info.json').read_text()
  assert run(folder, '--workers=1', *options) == 2
  shown = capsys.readouterr().err
  assert shown.startswith('error: ') and shown.count('\n') == 1
  assert not list(folder.glob('*.part'))
  assert set(names(folder)) >= set(before)
  assert (folder / 'dataset_info.json').read_text() == told
  return shown


# -- what is written --


@pytest.mark.parametrize('workers', [1, 2])
def test_it_is_as_tfds_would_leave_it(prepared, folder, workers, capsys):
  there = next((prepared / 'there').glob(f'{NAME}/*.*.*'))
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  assert run(folder, f'--workers={workers}') == 0
  shown = capsys.readouterr()
  assert shown.out == f'{folder}: 6 of 6 shards written as array_record.\n'
  assert shown.err == ''
  assert names(folder) == names(there)
  for name in names(folder):
    if 'array_record' in name:
      assert array_records(folder / name) == array_records(there / name)
    elif name != 'dataset_info.json':
      assert (folder / name).read_bytes() == before[name]
  mine, wanted = (
    json.loads((f / 'dataset_info.json').read_text()) for f in (folder, there)
  )
  assert mine == wanted and mine['alternativeFileFormats'] == ['array_record']


def test_records_are_the_same_bytes_in_the_same_order(folder):
  assert run(folder, '--workers=1') == 0
  sources, targets = shards(folder, 'tfrecord'), shards(folder, 'array_record')
  assert len(sources) == len(targets) == 6
  for source, target in zip(sources, targets):
    assert target.name == source.name.replace('tfrecord', 'array_record')
    records = array_records(target)
    frame = lambda data: len(data).to_bytes(8, 'little')
    assert source.read_bytes() == b''.join(
      part + np.uint32(record_writer.masked_crc32c(part)).tobytes()
      for record in records
      for part in (frame(record), record)
    )


def test_tfds_and_we_read_it_afterwards(folder, tmp_path):
  with pytest.raises(tfds_files.UserError, match='to_array_record'):
    tfds_files.find(NAME, str(tmp_path))
  assert run(folder, '--workers=1') == 0
  data = tfds.builder_from_directory(str(folder)).as_data_source()
  assert {split: len(rows) for split, rows in data.items()} == {
    'train': 7, 'test': 4,
  }  # fmt: skip
  found = tfds_files.find(NAME, str(tmp_path))
  for split, examples in SPLITS.items():
    source, class_names = found.open(split)
    assert list(class_names) == tfds_data.class_names(NAME)
    written = {e['id']: e for e in examples}
    assert set(source.names) == set(written)
    for i, name in enumerate(source.names):
      assert source.labels[i] == written[name]['label']
      image = written[name]['image']
      assert source[i]['image'] == image
      decoded = images.decode(image)
      np.testing.assert_array_equal(data[split][i]['image'], decoded)


def test_many_versions_below_a_folder(prepared, tmp_path, capsys):
  shutil.copytree(prepared / 'here', tmp_path, dirs_exist_ok=True)
  name = 'imagenet_v2/topimages'
  v2 = tfds_data.write(
    tmp_path, name, {'test': tfds_data.examples(name, [5], split='test')},
    file_format='tfrecord',
  )  # fmt: skip
  done = tfds_data.write_custom(
    tmp_path,
    'mine',
    {'text': tfds.features.Text()},
    {'train': [{'text': 'a'}]},
  )
  other = shutil.copytree(done, done.with_name('0.9.0')) / 'dataset_info.json'
  other.write_text(other.read_text().replace('array_record', 'riegeli'))
  broken = tmp_path / 'mine/incomplete.X_2.0.0'
  broken.mkdir()
  (broken / 'dataset_info.json').write_text('{}')
  assert run(tmp_path, '--workers=1') == 0
  cifar10 = next(tmp_path.glob(f'{NAME}/*.*.*'))
  assert capsys.readouterr().out.splitlines() == [
    f'{cifar10}: 6 of 6 shards written as array_record.',
    f'{v2}: 1 of 1 shards written as array_record.',
    f'{other.parent} is stored as riegeli, and only tfrecord can be converted.',
    f'{done}: is stored as array_record, nothing to do.',
  ]
  assert len(tfds_files.find(name, str(tmp_path)).open('test').source) == 1


def test_an_empty_shard(tmp_path):
  split = tfds_data.examples(NAME, [0, 1])
  folder = tfds_data.write(
    tmp_path, NAME, {'train': split}, file_format='tfrecord', shards=2
  )
  file = folder / 'dataset_info.json'
  told = json.loads(file.read_text())
  told['splits'][0]['shardLengths'] = ['0', '1']
  file.write_text(json.dumps(told))
  shards(folder, 'tfrecord')[0].write_bytes(b'')
  assert run(folder, '--workers=1') == 0
  source = tfds_files.find(NAME, str(tmp_path)).open('train').source
  assert len(source) == 1
  assert source[0]['image'] in [example['image'] for example in split]


def test_a_very_old_description_does_not_tell_its_format(folder):
  file = folder / 'dataset_info.json'
  told = json.loads(file.read_text())
  del told['fileFormat']
  file.write_text(json.dumps(told))
  assert run(folder, '--workers=1') == 0
  data = tfds.builder_from_directory(str(folder)).as_data_source('train')
  assert len(data) == 7


# -- called again --


def test_what_is_converted_is_left_alone(folder, capsys):
  assert run(folder, '--workers=1') == 0
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  capsys.readouterr()
  assert run(folder) == 0
  assert capsys.readouterr().out == f'{folder}: is converted already.\n'
  assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_overwrite_copies_again(folder):
  assert run(folder, '--workers=1') == 0
  before = shards(folder, 'array_record')
  times = [path.stat().st_mtime_ns for path in before]
  info = (folder / 'dataset_info.json').stat().st_mtime_ns
  assert run(folder, '--workers=1', '--overwrite') == 0
  assert shards(folder, 'array_record') == before
  assert all(p.stat().st_mtime_ns > t for p, t in zip(before, times))
  assert (folder / 'dataset_info.json').stat().st_mtime_ns == info


def test_a_second_call_goes_on(folder, capsys):
  damaged = shards(folder, 'tfrecord')[4]
  content = damaged.read_bytes()
  damaged.write_bytes(content[:-1])
  assert 'is cut short' in refused(capsys, folder)
  kept = shards(folder, 'array_record')
  assert len(kept) == 4
  times = [path.stat().st_mtime_ns for path in kept]
  damaged.write_bytes(content)
  left = folder / f'{kept[0].name}.123.part'  # by a process that was killed
  left.write_text('half')
  assert run(folder, '--workers=1') == 0
  assert '2 of 6 shards written as array_record, the others were there' in (
    capsys.readouterr().out
  )
  assert times == [path.stat().st_mtime_ns for path in kept]
  assert len(shards(folder, 'array_record')) == 6 and not left.exists()


@pytest.mark.parametrize('damage', ['gone', 'cut', 'empty', 'short'])
def test_a_copy_that_is_not_whole_is_made_anew(folder, damage):
  assert run(folder, '--workers=1') == 0
  shard = shards(folder, 'array_record')[1]
  records = array_records(shard)
  content = shard.read_bytes()
  if damage == 'gone':
    shard.unlink()
  elif damage == 'short':
    writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1')
    writer.close()
  else:
    shard.write_bytes(content[: 70_000 * (damage == 'cut')])
  assert run(folder, '--workers=1') == 0
  assert array_records(shard) == records


# -- what cannot be converted --


def test_a_folder_without_data(tmp_path, capsys):
  for path in (tmp_path, tmp_path / 'none'):
    assert run(path) == 2
    shown = capsys.readouterr().err
    assert shown.startswith('error: There is no dataset_info.json in ')
    assert shown.count('\n') == 1


@pytest.mark.parametrize('text', ['{"name": ', '{"name": "x", "splits": 1}'])
def test_a_damaged_description(folder, text, capsys):
  (folder / 'dataset_info.json').write_text(text)
  assert 'is not a data set that tfds can read' in refused(capsys, folder)


def test_another_format(folder, capsys):
  file = folder / 'dataset_info.json'
  file.write_text(file.read_text().replace('"tfrecord"', '"riegeli"'))
  assert 'is stored as riegeli, and only tfrecord' in refused(capsys, folder)


def test_no_shards_are_told(folder, capsys):
  file = folder / 'dataset_info.json'
  told = json.loads(file.read_text())
  lengths = told['splits'][1].pop('shardLengths')
  file.write_text(json.dumps(told))
  assert 'dataset_info.json tells no shards of test' in refused(capsys, folder)
  # A name that does not depend on the format: the copy would be the source.
  told['splits'][1]['shardLengths'] = lengths
  told['splits'][1]['filepathTemplate'] = '{DATASET}-{SPLIT}.{SHARD_X_OF_Y}'
  file.write_text(json.dumps(told))
  outside = '../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  told['splits'][1]['filepathTemplate'] = outside
  other = folder.with_name('0.9.1')
  shutil.copytree(folder, other)
  (other / 'dataset_info.json').write_text(json.dumps(told))
  assert 'names files of test elsewhere' in refused(capsys, other)
  assert 'files of test have one name for all formats' in refused(
    capsys, folder
  )


def test_workers_are_counted_from_one(folder, capsys):
  assert '--workers=0' in refused(capsys, folder, '--workers=0')


def test_a_missing_shard(folder, capsys):
  gone = shards(folder, 'tfrecord')[5]
  gone.unlink()
  shown = refused(capsys, folder)
  assert f'{gone}, with ' in shown and 'is gone' in shown
  assert not shards(folder, 'array_record')  # it is seen before any work


@pytest.mark.parametrize('place', ['data', 'length', 'checksum'])
def test_a_flipped_bit(folder, place, capsys):
  shard = shards(folder, 'tfrecord')[2]
  content = bytearray(shard.read_bytes())
  second = 16 + int.from_bytes(content[:8], 'little')
  offset = {'data': 112, 'length': 7, 'checksum': 8}[place]
  content[second + offset] ^= 4
  shard.write_bytes(content)
  shown = refused(capsys, folder)
  assert f'{shard}: record 2 of ' in shown
  assert 'is damaged: its checksum is wrong' in shown
  assert len(shards(folder, 'array_record')) == 2


@pytest.mark.parametrize('left', [5, 11, 12, 500, -4, -1])
def test_a_record_that_is_cut_short(folder, left, capsys):
  shard = shards(folder, 'tfrecord')[2]
  content = shard.read_bytes()
  second = 16 + int.from_bytes(content[:8], 'little')
  end = second + 16 + int.from_bytes(content[second : second + 8], 'little')
  shard.write_bytes(content[: (second if left > 0 else end) + left])
  shown = refused(capsys, folder)
  assert f'{shard}: record 2 of ' in shown and 'is cut short' in shown


@pytest.mark.parametrize('times', [0, 2])
def test_another_number_of_records(folder, times, capsys):
  shard = shards(folder, 'tfrecord')[0]
  length = len(list(tfrecords(shard)))
  shard.write_bytes(times * shard.read_bytes())
  shown = refused(capsys, folder)
  assert f'{shard} holds {times * length} records' in shown
  assert f'dataset_info.json says {length}' in shown


def test_an_error_in_a_worker_is_one_line(folder, capsys):
  shard = shards(folder, 'tfrecord')[0]
  shard.write_bytes(shard.read_bytes()[:-1])
  assert run(folder, '--workers=2') == 2
  shown = capsys.readouterr().err
  assert shown.count('\n') == 1 and f'{shard}: record ' in shown
  assert not list(folder.glob('*.part'))


def test_a_worker_that_dies_is_one_line(folder, monkeypatch, capsys):
  def submit(*_):
    raise process.BrokenProcessPool

  monkeypatch.setattr(process.ProcessPoolExecutor, 'submit', submit)
  shown = refused(capsys, folder, '--workers=2')
  assert 'A worker process died; try fewer --workers' in shown


# -- where it cannot be written --


def test_a_full_disk(folder, capsys):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
  try:
    shown = refused(capsys, folder)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  first = shards(folder, 'tfrecord')[0]
  assert f'{first} cannot be copied to ' in shown
  assert 'File too large' in shown
  assert not shards(folder, 'array_record')
  assert run(folder, '--workers=1') == 0


def test_a_shard_that_cannot_take_its_name(folder, monkeypatch, capsys):
  def refuse(source, target):
    raise OSError(30, 'Read-only file system', str(target))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', refuse)
    assert 'Read-only file system' in refused(capsys, folder)
  assert not shards(folder, 'array_record')


def test_only_the_description_is_missing(folder, monkeypatch, capsys):
  def refuse(path, text):
    raise PermissionError(13, 'Permission denied', str(path))

  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_text', refuse)
    assert 'Permission denied' in refused(capsys, folder)
  assert len(shards(folder, 'array_record')) == 6
  assert run(folder, '--workers=1') == 0
  assert '0 of 6 shards written' in capsys.readouterr().out
  assert len(tfds_files.Prepared(folder).open('train').source) == 7


def test_an_interruption_is_no_stack_trace(folder, monkeypatch, capsys):
  def interrupt(path, expected):
    yield from [b'x', b'y']
    raise KeyboardInterrupt

  monkeypatch.setattr(tfrecords_lib, 'read', interrupt)
  assert run(folder, '--workers=1') == 130
  assert 'the same command goes on' in capsys.readouterr().err
  assert not [n for n in names(folder) if 'array_record' in n]


# -- the checksum --


def test_checksums():
  # RFC 3720, B.4.
  assert tfrecords_lib.crc32c(bytes(32)) == 0x8A9136AA
  assert tfrecords_lib.crc32c(b'\xff' * 32) == 0x62A8AB43
  assert tfrecords_lib.crc32c(bytes(range(32))) == 0x46DD794E
  assert tfrecords_lib.crc32c(b'123456789') == 0xE3069283
  random = np.random.RandomState(0)
  for size in [*range(70), 1023, 4096, 20_001]:
    data = random.bytes(size)
    assert tfrecords_lib.crc32c(data) == their_crc32c.crc32c(data), size


def tfrecords(path):
  """Not verified."""
  content = path.read_bytes()
  while content:
    end = 12 + int.from_bytes(content[:8], 'little')
    yield content[12:end]
    content = content[end + 4 :]
