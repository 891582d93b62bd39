"""SIGINT and SIGTERM as a wish: finish the step, save, stop."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_SIGNALS = signal.SIGINT, signal.SIGTERM
_HEARD = (
  'Stopping: the step under way is finished and saved first, and the very '
  'first is compiled before that. Again: stops at once.'
)


class Interrupted(SystemExit):  # noqa: N818, an exit, not an error
  """Stopped by a signal after saving; carries the exit code 128 + signal."""


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
  """Ends without a word when who reads the output has gone, as `head` does."""
  try:
    try:
      yield
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # for what Python flushes at its end
    sys.exit(128 + signal.SIGPIPE)


class StopSignal:
  """Notes SIGINT and SIGTERM for the loop; the second one stops at once."""

  def __init__(self):
    self.received = 0
    self._before: dict[int, Any] = {}
    self._answer: _Answer | None = None

  def __enter__(self):
    for number in _SIGNALS:
      try:
        self._before[number] = signal.signal(number, self._note)
      except ValueError:  # not the main thread: the caller keeps its handlers
        break
    if self._before:
      self._answer = _Answer()
    return self

  def __exit__(self, *unused):
    if self._answer:
      self._answer.close()
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, unused_frame):
    if self.received:
      raise KeyboardInterrupt
    self.received = number


class _Answer:
  """Says a line at once, also while a compilation keeps Python waiting.

  Python's own handlers run only when the compilation is over; the byte that C's
  handler writes wakes a thread.
  """

  def __init__(self):
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def _listen(self):
    told = False
    while byte := os.read(self._read, 1):
      if not told and byte[0] in _SIGNALS:
        told = True
        print(_HEARD, file=sys.stderr, flush=True)

  def close(self):
    signal.set_wakeup_fd(self._before)
    os.close(self._write)  # the thread reads the end
    self._thread.join()
    os.close(self._read)
