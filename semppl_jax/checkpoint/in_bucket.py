"""Checkpoints of a run whose work directory is in a bucket.

The same folders as on a disk. Orbax writes one into a folder on the disk of
process 0, from where it is copied, its last marker last; a copy that was cut
off has none, and counts for nothing. Orbax itself writes to Google's buckets,
and to Amazon's not at all (0.12); of several hosts it wants a disk that all
see, and there is none.
"""

import concurrent.futures
import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from semppl_jax import storage
from semppl_jax.checkpoint import (
  checkpointer,
  checksums,
  folder,
  keeping,
  writing,
)
from semppl_jax.distributed import processes
from semppl_jax.storage import objects


class InBucket(checkpointer.Checkpointer):
  """The checkpoints of one work directory, as `Checkpointer` has them."""

  def __init__(
    self,
    workdir: str,
    *,
    keep: int,
    keep_every: int = 0,
    tell: Callable[[str], None] = print,
  ):
    self._folder = storage.path(workdir) / 'checkpoints'
    self._tell = tell
    self._kept = keeping.Kept(keep, keep_every)
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._writing_now: concurrent.futures.Future | None = None

  def save(self, step: int, arrays: Any, info: Mapping[str, Any]) -> None:
    """See `Checkpointer.save`; what lies on several hosts comes together."""
    self._wait()
    if step in self._known():
      return
    leaves = {n: _whole(x) for n, x in checkpointer.named(arrays).items()}
    if processes.is_first():
      self._writing_now = self._pool.submit(
        self._write, step, leaves, dict(info)
      )

  def discard_after(self, step: int) -> None:
    """Deletes the checkpoints of all later steps."""
    self._wait()

    def delete():
      for later in self._steps():
        if later > step:
          self._delete(later)

    processes.run_on_all(delete, first_only=True)

  def close(self) -> None:
    """Waits for what is being written."""
    try:
      self._join()
    finally:
      self._pool.shutdown()

  def _write(
    self, step: int, leaves: Mapping[str, np.ndarray], info: Mapping[str, Any]
  ) -> None:
    sums = {name: checksums.of(leaf) for name, leaf in leaves.items()}
    with tempfile.TemporaryDirectory(prefix='semppl_jax_') as scratch:
      place = pathlib.Path(scratch)
      with writing.guarded(place):
        _save(place, step, checkpointer.items(leaves, sums, info))
      self._delete_incomplete()
      objects.upload(
        place / str(step), self._folder / str(step), last=[folder.MARKER]
      )
    self._make_room()

  def _make_room(self) -> None:
    steps = self._steps()
    checkpoints = [_Step(step) for step in steps]
    stay = self._kept.should_preserve(checkpoints, context=None)
    for step, stays in zip(steps, stay, strict=True):
      if not stays:
        self._delete(step)

  def _delete_incomplete(self) -> None:
    whole = set(map(str, self._steps()))
    for name in objects.names(self._folder):
      if name.isdigit() and name not in whole:
        self._delete(int(name))

  def _delete(self, step: int) -> None:
    objects.remove_tree(self._folder / str(step), first=[folder.MARKER])

  def _move(self, step: storage.RemotePath, place: storage.RemotePath) -> None:
    objects.move_tree(step, place, first=[folder.MARKER])

  def _reload(self) -> None:
    pass

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()  # what goes wrong is a UserError already

  def _known(self) -> list[int]:
    found = processes.run_on_all(self._steps, first_only=True)
    return processes.broadcast_from_first(found)

  def _wait(self) -> None:
    processes.run_on_all(self._join, first_only=True)

  def _join(self) -> None:
    if self._writing_now is not None:
      writing_now, self._writing_now = self._writing_now, None
      writing_now.result()


class _Step:
  """What `keeping` looks at."""

  def __init__(self, step: int):
    self.step = step


def _save(place: pathlib.Path, step: int, items: ocp.args.Composite) -> None:
  """Writes a checkpoint into a folder of this process's own."""
  own = processes.index()
  options = ocp.CheckpointManagerOptions(
    enable_async_checkpointing=False,
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=own,
      active_processes={own},
      barrier_sync_key_prefix='in_bucket',
    ),
    create=False,
  )
  with ocp.CheckpointManager(place, options=options) as manager:
    manager.save(step, args=items, force=True)


def _whole(leaf: Any) -> np.ndarray:
  """A copy of an array, of all its parts on all hosts."""
  if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
    return np.array(leaf)
  mine = [one for one in leaf.addressable_shards if one.replica_id == 0]
  places = processes.allgather_json(
    [[s.indices(n)[:2] for s, n in zip(one.index, leaf.shape)] for one in mine]
  )
  every = processes.allgather(np.stack([np.asarray(one.data) for one in mine]))
  whole = np.zeros(leaf.shape, leaf.dtype)
  for ranges, parts in zip(places, every, strict=True):
    for place, part in zip(ranges, parts, strict=True):
      whole[tuple(slice(*ends) for ends in place)] = part
  return whole
