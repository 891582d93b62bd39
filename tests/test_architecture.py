"""The floors of the house: an import may only lead downstairs."""

import ast
import pathlib
import re

import pytest

import semppl_jax

_PACKAGE = pathlib.Path(semppl_jax.__file__).parent

# Rooms on one floor do not import each other; data/ is one room.
FLOORS = {
  0: (
    'errors', 'structs', 'schedules', 'parallel', 'config', 'signals', 'files',
    'differences', 'resampling', 'hosts', 'optimised_python',
    'launch',
  ),
  1: (
    'views', 'crops', 'encoders', 'losses', 'negatives', 'label_queue',
    'pseudo_labels', 'optimizers', 'passes', 'data', 'checkpoint',
    'claims', 'pickles', 'released', 'name_matching', 'trees', 'metrics',
    'run_log', 'eval_config', 'probes', 'alike', 'profiling', 'memory',
    'watchdog', 'verdict',
  ),
  2: (
    'networks', 'resuming', 'weight_files', 'inference', 'tables', 'saliency',
    'to_array_record', 'plausibility', 'run_data', 'run_settings',
  ),
  3: ('train_state', 'objective', 'recognition', 'loop', 'recipe'),
  4: ('pretrain_step', 'classifier_step', 'weights'),
  5: ('runs', 'encoder_scores', 'eval_runs', 'plots'),
  6: (
    'classifier_fit', 'convert', 'preflight', 'model', 'baselines',
  ),
  7: ('grid_search', 'pretraining'),
  8: ('eval_tasks', 'robustness', 'transfer', 'report'),
  9: ('follow', 'compare'),
  10: ('tasks',),
  11: ('main',),
  12: ('check',),
  13: ('command',),
  14: ('__main__',),
}  # fmt: skip
_FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# Everyone may raise errors and name arrays.
_EVERYONES = ('errors', 'structs')


def _room(path):
  return path.relative_to(_PACKAGE).parts[0].removesuffix('.py')


def _imported_rooms(source):
  """Rooms of semppl_jax that a module's text imports, wherever it does."""
  rooms = set()
  for node in ast.walk(ast.parse(source)):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    parts = [name.split('.') for name in names]
    rooms |= {p[1] for p in parts if p[0] == 'semppl_jax' and len(p) > 1}
  return rooms


def violations(room, source):
  """Imports of `source`, a module of `room`, that do not lead downstairs."""
  here = _FLOOR_OF[room]
  return {
    other
    for other in _imported_rooms(source) - {room} - set(_EVERYONES)
    if _FLOOR_OF[other] >= here
  }


_MODULES = [p for p in _PACKAGE.rglob('*.py') if p.name != '__init__.py']


@pytest.mark.parametrize('path', _MODULES, ids=lambda p: p.stem)
def test_imports_lead_downstairs(path):
  assert _room(path) in _FLOOR_OF, f'{path.name} has no floor: give it one'
  assert not violations(_room(path), path.read_text())


def test_every_room_exists():
  assert {_room(p) for p in _MODULES} == set(_FLOOR_OF)


def test_upward_and_sideways_imports_are_found():
  assert violations('losses', 'from semppl_jax import train_state') == {
    'train_state'
  }
  assert violations('losses', 'def f():\n  from semppl_jax import views') == {
    'views'
  }
  assert violations('views', 'import semppl_jax.losses') == {'losses'}
  assert not violations('views', 'from semppl_jax.errors import UserError')


def test_only_parallel_maps_over_devices():
  for path in _MODULES:
    if _room(path) != 'parallel':
      assert 'pmap(' not in path.read_text(), path.name


def test_only_main_reads_flags():
  for path in _MODULES:
    if _room(path) != 'main':
      pattern = r'import\b.*\bflags\b|config_flags|FLAGS'
      found = re.search(pattern, path.read_text())
      assert not found, path.name
