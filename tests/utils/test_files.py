"""Files that are there whole or not at all."""

import os

import numpy as np
import pytest

from semppl_jax.utils import files


def test_a_file_appears_when_it_is_whole(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with files.atomic(path) as part:
    part.write_text('new')
    assert path.read_text() == 'old' and part.parent == tmp_path
  assert path.read_text() == 'new' and os.listdir(tmp_path) == ['a.txt']


@pytest.mark.parametrize('error', [OSError, ValueError, KeyboardInterrupt])
def test_what_fails_leaves_nothing(tmp_path, error):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(error), files.atomic(str(path)) as part:
    part.write_text('ne')
    raise error
  assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_content_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
  done = []
  sync, replace = os.fsync, os.replace
  monkeypatch.setattr(os, 'fsync', lambda n: done.append('sync') or sync(n))
  monkeypatch.setattr(
    os, 'replace', lambda *names: done.append('name') or replace(*names)
  )
  files.write_text(tmp_path / 'a.txt', 'x')
  files.write_arrays(tmp_path / 'b', y=np.arange(3))
  assert done == ['sync', 'name'] * 2
  with np.load(tmp_path / 'b') as found:
    np.testing.assert_array_equal(found['y'], [0, 1, 2])


def test_a_suffix_of_ones_own(tmp_path):
  left = tmp_path / 'a.part'
  left.write_text('of a process that was killed')
  with files.atomic(tmp_path / 'a', '.part') as part:
    assert part == left
    part.write_text('x')
  assert os.listdir(tmp_path) == ['a']
