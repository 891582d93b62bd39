"""Breaks the code in one place at a time and asks the tests whether they see.

  python -m tests.mutants --number=150 --seed=0 --part=0/1 --out=mutants.jsonl

Draws mutants of the training's mathematics: step, losses, queue, views,
optimisers and schedules. Each is run against its module's own test files, up to
their first failure and no longer than --seconds: one that ends otherwise than
well is killed. Prints a line for each and the survivors at last; --out keeps
what is done, so that the same command goes on. Not part of `make test`: it
takes about an hour of two cores.
"""

import argparse
import ast
import collections
import copy
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

_ROOT = pathlib.Path(__file__).parent.parent
# What is broken, and who should notice.
TESTS = {
  'pretrain_step': ('pretrain_step',),
  'objective': ('pretrain_step',),
  'losses': ('losses',),
  'negatives': ('negatives',),
  'label_queue': ('label_queue',),
  'pseudo_labels': ('pseudo_labels',),
  'views': ('views', 'view_draws'),
  'resampling': ('views', 'crops'),
  'passes': ('passes',),
  'optimizers': ('optimizers',),
  'schedules': ('schedules',),
}
_COMPARES = {
  ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
  ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_ARITHMETIC = {
  ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.Pow: ast.Mult,
  ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Add,
}  # fmt: skip
_NAMES = {
  'argmax': 'argmin', 'argmin': 'argmax', 'maximum': 'minimum',
  'minimum': 'maximum', 'max': 'min', 'min': 'max', 'sum': 'mean',
  'mean': 'sum', 'any': 'all', 'all': 'any', 'sqrt': 'square', 'exp': 'abs',
  'left': 'right', 'right': 'left', 'cos': 'sin', 'ones_like': 'zeros_like',
  'zeros': 'ones', 'large': 'small', 'online_params': 'target_params',
  'psum': 'pmax', 'online_state': 'target_state',
}  # fmt: skip


class Mutant(NamedTuple):
  """One change of one module."""

  module: str
  line: int
  column: int
  what: str  # the change in words
  source: str  # of the whole module, changed


def mutants(module: str) -> Iterator[Mutant]:
  """All single changes of a module's code; docstrings are not code."""
  text = (_ROOT / f'semppl_jax/{module}.py').read_text()
  tree = ast.parse(text)
  for number, node in enumerate(ast.walk(tree)):
    for change in range(len(_changes(node))):
      broken = copy.deepcopy(tree)
      place = next(n for i, n in enumerate(ast.walk(broken)) if i == number)
      before = ast.unparse(place)
      _changes(place)[change]()
      what = f'{before}  ->  {ast.unparse(place)}'
      place = node.lineno, node.col_offset
      yield Mutant(module, *place, what, ast.unparse(broken))


def _changes(node: ast.AST) -> list:
  """What can be done to a node, as functions that do it in place."""
  found = []

  def put(owner, name, value):
    found.append(lambda: setattr(owner, name, value))

  if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARES:
    put(node, 'ops', [_COMPARES[type(node.ops[0])](), *node.ops[1:]])
  if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
    put(node, 'op', _ARITHMETIC[type(node.op)]())
  if isinstance(node, ast.BoolOp):
    put(node, 'op', ast.Or() if isinstance(node.op, ast.And) else ast.And())
  if isinstance(node, ast.UnaryOp):
    kind = ast.UAdd if isinstance(node.op, ast.USub) else ast.USub
    put(node, 'op', kind())
  if isinstance(node, ast.Attribute) and node.attr in _NAMES:
    put(node, 'attr', _NAMES[node.attr])
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    put(node, 'value', node.value + 1)
  if isinstance(node, ast.Constant) and type(node.value) is bool:
    put(node, 'value', not node.value)
  if isinstance(node, ast.Constant) and node.value in ('left', 'right'):
    put(node, 'value', _NAMES[node.value])
  if isinstance(node, ast.Call):
    if isinstance(node.func, ast.Attribute) and node.func.attr == 'where':
      first, yes, no = node.args
      put(node, 'args', [first, no, yes])
    if isinstance(node.func, ast.Attribute) and len(node.args) == 1:
      name = node.func.attr
      if name in ('stop_gradient', 'unit', 'gather', 'mean', 'sort', 'argsort'):
        identity = ast.parse('(lambda x, **_: x)', mode='eval').body
        put(node, 'func', identity)
  if isinstance(node, ast.IfExp):
    put(node, 'test', ast.UnaryOp(ast.Not(), node.test))
  return found


def drawn(number: int, seed: int) -> list[Mutant]:
  """So many mutants of all modules; larger modules give more."""
  every = [mutant for module in TESTS for mutant in mutants(module)]
  # A changed annotation or an unchanged meaning of the text is no mutant.
  original = {
    module: ast.unparse(
      ast.parse((_ROOT / f'semppl_jax/{module}.py').read_text())
    )
    for module in TESTS
  }
  every = [m for m in every if m.source != original[m.module]]
  return random.Random(seed).sample(every, min(number, len(every)))


def outcome(mutant: Mutant, folder: pathlib.Path, seconds: float) -> str:
  """'killed', 'survived' or 'killed by time', of one mutant."""
  path = folder / f'semppl_jax/{mutant.module}.py'
  original = path.read_text()
  path.write_text(mutant.source)
  names = [f'tests/test_{name}.py' for name in TESTS[mutant.module]]
  try:
    done = subprocess.run(
      [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider',
       '-m', 'not long', *names],
      cwd=folder, capture_output=True, timeout=seconds, check=False,
    )  # fmt: skip
    return 'killed' if done.returncode else 'survived'
  except subprocess.TimeoutExpired:
    return 'killed by time'
  finally:
    path.write_text(original)


def main() -> None:
  """Runs this part's mutants and prints what became of all."""
  parser = argparse.ArgumentParser(prog='python -m tests.mutants')
  parser.add_argument('--number', type=int, default=150)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--seconds', type=float, default=600)
  parser.add_argument('--part', default='0/1', help='every n-th, e.g. 1/2')
  parser.add_argument('--out', default='mutants.jsonl')
  options = parser.parse_args()
  part, parts = map(int, options.part.split('/'))
  done = {}
  if os.path.exists(options.out):
    with open(options.out) as file:
      rows = [json.loads(line) for line in file]
    done = {tuple(row['mutant']): row['outcome'] for row in rows}
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place, 'copy')
    ignored = shutil.ignore_patterns('.git', '.venv', 'runs', '__pycache__')
    shutil.copytree(_ROOT, folder, ignore=ignored)
    # What no mutant touches is compiled once.
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(pathlib.Path(place, 'cache'))
    for i, mutant in enumerate(drawn(options.number, options.seed)):
      key = mutant[:4]
      if i % parts != part or key in done:
        continue
      done[key] = outcome(mutant, folder, options.seconds)
      print(f'{done[key]}: {mutant.module}:{mutant.line}: {mutant.what}')
      sys.stdout.flush()
      with open(options.out, 'a') as file:
        row = {'mutant': key, 'outcome': done[key]}
        file.write(json.dumps(row) + '\n')
  print(dict(collections.Counter(done.values())))


if __name__ == '__main__':
  main()
