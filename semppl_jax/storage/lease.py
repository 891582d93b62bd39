"""One job per folder where there are no locks: a lease on an object.

The object is written where there is none, which one of several jobs can do,
and replaced every few seconds, each time only if it is the one that was
written last. Who finds one that is not replaced for `SECONDS` takes it over,
by the same condition; who finds one of a process of this machine's knows at
once whether it lives. No clocks are compared.

A job that cannot renew its lease for so long writes nothing any more. A write
that it began before may still arrive.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from semppl_jax.storage import lost, objects
from semppl_jax.storage.address import Address
from semppl_jax.storage.errors import StorageError

SECONDS = 40.0  # without a sign of life until a job counts as dead
BEAT = 8.0  # between two signs
_LOOK = 1.0  # between two looks of who waits
_HELD: set[str] = set()  # by this process


class TakenError(Exception):
  """Another job has the lease; says which."""


class Lease:
  """A lease that this process has, until `release`."""

  def __init__(self, place: Address):
    self._place, self._id = place, uuid.uuid4().hex
    self._tag, self._beats, self._renewed = '', 0, time.monotonic()
    self._lost = False
    self._end, self._one_at_a_time = threading.Event(), threading.Lock()

  def take(self, tell: Callable[[str], None]) -> None:
    """Waits until it is free, or known not to be.

    Raises:
      TakenError: another job has it, and is alive.
      StorageError: it cannot be written.
    """
    seen, since = '', 0.0
    while not self._claim(seen, since):
      found = objects.stat(self._place)
      if found is None:
        continue
      if not seen:
        seen, since = found.tag, time.monotonic()
        theirs = self._standing()
        if _is_alive(theirs) is None:
          tell(
            f'{self._place} is of {_said(theirs)}: waiting until it is renewed,'
            f' or {SECONDS:.0f} s are over.'
          )
      elif found.tag != seen:
        raise TakenError(_said(self._standing()))
      time.sleep(_LOOK)
    _HELD.add(self._id)
    threading.Thread(target=self._renew_always, daemon=True).start()
    lost.watch(self._place.parent, self._check)

  def _claim(self, seen: str, since: float) -> bool:
    """Takes it if it is free, or if nobody's any more."""
    # The tag first: what stands there may be a later one's, not an earlier.
    found = objects.stat(self._place)
    theirs, begun = self._standing(), time.monotonic()
    is_alive = _is_alive(theirs)
    if is_alive:
      raise TakenError(_said(theirs))
    try:
      if theirs is None:
        self._tag = objects.create(self._place, self._text())
      elif is_alive is False and found:
        self._tag = objects.replace(self._place, self._text(), found.tag)
      elif seen and begun - since > SECONDS:
        self._tag = objects.replace(self._place, self._text(), seen)
      else:
        return False
    except FileExistsError:
      # A request that was repeated may have met its own object.
      return self._adopt(begun)
    except FileNotFoundError:
      return False
    self._renewed = begun
    return True

  def _adopt(self, begun: float) -> bool:
    """Whether the object is ours after all."""
    found = objects.stat(self._place)
    theirs = self._standing()
    if found is None or theirs is None or theirs.get('id') != self._id:
      return False
    self._tag, self._renewed = found.tag, begun
    return True

  def release(self) -> None:
    """Deletes the object, if it is ours; a server that is away is left."""
    self._end.set()
    _HELD.discard(self._id)
    lost.forget(self._place.parent)
    with self._one_at_a_time, contextlib.suppress(StorageError):
      theirs = self._standing()
      if theirs and theirs.get('id') == self._id:
        objects.remove([self._place])

  def _renew_always(self) -> None:
    while not self._end.wait(BEAT):
      with contextlib.suppress(StorageError), self._one_at_a_time:
        if not self._end.is_set():
          self._renew()

  def _renew(self) -> None:
    theirs, begun = self._standing(), time.monotonic()
    # Also for servers that pass over conditions.
    if theirs is not None and theirs.get('id') != self._id:
      self._lost = True
    if self._lost:
      return
    self._beats += 1
    try:
      if theirs is None:
        self._tag = objects.create(self._place, self._text())
      else:
        self._tag = objects.replace(self._place, self._text(), self._tag)
    except (FileExistsError, FileNotFoundError):
      self._lost = not self._adopt(begun)
    else:
      self._renewed = begun

  def _check(self) -> None:
    """Raises an error if the folder may be another job's by now."""
    if not self._lost and time.monotonic() - self._renewed > 0.75 * SECONDS:
      with self._one_at_a_time:
        self._renew()
    if self._lost:
      raise StorageError(
        f'{self._place.parent}: another job has taken it over, as this one '
        f'gave no sign of life for {SECONDS:.0f} s: stop that one, and the '
        'same command goes on.'
      )

  def _text(self) -> bytes:
    me = {'owner': f'process {os.getpid()} on {socket.gethostname()}'}
    me |= {'id': self._id, 'beat': self._beats, **_process(os.getpid())}
    return (json.dumps(me) + '\n').encode()

  def _standing(self) -> dict[str, Any] | None:
    try:
      found = json.loads(objects.read(self._place))
    except FileNotFoundError:
      return None
    except (UnicodeDecodeError, json.JSONDecodeError):
      return {}
    return found if isinstance(found, dict) else {}


def take(place: Address, tell: Callable[[str], None]) -> Lease:
  """A lease on an object; what is beside it is written by its holder alone.

  Args:
    place: of the object.
    tell: is told, in a line, that this waits.

  Raises:
    TakenError: another job has it.
    StorageError: it cannot be written.
  """
  lease = Lease(place)
  lease.take(tell)
  return lease


def _said(theirs: dict[str, Any] | None) -> str:
  return ' '.join(str((theirs or {}).get('owner', 'another job')).split())[:200]


def _process(number: int) -> dict[str, Any]:
  """What tells a process from all others: {} where it cannot be told.

  The boot, the name space of process numbers, the number, when it began.
  """
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    space = os.readlink('/proc/self/ns/pid')
    # The name, in brackets, may have spaces in it.
    stat = pathlib.Path(f'/proc/{number}/stat').read_text().rpartition(')')[2]
    if stat.split()[0] == 'Z':
      return {}
    return {
      'boot': boot,
      'space': space,
      'pid': number,
      'began': stat.split()[19],
    }
  except (OSError, IndexError):
    return {}


def _is_alive(theirs: dict[str, Any] | None) -> bool | None:
  """Whether a lease's process lives; None: it is none of this machine's."""
  me = _process(os.getpid())
  if not theirs or not me or type(theirs.get('pid')) is not int:
    return None
  if any(theirs.get(key) != me[key] for key in ('boot', 'space')):
    return None
  if theirs['pid'] == me['pid']:  # of one that could not be given back
    return theirs.get('id') in _HELD
  return _process(theirs['pid']).get('began') == theirs.get('began')
