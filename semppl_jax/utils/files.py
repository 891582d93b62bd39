"""Small files that others see whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that others see whole or not at all."""
  _write(path, lambda file: file.write(text.encode()))


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes an .npz file that others see whole or not at all."""
  # Given a name, NumPy would add .npz.
  _write(path, lambda file: np.savez(file, **arrays))


def _write(path: pathlib.Path, fill: Callable[[BinaryIO], object]) -> None:
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
      fill(file)
      file.flush()
      os.fsync(file.fileno())  # else its name could reach the disk before it
    os.replace(part, path)
  except BaseException:
    with contextlib.suppress(OSError):  # a full disk has no room for leftovers
      part.unlink()
    raise
