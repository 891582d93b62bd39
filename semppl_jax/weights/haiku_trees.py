"""Haiku trees from outside: {module: {name: array}}, checked before use.

Nothing here trusts a tree: every function walks two levels only, and says in
one line what is wrong.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from semppl_jax.errors import CheckpointError
from semppl_jax.utils.text import printable

Tree = dict[str, dict[str, Any]]

HEADS = ('projector', 'predictor', 'prototypes', 'classifier')
_MAX_MODULES, _MAX_LEAVES = 20_000, 16  # far above any network of ours


def two_level(tree: Any, what: str) -> Tree:
  """Checks that a value from a file is {module: {name: array}}."""
  _check_dict(tree, what, _MAX_MODULES)
  for module, leaves in tree.items():
    _check_dict(leaves, f'{what}[{printable(module)!r}]', _MAX_LEAVES)
    for name, leaf in leaves.items():
      if not isinstance(leaf, (np.ndarray, np.generic)):
        raise CheckpointError(
          f'{what}[{printable(module)!r}][{printable(name)!r}] is a '
          f'{type(leaf).__name__}, not an array.'
        )
  return {
    module: {name: np.asarray(leaf) for name, leaf in leaves.items()}
    for module, leaves in tree.items()
  }


def whole_number(value: Any, what: str) -> int:
  """An int >= 0, which may have been saved as an array, of equal values."""
  if isinstance(value, (np.ndarray, np.generic)) and value.size:
    flat = value.reshape(-1)
    value = flat[0].item() if np.all(flat == flat[0]) else None
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise CheckpointError(f'{what} is no whole number of at least 0.')
  return value


def without_device_axis(tree: Tree) -> Tree:
  """Takes the first device's part, if the leaves have a device axis.

  The tree shows whether they have: kernels then have five axes, counters one.
  """
  ranks = [
    (leaf.ndim, 1 if name == 'counter' else 5)
    for leaves in tree.values()
    for name, leaf in leaves.items()
    if name in ('w', 'counter')
  ]
  if not any(rank == with_axis for rank, with_axis in ranks):
    return tree
  return {
    module: {
      name: _first(leaf, f'{module}/{name}') for name, leaf in leaves.items()
    }
    for module, leaves in tree.items()
  }


def check_arrays(tree: Tree) -> None:
  """Refuses wrong dtypes and values.

  All is float32 (counters: int32) and finite, and a variance is not negative.
  """
  for module, leaves in tree.items():
    for name, leaf in leaves.items():
      wanted = 'int32' if name == 'counter' else 'float32'
      if leaf.dtype != wanted:
        raise CheckpointError(
          f'{printable(f"{module}/{name}")} has dtype {leaf.dtype}; expected '
          f'{wanted}.'
        )
      if not np.isfinite(leaf).all():
        raise CheckpointError(
          f'{printable(f"{module}/{name}")} has NaN or infinite values.'
        )
      if module.endswith('/var_ema') and name != 'counter' and np.any(leaf < 0):
        raise CheckpointError(
          f'{printable(f"{module}/{name}")} is a variance and below 0.'
        )


def rename(tree: Tree, mapping: Mapping[str, str]) -> Tree:
  """Gives modules, and those below them, their new names; heads keep theirs."""
  renamed = {}
  for module, leaves in tree.items():
    stem, _, statistic = module.partition('/~/mean_ema')
    if not statistic and module.endswith('/~/var_ema'):
      stem = module.removesuffix('/~/var_ema')
    renamed[mapping.get(stem, stem) + module[len(stem) :]] = leaves
  return renamed


def encoder_part(tree: Tree) -> Tree:
  """The modules that belong to no head."""
  return {m: leaves for m, leaves in tree.items() if root(m) not in HEADS}


def shapes(tree: Tree) -> dict[str, dict[str, tuple[int, ...]]]:
  """The tree with shapes for arrays."""
  return {
    module: {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    for module, leaves in tree.items()
  }


def size(tree: Tree) -> int:
  """How many numbers a tree holds."""
  return sum(math.prod(x.shape) for m in tree.values() for x in m.values())


def _first(leaf: np.ndarray, name: str) -> np.ndarray:
  if not leaf.ndim or not len(leaf):
    raise CheckpointError(
      f'{printable(name)} has no device axis, but other arrays have one.'
    )
  # A copy of its own, so that the other devices' parts can go.
  return np.asarray(leaf[0] if len(leaf) == 1 else leaf[0].copy())


def _check_dict(value: Any, what: str, most: int) -> None:
  if not isinstance(value, dict):
    raise CheckpointError(f'{what} is a {type(value).__name__}, not a dict.')
  if len(value) > most:
    raise CheckpointError(f'{what} has {len(value):,} entries, over {most:,}.')
  if not all(isinstance(key, str) for key in value):
    raise CheckpointError(f'{what} has a key that is no string.')


def root(module: str) -> str:
  """The first part of a module's name."""
  return module.split('/')[0]


def shape_text(shape: tuple[int, ...]) -> str:
  """(3, 3, 64, 64), as a line of text has it."""
  return '(' + ', '.join(map(str, shape)) + ')'
