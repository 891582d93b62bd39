"""Breaks the code in one place at a time and asks the tests whether they see.

  python -m tests.mutants --number=150 --seed=0 --part=0/1 --out=mutants.jsonl

Draws mutants of the training's mathematics: step, losses, queue, views,
optimisers and schedules. Each is run against its module's own test files, up to
their first failure and no longer than --seconds. First the tests must pass on
the code as it is. Prints a line for each and the survivors at last; --out keeps
what is done, so that the same command goes on. Not part of `make test`: it
takes an hour or more of two cores.
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
  'train/step': ('train/test_step',),
  'train/passes': ('train/test_step', 'train/test_teacher'),
  'methods/semppl': ('train/test_step',),
  'methods/semppl_options': ('methods/test_semppl_options',),
  'methods/byol': ('losses/test_losses', 'methods/test_byol'),
  'methods/simclr': ('methods/test_simclr',),
  'methods/swav': ('methods/test_swav',),
  'methods/dino': ('methods/test_dino',),
  'methods/mean_shift': ('methods/test_mean_shift',),
  'methods/mira': ('methods/test_mira',),
  'methods/suave': ('methods/test_suave',),
  'methods/daino': ('methods/test_daino',),
  'methods/paws': ('methods/test_paws',),
  'methods/distill': ('methods/test_distill',),
  'methods/simreg': ('methods/test_simreg',),
  'models/heads/byol': ('models/test_heads', 'models/test_networks'),
  'models/heads/simclr': ('models/test_heads', 'models/test_networks'),
  'models/heads/simreg': ('models/test_heads', 'models/test_networks'),
  'models/heads/prototypes': ('models/test_prototype_head',),
  'models/heads/paws': ('models/test_paws_head',),
  'losses/regression': ('losses/test_losses', 'methods/test_mean_shift'),
  'train/microbatch': ('train/test_microbatch', 'train/test_step'),
  'losses/contrastive': ('losses/test_losses', 'methods/test_simclr'),
  'losses/clustering': (
    'losses/test_clustering',
    'losses/test_sinkhorn',
    'methods/test_dino',
    'methods/test_mira',
    'methods/test_suave',
  ),
  'losses/similarity': ('methods/test_paws',),
  'losses/negatives': ('losses/test_negatives',),
  'memory/center': ('methods/test_dino', 'methods/test_daino'),
  'memory/label_queue': ('memory/test_label_queue',),
  'memory/pseudo_labels': ('memory/test_pseudo_labels',),
  'memory/queue_vote': ('train/test_step', 'methods/test_mean_shift'),
  'memory/queue_classifier': ('memory/test_queue_classifier',),
  'augment/views': ('augment/test_views', 'augment/test_view_draws'),
  'augment/resampling': ('augment/test_views', 'augment/test_crops'),
  'models/multicrop': ('models/test_multicrop',),
  'train/optimizers': ('train/test_optimizers',),
  'train/schedules': ('train/test_schedules',),
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
  hints = _annotations(tree)
  for number, node in enumerate(ast.walk(tree)):
    if id(node) in hints:
      continue
    for change in range(len(_changes(node))):
      broken = copy.deepcopy(tree)
      place = next(n for i, n in enumerate(ast.walk(broken)) if i == number)
      before = ast.unparse(place)
      _changes(place)[change]()
      what = f'{before}  ->  {ast.unparse(place)}'
      place = node.lineno, node.col_offset
      yield Mutant(module, *place, what, ast.unparse(broken))


def _annotations(tree: ast.AST) -> set[int]:
  """The nodes of annotations: what they say changes nothing."""
  found = []
  for node in ast.walk(tree):
    for name in ('annotation', 'returns'):
      hint = getattr(node, name, None)
      found += ast.walk(hint) if hint is not None else []
  return set(map(id, found))


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
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    put(node, 'op', ast.UAdd())
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
    put(node, 'op', ast.UAdd())
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
  return random.Random(seed).sample(every, min(number, len(every)))


def outcome(
  module: str, source: str | None, folder: pathlib.Path, seconds: float
) -> str:
  """What the tests say of a module's text: 'survived', or how it was killed.

  Args:
    module: its name.
    source: None: as it is.
    folder: a copy of the repository.
    seconds: no longer than this.
  """
  path = folder / f'semppl_jax/{module}.py'
  original = path.read_text()
  path.write_text(source or original)
  names = [f'tests/{name}.py' for name in TESTS[module]]
  try:
    done = subprocess.run(
      [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider',
       '-m', 'not long', *names],
      cwd=folder, capture_output=True, timeout=seconds, check=False,
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    return 'killed by time'
  finally:
    path.write_text(original)
  # 2: it cannot even be imported.
  return {0: 'survived', 1: 'killed', 2: 'killed at import'}.get(
    done.returncode, f'pytest ended with {done.returncode}'
  )


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
    os.environ['SEMPPL_TEST_CACHE'] = '1'  # see conftest.py
    for module in TESTS:
      if outcome(module, None, folder, options.seconds) != 'survived':
        sys.exit(f'The tests of {module} fail on the code as it is.')
    for i, mutant in enumerate(drawn(options.number, options.seed)):
      key = mutant[:4]
      if i % parts != part or key in done:
        continue
      done[key] = outcome(mutant.module, mutant.source, folder, options.seconds)
      print(f'{done[key]}: {mutant.module}:{mutant.line}: {mutant.what}')
      sys.stdout.flush()
      with open(options.out, 'a') as file:
        row = {'mutant': key, 'outcome': done[key]}
        file.write(json.dumps(row) + '\n')
  print(dict(collections.Counter(done.values())))
  for key, what in done.items():
    if what == 'survived':
      print(*key)


if __name__ == '__main__':
  main()
