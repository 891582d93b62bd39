"""SIGINT and SIGTERM as a wish: finish the step, save, stop."""

import signal
from typing import Any


class Interrupted(SystemExit):  # noqa: N818, an exit, not an error
  """Stopped by a signal after saving; carries the exit code 128 + signal."""


class StopSignal:
  """Notes SIGINT and SIGTERM for the loop; the second one stops at once."""

  def __init__(self):
    self.received = 0
    self._before: dict[int, Any] = {}

  def __enter__(self):
    for number in (signal.SIGINT, signal.SIGTERM):
      try:
        self._before[number] = signal.signal(number, self._note)
      except ValueError:  # not the main thread: the caller keeps its handlers
        break
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, unused_frame):
    if self.received:
      raise KeyboardInterrupt
    self.received = number
