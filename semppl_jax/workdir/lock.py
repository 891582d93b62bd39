"""Whose work directory it is.

WORKDIR/config.json says of which settings; a lock of the kernel's on
WORKDIR/.lock, of which job. In a bucket .lock is a lease, see `storage.lease`.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from semppl_jax import storage
from semppl_jax.config.upgrade import upgrade
from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.storage import lease, objects
from semppl_jax.utils import diff, files
from semppl_jax.workdir import run_log

LOCK = '.lock'
Place = pathlib.Path | storage.RemotePath


@contextlib.contextmanager
def claimed(
  workdir: str,
  config: Mapping[str, Any],
  *,
  ignore: Sequence[str] = (),
) -> Iterator[None]:
  """Has the folder for this job alone, and for these settings, see `claim`.

  Process 0 holds the lock; when it is gone, however it went, so is the lock.
  All processes of a job call this.

  Raises:
    UserError: another job works there, or what `claim` refuses.
  """

  def take():
    place = storage.path(workdir)
    lock = (_lease if storage.is_remote(place) else _lock)(place)
    try:
      claim(workdir, config, ignore=ignore)
    except BaseException:
      _release(lock)
      raise
    return lock

  lock = processes.run_on_all(take, first_only=True)
  try:
    yield
  finally:
    _release(lock)


def _release(lock: int | lease.Lease | None) -> None:
  if isinstance(lock, lease.Lease):
    lock.release()
  elif lock is not None:
    os.close(lock)


def _lease(folder: storage.RemotePath) -> lease.Lease | None:
  """In a bucket, the same as `_lock`."""
  objects.check(folder)
  try:
    return lease.take(folder / LOCK, run_log.info)
  except lease.TakenError as error:
    raise _of_another(folder, str(error)) from None
  except storage.StorageError as error:
    if error.is_permission:
      return None  # as below
    raise


def _lock(folder: pathlib.Path) -> int | None:
  """A file that this process alone has locked; None: there are no locks."""
  _make(folder)
  try:
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
      return None  # who may not write there does nobody any harm
    raise _unwritable(folder, error) from None
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      owner = os.read(file, 200).decode(errors='replace').strip()
      os.close(file)
      raise _of_another(folder, owner) from None
    # A file system without locks: nobody can watch over it.
    return file
  with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
    os.ftruncate(file, 0)
    owner = f'process {os.getpid()} on {socket.gethostname()}\n'
    os.write(file, owner.encode())
  return file


def _of_another(folder: Place, owner: str) -> UserError:
  return UserError(
    f'Another job works in --workdir {folder} ({owner}): stop it, or choose '
    'another.'
  )


def _make(folder: Place) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _unwritable(folder, error) from None


def _unwritable(folder: Place, error: OSError) -> UserError:
  return UserError(
    f'--workdir {folder} cannot be written: {error.strerror}. Choose another, '
    'or make room.'
  )


def claim(
  workdir: str,
  config: Mapping[str, Any],
  *,
  ignore: Sequence[str] = (),
) -> None:
  """Writes WORKDIR/config.json, or checks that it says the same already.

  Args:
    workdir: made if it is not there.
    config: the resolved config, nested dicts of JSON types; tuples count as
      lists.
    ignore: names (dotted if nested) that may differ; the file then takes the
      new values.

  Raises:
    UserError: the directory belongs to a run with other settings, or holds
      checkpoints of unknown settings.
  """
  folder = storage.path(workdir)
  _make(folder)
  if not check(workdir, config, ignore=ignore):
    try:
      files.write_text(folder / 'config.json', _text(config))
    except OSError as error:
      raise _unwritable(folder, error) from None


def check(
  workdir: str,
  config: Mapping[str, Any],
  *,
  ignore: Sequence[str] = (),
) -> bool:
  """Refuses what `claim` refuses, and writes nothing.

  Returns:
    Whether WORKDIR/config.json says the very same already.
  """
  there = _standing(storage.path(workdir))
  here = dict(diff.flat(json.loads(_text(config))))
  if there == here:
    return True
  differing = diff.between(here if there is None else there, here, ignore)
  theirs, ours = (each and each.get('method') for each in (there, here))
  if theirs and ours and theirs != ours:
    raise UserError(
      f'--workdir {workdir} holds a run of method {theirs!r}, not of {ours!r}: '
      'choose another --workdir.'
    )
  if differing:
    what = diff.first_few(differing)
    raise UserError(
      f'--workdir {workdir} holds a run with other settings: {what}. '
      'Choose another --workdir or the old settings.'
    )
  return False


def _text(config: Mapping[str, Any]) -> str:
  return json.dumps(config, indent=2) + '\n'


def _standing(folder: Place) -> dict[str, Any] | None:
  """The settings that a work directory has, flat; None: nobody's yet."""
  path = folder / 'config.json'
  advice = 'choose another --workdir, or bring the file back'
  try:
    settings = upgrade(dict(json.loads(path.read_text('utf-8'))))
    return dict(diff.flat(settings))
  except FileNotFoundError:
    if _has_checkpoints(folder / 'checkpoints'):
      raise UserError(
        f'--workdir {folder} has checkpoints but no config.json: {advice}.'
      ) from None
    return None
  except storage.StorageError:
    raise
  except (ValueError, TypeError, OSError, RecursionError):
    raise UserError(f'{path} cannot be read as JSON: {advice}.') from None


def _has_checkpoints(folder: Place) -> bool:
  if storage.is_remote(folder):
    return any(one.name[:1].isdigit() for one in folder.iterdir())
  return any(folder.glob('[0-9]*'))
