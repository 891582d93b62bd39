"""Traces of chosen steps, for TensorBoard's profiler or Perfetto."""

import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

from semppl_jax import storage
from semppl_jax.distributed import processes
from semppl_jax.storage import objects


class Profile:
  """Traces steps FIRST to LAST into WORKDIR/profile; host 0 alone.

  Args:
    workdir: of the run.
    steps: (FIRST, LAST), both traced, counted from 1; (0, 0): none. A run that
      begins or ends between them traces what it takes of them.
  """

  def __init__(self, workdir: str, steps: Sequence[int]):
    self._place = storage.path(workdir) / 'profile'
    self._scratch: tempfile.TemporaryDirectory | None = None
    self._first, self._last = steps if processes.is_first() else (0, 0)
    self._running = False

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *unused):
    self._stop()

  def before(self, step: int) -> None:
    """To be called before step `step` is started."""
    if self._first <= step <= self._last and not self._running:
      folder = str(self._place)
      if storage.is_remote(self._place):  # written on the disk first
        self._scratch = tempfile.TemporaryDirectory(prefix='semppl_jax_')
        folder = self._scratch.name
      jax.profiler.start_trace(folder)
      self._running = True

  def after(self, step: int, outputs: Any) -> None:
    """To be called when the step is on its way; waits for the last one."""
    if self._running and step >= self._last:
      jax.block_until_ready(outputs)
      self._stop()

  def _stop(self) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      if self._scratch:
        objects.upload(pathlib.Path(self._scratch.name), self._place)
        self._scratch.cleanup()
