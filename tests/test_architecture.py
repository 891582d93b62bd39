"""The layers of the package: an import may only lead to a lower one."""

import ast
import pathlib
import re

import pytest

import semppl_jax
from semppl_jax.methods import METHODS

_PACKAGE = pathlib.Path(semppl_jax.__file__).parent

# Packages of one layer do not import each other.
LAYERS = {
  0: ('errors', 'types', 'utils', 'storage', 'config'),
  1: ('distributed', 'losses', 'augment', 'data'),
  2: ('models', 'memory', 'checkpoint', 'workdir'),
  3: ('methods', 'weights'),
  4: ('train',),
  5: ('evaluation',),
}
# What people call: who imports whom of these is fixed, too.
ENTRY = (
  'pretraining', 'model', 'selection', 'tools', 'convert', 'saliency',
  'to_array_record', 'launch', 'preflight', 'report', 'compare', 'tasks',
  'main', 'check', 'cli', '__main__',
)  # fmt: skip
_LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
_LAYER_OF |= {name: 6 + i for i, name in enumerate(ENTRY)}
# Everyone may raise errors, name arrays, and use the little helpers.
_EVERYONES = ('errors', 'types', 'utils', 'storage')


def _home(path):
  return path.relative_to(_PACKAGE).parts[0].removesuffix('.py')


def _imported_modules(source):
  """Modules of semppl_jax that a module's text imports, wherever it does."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
      names.append(node.module)
    ours = [name for name in names if name.startswith('semppl_jax.')]
    found |= {name.removeprefix('semppl_jax.') for name in ours}
  return found


def _imported(source):
  """Packages, and modules beside them, that a module's text imports."""
  return {name.split('.')[0] for name in _imported_modules(source)}


def violations(home, source):
  """Imports of `source`, a module of `home`, that lead to no lower layer."""
  here = _LAYER_OF[home]
  return {
    other
    for other in _imported(source) - {home} - set(_EVERYONES)
    if _LAYER_OF[other] >= here
  }


def _is_facade(path):
  """The one way up: `config.default` joins the settings of an objective."""
  return path == _PACKAGE / 'config' / '__init__.py'


# All but the facade.
_FILES = [p for p in _PACKAGE.rglob('*.py') if p.parent != _PACKAGE]
_FILES += [p for p in _PACKAGE.glob('*.py') if p.name != '__init__.py']
_MODULES = [p for p in _FILES if p.name != '__init__.py']


@pytest.mark.parametrize(
  'path', _FILES, ids=lambda p: f'{p.parent.name}-{p.stem}'
)
def test_imports_lead_to_lower_layers(path):
  assert _home(path) in _LAYER_OF, f'{path.name} has no layer: give it one'
  found = violations(_home(path), path.read_text())
  assert found == ({'methods'} if _is_facade(path) else set())


def test_every_package_exists():
  assert {_home(p) for p in _MODULES} == set(_LAYER_OF)


def _module(path):
  """'train.loop'."""
  return '.'.join(path.relative_to(_PACKAGE).with_suffix('').parts)


def cycle(imports):
  """A module that imports itself, by way of others or not; None: there is none.

  Args:
    imports: {module: modules that it imports}.
  """
  left = {name: set(others) for name, others in imports.items()}
  while left:
    free = [name for name, others in left.items() if not others & left.keys()]
    if not free:
      return min(left)
    for name in free:
      del left[name]
  return None


def test_no_module_imports_itself_in_the_end():
  # A package's own file may name its modules, which may name each other.
  paths = {_module(p): p for p in _MODULES}
  imports = {
    name: _imported_modules(path.read_text()) & (paths.keys() - {name})
    for name, path in paths.items()
  }
  assert any('distributed.parallel' in found for found in imports.values())
  assert cycle(imports) is None


def test_cycles_are_found():
  assert cycle({'a': {'b'}, 'b': {'c'}, 'c': {'a'}, 'd': {'a'}}) == 'a'
  assert cycle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) is None


def test_upward_and_sideways_imports_are_found():
  assert violations('losses', 'from semppl_jax.train import loop') == {'train'}
  inside = 'def f():\n  from semppl_jax.augment import views'
  assert violations('losses', inside) == {'augment'}
  assert violations('augment', 'import semppl_jax.losses') == {'losses'}
  assert not violations('augment', 'from semppl_jax.errors import UserError')


# What an objective's file may import, besides `config` and `errors`.
_FOR_METHODS = {
  'config', 'errors', 'types', 'losses', 'memory', 'distributed', 'methods',
  'models', 'utils',
}  # fmt: skip
_NO_METHODS = ('__init__', 'base')


def _method_of(stem):
  """'semppl', of the file semppl.py and of its parts semppl_NAME.py."""
  return next(
    name for name in METHODS if stem == name or stem.startswith(f'{name}_')
  )


def test_parts_of_a_method_bear_its_name():
  assert _method_of('semppl_options') == _method_of('semppl') == 'semppl'
  assert _method_of('mean_shift') == 'mean_shift'


def test_an_objective_knows_neither_the_engine_nor_another():
  paths = [
    p for p in (_PACKAGE / 'methods').glob('*.py') if p.stem not in _NO_METHODS
  ]
  assert len(paths) > 2
  for path in paths:
    found = _imported_modules(path.read_text())
    assert {name.split('.')[0] for name in found} <= _FOR_METHODS, path.name
    others = {
      name.split('.')[1] for name in found if name.startswith('methods.')
    }
    whose = {_method_of(name) for name in others - {'base'}}
    assert whose <= {_method_of(path.stem)}, path.name
    inside = {name for name in found if name.startswith('models.')}
    allowed = ('models.heads', 'models.multicrop')
    assert all(name.startswith(allowed) for name in inside), path.name


def test_losses_have_no_collectives():
  for path in (_PACKAGE / 'losses').glob('*.py'):
    assert _imported(path.read_text()) <= {'errors', 'losses'}, path.name


def test_only_parallel_maps_over_devices():
  for path in _MODULES:
    if _module(path) != 'distributed.parallel':
      assert 'pmap(' not in path.read_text(), path.name


def test_only_main_reads_flags():
  for path in _MODULES:
    if _module(path) != 'main':
      pattern = r'import\b.*\bflags\b|config_flags|FLAGS'
      found = re.search(pattern, path.read_text())
      assert not found, path.name
