"""Small files that others see whole or not at all."""

import os
import pathlib

import numpy as np


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that others see whole or not at all."""
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes an .npz file that others see whole or not at all."""
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  with part.open('wb') as file:  # given a name, NumPy would add .npz
    np.savez(file, **arrays)
  os.replace(part, path)
