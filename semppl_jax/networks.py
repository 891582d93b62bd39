"""Encoder, projector, predictor and monitoring classifier, in Haiku.

`build` gives pure functions over flat Haiku trees {module: {name: array}}.
Module names and shapes are those of DeepMind's SemPPL release, so that its
checkpoints load without renaming. Images are float [n, H, W, 3] in [0, 1]; the
encoder normalises them itself. In training mode BatchNorm uses the batch's
statistics, averaged over `parallel.AXIS` where `cross_replica` is set: such a
call must run inside a function mapped over that axis. In evaluation mode it
uses the running averages and needs no axis.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from semppl_jax import config, errors, parallel, structs

Tree = Mapping[str, Mapping[str, jax.Array]]

STEMS = ('imagenet', 'small')
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_ONLINE_ONLY = ('predictor', 'classifier')


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


class ResNet(hk.Module):
  """ResNet v1 without a head: normalised images -> spatial mean [n, e].

  Unlike Haiku's presets, the first block of every group has a projection, also
  in group 0 of the basic-block networks: so has the release.
  """

  def __init__(self, spec: Encoder, width: int, stem: str, bn: Mapping):
    super().__init__(name=spec.module)
    self._pool = stem == 'imagenet'
    self._stem = hk.Conv2D(
      spec.stem_channels * width,
      kernel_shape=7 if self._pool else 3,
      stride=2 if self._pool else 1,
      with_bias=False,
      name='initial_conv',
    )
    self._stem_bn = hk.BatchNorm(name='initial_batchnorm', **bn)
    rows = zip(spec.blocks, spec.channels, spec.strides, strict=True)
    self._groups = [
      hk.nets.ResNet.BlockGroup(
        channels=channels * width,
        num_blocks=blocks,
        stride=stride,
        bn_config=bn,
        resnet_v2=False,
        bottleneck=spec.bottleneck,
        use_projection=True,
        name=f'block_group_{i}',
      )
      for i, (blocks, channels, stride) in enumerate(rows)
    ]

  def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
    """[n, H, W, 3] -> [n, e], e the last group's channels."""
    x = jax.nn.relu(self._stem_bn(self._stem(images), is_training))
    if self._pool:
      x = hk.max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')
    for group in self._groups:
      x = group(x, is_training, test_local_stats=False)
    return jnp.mean(x, axis=(1, 2))  # [n, h, w, e] -> [n, e]


class Head(hk.Module):
  """Projector or predictor: Linear - BatchNorm - ReLU - Linear without bias."""

  def __init__(self, hidden: int, size: int, bn: Mapping, name: str):
    super().__init__(name=name)
    self._hidden, self._size, self._bn = hidden, size, bn

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[n, e] -> [n, d]."""
    x = hk.Linear(self._hidden)(x)  # [n, hidden]
    x = jax.nn.relu(hk.BatchNorm(**self._bn)(x, is_training))
    return hk.Linear(self._size, with_bias=False)(x)  # [n, d]


class Networks(NamedTuple):
  """Pure functions over trees; `images` [n, H, W, 3] float in [0, 1].

  init: (key, images) -> (params, state), the online tree with all its parts.
    Needs no device axis, whatever `cross_replica`. BatchNorm begins with the
    averages of these images; the first pass in training mode forgets them.
  online: (params, state, images, is_training) -> (Outputs, state).
  target: the same without predictor and classifier; takes `target_tree`s.
  encode: (params, state, images, is_training) -> (embedding [n, e], state),
    the encoder alone; takes any tree that has one.
  """

  init: Callable[..., tuple[Tree, Tree]]
  online: Callable[..., tuple[structs.Outputs, Tree]]
  target: Callable[..., tuple[structs.Outputs, Tree]]
  encode: Callable[..., tuple[jax.Array, Tree]]


def build(
  *,
  encoder: str,
  width: int = 1,
  stem: str = 'imagenet',
  projector_hidden: int = 4096,
  embedding_size: int = 256,
  num_classes: int = 0,
  classifier_detached: bool = True,
  bn_decay: float = 0.9,
  bn_eps: float = 1e-5,
  cross_replica: bool = True,
) -> Networks:
  """Builds the online and target networks of SemPPL (BYOL's parts).

  Args:
    encoder: a key of ENCODERS.
    width: multiplies the channels of the stem and of every group.
    stem: 'imagenet': 7x7 with stride 2, then max-pool; 'small': 3x3 with stride
      1 and no max-pool, for images of up to 64 px.
    projector_hidden: hidden units of projector and predictor.
    embedding_size: d, their output size.
    num_classes: K of the monitoring classifier; 0: no classifier.
    classifier_detached: the classifier sends no gradient into the encoder.
    bn_decay: decay of BatchNorm's running averages, per pass in training mode.
    bn_eps: added to BatchNorm's variances.
    cross_replica: average training statistics over `parallel.AXIS`.

  Raises:
    UserError: an unknown encoder or stem, or a width below 1.
  """
  _check(encoder, width, stem)

  def forward(images, is_training, heads, axis):
    bn = {
      'create_scale': True,
      'create_offset': True,
      'decay_rate': bn_decay,
      'eps': bn_eps,
      'cross_replica_axis': axis,
    }
    network = ResNet(ENCODERS[encoder], width, stem, bn)
    embedding = network(_normalise(images), is_training)  # [n, e]
    projection = prediction = logits = None
    if 'projector' in heads:
      projector = Head(projector_hidden, embedding_size, bn, 'projector')
      projection = projector(embedding, is_training)  # [n, d]
    if 'predictor' in heads:
      predictor = Head(projector_hidden, embedding_size, bn, 'predictor')
      prediction = predictor(projection, is_training)  # [n, d]
    if 'classifier' in heads:
      seen = embedding
      if classifier_detached:
        seen = jax.lax.stop_gradient(embedding)
      logits = hk.Linear(num_classes, name='classifier')(seen)  # [n, K]
    return structs.Outputs(embedding, projection, prediction, logits)

  axis = parallel.AXIS if cross_replica else None
  heads = ('projector', 'predictor') + (('classifier',) if num_classes else ())
  online = _apply(functools.partial(forward, heads=heads, axis=axis))
  target = _apply(functools.partial(forward, heads=heads[:1], axis=axis))
  encoder_only = _apply(functools.partial(forward, heads=(), axis=axis))

  def init(key, images):
    # The axis may be unbound here, and is of no use: weights do not depend on
    # the images, and the averages of these few live until the first step only.
    unsynced = functools.partial(forward, heads=heads, axis=None)
    return hk.transform_with_state(unsynced).init(key, images, True)

  def encode(params, state, images, is_training):
    outputs, state = encoder_only(params, state, images, is_training)
    return outputs.embedding, state

  return Networks(init, online, target, encode)


def target_tree(tree: Tree) -> Tree:
  """The part of online params or state that the target network has too."""
  return {
    module: leaves
    for module, leaves in tree.items()
    if module.split('/')[0] not in _ONLINE_ONLY
  }


def _apply(forward: Callable[..., structs.Outputs]) -> Callable[..., Any]:
  transformed = hk.transform_with_state(forward)

  def apply(params, state, images, is_training):
    return transformed.apply(params, state, None, images, is_training)

  return apply


def _normalise(images: jax.Array) -> jax.Array:
  """Images in [0, 1] to ImageNet's zero mean and unit variance per channel."""
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise errors.UserError(
      f'Images of dtype {images.dtype} reached the network; '
      'it takes floats in [0, 1].'
    )
  return (images - jnp.array(_IMAGENET_MEAN)) / jnp.array(_IMAGENET_STD)


def _check(encoder: str, width: int, stem: str) -> None:
  if encoder not in ENCODERS:
    raise errors.UserError(
      f'encoder {encoder!r} is unknown; known: {", ".join(ENCODERS)}'
      f'{config.nearest_name(encoder, ENCODERS)}'
    )
  if stem not in STEMS:
    raise errors.UserError(
      f'stem {stem!r} is unknown; known: {", ".join(STEMS)}.'
    )
  if width < 1 or width != int(width):
    raise errors.UserError(f'encoder width {width} is not a whole number >= 1.')
