"""Addresses, and what is done with objects."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from semppl_jax import storage
from semppl_jax.errors import UserError
from semppl_jax.storage import clients, objects
from semppl_jax.utils import files


def test_paths_on_a_disk_are_pathlibs_and_import_no_client():
  code = (
    'import sys, semppl_jax.main, semppl_jax.utils.files\n'
    'from semppl_jax import storage\n'
    'print(type(storage.path("a")).__name__, storage.is_remote("/s3:/x"), '
    '[m for m in ("s3fs", "gcsfs") if m in sys.modules])'
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert found.stdout.split('\n')[0] == 'PosixPath False []'


def test_an_address_is_a_path():
  run = storage.path('s3://buck/a//b/./run/')
  assert os.fspath(run) == str(run) == 's3://buck/a/b/run'
  assert os.path.join(run, 'x.json') == 's3://buck/a/b/run/x.json'
  assert run / 'x.json' == storage.path('s3://buck/a/b/run/x.json')
  assert (run / 'x.tar.gz').stem == 'x.tar' and (run / 'x').suffix == ''
  assert run.with_name('y').parent == run.parent
  assert str(storage.path('gs://buck').parent) == 'gs://buck'
  assert storage.path(run) is run and storage.path('a') == pathlib.Path('a')


def test_an_address_that_pathlib_has_had():
  with pytest.raises(UserError, match='s3:/buck/x was an address before'):
    storage.path(pathlib.Path('s3://buck/x'))


@pytest.mark.parametrize(
  'address, words',
  [
    ('s3://user:hunter2@buck/run', 'has a user, a password or a query'),
    ('s3://user:hunter2/and@buck/run', 'has a user, a password or a query'),
    ('gs://buck/run?key=hunter2', 'has a user, a password or a query'),
    ('s3:///run', 's3:// names no bucket'),
    ('gs://buck/../hunter2', 'there is no .. in a bucket'),
    ('hdfs://hunter2/run', 'hdfs:// is no storage that is known'),
  ],
)
def test_other_addresses_are_refused_and_not_repeated(address, words):
  with pytest.raises(UserError) as error:
    storage.check_address(address)
  assert words in str(error.value) and 'hunter2' not in str(error.value)


def test_what_is_written_on_disks_only():
  assert storage.on_disk('a/b', '--out') == pathlib.Path('a/b')
  with pytest.raises(UserError, match='--out is s3://buck/x: it is written on'):
    storage.on_disk('s3://buck/x', '--out')


def test_objects_are_written_read_listed_and_deleted(bucket):
  run = bucket / 'run'
  assert not run.exists() and objects.tree(run) == {}
  (run / 'a.txt').write_text('hällo')
  (run / 'deep/b').write_bytes(bytes(range(9)))
  (bucket / 'runner').write_text('another')
  assert (run / 'a.txt').read_text() == 'hällo'
  assert objects.read(run / 'deep/b', 2, 5) == b'\2\3\4'
  assert (run / 'a.txt').stat().st_size == 6
  assert run.is_dir() and not run.is_file() and (run / 'deep').is_dir()
  assert [one.name for one in run.iterdir()] == ['a.txt', 'deep']
  assert list(objects.tree(run)) == ['a.txt', 'deep/b']
  assert not (run / 'a').exists()  # the beginning of a name
  with pytest.raises(FileNotFoundError, match='run/none'):
    (run / 'none').read_text()
  (run / 'none').unlink(missing_ok=True)
  objects.move_tree(run, bucket / 'moved')
  assert list(objects.tree(bucket)) == ['moved/a.txt', 'moved/deep/b', 'runner']
  objects.remove_tree(bucket / 'moved')
  assert [one.name for one in bucket.iterdir()] == ['runner']


def test_folders_come_and_go(bucket, tmp_path):
  (tmp_path / 'from/deep').mkdir(parents=True)
  (tmp_path / 'from/x').write_text('1')
  (tmp_path / 'from/deep/y').write_text('2')
  objects.upload(tmp_path / 'from', bucket / 'there', last=['x'])
  objects.download(bucket / 'there', tmp_path / 'to')
  assert (tmp_path / 'to/x').read_text() == '1'
  assert (tmp_path / 'to/deep/y').read_text() == '2'


def test_a_block_that_fails_writes_nothing(s3):
  path = s3 / 'x.npz'
  files.write_arrays(path, a=np.arange(3))
  before = path.read_bytes()
  with pytest.raises(ZeroDivisionError), files.atomic(path) as part:
    part.write_text('half')
    raise ZeroDivisionError
  assert path.read_bytes() == before


def test_more_than_a_page_is_listed(s3, monkeypatch):
  client = clients.of(s3)._fs
  ask = client.call_s3
  monkeypatch.setattr(
    client, 'call_s3', lambda what, **more: ask(what, **more | {'MaxKeys': 2})
  )
  for i in range(5):
    client.pipe_file(f'{s3.bucket}/p/{i}', b'x')
  assert list(objects.tree(s3 / 'p')) == objects.names(s3 / 'p')
  assert objects.names(s3 / 'p') == ['0', '1', '2', '3', '4']


def test_writes_on_conditions(s3):
  """Not of Google's, whose emulator passes over them."""
  tag = objects.create(s3 / 'x', b'1')
  with pytest.raises(FileExistsError):
    objects.create(s3 / 'x', b'2')
  newer = objects.replace(s3 / 'x', b'3', tag)
  with pytest.raises(FileExistsError):
    objects.replace(s3 / 'x', b'4', tag)
  assert newer != tag and (s3 / 'x').read_text() == '3'
  with pytest.raises(FileNotFoundError):
    objects.replace(s3 / 'y', b'4', tag)
