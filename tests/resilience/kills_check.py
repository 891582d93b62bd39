"""What must hold of a work directory after a kill, and in the end."""

import fcntl
import json
import pathlib
import threading
import time

from semppl_jax import checkpoint
from semppl_jax.checkpoint import folder as folder_lib
from semppl_jax.workdir import metrics

CLOCKS = ('seconds', 'images_per_second', 'evaluation_seconds')
_ONE_AT_A_TIME = threading.Lock()  # orbax, in this process


def unfinished(workdir):
  """{(what it is, its inode)} of checkpoint folders that are not whole."""
  found = set()
  for path in (workdir / 'checkpoints').glob('*'):
    if 'tmp' in path.name:
      kind = 'a checkpoint half written'
    elif path.name.isdigit() and not folder_lib.is_complete(path):
      kind = 'a checkpoint half deleted'
    elif path.name == 'deleted' and any(path.iterdir()):
      kind = 'a deleted checkpoint not yet gone'
    else:
      continue
    found.add((kind, path.stat().st_ino))
  return found


def after_a_kill(workdir, life):
  """Nobody is left, nothing is locked, what counts as whole is whole."""
  deadline = time.monotonic() + 30
  while left := _of_session(life.pid):
    assert time.monotonic() < deadline, f'processes {left} survive'
    time.sleep(0.05)
  lock = workdir / '.lock'
  if lock.exists():
    with lock.open('r+') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  for step in checkpoint.steps(str(workdir)):
    _leaves(workdir, step)
  if (workdir / 'metrics.jsonl').exists():
    assert_rising(workdir)


def _of_session(session):
  """Processes of a session that have not ended."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      state, _, _, its = (
        (path / 'stat').read_text().rpartition(')')[2].split()[:4]
      )
    except OSError:
      continue
    if int(its) == session and state != 'Z':
      found.append(int(path.name))
  return found


def assert_rising(workdir):
  steps = [row['step'] for row in metrics.read(str(workdir))]
  assert steps == list(range(1, len(steps) + 1)), steps


def _leaves(workdir, step):
  with _ONE_AT_A_TIME:
    return checkpoint.read(str(workdir), step, ('state',))


def assert_same(workdir, expected):
  """Checkpoints bit for bit; metrics and results but for the clocks."""
  steps = checkpoint.steps(str(expected))
  assert checkpoint.steps(str(workdir)) == steps and steps
  for step in steps:
    found, wanted = _leaves(workdir, step), _leaves(expected, step)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
      assert (found[name].dtype, found[name].shape) == (leaf.dtype, leaf.shape)
      assert found[name].tobytes() == leaf.tobytes(), (step, name)
  assert_rising(workdir)
  rows, wanted = (
    [_without_clocks(row) for row in metrics.read(str(place))]
    for place in (workdir, expected)
  )
  assert rows == wanted and len(rows) == max(steps)
  results, wanted = (
    _without_clocks(json.loads((place / 'results.json').read_text()))
    for place in (workdir, expected)
  )
  assert results == wanted


def _without_clocks(row):
  return {key: value for key, value in row.items() if key not in CLOCKS}
