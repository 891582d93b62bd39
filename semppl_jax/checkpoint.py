"""Runs <-> disk: the arrays of a run's state.

A checkpoint is one folder WORKDIR/checkpoints/STEP that appears as a whole or
not at all. It holds the leaves under their names in the tree, and a list of
their dtypes and shapes, so that what does not fit is refused before it is read.
Leaves are plain arrays; a key is derived from the step and never saved.

In a job of several hosts all of them call every method, in the same order, on
one folder that all of them see; process 0's view of that folder counts.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from semppl_jax import differences, hosts
from semppl_jax.errors import CheckpointError, UserError

_FORMAT = 1
_MARKER = 'commit_success.txt'  # orbax writes one per part, and one at the end
_PARTS = ('', 'arrays', 'info')


class Checkpointer:
  """The checkpoints of one work directory; keeps the `keep` newest."""

  def __init__(self, workdir: str, *, keep: int):
    self._folder = pathlib.Path(os.path.abspath(workdir), 'checkpoints')
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def save(self, step: int, arrays: Any, info: Mapping[str, Any]) -> None:
    """Starts to write a checkpoint and returns; waits for the one before.

    Args:
      step: the number of steps done; one that is on disk already is left alone.
      arrays: a pytree of NumPy or JAX arrays; copied before this returns, so
        that the caller may donate or overwrite them. What lies on several
        hosts must be a copy already; each writes its own part.
      info: what else to keep, of JSON types.
    """
    self._manager.wait_until_finished()
    if hosts.agree(self._is_complete(step)):
      return
    self._delete_incomplete()
    leaves = {name: _own_copy(x) for name, x in _named(arrays).items()}
    document = {
      'format': _FORMAT,
      'info': dict(info),
      'leaves': {name: _kind(leaf) for name, leaf in leaves.items()},
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
    steps = filter(self._is_complete, self._manager.all_steps())
    return hosts.agree(max(steps, default=None))

  def restore(self, like: Any) -> tuple[Any, dict[str, Any], int]:
    """Reads the newest whole checkpoint.

    Args:
      like: a pytree of arrays or ShapeDtypeStructs: the structure, shapes and
        dtypes that are wanted.

    Returns:
      The tree, in `like`'s containers with NumPy leaves; the info; the step.

    Raises:
      UserError: no checkpoint, a damaged one, or one of another structure.
    """
    step = self.latest_step()
    if step is None:
      raise UserError(f'No checkpoint in {self._folder}: train first.')
    try:
      document = self._read(step, info=ocp.args.JsonRestore())['info']
    except (ValueError, OSError, KeyError) as error:
      raise self._damaged(step) from error
    wanted = {name: _kind(leaf) for name, leaf in _named(like).items()}
    self._check(step, document, wanted)
    try:
      leaves = self._leaves(step, wanted)
    except (ValueError, OSError, KeyError) as error:
      raise self._damaged(step) from error
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return tree, document['info'], step

  def close(self) -> None:
    """Waits for what is being written; raises if that failed."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _read(self, step: int, **parts: Any) -> Any:
    return self._manager.restore(step, args=ocp.args.Composite(**parts))

  def _leaves(self, step: int, wanted: dict[str, Any]) -> list[np.ndarray]:
    kinds = {
      name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
      for name, (dtype, shape) in wanted.items()
    }
    found = _read_leaves(self._folder / str(step) / 'arrays', kinds)
    return [found[name] for name in wanted]

  def _check(self, step: int, document: Any, wanted: dict[str, Any]) -> None:
    where = f'Checkpoint {step} in {self._folder}'
    if document.get('format') != _FORMAT:
      raise UserError(
        f'{where} has format {document.get("format")}, this version reads '
        f'{_FORMAT}: use the version that wrote it.'
      )
    differing = differences.between(document['leaves'], wanted)
    if differing:
      what = differences.first_few(differing)
      raise UserError(
        f'{where} does not fit these settings: {what}. '
        'Use the settings that wrote it, or another --workdir.'
      )

  def _damaged(self, step: int) -> UserError:
    return UserError(
      f'Checkpoint {step} in {self._folder} is damaged: delete its folder '
      'to go on from the one before.'
    )

  def _is_complete(self, step: int) -> bool:
    return _is_complete(self._folder / str(step))

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


def _is_complete(folder: pathlib.Path) -> bool:
  # A copy that was cut off has the last name, but not all of the markers.
  return all((folder / part / _MARKER).exists() for part in _PARTS)


def steps(workdir: str) -> list[int]:
  """The steps of the whole checkpoints of a run, rising; writes nothing."""
  folder = pathlib.Path(workdir, 'checkpoints')
  numbers = [path for path in folder.glob('*') if path.name.isdigit()]
  return sorted(int(path.name) for path in numbers if _is_complete(path))


def read(
  workdir: str, step: int, prefixes: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """Reads part of a checkpoint, whoever wrote it; writes nothing.

  Args:
    workdir: the run's folder.
    step: one of `steps`.
    prefixes: what the names of the wanted leaves begin with; a name is the
      leaf's path in the saved tree, such as "state.online_params['m']['w']".

  Returns:
    The leaves by name; empty ones too.

  Raises:
    CheckpointError: another format, or a damaged checkpoint.
  """
  folder = pathlib.Path(os.path.abspath(workdir), 'checkpoints', str(step))
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      document = reader.restore(folder / 'info')
    if document.get('format') != _FORMAT:
      raise CheckpointError(
        f'{folder} has format {document.get("format")}, this version reads '
        f'{_FORMAT}: use the version that wrote it.'
      )
    kinds = {
      name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
      for name, (dtype, shape) in document['leaves'].items()
      if name.startswith(prefixes)
    }
    return _read_leaves(folder / 'arrays', kinds)
  except CheckpointError:
    raise
  except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
    raise CheckpointError(f'{folder} is damaged or gone.') from error


def _read_leaves(
  folder: pathlib.Path, kinds: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
  stored = {name: kind for name, kind in kinds.items() if kind.size}
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  wanted = ocp.args.PyTreeRestore(
    item=stored,
    restore_args=dict.fromkeys(stored, as_numpy),
    partial_restore=True,
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    found = reader.restore(folder, args=wanted)
  return {
    name: np.asarray(found[name])
    if name in found
    else np.zeros(kind.shape, kind.dtype)
    for name, kind in kinds.items()
  }
