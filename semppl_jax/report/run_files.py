"""What the files of a run say, without its network and its data."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from semppl_jax import pretraining, storage
from semppl_jax.config.upgrade import upgrade
from semppl_jax.errors import UserError
from semppl_jax.storage import parts
from semppl_jax.train import resume
from semppl_jax.workdir import metrics, stop_file
from semppl_jax.workdir.names import INIT

_CONFIG = 'config.json'


class RunFiles(NamedTuple):
  """A run's folder, read; what is not there is empty."""

  name: str
  folder: pathlib.Path
  config: dict[str, Any]  # nested
  results: dict[str, Any]
  rows: list[dict[str, Any]]  # of metrics.jsonl
  rollbacks: list[dict[str, Any]]
  unreadable: list[dict[str, Any]]
  changed: float  # when it last wrote a number, seconds since 1970
  lacking: list[str]  # what cannot be read, in words
  stop: stop_file.Stop | None = None  # the alarm that ended the run
  init: str = ''  # the checkpoint that it began with, and what it took of it

  @property
  def step(self) -> int | None:
    """The last one that is known of."""
    logged = self.rows[-1]['step'] if self.rows else None
    step = self.results.get('step', logged)
    return step if isinstance(step, int) else logged

  @property
  def is_evaluation(self) -> bool:
    """Whether it evaluated a checkpoint, rather than made one."""
    return 'checkpoint' in self.config


def read(folders: Sequence[str]) -> list[RunFiles]:
  """Reads the files of runs, and gives each a name of its own.

  Raises:
    UserError: a folder that is no run.
  """
  runs = [_read(storage.path(folder)) for folder in folders]
  names = [run.name for run in runs]
  return [
    run._replace(name=str(run.folder)) if names.count(run.name) > 1 else run
    for run in runs
  ]


def _read(folder: pathlib.Path) -> RunFiles:
  present = [
    path
    for name in (_CONFIG, 'metrics.jsonl', pretraining.RESULTS)
    if (path := folder / name).is_file()
  ]
  grown = folder / 'metrics.jsonl.parts'  # in a bucket
  if storage.is_remote(folder):
    present += list(grown.iterdir())[-1:]
  if not present:
    raise UserError(
      f'{folder} is no run: it has neither config.json nor metrics.jsonl nor '
      'results.json. Give the --workdir of one.'
    )
  lacking: list[str] = []
  return RunFiles(
    name=folder.resolve().name,
    folder=folder,
    config=upgrade(_mapping(folder / _CONFIG, lacking)),
    results=_mapping(folder / pretraining.RESULTS, lacking),
    rows=_rows(folder),
    rollbacks=_lines(folder / resume.ROLLBACKS),
    unreadable=_lines(folder / pretraining.UNREADABLE),
    changed=max(path.stat().st_mtime for path in present),
    lacking=lacking,
    stop=stop_file.read(folder),
    init=str(_mapping(folder / INIT, lacking).get('line', '')),
  )


def _mapping(path: pathlib.Path, lacking: list[str]) -> dict[str, Any]:
  try:
    found = metrics.read_json(path)
  except storage.StorageError:
    raise
  except UserError:
    found = ()
  if found is None or isinstance(found, Mapping):
    return dict(found or {})
  lacking.append(f'{path.name} cannot be read as JSON.')
  return {}


def _rows(folder: pathlib.Path) -> list[dict[str, Any]]:
  try:
    return metrics.read(str(folder))
  except FileNotFoundError:
    return []


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The JSON objects of a file's lines; one that was cut off is left out."""
  found = []
  for line in _text(path).splitlines():
    try:
      found.append(json.loads(line))
    except (ValueError, RecursionError):
      continue
  return [one for one in found if isinstance(one, dict)]


def _text(path: pathlib.Path | storage.RemotePath) -> str:
  if storage.is_remote(path):
    try:
      return parts.read(path)
    except FileNotFoundError:
      return ''
  return path.read_text('utf-8', errors='replace') if path.is_file() else ''
