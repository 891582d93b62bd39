"""Weights for PyTorch: our trees under torchvision's and timm's names.

Of the encoder, a classifier and a projector, where they are there. What
computes with them is `pytorch_resnet.py`, which needs torch; this file does
not.
"""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.models import encoders
from semppl_jax.utils import files
from semppl_jax.weights import haiku_trees
from semppl_jax.weights.load import Checkpoint

NETWORK = pathlib.Path(__file__).with_name('pytorch_resnet.py')
WEIGHTS, SETTINGS = 'weights.safetensors', 'settings.json'

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
    if (root := haiku_trees.root(module)) in haiku_trees.HEADS:
      continue
    name = _encoder_name(module.removeprefix(f'{root}/~/'), found.architecture)
    tree.add(module, name)
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
  """E.g. block_group_0/~/block_1/~/conv_2 -> layer1.1.conv3."""
  *path, last = module.split('/~/')
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
