"""Which network a tree from outside is, and whether all of it is there."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.errors import CheckpointError
from semppl_jax.models import encoders, networks
from semppl_jax.models import heads as heads_lib
from semppl_jax.models.encoders import Architecture
from semppl_jax.utils import diff
from semppl_jax.utils.text import nearest_name, printable
from semppl_jax.weights import haiku_trees


class Expected(NamedTuple):
  """Both trees of a network."""

  params: haiku_trees.Tree
  state: haiku_trees.Tree


def architecture(params: haiku_trees.Tree) -> Architecture:
  """Finds out which encoder a tree of parameters belongs to.

  By the name of its root and the shape of its first kernel; where selective
  kernels are there, by their number, whatever the names are.
  """
  kernels = [
    leaves['w'].shape
    for leaves in haiku_trees.encoder_part(params).values()
    if 'w' in leaves and leaves['w'].ndim == 4
  ]
  doubling = [s for s in kernels if s[:2] == (3, 3) and s[3] == 2 * s[2]]
  if len(doubling) > 3:  # plain networks of basic blocks have three
    return _with_selective_kernels(kernels, len(doubling))
  roots = {module.split('/')[0] for module in haiku_trees.encoder_part(params)}
  known = {row.module: name for name, row in encoders.ENCODERS.items()}
  if len(roots & set(known)) == 1:
    return _plain(known[(roots & set(known)).pop()], params)
  hint = nearest_name(min(roots), known) if roots else ''
  found = diff.first_few(sorted(map(printable, roots)))
  raise CheckpointError(
    f'no encoder that we know: modules of {found or "nothing"}{hint}.'
  )


def _plain(encoder: str, params: haiku_trees.Tree) -> Architecture:
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


ENCODER = 'encoder'  # what a classifier is on, unless a file says otherwise


def layers(params: haiku_trees.Tree) -> list[str]:
  """What a classifier can be on: 'encoder', 'projector/1', ..., h_0, h_1, ...

  The projector's last layer that is there is the projection, unless the layers
  after it were dropped. SimReg's projector is for a teacher's space only, and
  that of methods with prototypes leads to these.
  """
  if 'projector/linear_0' in params:
    count = _simclr_layers(params)
  elif _is_simreg(params) or 'prototypes' in params:
    count = 0
  elif _is_paws(params):
    count = 3 if _PAWS_LAST in params else 2
  else:
    own = ('projector/linear', 'projector/linear_1')
    count = sum(module in params for module in own)
  return [ENCODER, *(f'projector/{j + 1}' for j in range(count))]


def _is_simreg(params: haiku_trees.Tree) -> bool:
  return 'projector/linear_3' in params and 'projector/linear_0' not in params


# SimReg's projector has another after it.
_PAWS_LAST = 'projector/linear_2'


def _is_paws(params: haiku_trees.Tree) -> bool:
  """Whether the projector has two BatchNorms; what comes after may be gone."""
  others = ('projector/linear_0', 'projector/linear_3', 'prototypes')
  return 'projector/batch_norm_1' in params and not params.keys() & set(others)


def _simclr_layers(params: haiku_trees.Tree) -> int:
  return sum(name.startswith('projector/linear_') for name in params)


def _prototype_head(params: haiku_trees.Tree) -> heads_lib.PrototypeHead:
  """SwAV's, DINO's, MIRA's: by biases, norms and kind of the prototypes.

  No name tells the activation; DINO's is the one that goes with weight norm and
  biases.
  """
  names = [m for m in params if m.startswith('projector/linear')]
  prototypes = params['prototypes']
  weight_norm = 'w' not in prototypes
  number, size = _matrix(prototypes.get('v' if weight_norm else 'w'))
  hidden_bias = 'b' in params.get('projector/linear', {})
  return heads_lib.PrototypeHead(
    layers=max(1, len(names)),
    hidden=_matrix(params.get('projector/linear', {}).get('w'))[-1] or 1,
    size=size or 1,
    num_prototypes=number or 1,
    batch_norm=any(m.startswith('projector/batch_norm') for m in params),
    activation='gelu' if weight_norm and hidden_bias else 'relu',
    hidden_bias=hidden_bias,
    weight_norm=weight_norm,
    scale_trained='g' in prototypes,
  )


def num_prototypes(params: haiku_trees.Tree) -> int:
  """K, of the prototypes; 0: there are none."""
  leaves = params.get('prototypes', {})
  return _matrix(leaves.get('w', leaves.get('v')))[0]


def _matrix(leaf: Any) -> tuple[int, ...]:
  """Its shape; what is odd is found later."""
  return np.shape(leaf) if np.ndim(leaf) == 2 else (0, 0)


def head_sizes(
  params: haiku_trees.Tree, classifier_on: str = ENCODER
) -> dict[str, Any]:
  """networks.build's arguments for the heads that a tree has.

  SimCLR's, SimReg's and PAWS's projectors show themselves by their names,
  others by the prototypes after them; else it is SemPPL's, and BYOL's.

  Args:
    params: the tree.
    classifier_on: one of its `layers`; what comes after it counts for nothing.

  Raises:
    CheckpointError: there is no such layer.
  """

  def shape(module):
    return _matrix(params.get(module, {}).get('w'))

  def size(module):
    return shape(module)[-1] or 1

  classes = {'num_classes': shape('classifier')[-1]}
  hidden, last = size('projector/linear'), size('projector/linear_1')
  sizes = {'projector_hidden': hidden, 'embedding_size': last}
  if 'projector/linear_0' in params:
    count = _simclr_layers(params)
    hidden, last = (size(f'projector/linear_{j}') for j in (0, count - 1))
    sizes = {'heads': heads_lib.SimCLRProjector(count, hidden, last)}
  elif 'prototypes' in params:
    sizes = {'heads': _prototype_head(params)}
  elif _is_simreg(params):
    last = size('projector/linear_3')
    sizes = {'heads': heads_lib.SimRegProjector(hidden, last)}
  elif _is_paws(params):
    last, between = size(_PAWS_LAST), size('predictor/linear')
    sizes = {'heads': heads_lib.PAWSHead(hidden, last, between)}
  if classifier_on == ENCODER:
    return sizes | classes
  if classifier_on not in layers(params):
    raise CheckpointError(
      f'says that its classifier is on {printable(classifier_on)!r}, but has '
      f'{", ".join(layers(params))}.'
    )
  # Sizes of layers that were dropped do not matter.
  projector = sizes.get('heads')
  if projector is None:
    # PAWS's first layer, too, if the layers after it were dropped.
    projector = heads_lib.ProjectorPredictor(hidden, last, 0)
  if 'projector/linear_0' in params:
    # The projection's BatchNorm alone has no offset.
    is_cut = 'offset' in params.get(f'projector/batch_norm_{count - 1}', {})
    projector = heads_lib.SimCLRProjector(count + is_cut, hidden, last)
  number = int(classifier_on.removeprefix('projector/'))
  heads = heads_lib.ProjectorLayer(projector, number)
  return {'heads': heads, 'classifier_on': 'hidden'} | classes


def expected(arch: Architecture, sizes: Mapping[str, Any]) -> Expected:
  """The whole network's trees, all heads included."""
  return _expected(arch, tuple(sorted(sizes.items())))


@functools.lru_cache(maxsize=8)
def _expected(arch: Architecture, sizes: tuple) -> Expected:
  nets = networks.build(**arch._asdict(), **dict(sizes))
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  return Expected(*jax.eval_shape(nets.init, jax.random.key(0), images))


def check_fits(
  params: haiku_trees.Tree, state: haiku_trees.Tree, wanted: Expected
) -> Expected:
  """Refuses other names or shapes than the wanted ones.

  A head may be missing, but as a whole and from both trees only.

  Returns:
    Both trees in the order of `wanted`.
  """
  heads = {haiku_trees.root(module) for module in params} & set(
    haiku_trees.HEADS
  )
  if 'predictor' in heads and 'projector' not in heads:
    raise CheckpointError('missing: projector, which the predictor follows.')
  return Expected(
    _check_tree(params, wanted.params, heads),
    _check_tree(state, wanted.state, heads),
  )


def _check_tree(
  tree: haiku_trees.Tree, wanted: haiku_trees.Tree, heads: set[str]
) -> haiku_trees.Tree:
  needed = {
    module: leaves
    for module, leaves in wanted.items()
    if haiku_trees.root(module) in heads
    or haiku_trees.root(module) not in haiku_trees.HEADS
  }
  _check_names('missing', needed, tree)
  _check_names('surplus', tree, needed)
  for module, leaves in needed.items():
    for name, leaf in leaves.items():
      found = tree[module][name].shape
      if found != leaf.shape:
        raise CheckpointError(
          f'{module}/{name} has shape {haiku_trees.shape_text(found)}; '
          f'expected {haiku_trees.shape_text(leaf.shape)}.'
        )
  return {
    module: {name: tree[module][name] for name in leaves}
    for module, leaves in needed.items()
  }


def _check_names(
  word: str, ours: haiku_trees.Tree, theirs: haiku_trees.Tree
) -> None:
  """Raises if anything of `ours` is not in `theirs`."""
  lacking = [module for module in ours if module not in theirs] + [
    f'{module}/{name}'
    for module in ours
    if module in theirs
    for name in ours[module]
    if name not in theirs[module]
  ]
  if lacking:
    names = diff.first_few([printable(name) for name in lacking])
    raise CheckpointError(f'{word}: {names}.')
