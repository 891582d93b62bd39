"""One checkpoint's folder: whether it is whole, and what it holds.

Reads what anybody wrote, and writes nothing.
"""

import errno
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from semppl_jax import storage
from semppl_jax.checkpoint import checksums, upgrade
from semppl_jax.errors import CheckpointError
from semppl_jax.storage import objects
from semppl_jax.utils import os_errors

FORMAT = 4
DIGEST = 'digest'  # of all that the document says besides
MARKER = 'commit_success.txt'  # orbax writes one per part, and one at the end
_PARTS = ('', 'arrays', 'info')


def steps(workdir: str) -> list[int]:
  """The steps of the whole checkpoints of a run, rising.

  Raises:
    CheckpointError: the disk does not say.
  """
  if storage.is_remote(workdir):
    return _steps_in_bucket(storage.path(workdir) / 'checkpoints')
  folder = pathlib.Path(os.path.abspath(workdir), 'checkpoints')
  # Not glob, nor orbax: where a disk fails, they see no checkpoint, and a run
  # would start anew.
  try:
    names = os.listdir(folder)
  except FileNotFoundError:
    return []
  except OSError as error:
    raise _refusal(folder, error) from error
  steps = sorted(int(name) for name in names if name.isdigit())
  return [step for step in steps if is_complete(folder / str(step))]


def _steps_in_bucket(folder: storage.RemotePath) -> list[int]:
  there = objects.tree(folder)  # of all, in few requests
  markers = [f'{part}/{MARKER}'.lstrip('/') for part in _PARTS]
  return sorted(
    int(step)
    for step in {name.partition('/')[0] for name in there}
    if step.isdigit() and all(f'{step}/{m}' in there for m in markers)
  )


def is_complete(folder: pathlib.Path) -> bool:
  """Whether it was written to its end.

  Raises:
    CheckpointError: the disk does not say.
  """
  # A copy that was cut off has the last name, but not all of the markers.
  try:
    return all((folder / part / MARKER).exists() for part in _PARTS)
  except OSError as error:
    raise _refusal(folder, error) from error


def are_arrays_there(folder: pathlib.Path) -> bool:
  """Whether what all hosts wrote has been put together."""
  return (folder / 'arrays' / 'manifest.ocdbt').exists()


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

  def leaves(folder):
    document = read_document(folder)
    names = [name for name in document['leaves'] if name.startswith(prefixes)]
    return read_leaves(folder, document, names)

  if storage.is_remote(workdir):
    return on_disk(storage.path(workdir) / 'checkpoints' / str(step), leaves)
  return leaves(
    pathlib.Path(os.path.abspath(workdir), 'checkpoints', str(step))
  )


def on_disk(
  folder: pathlib.Path | storage.RemotePath, use: Callable[[pathlib.Path], Any]
) -> Any:
  """What `use` makes of a checkpoint's folder; of a bucket's, of a copy.

  Orbax reads disks, and Google's buckets, but not Amazon's. What is damaged is
  copied once more before it counts.
  """
  if not storage.is_remote(folder):
    return use(folder)
  try:
    return _copied(folder, use)
  except DamagedError:
    return _copied(folder, use)


def _copied(
  folder: storage.RemotePath, use: Callable[[pathlib.Path], Any]
) -> Any:
  with tempfile.TemporaryDirectory(prefix='semppl_jax_') as scratch:
    copy = pathlib.Path(scratch, folder.name)
    try:
      objects.download(folder, copy)
    except FileNotFoundError:  # it is being deleted
      raise DamagedError(folder) from None
    except OSError as error:
      raise CheckpointError(
        f'Checkpoint {folder} cannot be copied to {scratch}, to be read there: '
        f'{error.strerror}. Make room, or set TMPDIR to another folder.'
      ) from error
    try:
      return use(copy)
    except CheckpointError as error:
      error.args = (str(error).replace(str(copy), str(folder)),)
      raise


def read_document(folder: pathlib.Path) -> dict[str, Any]:
  """What is said of the leaves: {'format', 'info', 'leaves', 'checksums', ..}.

  Raises:
    DamagedError: it is not what was written.
    CheckpointError: it has another format, or cannot be read now.
  """
  return _surely(folder, lambda: _read_document(folder))


def _read_document(folder: pathlib.Path) -> dict[str, Any]:
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      document = reader.restore(folder / 'info')
  except Exception as error:
    raise _refusal(folder, error) from error
  said = dict(document) if isinstance(document, dict) else {}
  digest = said.pop(DIGEST, None)
  # The first format had no digest.
  if digest is None and said.get('format') == 1:
    raise CheckpointError(
      f'{folder} has format 1, this version reads {FORMAT}: use the version '
      'that wrote it.'
    )
  if digest != checksums.of_document(said):
    raise DamagedError(folder, 'its description is not what was written')
  if said['format'] not in upgrade.READABLE:
    raise CheckpointError(
      f'{folder} has format {said["format"]}, this version reads {FORMAT}: use '
      'the version that wrote it.'
    )
  for part in ('leaves', 'checksums'):
    said[part] = {
      upgrade.name(name, said['format']): x for name, x in said[part].items()
    }
  return said


def read_leaves(
  folder: pathlib.Path, document: Mapping[str, Any], names: list[str]
) -> dict[str, np.ndarray]:
  """Reads leaves by their names, and compares their checksums.

  Raises:
    DamagedError: says which leaf is not what was written, or that files are
      not what they should be.
    CheckpointError: they cannot be read now.
  """
  return _surely(folder, lambda: _read_leaves(folder, document, names))


def _read_leaves(
  folder: pathlib.Path, document: Mapping[str, Any], names: list[str]
) -> dict[str, np.ndarray]:
  kinds = {
    upgrade.stored(name, document['format']): jax.ShapeDtypeStruct(
      tuple(shape), np.dtype(dtype)
    )
    for name, (dtype, shape) in document['leaves'].items()
    if name in names
  }
  try:
    found = _read_arrays(folder / 'arrays', kinds)
  except Exception as error:
    raise _refusal(folder, error) from error
  found = {
    upgrade.name(name, document['format']): x for name, x in found.items()
  }
  for name, leaf in found.items():
    if not checksums.fits(leaf, document['checksums'][name]):
      raise DamagedError(folder, f'{name} is not what was written')
  return {name: found[name] for name in names}


def _surely(folder: pathlib.Path, read: Callable[[], Any]) -> Any:
  """What `read` returns; damage counts if it is there a second time.

  Where the disk fails, the libraries below may say that a file is not there.
  """
  try:
    return read()
  except DamagedError:
    _read_all(folder)
    return read()


def _read_all(folder: pathlib.Path) -> None:
  """Raises a CheckpointError if the disk does not give all that is there."""

  def fail(error):
    if error.errno != errno.ENOENT:
      raise _refusal(folder, error) from error

  for parent, _, names in os.walk(folder, onerror=fail):
    for name in names:
      try:
        with open(os.path.join(parent, name), 'rb') as file:
          while file.read(2**20):
            pass
      except OSError as error:
        fail(error)


class DamagedError(CheckpointError):
  """A checkpoint that does not hold what was written."""

  def __init__(self, folder: os.PathLike, what: str = ''):
    what = f': {what}' if what else ''
    super().__init__(f'Checkpoint {folder} is damaged or gone{what}.')


def _refusal(folder: pathlib.Path, error: Exception) -> CheckpointError:
  """Damage, or a disk or a network that does not answer now."""
  reason, number = os_errors.said(error)
  if isinstance(error, MemoryError) or number not in (None, errno.ENOENT):
    return CheckpointError(f'Checkpoint {folder} cannot be read now: {reason}.')
  # What damage leads to is for the libraries below to say: one of many.
  return DamagedError(folder)


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
