"""The encoder: ResNet v1, plain or with selective kernels (SK), in Haiku.

Plain encoders have the module names, shapes and padding of DeepMind's SemPPL
release. SK encoders are SimCLRv2's (Chen et al., 2020; its public TensorFlow
code): each bottleneck's 3x3 convolution becomes an SK unit, and ResNet-D's stem
and average-pooled shortcuts come with it. No public Haiku code has them, so
that their module names are ours:

  sk_res_net50/~/initial_conv_{0,1,2}, initial_batchnorm_{0,1,2}
  sk_res_net50/~/block_group_0/~/block_0/~/conv_0, batchnorm_0, conv_2, ...
  .../block_0/~/sk_conv/~/{conv,batchnorm,squeeze_conv,squeeze_batchnorm,
    mix_conv}, in place of conv_1 and batchnorm_1
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from semppl_jax import config, errors
from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.convolution import Conv2D, max_pool

STEMS = ('imagenet', 'small')
PADDINGS = ('same', 'symmetric')
SK_RATIO = 0.0625  # of the unit's channels, in the layer that mixes branches
SK_MIN_SIZE = 32  # of that layer


class Encoder(NamedTuple):
  """A row of the depth table; `width` multiplies all of its channels."""

  module: str  # the name of the Haiku module, as in the release
  blocks: tuple[int, ...]  # per group
  channels: tuple[int, ...]  # per group, at the output of its blocks
  bottleneck: bool  # 1x1, 3x3, 1x1 at a quarter of the channels; else 3x3, 3x3
  strides: tuple[int, ...] = (1, 2, 2, 2)
  stem_channels: int = 64


_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)

ENCODERS = {
  # Ours, for 8 to 32 px images (with stem='small').
  'digits': Encoder('digits_res_net', (1, 1), (32, 64), False, (2, 1), 32),
  # The release's own tiny network, for tests.
  'tiny': Encoder('tiny_res_net', (1, 1, 1, 1), (8, 8, 8, 8), False),
  'resnet18': Encoder('res_net18', (2, 2, 2, 2), _BASIC, False),
  'resnet34': Encoder('res_net34', (3, 4, 6, 3), _BASIC, False),
  'resnet50': Encoder('res_net50', (3, 4, 6, 3), _BOTTLENECK, True),
  'resnet101': Encoder('res_net101', (3, 4, 23, 3), _BOTTLENECK, True),
  'resnet152': Encoder('res_net152', (3, 8, 36, 3), _BOTTLENECK, True),
  'resnet200': Encoder('res_net200', (3, 24, 36, 3), _BOTTLENECK, True),
}


class Architecture(NamedTuple):
  """All that decides an encoder's parameters and what it computes with them."""

  encoder: str  # a key of ENCODERS
  width: int = 1
  stem: str = 'imagenet'  # one of STEMS
  selective_kernels: bool = False  # bottleneck encoders only
  padding: str = 'same'  # one of PADDINGS, of convolutions with a stride

  def __str__(self) -> str:
    """E.g. 'ResNet-200 2x with selective kernels, symmetric padding'."""
    name = self.encoder.replace('resnet', 'ResNet-')
    kernels = ' with selective kernels' if self.selective_kernels else ''
    stem = '' if self.stem == 'imagenet' else f', {self.stem} stem'
    padding = '' if self.padding == 'same' else f', {self.padding} padding'
    return f'{name} {self.width}x{kernels}{stem}{padding}'


def check(architecture: Architecture) -> None:
  """Raises a UserError, one line, for what cannot be built."""
  encoder, width, stem, selective_kernels, padding = architecture
  _check_known('encoder', encoder, ENCODERS)
  _check_known('stem', stem, STEMS)
  _check_known('padding', padding, PADDINGS)
  if width < 1 or width != int(width):
    raise errors.UserError(f'encoder width {width} is not a whole number >= 1.')
  if selective_kernels and not ENCODERS[encoder].bottleneck:
    able = ', '.join(name for name, row in ENCODERS.items() if row.bottleneck)
    raise errors.UserError(
      f'encoder {encoder!r} has no bottleneck blocks, and selective_kernels '
      f'need them; encoders that have them: {able}'
    )


def output_size(architecture: Architecture) -> int:
  """e, the size of the embedding."""
  return ENCODERS[architecture.encoder].channels[-1] * architecture.width


class ResNet(hk.Module):
  """ResNet v1 without a head: normalised images -> spatial mean [n, e].

  Unlike Haiku's presets, the first block of every group has a projection, also
  in group 0 of the basic-block networks: so has the release.
  """

  def __init__(
    self,
    architecture: Architecture,
    bn: Mapping,
    remat: bool = False,
    zero_init_residual: bool = True,
  ):
    spec = ENCODERS[architecture.encoder]
    prefix = 'sk_' if architecture.selective_kernels else ''
    super().__init__(name=prefix + spec.module)
    self._pool = architecture.stem == 'imagenet'
    parts = Parts(architecture, bn, remat, zero_init_residual)
    self._stem = _stem(spec.stem_channels * architecture.width, parts)
    rows = zip(spec.blocks, spec.channels, spec.strides, strict=True)
    self._groups = [
      BlockGroup(
        blocks, channels * architecture.width, stride, parts, f'block_group_{i}'
      )
      for i, (blocks, channels, stride) in enumerate(rows)
    ]

  def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, H, W, 3] -> [.., n, e], e = output_size(architecture)."""
    x = images
    for layer in self._stem:
      x = layer(x, is_training)
    if self._pool:
      x = max_pool(x)
    for group in self._groups:
      x = group(x, is_training)
    # [.., n, h, w, e] -> [.., n, e]
    at_least = jnp.promote_types(x.dtype, 'float32')
    return jnp.mean(x, axis=(-3, -2), dtype=at_least)


_Layer = Callable[[jax.Array, bool], jax.Array]


class Parts(NamedTuple):
  """Makes an encoder's layers, inside the module that is to own them."""

  architecture: Architecture
  bn: Mapping  # BatchNorm's arguments
  remat: bool = False  # whether the backward pass computes blocks again
  # Whether a new block of three layers passes its shortcut on
  zero_init_residual: bool = True

  def conv(
    self, name: str, channels: int, kernel: int, stride: int = 1
  ) -> Conv2D:
    """A convolution without bias."""
    # 'SAME' pads an even image at its end only, so that strides meet other
    # pixels than SimCLRv2's, which pads alike whatever the size.
    symmetric = self.architecture.padding == 'symmetric' and stride > 1
    return Conv2D(channels, kernel, stride, symmetric, name=name)

  def layer(
    self, name: str, *shape: int, relu: bool = True, **norm_options
  ) -> _Layer:
    """Convolution - BatchNorm - ReLU.

    Args:
      name: of the modules, with {} for their kind.
      *shape: channels, kernel and, if not 1, stride of the convolution.
      relu: whether there is one.
      **norm_options: of BatchNorm, beside `bn`.
    """
    conv = self.conv(name.format('conv'), *shape)
    norm = BatchNorm(name=name.format('batchnorm'), **self.bn, **norm_options)

    def apply(x, is_training):
      x = norm(conv(x), is_training)
      return jax.nn.relu(x) if relu else x

    return apply


def _stem(channels: int, parts: Parts) -> list[_Layer]:
  if parts.architecture.stem == 'small':
    return [parts.layer('initial_{}', channels, 3)]
  if not parts.architecture.selective_kernels:
    return [parts.layer('initial_{}', channels, 7, 2)]
  return [
    parts.layer('initial_{}_0', channels // 2, 3, 2),
    parts.layer('initial_{}_1', channels // 2, 3),
    parts.layer('initial_{}_2', channels, 3),
  ]


class BlockGroup(hk.Module):
  """Blocks of equal size; the first has the stride and the projection."""

  def __init__(
    self, blocks: int, channels: int, stride: int, parts: Parts, name: str
  ):
    super().__init__(name=name)
    self._remat = parts.remat
    self._blocks = [Block(channels, stride, True, parts, 'block_0')]
    for i in range(1, blocks):
      self._blocks.append(Block(channels, 1, False, parts, f'block_{i}'))

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, H, W, any] -> [.., n, h, w, c]."""
    for block in self._blocks:
      apply = functools.partial(block, is_training=is_training)
      x = hk.remat(apply)(x) if self._remat else apply(x)
    return x


class Block(hk.Module):
  """Residual block, named and initialised as Haiku's BlockV1.

  With selective kernels the SK unit stands for the 3x3 convolution, its
  BatchNorm and ReLU, and average pooling takes the shortcut's stride.
  """

  def __init__(
    self, channels: int, stride: int, project: bool, parts: Parts, name: str
  ):
    super().__init__(name=name)
    kernels = parts.architecture.selective_kernels
    self._shortcut, self._pool_stride = None, stride if kernels else None
    if project:
      own_stride = 1 if kernels else stride
      self._shortcut = parts.layer(
        'shortcut_{}', channels, 1, own_stride, relu=False
      )
    inner = channels // 4
    last_scale = jnp.zeros if parts.zero_init_residual else jnp.ones
    if not ENCODERS[parts.architecture.encoder].bottleneck:
      self._layers = [
        parts.layer('{}_0', channels, 3, stride),
        parts.layer('{}_1', channels, 3, relu=False),
      ]
    else:
      self._layers = [
        parts.layer('{}_0', inner, 1),
        SelectiveKernels(inner, stride, parts)
        if kernels
        else parts.layer('{}_1', inner, 3, stride),
        parts.layer('{}_2', channels, 1, relu=False, scale_init=last_scale),
      ]

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, H, W, any] -> [.., n, h, w, c]."""
    shortcut = x
    if self._shortcut and self._pool_stride:
      shortcut = _average_pool(shortcut, self._pool_stride)
    if self._shortcut:
      shortcut = self._shortcut(shortcut, is_training)
    for layer in self._layers:
      x = layer(x, is_training)
    return jax.nn.relu(x + shortcut)


class SelectiveKernels(hk.Module):
  """SK unit: two convolutions, mixed by weights that each image chooses.

  No BatchNorm or ReLU follows the mixture. Source: SimCLRv2's public code.
  """

  def __init__(self, channels: int, stride: int, parts: Parts):
    super().__init__(name='sk_conv')
    size = max(int(channels * SK_RATIO), SK_MIN_SIZE)
    self._branches = parts.layer('{}', 2 * channels, 3, stride)
    self._squeeze = parts.layer('squeeze_{}', size, 1)
    self._mix = parts.conv('mix_conv', 2 * channels, 1)

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, H, W, any] -> [.., n, h, w, c]."""
    branches = _halves(self._branches(x, is_training))  # [2, .., n, h, w, c]
    context = jnp.mean(branches.sum(axis=0), axis=(-3, -2), keepdims=True)
    weights = self._mix(self._squeeze(context, is_training))  # [.., 1, 1, 2 c]
    # A softmax is taken in float32, whatever the branches are in.
    weights = _halves(weights).astype(jnp.promote_types(x.dtype, 'float32'))
    weights = jax.nn.softmax(weights, axis=0).astype(x.dtype)
    # weights: [2, .., n, 1, 1, c]
    return jnp.sum(branches * weights, axis=0)


def _average_pool(x: jax.Array, stride: int) -> jax.Array:
  """2x2 averages [.., h, w, c] by SimCLRv2's rule, whatever the padding.

  With a stride, zeros after the end count in the mean (odd sizes only).
  """
  sides = 'SAME'
  if stride > 1:
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 3) + ((0, 1), (0, 1), (0, 0)))
    sides = 'VALID'
  return hk.avg_pool(x, (2, 2, 1), (stride, stride, 1), sides)


def _halves(x: jax.Array) -> jax.Array:
  """[..., 2 c] -> [2, ..., c]."""
  return jnp.stack(jnp.split(x, 2, axis=-1))


def _check_known(what: str, value: str, known) -> None:
  if value not in known:
    raise errors.UserError(
      f'{what} {value!r} is unknown; known: {", ".join(known)}'
      f'{config.nearest_name(value, known)}'
    )
