"""A disk that fails, at any call of a save, a reading, or of a small file."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest
from etils.epath import gpath

from semppl_jax import checkpoint
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.utils import files
from semppl_jax.workdir import metrics
from tests.resilience import faulty_disk, full_disk

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def shim(tmp_path_factory):
  try:
    return faulty_disk.build(tmp_path_factory.mktemp('shim'))
  except FileNotFoundError:
    pytest.skip('there is no gcc')


def _go_through(shim, tmp_path, *cases, seconds):
  """Lines 'POSITION CALL -> what came of it'."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.resilience.faulty_disk',
     str(tmp_path), *cases],
    env=os.environ | {'LD_PRELOAD': shim, 'PYTHONPATH': str(_ROOT)},
    capture_output=True, text=True, check=False, timeout=seconds,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
  return [line for line in done.stdout.splitlines() if ' -> ' in line]


def test_some_calls_of_a_save_and_of_a_reading_fail(shim, tmp_path):
  seen = _go_through(
    shim, tmp_path, 'save,EIO,once,42:400:60', 'save,ENOSPC,ever,3:99:40',
    'restore,EIO,once,5:99:4', seconds=120,
  )  # fmt: skip
  assert len(seen) >= 12
  assert sum('No checkpoint can be written' in line for line in seen) >= 3
  assert sum('cannot be read now' in line for line in seen) >= 2


@pytest.mark.long
@pytest.mark.parametrize(
  'case, fewest',
  [
    ('save,ENOSPC,once,1:999:1', 80),
    ('save,ENOSPC,ever,1:999:1', 80),
    ('save,EIO,once,1:999:1', 200),
    ('save,EIO,ever,1:999:2', 100),
    ('restore,EIO,once,1:999:1', 60),
    ('restore,EIO,ever,1:999:1', 60),
  ],
)
def test_every_call_fails(shim, tmp_path, case, fewest):
  seen = _go_through(shim, tmp_path, case, seconds=900)
  assert len(seen) >= fewest


def test_a_folder_that_cannot_be_listed_is_not_one_without_checkpoints(
  tmp_path, monkeypatch
):
  """Else a run would start anew on top of its checkpoints."""
  saver = checkpoint.Checkpointer(str(tmp_path), keep=2)
  saver.save(1, faulty_disk.tree(1), {})

  def fails(path):
    raise OSError(errno.EIO, 'Input/output error')

  assert saver.latest_step() == 1
  monkeypatch.setattr(os, 'listdir', fails)
  with pytest.raises(CheckpointError, match='cannot be read now: .*Input/out'):
    saver.latest_step()
  monkeypatch.undo()
  saver.close()


def test_arrays_that_orbax_passes_over_are_no_checkpoint(tmp_path, monkeypatch):
  """A listing that fails is an empty one to orbax, which then has no arrays."""
  saver = checkpoint.Checkpointer(str(tmp_path), keep=1)
  saver.save(1, faulty_disk.tree(1), {})
  assert saver.latest_step() == 1
  glob = gpath.PosixGPath.glob
  listed = lambda path, what: (
    iter(()) if what.startswith('ocdbt') else glob(path, what)
  )
  monkeypatch.setattr(gpath.PosixGPath, 'glob', listed)
  with pytest.raises(UserError, match='the arrays could not be listed'):
    saver.save(2, faulty_disk.tree(2), {})
    saver.close()
  assert checkpoint.steps(str(tmp_path)) == [1]


# -- small files --


@pytest.mark.parametrize('size', [0, 5])
def test_a_small_file_is_the_old_one_or_the_new_one(tmp_path, size):
  path = tmp_path / 'results.json'
  files.write_text(path, 'old')
  with full_disk.files_of(size), pytest.raises(OSError):
    files.write_text(path, 'a new one')
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['results.json']  # and no part of the other


@pytest.mark.parametrize('size', [40, 45, 62])
def test_a_metric_that_cannot_be_written_ends_the_run(tmp_path, size):
  """In the line or in the event; what is there goes on with no step lost."""
  writer = metrics.MetricsWriter(str(tmp_path), step=0)
  with (
    full_disk.files_of(size),
    pytest.raises(UserError, match='Make room') as error,
  ):
    for step in range(1, 9):
      writer.write(step, {'a': 1.0})
  assert '\n' not in str(error.value)
  there = [row['step'] for row in metrics.read(str(tmp_path))]
  writer.close()
  assert there == [row['step'] for row in metrics.read(str(tmp_path))]
  last = max(there, default=0)
  again = metrics.MetricsWriter(str(tmp_path), step=last)
  for step in range(last + 1, 9):
    again.write(step, {'a': 1.0})
  again.close()
  rows = metrics.read(str(tmp_path))
  assert [row['step'] for row in rows] == list(range(1, 9))
