"""Features of many images, kept on disk part by part.

What was computed is read, so that a command that was stopped goes on, and only
a part is in memory at a time. A folder has the features that one checkpoint
gives of one set of images: key.json in it says which.
"""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm

from semppl_jax import model as model_lib
from semppl_jax.data import sources
from semppl_jax.errors import UserError
from semppl_jax.utils import files
from semppl_jax.workdir import metrics

PART = 1024  # images of a file: those of the last one are lost by a stop
_KEY = 'key.json'


class Part(NamedTuple):
  """Features of n images that follow each other."""

  rows: np.ndarray  # [n] int, of the source
  features: np.ndarray  # [n, d] float32, of a black image where there is none
  readable: np.ndarray  # [n] bool, whether the image could be decoded
  unreadable: dict[str, str]  # name -> reason, of those that could not
  is_new: bool  # computed now, not read


def begin(folder: pathlib.Path, key: dict[str, Any]) -> None:
  """Makes the folder, or finds in it what was begun with the same key.

  Args:
    folder: of the features.
    key: all that they depend on, as JSON has it.

  Raises:
    UserError: there are features of another key.
    OSError: the folder cannot be made.
  """
  if folder.is_file() or folder.is_dir() and _said(folder) not in (None, key):
    raise UserError(
      f'{folder} is of other images or of another checkpoint: delete it, or '
      'name another --out.'
    )
  folder.mkdir(parents=True, exist_ok=True)
  metrics.write_json(folder / _KEY, key)


def _said(folder: pathlib.Path) -> Any:
  return metrics.read_json(folder / _KEY)


def parts(
  model: model_lib.Model,
  source: sources.Source,
  folder: pathlib.Path,
  output: str = 'embedding',
  doing: str = 'features',
) -> Iterator[Part]:
  """All images in their order, with a bar; computes what is not there yet.

  Args:
    model: the network.
    source: N images.
    folder: see `begin`.
    output: 'embedding' or 'projection'.
    doing: what the bar says.
  """
  bar = tqdm.tqdm(
    total=len(source),
    desc=doing,
    unit='image',
    mininterval=0.5 if sys.stderr.isatty() else 30.0,  # as run_log's
  )
  with bar:
    for first in range(0, len(source), PART):
      rows = np.arange(first, min(first + PART, len(source)))
      path = folder / f'{first // PART:05}.npz'
      yield _read(path, rows) or _compute(model, source, rows, path, output)
      bar.update(len(rows))


def _read(path: pathlib.Path, rows: np.ndarray) -> Part | None:
  if not path.is_file():
    return None
  with np.load(path) as file:
    unreadable = json.loads(str(file.get('unreadable', '{}')))
    return Part(rows, file['features'], file['readable'], unreadable, False)


def _compute(
  model: model_lib.Model,
  source: sources.Source,
  rows: np.ndarray,
  path: pathlib.Path,
  output: str,
) -> Part:
  unreadable: dict[str, str] = {}
  features, readable = model.features(
    sources.Rows(source, rows), output, unreadable.__setitem__
  )
  files.write_arrays(
    path,
    features=features,
    readable=readable,
    unreadable=np.array(json.dumps(unreadable)),
  )
  return Part(rows, features, readable, unreadable, True)
