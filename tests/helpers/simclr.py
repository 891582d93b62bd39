"""SimCLRv2's variables, as golden_data/sk_* has them, under Haiku names.

Those files hold outputs of SimCLRv2's public TensorFlow code. Weights are not
stored, except the small ones of the lone SK unit: `golden.fill` makes them.
"""

import functools
import gzip
import json

import numpy as np

from tests.helpers import golden

_LEAVES = {'kernel': 'w', 'gamma': 'scale', 'beta': 'offset'}
_AVERAGES = {'moving_mean': 'mean_ema', 'moving_variance': 'var_ema'}
_UNIT = {
  'conv2d_fixed_padding': 'conv',
  'batch_norm_relu': 'batchnorm',
  'conv2d_0': 'squeeze_conv',
  'batch_norm_relu_1': 'squeeze_batchnorm',
  'conv2d_1': 'mix_conv',
}
# Places in SimCLRv2's lists of layers, of plain and of SK networks.
_STEM = (
  {'0': 'initial_conv', '2': 'initial_batchnorm'},
  {
    '0': 'initial_conv_0', '1': 'initial_batchnorm_0',
    '2': 'initial_conv_1', '3': 'initial_batchnorm_1',
    '4': 'initial_conv_2', '6': 'initial_batchnorm_2',
  },
)  # fmt: skip
_SHORTCUT = {'conv2d': 'shortcut_conv', 'bn': 'shortcut_batchnorm'}
_MAIN = (
  {
    '0': 'conv_0', '1': 'batchnorm_0', '3': 'conv_1', '4': 'batchnorm_1',
    '6': 'conv_2', '7': 'batchnorm_2',
  },
  {
    '0': 'conv_0', '1': 'batchnorm_0', '3': 'sk_conv',
    '5': 'conv_2', '6': 'batchnorm_2',
  },
)  # fmt: skip


@functools.cache
def models():
  """{model: {num_trainable_params, trainable, non_trainable, ...}}."""
  with gzip.open(golden.path('sk_resnet_counts.json.gz')) as file:
    return json.load(file)['models']


def unit_module(path: str) -> str:
  """The module of an SK unit's variable: 'sk_conv/~/...'."""
  return 'sk_conv/~/' + _UNIT[path.split('/')[0]]


def module(path: str, root: str) -> str:
  """The module of a network's variable, below `root`."""
  sk = root.startswith('sk_')
  kind, *rest = path.split('/')
  if kind == 'initial_conv_relu_max_pool':
    return f'{root}/~/{_STEM[sk][rest[0]]}'
  group, _, block, layers, place, *rest = rest
  if layers == 'projection_layers':
    name = _SHORTCUT[rest[0]]
  else:
    name = _MAIN[sk][place]
  if name == 'sk_conv':
    name = unit_module('/'.join(rest))
  return f'{root}/~/block_group_{group}/~/block_{block}/~/{name}'


def trees(variables, module_of):
  """Haiku params and state of {path: array}."""
  params, state = {}, {}
  for path, x in variables.items():
    name, leaf = module_of(path), path.split('/')[-1]
    if leaf != 'kernel':
      x = x.reshape(1, 1, 1, -1)  # BatchNorm keeps the rank of its input
    if leaf in _LEAVES:
      params.setdefault(name, {})[_LEAVES[leaf]] = x
    else:
      average = {'average': x, 'hidden': x, 'counter': np.int32(1)}
      state[f'{name}/~/{_AVERAGES[leaf]}'] = average
  return params, state


def filled(model, root):
  """Haiku params and state of a model, by the fill rule."""
  rows = models()[model]['trainable'] + models()[model]['non_trainable']
  variables = {path: _value(model, path, shape) for path, _, shape in rows}
  return trees(variables, lambda path: module(path, root))


def _value(model, path, shape):
  fill = functools.partial(golden.fill, f'sk_resnet/{model}/{path}', shape)
  kind = path.split('/')[-1]
  if kind == 'kernel':
    return fill(1 / np.sqrt(np.prod(shape[:-1])))
  if kind == 'gamma':
    return np.float32(1) + fill(0.1)
  if kind == 'moving_variance':
    return np.float32(1) + np.float32(0.1) * np.abs(fill(1.0))
  return fill(0.1)


def images(model, side):
  """The golden input batch of a model: [2, side, side, 3] in (0, 1)."""
  x = golden.fill(f'input/{model}/{side}', (2, side, side, 3), 1)
  return np.float32(1) / (np.float32(1) + np.exp(-x))
