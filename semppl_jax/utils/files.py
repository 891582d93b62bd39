"""Files that others see whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from semppl_jax import storage
from semppl_jax.storage import objects


@contextlib.contextmanager
def atomic(
  path: str | os.PathLike, suffix: str | None = None
) -> Iterator[pathlib.Path]:
  """A path to write to, which becomes `path` once the block has ended well.

  Args:
    path: the file; one that is there is replaced. An object is written on the
      disk first, in a folder for that.
    suffix: of the file until then; None: one of this process.
  """
  if storage.is_remote(path):
    place = storage.path(path)
    with tempfile.TemporaryDirectory(prefix='semppl_jax_') as folder:
      part = pathlib.Path(folder, place.name)
      yield part
      objects.put(part, place)
    return
  part = pathlib.Path(f'{os.fspath(path)}{suffix or f".{os.getpid()}.part"}')
  try:
    yield part
    sync(part)  # else its name could reach the disk before it
    os.replace(part, path)
  except BaseException:
    with contextlib.suppress(OSError):  # a full disk has no room for leftovers
      part.unlink()
    raise


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file, whole or not at all."""
  with atomic(path) as part:
    part.write_bytes(text.encode())


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
  """Writes an .npz file, whole or not at all."""
  # Given a name, NumPy would add .npz.
  with atomic(path) as part, part.open('wb') as file:
    np.savez(file, **arrays)
