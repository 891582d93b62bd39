r"""Saves and restores checkpoints on a disk that fails at the n-th call.

  LD_PRELOAD=faults.so python -m tests.resilience.faulty_disk FOLDER \
    save,EIO,once,1:99:1

For each position n of the range, until a save makes fewer than n file calls:
a copy of a folder with two checkpoints, a fault (`once`, or for `ever` after,
as on a disk that stays full), and a look at what is left. faults.c makes the
faults, below Python, for much of the writing is done by C++.
"""

import contextlib
import ctypes
import errno
import faulthandler
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np

from semppl_jax import checkpoint
from semppl_jax.errors import CheckpointError, UserError

FILLS, REMOVES, READS = 1, 2, 4  # groups of calls, as in faults.c
_LIMIT = 60  # seconds that anything may take; it takes one
_SOURCE = pathlib.Path(__file__).with_name('faults.c')


def build(folder: pathlib.Path) -> str:
  """Compiles the shim; raises FileNotFoundError where there is no gcc."""
  made = folder / 'faults.so'
  subprocess.run(
    ['gcc', '-Wall', '-shared', '-fPIC', '-O1', '-o', made, _SOURCE, '-ldl'],
    check=True,
  )
  return str(made)


class Faults:
  """The shim that this process was started with."""

  def __init__(self):
    self._shim = ctypes.CDLL(None)
    for name in ('faults_disarm', 'faults_fired'):
      getattr(self._shim, name).restype = ctypes.c_long
    self._shim.faults_first.restype = ctypes.c_char_p

  def arm(
    self,
    folder: pathlib.Path,
    position: int,
    name: str,
    groups: int,
    ever: bool,
  ) -> None:
    self._shim.faults_arm(
      os.fsencode(folder), ctypes.c_long(position), getattr(errno, name),
      groups, int(ever),
    )  # fmt: skip

  def disarm(self) -> str:
    """The call that failed; empty if none did."""
    self._shim.faults_disarm()
    return self._shim.faults_first().decode()


def tree(seed: int) -> dict[str, np.ndarray]:
  values = np.random.default_rng(seed).standard_normal(300)
  return {'w': values, 'n': np.arange(3) + seed}


def _saver(workdir):
  return checkpoint.Checkpointer(str(workdir), keep=2, tell=lambda line: None)


def _contents(place):
  files = (path for path in place.rglob('*') if path.is_file())
  return {str(path.relative_to(place)): path.read_bytes() for path in files}


def _read(workdir, step):
  found = checkpoint.read(str(workdir), step, ('state',))
  return {name.split("'")[1]: leaf for name, leaf in found.items()}


def _assert_is(found, seed):
  for name, value in tree(seed).items():
    assert found[name].tobytes() == value.tobytes(), name


def _save(workdir):
  saver = _saver(workdir)
  try:
    saver.save(3, tree(3), {})
  finally:
    saver.close()


def _after_save(workdir, before, refused):
  """What is there is whole, and the same command goes on."""
  steps = checkpoint.steps(str(workdir))
  assert 3 in steps or refused
  # The oldest goes when the newest is there.
  assert {1, 2} <= set(steps) or {2, 3} <= set(steps), steps
  for step in {1, 2} & set(steps):
    if _contents(workdir / 'checkpoints' / str(step)) != before[step]:
      assert step == 1 and 3 in steps  # it was about to go
      with contextlib.suppress(CheckpointError):
        _assert_is(_read(workdir, 1), 1)
  if 3 in steps:
    _assert_is(_read(workdir, 3), 3)
  if refused:
    _let_finish(workdir)
  saver = _saver(workdir)
  for step in (3, 4):
    saver.save(step, tree(step), {})
  found, _, step = saver.restore(tree(0))
  saver.close()
  assert step == 4
  _assert_is(found, 4)
  left = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
  assert left == ['3', '4'], left


def _let_finish(workdir):
  """Threads of the save that failed still write; a new process has none."""
  seen = None
  while seen != (now := sorted(workdir.rglob('*'))):
    seen = now
    time.sleep(0.1)


def _restore(workdir):
  saver = _saver(workdir)
  try:
    found, _, step = saver.restore(tree(0))
  finally:
    saver.close()
  assert step == 2, step
  _assert_is(found, 2)


def _after_restore(workdir, before, unused_refused):
  left = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
  assert left == ['1', '2'], left
  for step in (1, 2):
    assert _contents(workdir / 'checkpoints' / str(step)) == before[step]
  _restore(workdir)


def _try(act, check, template, position, fault):
  """Returns whether there was a fault, and says what came of it."""
  workdir = template.with_name('trial')
  shutil.copytree(template, workdir)
  place = workdir / 'checkpoints'
  before = {step: _contents(place / str(step)) for step in (1, 2)}
  faults, line = Faults(), ''
  faulthandler.dump_traceback_later(_LIMIT, exit=True)
  faults.arm(place, position, *fault)
  try:
    act(workdir)
  except UserError as error:
    line = str(error)
  finally:
    call = faults.disarm()
    print(position, call.replace(str(place), '..'), '->', line or 'whole')
  assert '\n' not in line, line
  check(workdir, before, line)
  faulthandler.cancel_dump_traceback_later()
  shutil.rmtree(workdir)
  return bool(call)


def _main(folder, *cases):
  template = pathlib.Path(folder) / 'template'
  saver = _saver(template)
  for step in (1, 2):
    saver.save(step, tree(step), {})
  saver.close()
  for case in cases:
    what, name, how, positions = case.split(',')
    act, check = {
      'save': (_save, _after_save), 'restore': (_restore, _after_restore),
    }[what]  # fmt: skip
    # What gives room, or needs none, works on a full disk.
    groups = FILLS if name == 'ENOSPC' else FILLS | REMOVES | READS
    for position in range(*map(int, positions.split(':'))):
      fault = (name, groups, how == 'ever')
      if not _try(act, check, template, position, fault):
        break


if __name__ == '__main__':
  _main(*sys.argv[1:])
