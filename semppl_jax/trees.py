"""Haiku trees from outside: what network they are, and whether all is there.

A tree is {module: {name: array}}. Nothing here trusts one: every function walks
two levels only, and says in one line what is wrong.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax import config, differences, encoders, networks
from semppl_jax.encoders import Architecture
from semppl_jax.errors import CheckpointError

Tree = dict[str, dict[str, Any]]

HEADS = ('projector', 'predictor', 'classifier')
_MAX_MODULES, _MAX_LEAVES = 20_000, 16  # far above any network of ours


class Expected(NamedTuple):
  """Both trees of a network, ShapeDtypeStructs as leaves."""

  params: Tree
  state: Tree


def two_level(tree: Any, what: str) -> Tree:
  """Checks that a value from a file is {module: {name: array}}."""
  _check_dict(tree, what, _MAX_MODULES)
  for module, leaves in tree.items():
    _check_dict(leaves, f'{what}[{_short(module)!r}]', _MAX_LEAVES)
    for name, leaf in leaves.items():
      if not isinstance(leaf, (np.ndarray, np.generic)):
        raise CheckpointError(
          f'{what}[{_short(module)!r}][{_short(name)!r}] is a '
          f'{type(leaf).__name__}, not an array.'
        )
  return {
    module: {name: np.asarray(leaf) for name, leaf in leaves.items()}
    for module, leaves in tree.items()
  }


def whole_number(value: Any, what: str) -> int:
  """An int >= 0, which may have been saved as an array."""
  if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
    value = value.reshape(-1)[0].item()
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
  """Refuses what is not float32 (counters: int32), and NaN and infinity."""
  for module, leaves in tree.items():
    for name, leaf in leaves.items():
      wanted = 'int32' if name == 'counter' else 'float32'
      if leaf.dtype != wanted:
        raise CheckpointError(
          f'{_short(f"{module}/{name}")} has dtype {leaf.dtype}; expected '
          f'{wanted}.'
        )
      if not np.isfinite(leaf).all():
        raise CheckpointError(
          f'{_short(f"{module}/{name}")} has NaN or infinite values.'
        )


def architecture(params: Tree) -> Architecture:
  """Finds out which encoder a tree of parameters belongs to.

  By the name of its root and the shape of its first kernel; where selective
  kernels are there, by their number, whatever the names are.
  """
  kernels = [
    leaves['w'].shape
    for leaves in encoder_part(params).values()
    if 'w' in leaves and leaves['w'].ndim == 4
  ]
  doubling = [s for s in kernels if s[:2] == (3, 3) and s[3] == 2 * s[2]]
  if len(doubling) > 3:  # plain networks of basic blocks have three
    return _with_selective_kernels(kernels, len(doubling))
  roots = {module.split('/')[0] for module in encoder_part(params)}
  known = {row.module: name for name, row in encoders.ENCODERS.items()}
  if len(roots) != 1 or not roots <= set(known):
    hint = config.nearest_name(min(roots), known) if roots else ''
    found = differences.first_few(sorted(map(_short, roots)))
    raise CheckpointError(
      f'no encoder that we know: modules of {found or "nothing"}{hint}.'
    )
  return _plain(known[roots.pop()], params)


def _plain(encoder: str, params: Tree) -> Architecture:
  spec = encoders.ENCODERS[encoder]
  module = f'{spec.module}/~/initial_conv'
  kernel = params.get(module, {}).get('w')
  if kernel is None or kernel.ndim != 4:
    raise CheckpointError(f'{module}/w is missing.')
  return Architecture(
    encoder,
    width=max(1, kernel.shape[3] // spec.stem_channels),
    stem='small' if kernel.shape[0] == 3 else 'imagenet',
  )


def _with_selective_kernels(
  kernels: list[tuple[int, ...]], doubling: int
) -> Architecture:
  """SK networks have a doubling 3x3 kernel in each block, and in the stem."""
  blocks = {
    sum(row.blocks): (name, row)
    for name, row in encoders.ENCODERS.items()
    if row.bottleneck
  }
  # ResNet-D's stem doubles its channels once.
  for stem, number in (('imagenet', doubling - 1), ('small', doubling)):
    if number in blocks:
      name, row = blocks[number]
      width = max(s[3] for s in kernels) // row.channels[-1]
      return Architecture(name, max(1, width), stem, selective_kernels=True)
  counts = ', '.join(str(n + 1) for n in sorted(blocks))
  raise CheckpointError(
    f'no encoder that we know: {doubling} 3x3 kernels double their channels; '
    f'networks with selective kernels have {counts} of them.'
  )


def head_sizes(params: Tree) -> dict[str, int]:
  """networks.build's arguments for the heads that a tree has."""
  shape = lambda module: getattr(
    params.get(module, {}).get('w'), 'shape', (0, 0)
  )
  sizes = {
    'projector_hidden': shape('projector/linear')[-1],
    'embedding_size': shape('projector/linear_1')[-1],
  }
  sizes = {name: size or 1 for name, size in sizes.items()}
  return sizes | {'num_classes': shape('classifier')[-1]}


def expected(arch: Architecture, sizes: Mapping[str, int]) -> Expected:
  """The whole network's trees, all heads included."""
  return _expected(arch, tuple(sorted(sizes.items())))


@functools.lru_cache(maxsize=8)
def _expected(arch: Architecture, sizes: tuple) -> Expected:
  nets = networks.build(**arch._asdict(), **dict(sizes))
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  return Expected(*jax.eval_shape(nets.init, jax.random.key(0), images))


def check_fits(tree: Tree, wanted: Tree) -> Tree:
  """Refuses other names or shapes than the wanted ones.

  A head may be missing, but as a whole only.

  Returns:
    The tree in the order of `wanted`.
  """
  heads = {module.split('/')[0] for module in tree} & set(HEADS)
  needed = {
    module: leaves
    for module, leaves in wanted.items()
    if _root(module) not in HEADS or _root(module) in heads
  }
  for words, ours, theirs in (
    ('missing', needed, tree),
    ('surplus', tree, needed),
  ):
    lacking = [_short(m) for m in ours if m not in theirs] + [
      _short(f'{m}/{name}')
      for m in ours
      if m in theirs
      for name in ours[m]
      if name not in theirs[m]
    ]
    if lacking:
      raise CheckpointError(f'{words}: {differences.first_few(lacking)}.')
  for module, leaves in needed.items():
    for name, leaf in leaves.items():
      found = tree[module][name].shape
      if found != leaf.shape:
        raise CheckpointError(
          f'{module}/{name} has shape {_text(found)}; expected '
          f'{_text(leaf.shape)}.'
        )
  return {
    module: {name: tree[module][name] for name in leaves}
    for module, leaves in needed.items()
  }


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
  return {m: leaves for m, leaves in tree.items() if _root(m) not in HEADS}


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
      f'{_short(name)} has no device axis, but other arrays have one.'
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


def _root(module: str) -> str:
  return module.split('/')[0]


def _short(name: str) -> str:
  """A name from a file, fit for a line of text."""
  name = name if len(name) <= 200 else name[:200] + '...'
  return ''.join(c if c.isprintable() else '?' for c in name)


def _text(shape: tuple[int, ...]) -> str:
  return '(' + ', '.join(map(str, shape)) + ')'
