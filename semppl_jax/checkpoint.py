"""Runs <-> disk: the arrays of a run's state, and whose work directory it is.

A checkpoint is one folder WORKDIR/checkpoints/STEP that appears as a whole or
not at all. It holds the leaves under their names in the tree, and a list of
their dtypes and shapes, so that what does not fit is refused before it is read.
Leaves are plain arrays; a key is derived from the step and never saved.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from semppl_jax.errors import UserError

_FORMAT = 1
_MARKER = 'commit_success.txt'  # orbax writes one per part, and one at the end
_PARTS = ('', 'arrays', 'info')
_ABSENT = 'absent'


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
        that the caller may donate or overwrite them.
      info: what else to keep, of JSON types.
    """
    self._manager.wait_until_finished()
    if self._is_complete(step):
      return
    self._delete_incomplete()
    # np.array, not asarray: on a CPU the latter is a window on JAX's buffer.
    leaves = {name: np.array(leaf) for name, leaf in _named(arrays).items()}
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
    if step in self._manager.all_steps():
      self._manager.delete(step)

  def latest_step(self) -> int | None:
    """The step of the newest whole checkpoint, None if there is none."""
    self._manager.wait_until_finished()
    steps = filter(self._is_complete, self._manager.all_steps())
    return max(steps, default=None)

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
    empty = {
      name: np.zeros(shape, dtype)
      for name, (dtype, shape) in wanted.items()
      if 0 in shape
    }
    found = self._read(step, arrays=ocp.args.PyTreeRestore())['arrays'] | empty
    return [np.asarray(found[name]) for name in wanted]

  def _check(self, step: int, document: Any, wanted: dict[str, Any]) -> None:
    where = f'Checkpoint {step} in {self._folder}'
    if document.get('format') != _FORMAT:
      raise UserError(
        f'{where} has format {document.get("format")}, this version reads '
        f'{_FORMAT}: use the version that wrote it.'
      )
    differing = _differences(document['leaves'], wanted)
    if differing:
      raise UserError(
        f'{where} does not fit these settings: {_first(differing)}. '
        'Use the settings that wrote it, or another --workdir.'
      )

  def _damaged(self, step: int) -> UserError:
    return UserError(
      f'Checkpoint {step} in {self._folder} is damaged: delete its folder '
      'to go on from the one before.'
    )

  def _is_complete(self, step: int) -> bool:
    # A copy that was cut off has the last name, but not all of the markers.
    folder = self._folder / str(step)
    return all((folder / part / _MARKER).exists() for part in _PARTS)

  def _delete_incomplete(self) -> None:
    # Only here: who only reads must not touch what another process writes.
    for step in self._manager.all_steps():
      if not self._is_complete(step):
        self._manager.delete(step)


def claim(
  workdir: str, config: Mapping[str, Any], *, ignore: Sequence[str] = ()
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
  folder = pathlib.Path(workdir)
  text = json.dumps(config, indent=2) + '\n'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'--workdir {workdir} cannot be made: {error.strerror}. Choose another.'
    ) from None
  there, here = _standing(folder), dict(_flat(json.loads(text)))
  if there == here:
    return
  differing = _differences(here if there is None else there, here, ignore)
  if differing:
    raise UserError(
      f'--workdir {workdir} holds a run with other settings: '
      f'{_first(differing)}. Choose another --workdir or the old settings.'
    )
  _replace(folder / 'config.json', text)


def _standing(folder: pathlib.Path) -> dict[str, Any] | None:
  """The settings that a work directory has, flat; None: nobody's yet."""
  path = folder / 'config.json'
  advice = 'choose another --workdir, or bring the file back'
  try:
    return dict(_flat(dict(json.loads(path.read_text('utf-8')))))
  except FileNotFoundError:
    if any((folder / 'checkpoints').glob('[0-9]*')):
      raise UserError(
        f'--workdir {folder} has checkpoints but no config.json: {advice}.'
      ) from None
    return None
  except (ValueError, TypeError, OSError):
    raise UserError(f'{path} cannot be read as JSON: {advice}.') from None


def _flat(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple]:
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _differences(
  there: Mapping[str, Any], here: Mapping[str, Any], ignore: Sequence[str] = ()
) -> list[str]:
  """One phrase for each name with different values."""
  pairs = {
    name: (there.get(name, _ABSENT), here.get(name, _ABSENT))
    for name in dict(there) | dict(here)
    if name not in ignore
  }
  return [
    f'{name} is {_text(old)} there and {_text(new)} here'
    for name, (old, new) in pairs.items()
    if old != new
  ]


def _text(value: Any) -> str:
  return value if value is _ABSENT else json.dumps(value)


def _first(phrases: Sequence[str], show: int = 3) -> str:
  more = f' (and {len(phrases) - show} more)' if len(phrases) > show else ''
  return '; '.join(phrases[:show]) + more


def _named(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {'state' + jax.tree_util.keystr(p): leaf for p, leaf in leaves}


def _kind(leaf: Any) -> list[Any]:
  """[dtype, shape] in JSON types."""
  return [np.dtype(leaf.dtype).name, list(np.shape(leaf))]


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file that others see whole or not at all."""
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)
