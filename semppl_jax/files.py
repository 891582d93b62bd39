"""Small files that others see whole or not at all."""

import os
import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that others see whole or not at all."""
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)
