"""DeepMind's released checkpoints: what they are and where they lie.

Nothing is downloaded here: a file that is missing is named with its address.
"""

import difflib
import json
import os
import pathlib
from typing import Any

from semppl_jax import storage
from semppl_jax.errors import CheckpointError, UserError

FOLDER_VARIABLE = 'SEMPPL_CHECKPOINTS'
# Of an installed package, and of a clone.
_HERE = pathlib.Path(__file__).parent.parent
_SHIPPED = (_HERE / 'checkpoints', _HERE.parent / 'checkpoints')
_SUFFIXES = ('', '.pkl', '.safetensors')


def manifest() -> list[dict[str, Any]]:
  """A row for each released file.

  Keys: file, address, method (semppl, relicv2 or byol), encoder, width,
  selective_kernels, labels (the share of ImageNet's labels that pre-training
  saw) and encoder_parameters. Source: the releases' READMEs; parameters as
  counted in their and in SimCLRv2's networks. ReLICv2's files have no published
  names: these are ours.
  """
  for folder in _SHIPPED:
    path = folder / 'manifest.json'
    if path.is_file():
      return json.loads(path.read_text(encoding='utf-8'))
  raise FileNotFoundError('checkpoints/manifest.json is not installed.')


def folders() -> list[pathlib.Path]:
  """Where downloaded checkpoints are looked for, in this order."""
  own = os.environ.get(FOLDER_VARIABLE)
  shipped = [folder for folder in _SHIPPED if folder.is_dir()]
  return ([pathlib.Path(own).expanduser()] if own else []) + shipped


def offline() -> list[str]:
  """Names of the checkpoints in `folders`, which need no download."""
  found = {
    file.stem
    for folder in folders()
    if folder.is_dir()
    for file in folder.iterdir()
    if file.suffix in _SUFFIXES[1:]
  }
  return sorted(found)


def find(name: str | os.PathLike) -> pathlib.Path:
  """The file or folder that is meant.

  Args:
    name: a path; or the name of a file in one of `folders`, with or without
      its ending. 'pct' and '_pct' are the same.

  Raises:
    CheckpointError: there is none. For a released checkpoint the line gives
      the address to fetch it from.
  """
  try:
    path = storage.path(name).expanduser()
    if path.exists():
      return path
  except UserError:
    raise  # of a bucket
  except (OSError, ValueError, RuntimeError) as error:  # nobody's home, a NUL
    raise CheckpointError(f'There is no checkpoint {str(name)!r}.') from error
  if path.name == str(name):
    for folder in folders():
      for file in sorted(folder.glob('*')) if folder.is_dir() else ():
        if _plain(file.name) in {_plain(path.name + x) for x in _SUFFIXES}:
          return file
  raise CheckpointError(_not_there(path))


def _not_there(path: pathlib.Path) -> str:
  known = {_plain(row['file']).removesuffix('.pkl'): row for row in manifest()}
  name = _plain(path.name).removesuffix('.pkl')
  if name in known:
    row = known[name]
    return (
      f'{row["file"]} is not here: download {row["address"]} as '
      f'{folders()[0] / row["file"]} (${FOLDER_VARIABLE} may name another '
      'folder).'
    )
  here = offline()
  files = here + [row['file'] for row in known.values()]
  close = difflib.get_close_matches(path.name, files, n=3, cutoff=0.6)
  hint = f'; did you mean {" or ".join(close)}?' if close else '.'
  return (
    f'There is no checkpoint {str(path)!r}{hint} Here without a download: '
    f'{", ".join(here) or "none"}; released: see checkpoints/README.md.'
  )


def _plain(name: str) -> str:
  return name.replace('_pct', 'pct')
