"""Encoders against the public codes' trees and numbers."""

import functools
import gzip
import json
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import errors
from semppl_jax.models import encoders, networks
from semppl_jax.models.convolution import Conv2D
from semppl_jax.models.encoders import Architecture
from tests.helpers import golden, simclr, tiny

ARCHS = (
  'TinyResNet', 'ResNet18', 'ResNet34', 'ResNet50_w1', 'ResNet50_w2',
  'ResNet50_w4', 'ResNet101_w1', 'ResNet152_w1', 'ResNet200_w1',
  'ResNet200_w2',
)  # fmt: skip


@functools.cache
def release_archs():
  with gzip.open(golden.path('release_trees.json.gz')) as file:
    return json.load(file)['archs']


def encoder_of(arch, **settings):
  name = {'TinyResNet': 'tiny'}.get(arch, arch.split('_')[0].lower())
  width = release_archs()[arch]['width_multiplier']
  return networks.build(encoder=name, width=width, **settings)


def golden_trees(arch):
  tree = release_archs()[arch]
  return golden.params(tree['params']), golden.state(tree['state'])


def shapes(tree):
  return {
    module: {name: list(x.shape) for name, x in leaves.items()}
    for module, leaves in tree.items()
  }


def jitted(apply):
  return jax.jit(apply, static_argnums=3)


# The deepest one has all their names; these take as long to trace.
_AS_DEEP = ('ResNet101_w1', 'ResNet152_w1', 'ResNet200_w1')


@pytest.mark.parametrize(
  'arch',
  [
    pytest.param(arch, marks=[pytest.mark.long] * (arch in _AS_DEEP))
    for arch in ARCHS
  ],
)
def test_trees_equal_the_release(arch):
  nets = encoder_of(arch, projector_hidden=4, embedding_size=2)
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  trees = jax.eval_shape(nets.init, jax.random.key(0), images)
  for tree, kind in zip(trees, ('params', 'state')):
    own = {
      module: leaves
      for module, leaves in shapes(tree).items()
      if module.split('/')[0] not in ('projector', 'predictor')
    }
    assert own == release_archs()[arch][kind]
    dtypes = {'counter': jnp.int32}
    for leaves in tree.values():
      for name, x in leaves.items():
        assert x.dtype == dtypes.get(name, jnp.float32)


@pytest.mark.parametrize(
  'arch',
  (
    'TinyResNet',
    'ResNet18',
    'ResNet50_w1',
    pytest.param('ResNet50_w2', marks=pytest.mark.long),
  ),
)
def test_eval_embedding_equals_the_release(arch):
  params, state = golden_trees(arch)
  encode = jitted(encoder_of(arch).encode)
  embedding, new_state = encode(params, state, golden.images(arch), False)
  expected = golden.load('release_forward.npz')[f'{arch}/eval_embedding']
  np.testing.assert_allclose(embedding, expected, atol=2e-5, rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, new_state, state)


def test_training_pass_equals_the_release():
  file = golden.load('release_forward.npz')
  read = lambda key: file[f'TinyResNet/train_{key}']
  params, state = golden_trees('TinyResNet')
  encode = jitted(encoder_of('TinyResNet', cross_replica=False).encode)
  embedding, state = encode(params, state, golden.images('TinyResNet'), True)
  np.testing.assert_allclose(embedding, read('embedding'), atol=1e-4)
  names = [str(name) for name in read('state_names')]
  assert names == sorted(state)
  counters = [state[name]['counter'] for name in names]
  np.testing.assert_array_equal(counters, read('state_counter'))
  for name in names:
    for leaf in ('average', 'hidden'):
      expected = read(f'state_full/{name}/{leaf}')
      np.testing.assert_allclose(state[name][leaf], expected, atol=1e-4)


@pytest.mark.parametrize(
  'stem, kernel, sides',
  (
    # Stem, then shortcut and two convolutions in each of four groups.
    ('small', 3, [16] * 4 + [8] * 3 + [4] * 3 + [2] * 3),
    ('imagenet', 7, [8] + [4] * 3 + [2] * 3 + [1] * 6),
  ),
)
def test_stem_and_strides_set_the_resolution(stem, kernel, sides):
  nets = networks.build(encoder='tiny', stem=stem)
  images = jnp.zeros((2, 16, 16, 3))
  trees = jax.eval_shape(nets.init, jax.random.key(0), images)
  assert trees[0]['tiny_res_net/~/initial_conv']['w'].shape == (
    kernel, kernel, 3, 64,
  )  # fmt: skip
  encode = functools.partial(nets.encode, is_training=False)
  traced = jax.jit(encode).trace(*trees, images)
  assert traced.out_info[0].shape == (2, 8)
  # A TPU is given each convolution as it is.
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  convolutions = r'stablehlo.convolution.* -> tensor<2x(\d+)x'
  assert [int(side) for side in re.findall(convolutions, text)] == sides


@pytest.mark.parametrize(
  'settings, message',
  (
    ({'encoder': 'resnet5'}, r"'resnet5'.*resnet18.*mean 'resnet50'\?"),
    ({'encoder': 'digit'}, r"'digit'.*mean 'digits'\?"),
    ({'encoder': 'tiny', 'stem': 'cifar'}, "'cifar'.*imagenet, small"),
    ({'encoder': 'tiny', 'stem': 'smal'}, r"'smal'.*mean 'small'\?"),
    ({'encoder': 'tiny', 'padding': 'valid'}, "'valid'.*same, symmetric"),
    (
      {'encoder': 'resnet34', 'selective_kernels': True},
      "'resnet34'.*resnet50",
    ),
    ({'encoder': 'tiny', 'width': 0}, 'width 0 '),
    ({'encoder': 'tiny', 'width': 1.5}, 'width 1.5 '),
  ),
)
def test_wrong_settings_are_named(settings, message):
  with pytest.raises(errors.UserError, match=message) as error:
    networks.build(**settings)
  assert '\n' not in str(error.value)


BN = {
  'create_scale': True,
  'create_offset': True,
  'decay_rate': 0.9,
  'eps': 1e-5,
}
SIMCLR = {  # its models as we call them
  'resnet50_1x': Architecture('resnet50', padding='symmetric'),
  'resnet50_1x_sk': Architecture('resnet50', 1, 'imagenet', True, 'symmetric'),
  'resnet50_2x_sk': Architecture('resnet50', 2, 'imagenet', True),
  'resnet200_2x_sk': Architecture('resnet200', 2, 'imagenet', True),
}


def watched(make, chosen):
  """jitted (params, state, x, is_training) -> ((output, seen), state).

  `make` gives a Haiku module; seen: {module: (input, output)}, in the order of
  the calls, of those modules whose class is in `chosen`.
  """

  def forward(x, is_training):
    seen = {}

    def watch(call, args, kwargs, context):
      output = call(*args, **kwargs)
      if isinstance(context.module, chosen) and (
        context.method_name == '__call__'
      ):
        seen[context.module.module_name] = args[0], output
      return output

    with hk.intercept_methods(watch):
      return make()(x, is_training), seen

  apply = hk.transform_with_state(forward).apply
  return jitted(lambda p, s, x, training: apply(p, s, None, x, training))


def sk_unit(stride, padding='symmetric'):
  parts = encoders.Parts(Architecture('resnet50', padding=padding), BN)
  make = lambda: encoders.SelectiveKernels(16, stride, parts)
  return watched(make, (Conv2D, hk.BatchNorm))


def sk_golden(stride):
  """What the file has of a stride, and the weights as Haiku trees."""
  prefix = f'stride{stride}/'
  file = {
    key.removeprefix(prefix): x
    for key, x in golden.load('sk_unit.npz').items()
    if key.startswith(prefix)
  }
  weights = {
    key.removeprefix('weights/'): x
    for key, x in file.items()
    if key.startswith('weights/')
  }
  return file, *simclr.trees(weights, simclr.unit_module)


@pytest.mark.parametrize('stride', (1, 2))
def test_sk_unit_equals_simclr(stride):
  file, params, state = sk_golden(stride)
  apply = sk_unit(stride)
  (output, seen), _ = apply(params, state, file['input'], False)
  close = functools.partial(np.testing.assert_allclose, atol=5e-6)
  _, branches = seen['sk_conv/~/batchnorm']
  close(np.maximum(branches, 0), file['after_conv_bn_relu'])
  close(seen['sk_conv/~/squeeze_conv'][0], file['global_features'])
  _, mix = seen['sk_conv/~/mix_conv']
  mix = jax.nn.softmax(np.stack(np.split(mix, 2, axis=-1)), axis=0)
  close(mix, file['mixing_softmax'])
  close(output, file['output'])


@pytest.mark.parametrize('stride', (1, 2))
def test_sk_unit_trains_as_simclr(stride):
  file, params, state = sk_golden(stride)
  fresh = jax.tree.map(np.zeros_like, state)
  # In float64, because the squeezed layer's BatchNorm sees two values only:
  # what Haiku's one-pass variance loses of them in float32 shows, up to 7e-4.
  with tiny.enable_x64(True):
    double = lambda tree: jax.tree.map(lambda x: x.astype(np.float64), tree)
    args = double(params), double(fresh), double(file['input'])
    (output, _), new_state = sk_unit(stride)(*args, True)
  np.testing.assert_allclose(output, file['output_training_true'], atol=2e-5)
  moved = {
    key.removeprefix('moving_after_one_training_call/'): x
    for key, x in file.items()
    if key.startswith('moving_after')
  }
  _, after = simclr.trees(moved, simclr.unit_module)
  for name, leaves in after.items():
    # TensorFlow moves a tenth of the way to the batch's statistics; Haiku's
    # first average is these statistics.
    batch = (leaves['average'] - 0.9 * state[name]['average']) / 0.1
    np.testing.assert_allclose(new_state[name]['average'], batch, atol=5e-6)


def test_padding_matters_to_strided_convolutions():
  for stride, differs in ((1, False), (2, True)):
    file, params, state = sk_golden(stride)
    (output, _), _ = sk_unit(stride, 'same')(
      params, state, file['input'], False
    )
    error = np.abs(output - file['output']).max()
    assert error > 0.1 if differs else error < 5e-6


@pytest.mark.parametrize(
  'model, side',
  [
    ('resnet50_1x', 64),
    ('resnet50_1x_sk', 75),
    pytest.param('resnet50_1x', 75, marks=pytest.mark.long),
    pytest.param('resnet50_1x_sk', 64, marks=pytest.mark.long),
  ],
)
def test_encoder_equals_simclr(model, side):
  architecture = SIMCLR[model]
  make = lambda: encoders.ResNet(architecture, BN)
  apply = watched(make, encoders.BlockGroup)
  root = 'sk_res_net50' if architecture.selective_kernels else 'res_net50'
  images = simclr.images(model, side)
  (embedding, seen), _ = apply(*simclr.filled(model, root), images, False)
  file = golden.load('sk_resnet_forward.npz')
  read = lambda key: file[f'{model}/{side}/{key}']
  groups = [seen[f'{root}/~/block_group_{i}'] for i in range(4)]
  stages = [groups[0][0]] + [output for _, output in groups]
  assert [list(x.shape) for x in stages] == read('stage_shapes').tolist()
  means = np.concatenate([x.mean(axis=(0, 1, 2)) for x in stages])
  tolerance = {'atol': 2e-5, 'rtol': 1e-5}
  np.testing.assert_allclose(means, read('stage_channel_means'), **tolerance)
  np.testing.assert_allclose(embedding, read('embedding'), **tolerance)


def init_shapes(architecture):
  """Params and state of an encoder, as shapes."""
  init = hk.transform_with_state(
    lambda x: encoders.ResNet(architecture, BN)(x, True)
  ).init
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  return jax.eval_shape(init, jax.random.key(0), images)


@pytest.mark.parametrize(
  'model',
  [
    pytest.param(model, marks=pytest.mark.long)
    if model == 'resnet200_2x_sk'
    else model
    for model in SIMCLR
  ],
)
def test_names_and_counts_are_simclrs(model):
  architecture = SIMCLR[model]
  params, state = init_shapes(architecture)
  root = next(iter(params)).split('/')[0]
  theirs = simclr.models()[model]
  count = sum(x.size for x in jax.tree.leaves(params))
  assert count == theirs['num_trainable_params']
  averages = sum(x['average'].size for x in state.values())
  assert averages == theirs['num_non_trainable']
  modules = {simclr.module(path, root) for path, _, _ in theirs['trainable']}
  assert modules == set(params)


def test_selective_kernels_with_the_small_stem_and_the_releases_padding():
  nets = networks.build(
    encoder='resnet50', stem='small', selective_kernels=True
  )
  images = jnp.zeros((2, 16, 16, 3))
  trees = jax.eval_shape(nets.init, jax.random.key(0), images)
  stem = 'sk_res_net50/~/initial_conv'
  assert trees[0][stem]['w'].shape == (3, 3, 3, 64)
  assert stem + '_0' not in trees[0]
  encode = functools.partial(nets.encode, is_training=False)
  embedding, _ = jax.eval_shape(encode, *trees, images)
  assert embedding.shape == (2, 2048)


def test_new_bottlenecks_pass_their_shortcut_on():
  parts = encoders.Parts(Architecture('resnet50', 1, 'small', True), BN)
  block = lambda: encoders.Block(16, 1, False, parts, 'block')
  init, apply = hk.transform_with_state(lambda x: block()(x, True))
  x = jnp.asarray(golden.fill('x', (2, 4, 4, 16), 1))
  output, _ = apply(*jax.jit(init)(jax.random.key(0), x), None, x)
  np.testing.assert_array_equal(output, np.maximum(x, 0))


@pytest.mark.parametrize(
  'architecture, words, size',
  (
    (Architecture('resnet50'), 'ResNet-50 1x', 2048),
    (Architecture('digits', 1, 'small'), 'digits 1x, small stem', 64),
    (
      Architecture('resnet200', 2, selective_kernels=True),
      'ResNet-200 2x with selective kernels',
      4096,
    ),
    (
      Architecture('resnet18', 4, 'imagenet', False, 'symmetric'),
      'ResNet-18 4x, symmetric padding',
      2048,
    ),
  ),
)
def test_architectures_in_words(architecture, words, size):
  encoders.check(architecture)
  assert str(architecture) == words
  assert encoders.output_size(architecture) == size
