"""Names of the package in texts that no linter reads: they exist.

Notebooks, scripts inside of tests, and what tests and benchmarks use of modules
by attribute, also where only another library or a long run would come by.
"""

import ast
import importlib
import json
import pathlib
import textwrap

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_SOURCES = [
  *sorted(_ROOT.glob('benchmarks/**/*.py')),
  *sorted(_ROOT.glob('experiments/*.py')),
  *sorted(set(_ROOT.glob('tests/**/*.py')) - {pathlib.Path(__file__)}),
  *sorted(_ROOT.glob('notebooks/*.ipynb')),
]


def _code(path):
  if path.suffix == '.py':
    return path.read_text()
  cells = json.loads(path.read_text())['cells']
  lines = [
    line
    for cell in cells
    if cell['cell_type'] == 'code'
    for line in ''.join(cell['source']).splitlines()
  ]
  return '\n'.join(line for line in lines if line.strip()[:1] not in '%!')


def _parse(text):
  try:
    return ast.parse(textwrap.dedent(text))
  except (SyntaxError, ValueError):
    return ast.Module([], [])


def lacking(source):
  """Names of semppl_jax that a text uses and that are not there."""
  tree, modules, found = _parse(source), {}, []
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and not node.level:
      if (node.module or '').split('.')[0] != 'semppl_jax':
        continue
      for alias in node.names:
        value = _resolve(node.module, alias.name)
        if value is None:
          found.append(f'{node.module}.{alias.name}')
        modules[alias.asname or alias.name] = value
    elif isinstance(node, ast.Constant) and 'import ' in str(node.value):
      found += lacking(str(node.value))
  # A name that stands for something else, too, is left alone.
  others = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
  others |= {
    n.id
    for n in ast.walk(tree)
    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
  }
  others |= {
    alias.asname or alias.name
    for n in ast.walk(tree)
    if isinstance(n, ast.ImportFrom)
    and (n.module or '').split('.')[0] != 'semppl_jax'
    for alias in n.names
  }
  modules = {
    name: module
    for name, module in modules.items()
    if hasattr(module, '__file__') and name not in others
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      module = modules.get(node.value.id)
      if not _has(module, node.attr):
        found.append(f'{node.value.id}.{node.attr}')
  return found


def _has(module, name):
  if module is None or hasattr(module, name):
    return True
  return _resolve(module.__name__, name) is not None


def _resolve(module, name):
  try:
    return importlib.import_module(f'{module}.{name}')
  except ImportError:
    pass
  try:
    return getattr(importlib.import_module(module), name, None)
  except ImportError:
    return None


@pytest.mark.parametrize('path', _SOURCES, ids=lambda p: p.stem)
def test_names_exist(path):
  assert not lacking(_code(path))


def test_names_that_are_gone_are_found():
  gone = 'from semppl_jax.train import nowhere\n'
  assert lacking(gone) == ['semppl_jax.train.nowhere']
  gone = 'from semppl_jax.train import step as s\ns.train_step\ns.look'
  assert lacking(gone) == ['s.look']
  inside = 'code = """\nfrom semppl_jax import nothing\n"""'
  assert lacking(inside) == ['semppl_jax.nothing']
