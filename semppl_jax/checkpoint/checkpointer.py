"""Writes and restores the checkpoints of a run.

In a job of several hosts all of them call every method, in the same order, on
one folder that all of them see; process 0's view of that folder counts.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from semppl_jax import storage
from semppl_jax.checkpoint import checksums, folder, keeping, upgrade, writing
from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.utils import diff

DAMAGED = 'damaged'  # where a damaged checkpoint is put, beside the others
# Where one goes before it is deleted, file by file: a process that is killed
# meanwhile must not leave half of one under its name.
_DELETED = 'deleted'


class Checkpointer:
  """The checkpoints of one work directory."""

  def __init__(
    self,
    workdir: str,
    *,
    keep: int,
    keep_every: int = 0,
    tell: Callable[[str], None] = print,
  ):
    """Makes the folder, if it is not there.

    Args:
      workdir: of the run.
      keep: so many of the newest are kept,
      keep_every: and those of every so many steps; 0: no others.
      tell: is told, in one line, of a checkpoint that is damaged.

    Raises:
      UserError: the folder cannot be made.
    """
    self._folder = pathlib.Path(os.path.abspath(workdir), 'checkpoints')
    self._tell = tell
    self._step = 0  # that is being written
    self._kept = keeping.Kept(keep, keep_every)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._kept,
      todelete_subdir=_DELETED,
      async_options=ocp.AsyncOptions(
        # Else threads of orbax's wait 20 minutes for one that cannot be made,
        # and the process with them.
        create_directories_asynchronously=False,
        post_finalization_callback=self._check_written,
      ),
    )
    self._writes = False
    with self._writing():
      self._folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def save(self, step: int, arrays: Any, info: Mapping[str, Any]) -> None:
    """Starts to write a checkpoint and returns; waits for the one before.

    Args:
      step: the number of steps done; one that is on disk already is left alone.
      arrays: a pytree of NumPy or JAX arrays; copied before this returns, so
        that the caller may donate or overwrite them. What lies on several
        hosts must be a copy already; each writes its own part.
      info: what else to keep, of JSON types.

    Raises:
      UserError: this one cannot be written, or the one before could not; those
        that are on disk are left alone.
    """
    self._writes = True
    self._wait()
    if processes.broadcast_from_first(self._is_complete(step)):
      return
    processes.run_on_all(lambda: writing.probe(self._folder))
    self._delete_incomplete()
    leaves = {name: _own_copy(x) for name, x in named(arrays).items()}
    parts = items(leaves, _checksums(leaves), info)
    self._step = step
    with self._writing():
      self._manager.save(step, args=parts, force=True)

  def keep_also(self, step: int | None) -> None:
    """From the next save on keeps this one, too, and no other such; None: none.

    Args:
      step: of a checkpoint that is there, or that is saved next.
    """
    self._kept.also = step

  def discard_after(self, step: int) -> None:
    """Deletes the checkpoints of all later steps."""
    self._writes = True
    self._wait()
    for later in processes.broadcast_from_first(
      [n for n in self._steps() if n > step]
    ):
      self._manager.delete(later)

  def latest_step(self, up_to: int | None = None) -> int | None:
    """The step of the newest whole checkpoint, None if there is none.

    Args:
      up_to: later ones do not count; None: all do.
    """
    self._wait()
    steps = self._steps()
    if up_to is not None:
      steps = [n for n in steps if n <= up_to]
    return processes.broadcast_from_first(max(steps, default=None))

  def restore(self, like: Any) -> tuple[Any, dict[str, Any], int]:
    """Reads the newest whole checkpoint.

    If it is damaged, the one before it is taken, `tell` is told, and the
    damaged one is moved to WORKDIR/checkpoints/damaged: its step will come
    again.

    Args:
      like: a pytree of arrays or ShapeDtypeStructs: the structure, shapes and
        dtypes that are wanted.

    Returns:
      The tree, in `like`'s containers with NumPy leaves; the info; the step.

    Raises:
      UserError: no checkpoint, none that is not damaged, or one of another
        structure.
    """
    self._wait()
    steps = processes.broadcast_from_first(self._steps())
    if not steps:
      raise UserError(f'No checkpoint in {self._folder}: train first.')
    damaged: dict[int, str] = {}
    for step in reversed(steps):
      found, error = None, None
      try:
        found = self._restore(step, like)
      except UserError as e:
        error = e
      is_damage = error is None or isinstance(error, folder.DamagedError)
      # What one process sees, all must know of.
      told = processes.allgather_json([error and str(error), is_damage])
      reasons = [reason for reason, _ in told if reason]
      if not all(harmless for _, harmless in told):
        raise error or UserError(reasons[0])
      if not reasons:
        self._set_aside(damaged)
        return *found, step
      damaged[step] = reasons[0]
    raise UserError(
      f'{damaged[steps[-1]]} None before it is whole: choose another '
      f'--workdir, or delete {self._folder} to start anew.'
    )

  def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    where = self._folder / str(step)
    return folder.on_disk(where, lambda copy: _read(where, copy, like))

  def _set_aside(self, damaged: Mapping[int, str]) -> None:
    """Moves damaged checkpoints away, and what was there before stays."""

    def move():
      for step, reason in damaged.items():
        place = self._folder / DAMAGED / str(step)
        while place.exists():
          place = place.with_name(f'{place.name}-again')
        with self._writing():
          self._move(self._folder / str(step), place)
        self._tell(f'{reason} It is now {place}; the one before is taken.')

    if damaged:
      processes.run_on_all(move, first_only=True)
      self._reload()

  def _move(self, step: pathlib.Path, place: pathlib.Path) -> None:
    place.parent.mkdir(exist_ok=True)
    step.rename(place)

  def _reload(self) -> None:
    self._manager.reload()

  def close(self) -> None:
    """Waits for what is being written.

    Raises:
      UserError: it could not be written.
    """
    with self._writing():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()
        self._make_room()

  def _wait(self) -> None:
    with self._writing():
      self._manager.wait_until_finished()
    self._make_room()

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    return writing.guarded(self._folder)

  def _steps(self) -> list[int]:
    return folder.steps(str(self._folder.parent))

  def _is_complete(self, step: int) -> bool:
    return folder.is_complete(self._folder / str(step))

  def _make_room(self) -> None:
    """Deletes what was put aside for it, also by a life that was killed."""
    # Who only reads must not touch what another process writes.
    if self._writes and processes.is_first():
      shutil.rmtree(self._folder / _DELETED, ignore_errors=True)

  def _check_written(self) -> None:
    """Looks at the arrays before their folder gets its name, and older ones go.

    Orbax passes over a folder that it cannot list.
    """
    if not folder.are_arrays_there(writing.part(self._folder, self._step)):
      raise OSError(errno.EIO, 'the arrays could not be listed')

  def _delete_incomplete(self) -> None:
    # Only before a save: see `_make_room`.
    steps = [n for n in self._manager.all_steps() if not self._is_complete(n)]
    for step in processes.broadcast_from_first(steps):
      self._manager.delete(step)


def _read(
  where: 'pathlib.Path | storage.RemotePath', copy: pathlib.Path, like: Any
) -> tuple[Any, dict[str, Any]]:
  """A checkpoint in `like`'s structure, and its info.

  Args:
    where: what it is called in messages.
    copy: where it is read.
    like: see `Checkpointer.restore`.
  """
  document = folder.read_document(copy)
  wanted = {name: _kind(leaf) for name, leaf in named(like).items()}
  there = document['leaves']
  for name in upgrade.surplus(there, wanted, document['format']):
    del there[name]
  differing = diff.between(there, wanted)
  if differing:
    what = diff.first_few(differing)
    raise UserError(
      f'Checkpoint {where} does not fit these settings: {what}. '
      'Use the settings that wrote it, or another --workdir.'
    )
  leaves = folder.read_leaves(copy, document, list(wanted))
  tree = jax.tree.unflatten(jax.tree.structure(like), leaves.values())
  return tree, document['info']


def items(
  leaves: Mapping[str, Any],
  sums: Mapping[str, checksums.Parts],
  info: Mapping[str, Any],
) -> ocp.args.Composite:
  """What orbax is to write: arrays by name, and what is said of them."""
  document = json.loads(
    json.dumps(
      {
        'format': folder.FORMAT,
        'info': dict(info),
        'leaves': {name: _kind(leaf) for name, leaf in leaves.items()},
        'checksums': sums,
      }
    )
  )
  document[folder.DIGEST] = checksums.of_document(document)
  # Orbax refuses arrays of size 0; their shape in the list says it all.
  stored = {name: leaf for name, leaf in leaves.items() if leaf.size}
  return ocp.args.Composite(
    arrays=ocp.args.PyTreeSave(stored), info=ocp.args.JsonSave(document)
  )


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their names."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {'state' + jax.tree_util.keystr(p): leaf for p, leaf in leaves}


def _own_copy(leaf: Any) -> Any:
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return leaf
  # np.array, not asarray: on a CPU the latter is a window on JAX's buffer.
  return np.array(leaf)


def _kind(leaf: Any) -> list[Any]:
  """[dtype, shape] in JSON types."""
  return [np.dtype(leaf.dtype).name, list(np.shape(leaf))]


def _checksums(leaves: Mapping[str, Any]) -> dict[str, checksums.Parts]:
  """Of all hosts' parts of all leaves; what all have alike, of the first's."""

  def is_shared(leaf):
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable

  mine = {
    name: checksums.of(leaf)
    for name, leaf in leaves.items()
    if processes.is_first() or is_shared(leaf)
  }
  every = processes.allgather_json(mine)
  return {n: sum((parts.get(n, []) for parts in every), []) for n in leaves}
