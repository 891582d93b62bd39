"""Weights for PyTorch: our trees by torchvision's and timm's names, and back.

Of the encoder, a classifier and a projector, where they are there. What
computes with them is `pytorch_resnet.py`, which needs torch; this file does
not.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.models import encoders
from semppl_jax.models.heads import no_heads
from semppl_jax.utils import diff, files
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import haiku_trees
from semppl_jax.weights.load import Checkpoint

NETWORK = pathlib.Path(__file__).with_name('pytorch_resnet.py')
WEIGHTS, SETTINGS = 'weights.safetensors', 'settings.json'

# Steps after which BatchNorm's averages do not remember how they began
_MANY = 10_000

StateDict = dict[str, np.ndarray]
# [kind, inputs, outputs, with a bias]; see pytorch_resnet.ResNet
Layer = tuple[str, int, int, bool]


def state_dict(found: Checkpoint) -> StateDict:
  """The network's tensors by PyTorch's names.

  Convolutions [out, in, k, k], linear layers [out, in], BatchNorm's weight,
  bias, running_mean, running_var, num_batches_tracked (int64, 0).

  Args:
    found: of any kind.

  Raises:
    CheckpointError: an encoder that is not there as a whole.
  """
  tree = _Tree(found)
  for module in sorted(found.params):
    if haiku_trees.root(module) not in haiku_trees.HEADS:
      tree.add(module, _encoder_name(module, found.architecture))
  if found.classifier == 'linear' and _on_encoder(found):
    tree.add('classifier', 'fc')
  for place, (kind, module) in enumerate(_projector(found)):
    if kind in ('linear', 'batch_norm'):
      tree.add(module, f'projector.{place}')
  return tree.arrays


def network_settings(found: Checkpoint) -> dict[str, Any]:
  """Arguments of pytorch_resnet.ResNet for a checkpoint."""
  spec = encoders.ENCODERS[found.architecture.encoder]
  width = found.architecture.width
  linear = found.classifier == 'linear' and _on_encoder(found)
  return {
    'blocks': spec.blocks,
    'channels': [width * size for size in spec.channels],
    'strides': spec.strides[: len(spec.blocks)],
    'stem_channels': width * spec.stem_channels,
    'stem': found.architecture.stem,
    'bottleneck': spec.bottleneck,
    'selective_kernels': found.architecture.selective_kernels,
    'padding': found.architecture.padding,
    'eps': found.bn_eps,
    'num_classes': found.num_classes if linear else 0,
    'projector': [_shape(found, *layer) for layer in _projector(found)],
  }


def export(
  found: Checkpoint, folder: pathlib.Path, seen: tuple[int, float]
) -> None:
  """Writes weights, settings and the network's code into a new folder.

  Args:
    found: a checkpoint.
    folder: made, if it is not there.
    seen: side of the square that the network sees, in pixels, and that side /
      the shorter side of the image before resizing.

  Raises:
    UserError: it is a file, or has something of that name in it already.
  """
  if folder.exists() and not folder.is_dir():
    raise UserError(f'{folder} is a file: name a new folder.')
  arrays, network = state_dict(found), network_settings(found)
  folder.mkdir(parents=True, exist_ok=True)
  for name in (WEIGHTS, SETTINGS, 'resnet.py'):
    if (folder / name).exists():
      raise UserError(f'{folder / name} is there already: name a new folder.')
  settings = {
    'checkpoint': str(found),
    'network': network,
    'class_names': found.class_names,
    'image_size': seen[0],
    'center': seen[1],
    'resize': 'bicubic',
  }
  with files.atomic(folder / WEIGHTS) as part:
    safetensors.save_file(arrays, part, {'format': 'pt'})
  files.write_text(folder / SETTINGS, json.dumps(settings, indent=2) + '\n')
  files.write_text(folder / 'resnet.py', NETWORK.read_text())


def from_torchvision(
  arrays: Mapping[str, Any],
  encoder: str = 'resnet50',
  *,
  padding: str = 'symmetric',
) -> Checkpoint:
  """The way back: a state dict of torchvision's ResNet as a checkpoint of ours.

  What no weight shows stays ours, see docs/pytorch.md: max-pool pads an even
  image at its end only, so that the numbers are not torchvision's.

  Args:
    arrays: tensors by torchvision's names, as NumPy arrays or what np.asarray
      makes one of; those of a projector are left out.
    encoder: resnet50, resnet101 or resnet152, of width 1.
    padding: of convolutions with a stride: 'symmetric', torchvision's, or
      'same', that of most checkpoints whose `state_dict` this may be.

  Raises:
    CheckpointError: tensors that are missing, too many or of other shapes.
  """
  architecture = encoders.Architecture(encoder, padding=padding)
  classes = len(arrays['fc.bias']) if 'fc.bias' in arrays else 0
  wanted = architecture_lib.expected(
    architecture, {'heads': no_heads, 'num_classes': classes}
  )
  names = {
    module: 'fc'
    if module == 'classifier'
    else _encoder_name(module, architecture)
    for module in wanted.params
  }
  params = {
    module: {
      leaf: _read(arrays, names[module], leaf, like)
      for leaf, like in leaves.items()
    }
    for module, leaves in wanted.params.items()
  }
  state = {}
  for module, leaves in wanted.state.items():
    norm, _, kind = module.rpartition('/~/')
    leaf = f'running_{kind.removesuffix("_ema")}'
    average = _read(arrays, names[norm], leaf, leaves['average'])
    state[module] = {
      'counter': np.int32(_MANY),
      'hidden': average,
      'average': average,
    }
  of_ours = tuple(f'{name}.' for name in (*names.values(), 'projector'))
  surplus = sorted(name for name in arrays if not name.startswith(of_ours))
  if surplus:
    raise CheckpointError(
      f'surplus for a {architecture}: {diff.first_few(surplus)}.'
    )
  haiku_trees.check_arrays(params)
  haiku_trees.check_arrays(state)
  fitting = architecture_lib.check_fits(params, state, wanted)
  return Checkpoint(*fitting, architecture, None, 'torchvision')


def _read(
  arrays: Mapping[str, Any], name: str, leaf: str, like: Any
) -> np.ndarray:
  """One tensor with our axes; see `_Tree`."""
  theirs = {'scale': 'weight', 'offset': 'bias', 'w': 'weight', 'b': 'bias'}
  name = f'{name}.{theirs.get(leaf, leaf)}'
  if name not in arrays:
    raise CheckpointError(f'missing: {name}.')
  value = np.asarray(arrays[name], np.float32)
  if leaf == 'w':
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
  return value.reshape((1,) * (len(like.shape) - 1) + (-1,))


class _Tree:
  """Collects a module after the other."""

  def __init__(self, found: Checkpoint):
    self._params, self._state = found.params, found.state
    self.arrays: StateDict = {}

  def add(self, module: str, name: str) -> None:
    leaves = self._params[module]
    if 'scale' not in leaves:
      self._put(f'{name}.weight', _transposed(leaves['w']))
      if 'b' in leaves:
        self._put(f'{name}.bias', leaves['b'])
      return
    scale = leaves['scale'].ravel()
    self._put(f'{name}.weight', scale)
    self._put(f'{name}.bias', leaves.get('offset', np.zeros_like(scale)))
    for ours, theirs in (('mean', 'mean'), ('var', 'var')):
      average = self._state[f'{module}/~/{ours}_ema']['average']
      self._put(f'{name}.running_{theirs}', average)
    self.arrays[f'{name}.num_batches_tracked'] = np.zeros((), np.int64)

  def _put(self, name: str, value: np.ndarray) -> None:
    value = np.asarray(value, np.float32)
    one_axis = value.ndim in (2, 4) and value.size == value.shape[-1]
    if one_axis and not name.endswith('.weight'):
      value = value.ravel()
    self.arrays[name] = np.ascontiguousarray(value)


def _transposed(w: np.ndarray) -> np.ndarray:
  """[k, k, in, out] -> [out, in, k, k], [in, out] -> [out, in]."""
  return w.transpose(3, 2, 0, 1) if w.ndim == 4 else w.T


def _encoder_name(module: str, architecture: encoders.Architecture) -> str:
  """E.g. ROOT/~/block_group_0/~/block_1/~/conv_2 -> layer1.1.conv3."""
  _, *path, last = module.split('/~/')
  if not path:
    kind, _, number = last.removeprefix('initial_').partition('_')
    if not number:
      return {'conv': 'conv1', 'batchnorm': 'bn1'}[kind]
    if (kind, number) == ('batchnorm', '2'):
      return 'bn1'
    return f'conv1.{3 * int(number) + (kind == "batchnorm")}'
  group, block = (int(part.rpartition('_')[2]) for part in path[:2])
  inside = f'layer{group + 1}.{block}'
  if path[2:] == ['sk_conv']:
    part = {
      'conv': 'conv', 'batchnorm': 'bn', 'squeeze_conv': 'squeeze.0',
      'squeeze_batchnorm': 'squeeze.1', 'mix_conv': 'mix',
    }[last]  # fmt: skip
    return f'{inside}.conv2.{part}'
  if last.startswith('shortcut_'):
    place = int(last.endswith('batchnorm')) + architecture.selective_kernels
    return f'{inside}.downsample.{place}'
  kind, _, number = last.partition('_')
  kind = {'conv': 'conv', 'batchnorm': 'bn'}[kind]
  return f'{inside}.{kind}{int(number) + 1}'


def _on_encoder(found: Checkpoint) -> bool:
  return found.classifier_on == 'encoder'


def _projector(found: Checkpoint) -> list[tuple[str, str]]:
  """Its layers in order, (kind, our module); of all objectives' projectors."""
  params = found.params
  if 'projector/linear_0' in params:  # SimCLR's
    layers = []
    for j in range(sum(m.startswith('projector/linear_') for m in params)):
      layers += [('linear', f'projector/linear_{j}')]
      layers += [('batch_norm', f'projector/batch_norm_{j}'), ('relu', '')]
    return layers[:-1]
  names = [f'_{j}' if j else '' for j in range(len(params))]
  linear = [m for n in names if (m := f'projector/linear{n}') in params]
  norms = iter(m for n in names if (m := f'projector/batch_norm{n}') in params)
  # Nothing stands between SimReg's second Linear and its third.
  bare = linear[1:2] if len(linear) == 4 and 'prototypes' not in params else []
  activation = _activation(params)
  layers = []
  for module in linear[:-1]:
    layers.append(('linear', module))
    if module in bare:
      continue
    layers += [('batch_norm', norm) for norm in [next(norms, '')] if norm]
    layers.append((activation, ''))
  return layers + [('linear', module) for module in linear[-1:]]


def _activation(params: haiku_trees.Tree) -> str:
  """DINO's projector, with weight norm after it and biases, has GELU."""
  dino = 'v' in params.get('prototypes', {})
  return 'gelu' if dino and 'b' in params['projector/linear'] else 'relu'


def _shape(found: Checkpoint, kind: str, module: str) -> Layer:
  if not module:
    return kind, 0, 0, False
  leaves = found.params[module]
  if kind == 'batch_norm':
    size = leaves['scale'].size
    return kind, size, size, True
  if 'w' not in leaves:
    raise CheckpointError(f'{module} has no weights.')
  return kind, *leaves['w'].shape, 'b' in leaves
