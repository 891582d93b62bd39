"""What the command lines of all tools share: exit status, images, outputs."""

import os
import pathlib
import sys
from collections.abc import Callable

from semppl_jax import storage
from semppl_jax.data import image_files, labels, python_objects
from semppl_jax.errors import UserError


def status(work: Callable[[], object]) -> int:
  """Does a tool's work; what its user can mend is a line, not a trace.

  Returns:
    0; 2: something is wrong; 130: Ctrl-C.
  """
  try:
    work()
  except (UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('Stopped: the same command goes on.', file=sys.stderr)
    return 130
  return 0


def image_paths(given: str | os.PathLike) -> list[str]:
  """Files of --images: a folder's, one, or those that a text file names.

  Args:
    given: a path; what is no folder and has no image's ending is a list, a path
      a line.

  Raises:
    UserError: no path, no image, or a list that cannot be read.
  """
  path = os.path.expanduser(given)
  is_list = os.path.isfile(path) and not path.lower().endswith(
    image_files.SUFFIXES
  )
  return python_objects.files(
    labels.read_list(path, '--images') if is_list else path
  )


def output(given: str | os.PathLike, endings: tuple[str, ...]) -> pathlib.Path:
  """The file of --out; its folder is made.

  Args:
    given: a path.
    endings: that it may have, such as .csv.

  Raises:
    UserError: another ending, or a folder.
    OSError: no folder can be made there.
  """
  path = storage.path(given).expanduser()
  if path.is_dir():
    raise UserError(f'--out={path} is a folder; it must be a file.')
  if path.suffix not in endings:
    raise UserError(f'--out={path}: it must end in {" or ".join(endings)}.')
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def warn(line: str) -> None:
  """Says what may be wrong, without stopping."""
  print(f'Warning: {line}', file=sys.stderr)
