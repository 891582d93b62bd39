"""A work directory belongs to the settings that it was made with."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from semppl_jax.config.upgrade import upgrade
from semppl_jax.errors import UserError
from semppl_jax.utils import files
from semppl_jax.workdir import lock

CONFIG = {'a': 1, 'progress': True, 'loss': {'t': 0.2, 'types': ('A', 'B')}}


def stored(workdir) -> dict:
  return json.loads((workdir / 'config.json').read_text())


def test_claim_twice(tmp_path):
  workdir = tmp_path / 'deep' / 'run'
  lock.claim(str(workdir), CONFIG)
  lock.claim(str(workdir), CONFIG)
  assert stored(workdir) == json.loads(json.dumps(CONFIG))
  assert [p.name for p in workdir.iterdir()] == ['config.json']


@pytest.mark.parametrize(
  'config, words',
  [
    (CONFIG | {'a': 2}, 'a is 1 there and 2 here.'),
    (CONFIG | {'loss': CONFIG['loss'] | {'t': 1}}, 'loss.t is 0.2 there and 1'),
    (CONFIG | {'new': None}, 'new is absent there and null here'),
    ({k: v for k, v in CONFIG.items() if k != 'a'}, 'a is 1 there and absent'),
    (CONFIG | {'loss': {}}, 'loss.t is 0.2 there and absent here'),
    (
      CONFIG | {'a': 2} | {f'x{i}': i for i in range(4)},
      'x1 is absent there and 1 here (and 2 more)',
    ),
  ],
)
def test_other_settings_are_refused_in_one_line(tmp_path, config, words):
  lock.claim(str(tmp_path), CONFIG)
  with pytest.raises(UserError) as error:
    lock.claim(str(tmp_path), config, ignore=('progress',))
  text = str(error.value)
  assert words in text and str(tmp_path) in text and '\n' not in text
  assert 'another --workdir' in text
  assert stored(tmp_path)['a'] == 1 and 'new' not in stored(tmp_path)


def test_ignored_settings_may_differ(tmp_path):
  lock.claim(str(tmp_path), CONFIG)
  with pytest.raises(UserError, match='progress is true there and false'):
    lock.claim(str(tmp_path), CONFIG | {'progress': False})
  lock.claim(str(tmp_path), CONFIG | {'progress': False}, ignore=('progress',))
  assert stored(tmp_path)['progress'] is False


def test_a_setting_that_came_later_stands_at_what_was_done_before(tmp_path):
  run = {'task': 'pretrain', 'method': 'semppl', 'queue': {'k': 1}}
  lock.claim(str(tmp_path), run)
  now = upgrade(run)
  assert now['queue'] == {'k': 1, 'target_query_epochs': 0.0, 'balance': 0.0}
  changed = now | {'queue': now['queue'] | {'balance': 0.5}}
  for _ in range(2):
    with pytest.raises(UserError, match='balance is 0.0 there and 0.5 here'):
      lock.claim(str(tmp_path), changed)
    lock.claim(str(tmp_path), now)


def test_checkpoints_without_config_are_refused(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  lock.claim(str(tmp_path), CONFIG)  # none there yet
  (tmp_path / 'config.json').unlink()
  (tmp_path / 'checkpoints' / '12').mkdir()
  with pytest.raises(UserError, match='has checkpoints but no config.json'):
    lock.claim(str(tmp_path), CONFIG)
  assert not (tmp_path / 'config.json').exists()


@pytest.mark.parametrize('text', ['{"a": 1', '', '[1]', '3', '\udcff'])
def test_unreadable_config_is_refused(tmp_path, text):
  path = tmp_path / 'config.json'
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  before = path.read_bytes()
  with pytest.raises(UserError, match='config.json cannot be read as JSON'):
    lock.claim(str(tmp_path), CONFIG)
  assert path.read_bytes() == before


def test_workdir_that_is_a_file_is_refused(tmp_path):
  path = tmp_path / 'file'
  path.write_text('mine')
  with pytest.raises(UserError, match='cannot be written: '):
    lock.claim(str(path), CONFIG)
  with pytest.raises(UserError, match='cannot be written: '):
    lock.claim(str(path / 'below'), CONFIG)


def test_config_is_replaced_whole(tmp_path, monkeypatch):
  lock.claim(str(tmp_path), CONFIG)

  def fail(*unused):
    raise KeyboardInterrupt

  monkeypatch.setattr(files.os, 'replace', fail)
  with pytest.raises(KeyboardInterrupt):
    lock.claim(
      str(tmp_path), CONFIG | {'progress': False}, ignore=('progress',)
    )
  assert stored(tmp_path)['progress'] is True


def _claim(workdir, config):
  """Takes the folder and gives it back."""
  with lock.claimed(str(workdir), config):
    pass


_HOLD = """
import sys
from semppl_jax.workdir import lock
with lock.claimed(sys.argv[1], {'a': 1}):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_a_second_job_is_refused_until_the_first_is_gone(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(tmp_path)],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
  )  # fmt: skip
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(UserError, match=f'Another job .*process {holder.pid}'):
      _claim(tmp_path, {'a': 1})
    assert stored(tmp_path) == {'a': 1}
    _claim(tmp_path / 'other', {'a': 2})
  finally:
    holder.kill()  # the lock goes with the process, whatever its end
    holder.communicate()
  _claim(tmp_path, {'a': 1})


def test_a_refused_claim_gives_the_lock_back(tmp_path):
  _claim(tmp_path, {'a': 1})
  with pytest.raises(UserError, match='a is 1 there and 2 here'):
    _claim(tmp_path, {'a': 2})
  with (
    lock.claimed(str(tmp_path), {'a': 1}),
    pytest.raises(UserError, match='Another job'),
  ):
    _claim(tmp_path, {'a': 1})


def test_without_locks_in_the_file_system_nobody_is_refused(
  tmp_path, monkeypatch
):
  def no_locks(*unused):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(lock.fcntl, 'flock', no_locks)
  with lock.claimed(str(tmp_path), {'a': 1}):
    _claim(tmp_path, {'a': 1})


def test_who_may_not_write_there_may_look(tmp_path, monkeypatch):
  _claim(tmp_path, {'a': 1})
  real = os.open

  def refuses(path, *arguments):
    if pathlib.Path(path).name == lock.LOCK:
      raise PermissionError(errno.EACCES, 'Permission denied')
    return real(path, *arguments)

  monkeypatch.setattr(lock.os, 'open', refuses)
  _claim(tmp_path, {'a': 1})

  def full(*unused):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(lock.files, 'write_text', full)
  with pytest.raises(UserError, match='cannot be written: No space left'):
    _claim(tmp_path / 'new', {'a': 1})
