"""Settings of runs, and what made the page."""

import contextlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from typing import Any

import ml_collections

import semppl_jax
from semppl_jax import config
from semppl_jax.config import defaults, eval_config
from semppl_jax.errors import UserError
from semppl_jax.report import markup
from semppl_jax.report.markup import Html, tag
from semppl_jax.report.run_files import RunFiles
from semppl_jax.utils import diff

_PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'optax', 'numpy', 'scikit-learn')
_ABSENT = '-'


def _standard(run: RunFiles) -> ml_collections.ConfigDict:
  """The defaults of a run; of a method that is unknown here, the engine's."""
  if run.is_evaluation:
    return eval_config.default()
  try:
    return config.default(run.config.get('method', 'semppl'))
  except UserError:
    return defaults.default()


def of_one(run: RunFiles) -> Html:
  """What differs from the defaults, and all of it on demand."""
  if not run.config:
    raise markup.Absent('There is no config.json: the settings are unknown.')
  own = dict(diff.flat(run.config))
  usual = dict(diff.flat(json.loads(_standard(run).to_json())))
  changed = [
    (_key(key), _text(value), _text(usual[key]) if key in usual else 'unknown')
    for key, value in own.items()
    if usual.get(key, _ABSENT) != value
  ]
  label = 'Settings that differ from the defaults'
  everything = f'All {len(own)} settings'
  rows = [(_key(key), _text(value)) for key, value in own.items()]
  return markup.join(
    *([markup.note(run.init)] if run.init else []),
    markup.table(
      ('Setting', 'This run', 'Default'), changed, label=label, kind='config'
    ),
    markup.details(
      everything,
      markup.table(('Setting', 'Value'), rows, label=everything, kind='config'),
    ),
  )


def of_several(runs: Sequence[RunFiles]) -> Html:
  """The settings that are not the same in all runs."""
  flat = [dict(diff.flat(run.config)) for run in runs]
  if not all(flat):
    without = ', '.join(run.name for run in runs if not run.config)
    raise markup.Absent(f'There is no config.json of {without}.')
  names = list(dict.fromkeys(key for one in flat for key in one))
  texts = {key: [_text(one.get(key, _ABSENT)) for one in flat] for key in names}
  rows = [
    (_key(k), *values) for k, values in texts.items() if len(set(values)) > 1
  ]
  if not rows:
    raise markup.Absent('All settings are the same.')
  head = ('Setting', *(run.name for run in runs))
  label = 'Settings that differ between the runs'
  return markup.table(head, rows, label=label, kind='config')


def environment(runs: Sequence[RunFiles]) -> Html:
  """Devices of the runs; versions here, for runs do not note theirs."""
  rows = [
    (f'Devices of {run.name}', run.results['devices'])
    for run in runs
    if 'devices' in run.results
  ]
  rows += [
    ('semppl_jax', semppl_jax.__version__),
    ('Python', platform.python_version()),
  ]
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      rows.append((name, importlib.metadata.version(name)))
  label = 'Environment'
  return markup.join(
    markup.table(('What', 'Value'), rows, label=label, kind='config'),
    markup.note(
      'Versions are those that made this page; a run does not note its own.'
    ),
  )


def _key(name: str) -> Html:
  """A dotted name that may break at its joints."""
  parts = re.findall(r'[^._]*[._]?', name)
  breaks = [part for p in parts if p for part in (p, tag('wbr'))]
  return markup.join(*breaks[:-1])


def _text(value: Any) -> str:
  if value is None or value == '':
    return 'none' if value is None else '(empty)'
  if isinstance(value, (list, tuple)):
    return ', '.join(map(_text, value))
  return str(value)
