import contextlib
import errno
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from semppl_jax import checkpoint
from semppl_jax.checkpoint import checksums
from semppl_jax.checkpoint import folder as folder_lib
from semppl_jax.errors import CheckpointError, UserError

_ROOT = pathlib.Path(__file__).parents[2]


class Inner(NamedTuple):
  labels: np.ndarray
  count: np.ndarray


class Outer(NamedTuple):
  step: np.ndarray
  params: dict
  queue: Inner
  nothing: None = None


def tree(seed: int = 0) -> Outer:
  """All kinds of leaves that a state has; NaN and -0 too."""
  random = np.random.default_rng(seed)
  weights = random.standard_normal((2, 3)).astype(np.float32)
  weights[0, :2] = np.nan, -0.0
  return Outer(
    step=np.array(seed, np.int32),
    params={
      'net/~/conv': {'w': weights, 'b': jnp.asarray(weights, jnp.bfloat16)},
      'empty': np.zeros((0, 4), np.float32),
    },
    queue=Inner(np.arange(3, dtype=np.int32) - seed, np.float32(seed)),
  )


def assert_same(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    assert isinstance(a, np.ndarray)
    assert (a.dtype, a.shape) == (b.dtype, np.shape(b))
    assert a.tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def saver(tmp_path):
  saver = checkpoint.Checkpointer(str(tmp_path), keep=2)
  yield saver
  saver.close()


def folder(tmp_path, step: int | str) -> pathlib.Path:
  return tmp_path / 'checkpoints' / str(step)


def test_round_trip_is_bitwise_in_another_process_object(tmp_path, saver):
  info = {'position': 7, 'elapsed_seconds': 1.5, 'note': 'x'}
  saver.save(7, tree(3), info)
  saver.close()
  other = checkpoint.Checkpointer(str(tmp_path), keep=2)
  found, found_info, step = other.restore(tree(0))
  assert_same(found, tree(3))
  assert isinstance(found.queue, Inner)
  assert (found_info, step) == (info, 7)
  other.close()


def test_like_may_be_shapes_only(saver):
  saver.save(1, tree(2), {})
  assert_same(saver.restore(jax.eval_shape(lambda: tree(0)))[0], tree(2))


def test_keeps_the_newest(tmp_path, saver):
  assert saver.latest_step() is None
  for step in (1, 2, 10):
    saver.save(step, tree(step), {'position': step})
  assert saver.latest_step() == 10
  assert_same(saver.restore(tree())[0], tree(10))
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
    '10',
    '2',
  ]


def test_saving_a_step_again_changes_nothing(saver):
  saver.save(5, tree(1), {})
  saver.save(5, tree(2), {})
  assert_same(saver.restore(tree())[0], tree(1))


def test_caller_may_overwrite_at_once(saver):
  array = np.arange(100_000, dtype=np.float32)
  info = {'list': [1]}
  saver.save(1, {'a': array}, info)
  array[:] = -1
  info['list'].append(2)
  found, found_info, _ = saver.restore({'a': array})
  np.testing.assert_array_equal(found['a'], np.arange(100_000))
  assert found_info == {'list': [1]}


@pytest.mark.parametrize('array', [np.arange(9.0), jnp.arange(9.0)])
def test_what_is_written_is_a_copy(saver, monkeypatch, array):
  parts = []
  monkeypatch.setattr(
    saver._manager, 'save', lambda *_, args, **__: parts.append(args)
  )
  saver.save(1, {'a': array}, {})
  (stored_array,) = parts[0]['arrays'].item.values()
  assert isinstance(stored_array, np.ndarray)
  assert not np.shares_memory(stored_array, np.asarray(array))


def test_caller_may_donate_at_once(saver):
  bump = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jnp.arange(100_000, dtype=jnp.float32)
  saver.save(1, {'a': x}, {})
  for _ in range(5):
    x = bump(x)
  x.block_until_ready()
  found = saver.restore({'a': x})[0]
  np.testing.assert_array_equal(found['a'], np.arange(100_000))


def test_a_save_being_written_is_ignored(tmp_path, saver):
  """Orbax writes into STEP.orbax-checkpoint-tmp and renames at the end."""
  saver.save(1, tree(1), {})
  assert saver.latest_step() == 1
  part = folder(tmp_path, 2).with_name('2.orbax-checkpoint-tmp')
  shutil.copytree(folder(tmp_path, 1), part)
  (part / 'commit_success.txt').unlink()
  shutil.rmtree(part / 'info')
  other = checkpoint.Checkpointer(str(tmp_path), keep=2)
  assert_same(other.restore(tree())[0], tree(1))
  assert part.exists()  # another process may be at work there
  other.save(2, tree(2), {})
  assert_same(other.restore(tree())[0], tree(2))
  other.close()


@pytest.mark.parametrize('lost', ['.', 'arrays', 'info'])
def test_a_folder_without_its_marker_is_ignored_then_replaced(
  tmp_path, saver, lost
):
  saver.save(1, tree(1), {})
  saver.save(2, tree(2), {})
  saver.close()
  (folder(tmp_path, 2) / lost / 'commit_success.txt').unlink()
  other = checkpoint.Checkpointer(str(tmp_path), keep=2)
  assert other.latest_step() == 1
  assert_same(other.restore(tree())[0], tree(1))
  assert folder(tmp_path, 2).exists()  # reading alone removes nothing
  other.save(2, tree(5), {})
  assert_same(other.restore(tree())[0], tree(5))
  other.close()


_KILLED = """
import os, sys
import numpy as np
from semppl_jax import checkpoint
saver = checkpoint.Checkpointer(sys.argv[1], keep=2)
saver.save(1, {'a': np.ones(3, np.float32)}, {})
assert saver.latest_step() == 1
saver.save(2, {'a': np.random.default_rng(0).random(20_000_000)}, {})
os._exit(9)
"""


@pytest.mark.long
def test_killed_while_saving(tmp_path):
  code = subprocess.run(
    [sys.executable, '-c', _KILLED, str(tmp_path)],
    cwd=pathlib.Path(checkpoint.__file__).parents[1],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    check=False,
  ).returncode
  assert code == 9
  left = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert left == {'1', '2.orbax-checkpoint-tmp'}
  saver = checkpoint.Checkpointer(str(tmp_path), keep=2)
  like = {'a': np.zeros(3, np.float32)}
  assert_same(saver.restore(like)[0], {'a': np.ones(3, np.float32)})
  saver.save(2, like, {})
  assert saver.latest_step() == 2
  saver.close()


def test_save_does_not_wait_for_the_disk(saver, monkeypatch):
  returned = threading.Event()
  waited = []
  finish = ocp.PyTreeCheckpointHandler.finalize

  def slow(*args, **kwargs):
    waited.append(returned.wait(timeout=5))
    return finish(*args, **kwargs)

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'finalize', slow)
  saver.save(1, tree(), {})
  returned.set()
  assert saver.latest_step() == 1
  assert waited == [True]


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda t: t._replace(step=np.zeros(3, np.int32)), 'state.step is'),
    (lambda t: t._replace(step=np.zeros((), np.int64)), '["int64", []] here'),
    (lambda t: t._replace(params={}), "state.params['empty'] is"),
    (lambda t: t._replace(nothing=np.zeros(2)), 'state.nothing is absent'),
    (
      lambda t: t._replace(params=t.params | {'empty': np.zeros((0, 5))}),
      "state.params['empty'] is",
    ),
  ],
)
def test_another_structure_is_refused_in_one_line(
  tmp_path, saver, change, words
):
  saver.save(1, tree(), {})
  with pytest.raises(UserError) as error:
    saver.restore(change(tree()))
  text = str(error.value)
  assert words in text and str(tmp_path) in text and '\n' not in text


def test_no_checkpoint_is_refused(saver):
  with pytest.raises(UserError, match='No checkpoint in'):
    saver.restore(tree())


def _damage(path, how):
  """Loses a file, cuts its end off, or turns one bit of it around."""
  if how == 'lost':
    path.unlink()
    return
  raw = bytearray(path.read_bytes())
  if how == 'cut':
    raw = raw[: len(raw) // 2]
  else:
    raw[len(raw) // 2] ^= 1
  path.write_bytes(raw)


def _array_file(place):
  """The largest file below `arrays`: it holds the values."""
  files = [path for path in (place / 'arrays').rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('how', ['lost', 'cut', 'flipped'])
@pytest.mark.parametrize('name', ['arrays/manifest.ocdbt', 'info/metadata', ''])
def test_the_one_before_a_damaged_checkpoint_is_taken(
  tmp_path, saver, name, how
):
  big = lambda seed: tree(seed)._replace(
    params={'w': np.random.default_rng(seed).standard_normal(999)}
  )
  for step in (1, 2):
    saver.save(step, big(step), {'position': step})
  saver.close()
  newest = folder(tmp_path, 2)
  _damage(newest / name if name else _array_file(newest), how)
  told = []
  other = checkpoint.Checkpointer(str(tmp_path), keep=2, tell=told.append)
  found, info, step = other.restore(big(0))
  assert (step, info) == (1, {'position': 1})
  assert_same(found, big(1))
  assert len(told) == 1 and '/2 is damaged' in told[0], told
  assert (folder(tmp_path, 'damaged') / '2').is_dir()
  # Its step comes again.
  other.save(2, big(2), {})
  assert other.restore(big(0))[2] == 2
  other.close()
  assert checkpoint.steps(str(tmp_path)) == [1, 2]


def test_without_a_whole_one_before_it_nothing_is_touched(tmp_path, saver):
  saver.save(1, tree(), {})
  saver.close()
  _damage(folder(tmp_path, 1) / 'arrays/manifest.ocdbt', 'lost')
  other = checkpoint.Checkpointer(str(tmp_path), keep=2)
  with pytest.raises(UserError, match='/1 is damaged .* None before it'):
    other.restore(tree())
  other.close()
  assert checkpoint.steps(str(tmp_path)) == [1]


def test_what_was_not_written_is_named(tmp_path, saver, monkeypatch):
  """A value that changed between us and the disk, which reads well."""
  real = checksums.of
  wrong = lambda leaf: real(leaf if leaf.shape != (2, 3) else leaf + leaf)
  monkeypatch.setattr(checksums, 'of', wrong)
  saver.save(1, tree(), {})
  with pytest.raises(UserError, match='conv.* is not what was written'):
    saver.restore(tree())
  saver.close()
  with pytest.raises(CheckpointError, match='is not what was written'):
    checkpoint.read(str(tmp_path), 1, ('state.params',))
  assert checkpoint.read(str(tmp_path), 1, ('state.queue',))


def test_checksums_of_parts():
  x = np.arange(12.0).reshape(3, 4)
  ((ranges, digest),) = checksums.of(x)
  assert ranges == [[0, 3], [0, 4]]
  halves = [[[[0, 3], [0, 2]], checksums.of(x[:, :2])[0][1]],
            [[[0, 3], [2, 4]], checksums.of(x[:, 2:])[0][1]]]  # fmt: skip
  assert checksums.fits(x, halves) and checksums.fits(x, [[ranges, digest]])
  x[2, 3] = np.nextafter(x[2, 3], 99)
  assert not checksums.fits(x, halves)
  assert not checksums.fits(x, halves[:1])  # is not all of it
  for odd in (np.zeros((0, 4)), np.float32(3), jnp.zeros(3, jnp.bfloat16)):
    assert checksums.fits(np.asarray(odd), checksums.of(odd))


def test_keeps_those_of_every_so_many_steps(tmp_path):
  saver = checkpoint.Checkpointer(str(tmp_path), keep=1, keep_every=4)
  for step in range(1, 8):
    saver.save(step, tree(step), {})
  saver.close()
  assert checkpoint.steps(str(tmp_path)) == [4, 7]


def test_keeps_one_more(tmp_path):
  saver = checkpoint.Checkpointer(str(tmp_path), keep=1, keep_every=4)
  for step in range(1, 8):
    if step in (2, 3):
      saver.keep_also(step)
    saver.save(step, tree(step), {})
  saver.close()
  assert checkpoint.steps(str(tmp_path)) == [3, 4, 7]
  other = checkpoint.Checkpointer(str(tmp_path), keep=1)
  other.keep_also(None)
  other.save(9, tree(9), {})
  other.close()
  assert checkpoint.steps(str(tmp_path)) == [9]


@pytest.mark.parametrize('files', [0, 1, 4, 9])
def test_one_that_is_half_deleted_does_not_count(
  tmp_path, saver, monkeypatch, files
):
  """As after a kill while it goes: its markers may be the last to go."""
  for step in (1, 2):
    saver.save(step, tree(step), {})
  assert saver.latest_step() == 2
  unlink, gone = os.unlink, []

  def stops(path, *args, **kwargs):
    if 'commit_success' in str(path) or len(gone) >= files:
      raise OSError('killed')
    gone.append(path)
    unlink(path, *args, **kwargs)

  monkeypatch.setattr(os, 'unlink', stops)
  with contextlib.suppress(UserError):
    saver.save(3, tree(3), {})
    saver.close()
  monkeypatch.undo()
  assert checkpoint.steps(str(tmp_path)) == [2, 3]
  # The next life takes up what is left, even if the same step goes again.
  other = checkpoint.Checkpointer(str(tmp_path), keep=2)
  other.save(4, tree(4), {})
  assert_same(other.restore(tree())[0], tree(4))
  other.close()
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
    '3',
    '4',
  ]


def test_another_format_is_refused(saver, monkeypatch):
  monkeypatch.setattr(folder_lib, 'FORMAT', 5)
  saver.save(1, tree(), {})
  assert saver.latest_step() == 1
  monkeypatch.undo()
  with pytest.raises(UserError, match='has format 5, this version reads 4'):
    saver.restore(tree())


def test_no_bit_of_the_description_goes_unnoticed(tmp_path, saver):
  """Whatever it says then: other numbers, another format, other settings."""
  saver.save(1, tree(), {'position': 1})
  saver.close()
  place = folder(tmp_path, 1)
  before = folder_lib.read_document(place)
  path = place / 'info' / 'metadata'
  raw = path.read_bytes()
  for i in range(len(raw)):
    path.write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
    with contextlib.suppress(folder_lib.DamagedError):
      # What JSON does not care for, such as a kind of white space.
      assert folder_lib._read_document(place) == before, i


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.EIO, 'Input/output error'),
    PermissionError(errno.EACCES, 'Permission denied'),
    MemoryError(),
    ValueError("NOT_READ: 'x': Too many open files [os_error_code='24'] [..]"),
  ],
)
def test_a_disk_that_does_not_answer_is_no_damage(
  tmp_path, saver, monkeypatch, error
):
  for step in (1, 2):
    saver.save(step, tree(step), {})
  assert saver.latest_step() == 2

  def fails(*unused):
    raise error

  monkeypatch.setattr(folder_lib, '_read_arrays', fails)
  with pytest.raises(CheckpointError, match='cannot be read now') as caught:
    saver.restore(tree())
  assert len(str(caught.value).splitlines()) == 1
  assert checkpoint.steps(str(tmp_path)) == [1, 2]


def test_what_was_set_aside_stays(tmp_path, saver):
  for _ in range(2):
    for step in (1, 2):
      saver.save(step, tree(step), {})
    assert saver.latest_step() == 2
    _damage(_array_file(folder(tmp_path, 2)), 'flipped')
    assert saver.restore(tree())[2] == 1
  aside = folder(tmp_path, 'damaged')
  assert {path.name for path in aside.iterdir()} == {'2', '2-again'}


_FULL = """
import resource, signal, sys
import numpy as np
from semppl_jax import checkpoint

def tree(seed):
  values = np.random.default_rng(seed).standard_normal(20_000)
  return {'w': values, 'n': np.arange(seed)}

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
workdir, bytes_of_a_file = sys.argv[1], int(sys.argv[2])
saver = checkpoint.Checkpointer(workdir, keep=1)
saver.save(1, tree(1), {})
assert saver.latest_step() == 1
limit = resource.RLIMIT_FSIZE, resource.RLIM_INFINITY
resource.setrlimit(limit[0], (bytes_of_a_file, limit[1]))
try:
  saver.save(2, tree(2), {})
  saver.close()
except ValueError as error:
  print(type(error).__name__, error)
resource.setrlimit(limit[0], limit[1:] * 2)
assert checkpoint.steps(workdir) == [1]
other = checkpoint.Checkpointer(workdir, keep=1)
found, _, step = other.restore({'w': np.zeros(20_000), 'n': np.zeros(1, int)})
assert step == 1 and (found['w'] == tree(1)['w']).all()
other.save(2, tree(2), {})  # there is room again
other.close()
assert checkpoint.steps(workdir) == [2]
"""


@pytest.mark.parametrize(
  'room',
  [
    30,
    100_000,
    pytest.param(0, marks=pytest.mark.long),
    pytest.param(400, marks=pytest.mark.long),
  ],
)
def test_a_file_that_cannot_grow_destroys_nothing(tmp_path, room):
  """As on a full disk, whichever thread writes; needs no privileges."""
  done = subprocess.run(
    [sys.executable, '-c', _FULL, str(tmp_path), str(room)],
    env=os.environ | {'PYTHONPATH': str(_ROOT)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.startswith('UserError No checkpoint can be written to')
  assert 'File too large (' in done.stdout
  assert 'Those that are there are untouched' in done.stdout
  assert len(done.stdout) < 400


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / 'checkpoints').write_text('a file')
  with pytest.raises(UserError, match='No checkpoint can be written .* exists'):
    checkpoint.Checkpointer(str(tmp_path), keep=1)


_READ_ONLY = """
import os, sys
import numpy as np
from semppl_jax import checkpoint
saver = checkpoint.Checkpointer(sys.argv[1], keep=1)
saver.save(1, {'w': np.ones(3)}, {})
saver.latest_step()
os.chmod(sys.argv[1] + '/checkpoints', 0o555)
if os.getuid() == 0:  # who may do everything
  os.setuid(65534)
try:
  saver.save(2, {'w': np.zeros(3)}, {})
except ValueError as error:
  print(type(error).__name__, error)
assert saver.restore({'w': np.ones(3)})[0]['w'].tolist() == [1, 1, 1]
"""


def test_a_read_only_folder_is_one_line():
  # Not tmp_path, whose parents are root's alone where root runs the tests.
  with tempfile.TemporaryDirectory() as place:
    os.chmod(place, 0o755)
    done = subprocess.run(
      [sys.executable, '-c', _READ_ONLY, place],
      env=os.environ | {'PYTHONPATH': str(_ROOT)},
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.chmod(os.path.join(place, 'checkpoints'), 0o755)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.startswith('UserError No checkpoint can be written to')
  assert '(no permission)' in done.stdout
