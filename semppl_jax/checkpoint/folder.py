"""One checkpoint's folder: whether it is whole, and what it holds.

Reads what anybody wrote, and writes nothing.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from semppl_jax.checkpoint import checksums
from semppl_jax.errors import CheckpointError

FORMAT = 2
_MARKER = 'commit_success.txt'  # orbax writes one per part, and one at the end
_PARTS = ('', 'arrays', 'info')


def steps(workdir: str) -> list[int]:
  """The steps of the whole checkpoints of a run, rising."""
  folder = pathlib.Path(workdir, 'checkpoints')
  numbers = [path for path in folder.glob('*') if path.name.isdigit()]
  return sorted(int(path.name) for path in numbers if is_complete(path))


def is_complete(folder: pathlib.Path) -> bool:
  """Whether it was written to its end."""
  # A copy that was cut off has the last name, but not all of the markers.
  return all((folder / part / _MARKER).exists() for part in _PARTS)


def read(
  workdir: str, step: int, prefixes: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """Reads part of a checkpoint.

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
  document = read_document(folder)
  names = [name for name in document['leaves'] if name.startswith(prefixes)]
  return read_leaves(folder, document, names)


def read_document(folder: pathlib.Path) -> dict[str, Any]:
  """What is said of the leaves: {'format', 'info', 'leaves', 'checksums'}.

  Raises:
    CheckpointError: another format, or a damaged checkpoint.
  """
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      document = reader.restore(folder / 'info')
    form = document.get('format')
    if form == FORMAT and document['leaves'].keys() >= {*document['checksums']}:
      return document
  except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
    raise DamagedError(folder) from error
  raise CheckpointError(
    f'{folder} has format {form}, this version reads {FORMAT}: use the version '
    'that wrote it.'
  )


def read_leaves(
  folder: pathlib.Path, document: Mapping[str, Any], names: list[str]
) -> dict[str, np.ndarray]:
  """Reads leaves by their names, and compares their checksums.

  Raises:
    DamagedError: says which leaf is not what was written, or that the files
      cannot be read.
  """
  try:
    kinds = {
      name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
      for name, (dtype, shape) in document['leaves'].items()
      if name in names
    }
    found = _read_arrays(folder / 'arrays', kinds)
    for name, leaf in found.items():
      if not checksums.fits(leaf, document['checksums'][name]):
        raise DamagedError(folder, f'{name} is not what was written')
    return {name: found[name] for name in names}
  except DamagedError:
    raise
  # What damage leads to is for the libraries below to say: one of many.
  except Exception as error:
    raise DamagedError(folder) from error


class DamagedError(CheckpointError):
  """A checkpoint that cannot be read, or does not hold what was written."""

  def __init__(self, folder: pathlib.Path, what: str = ''):
    what = f': {what}' if what else ''
    super().__init__(f'Checkpoint {folder} is damaged or gone{what}.')


def _read_arrays(
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
