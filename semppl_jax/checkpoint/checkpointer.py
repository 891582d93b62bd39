"""Writes and restores the checkpoints of a run.

In a job of several hosts all of them call every method, in the same order, on
one folder that all of them see; process 0's view of that folder counts.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from semppl_jax import differences, hosts
from semppl_jax.checkpoint import checksums, folder
from semppl_jax.errors import UserError

_DAMAGED = 'damaged'  # where a damaged checkpoint is put, beside the others


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
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, keep_period=keep_every or None
    )
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
    with self._writing():
      self._save(step, arrays, info)

  def _save(self, step: int, arrays: Any, info: Mapping[str, Any]) -> None:
    self._manager.wait_until_finished()
    if hosts.agree(self._is_complete(step)):
      return
    # Where a folder cannot be made, orbax's threads wait for one another.
    with tempfile.TemporaryDirectory(dir=self._folder, prefix='.probe'):
      pass
    self._delete_incomplete()
    leaves = {name: _own_copy(x) for name, x in _named(arrays).items()}
    document = {
      'format': folder.FORMAT,
      'info': dict(info),
      'leaves': {name: _kind(leaf) for name, leaf in leaves.items()},
      'checksums': _checksums(leaves),
    }
    # Orbax refuses arrays of size 0; their shape in the list says it all.
    stored = {name: leaf for name, leaf in leaves.items() if leaf.size}
    parts = ocp.args.Composite(
      arrays=ocp.args.PyTreeSave(stored),
      # A copy, and an error here rather than in the background.
      info=ocp.args.JsonSave(json.loads(json.dumps(document))),
    )
    self._manager.save(step, args=parts, force=True)

  def discard(self, step: int) -> None:
    """Deletes the checkpoint of that step, if there is one."""
    self._manager.wait_until_finished()
    if hosts.agree(step in self._manager.all_steps()):
      self._manager.delete(step)

  def latest_step(self) -> int | None:
    """The step of the newest whole checkpoint, None if there is none."""
    self._manager.wait_until_finished()
    steps = filter(self._is_complete, self._steps())
    return hosts.agree(max(steps, default=None))

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
    self._manager.wait_until_finished()
    steps = hosts.agree(sorted(filter(self._is_complete, self._steps())))
    if not steps:
      raise UserError(f'No checkpoint in {self._folder}: train first.')
    damaged: dict[int, str] = {}
    for step in reversed(steps):
      found, reason = None, ''
      try:
        found = self._restore(step, like)
      except folder.DamagedError as error:
        reason = str(error)
      reasons = [reason for reason in hosts.exchange(reason) if reason]
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
    document = folder.read_document(where)
    wanted = {name: _kind(leaf) for name, leaf in _named(like).items()}
    differing = differences.between(document['leaves'], wanted)
    if differing:
      what = differences.first_few(differing)
      raise UserError(
        f'Checkpoint {where} does not fit these settings: {what}. '
        'Use the settings that wrote it, or another --workdir.'
      )
    leaves = folder.read_leaves(where, document, list(wanted))
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves.values())
    return tree, document['info']

  def _set_aside(self, damaged: Mapping[int, str]) -> None:
    """Moves damaged checkpoints away; the first host does it."""
    for step, reason in damaged.items():
      place = self._folder / _DAMAGED / str(step)
      self._tell(f'{reason} It is moved to {place}; the one before is taken.')
      if hosts.is_first():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        (self._folder / str(step)).rename(place)
    if damaged:
      hosts.agree(None)  # all wait until it is done
      self._manager.reload()

  def close(self) -> None:
    """Waits for what is being written.

    Raises:
      UserError: it could not be written.
    """
    with self._writing():
      self._manager.wait_until_finished()
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says in one line what to do about what cannot be written."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      if isinstance(error, UserError):
        raise
      raise UserError(_cannot_write(self._folder, error)) from error

  def _steps(self) -> list[int]:
    return list(self._manager.all_steps())

  def _is_complete(self, step: int) -> bool:
    return folder.is_complete(self._folder / str(step))

  def _delete_incomplete(self) -> None:
    # Only here: who only reads must not touch what another process writes.
    steps = [n for n in self._manager.all_steps() if not self._is_complete(n)]
    for step in hosts.agree(steps):
      self._manager.delete(step)


def _named(tree: Any) -> dict[str, Any]:
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
  """Of all hosts' parts of all leaves."""
  every = hosts.exchange({n: checksums.of(leaf) for n, leaf in leaves.items()})
  return {n: checksums.joined([parts[n] for parts in every]) for n in leaves}


def _cannot_write(place: pathlib.Path, error: BaseException) -> str:
  """What failed, and what to do about it, in one line."""
  # TensorStore tells its whole specification; the system's word is inside.
  system = re.search(r": ([^:]*) \[os_error_code='\d+'\]", str(error))
  said = (str(error) or type(error).__name__).splitlines()[0]
  reason = system[1] if system else said[:200]
  existing = next(p for p in (place, *place.parents) if p.exists())
  line = f'No checkpoint can be written to {place}: {reason}'
  if not os.access(existing, os.W_OK):
    return f'{line} (no permission). Those that are there are untouched.'
  free = shutil.disk_usage(existing).free / 1e9
  return (
    f'{line} ({free:.1f} GB are free). Those that are there are untouched: '
    'make room, and the same command goes on.'
  )
