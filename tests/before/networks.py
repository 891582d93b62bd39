"""Encoder, projector, predictor and monitoring classifier, in Haiku.

`build` gives pure functions over flat Haiku trees {module: {name: array}}.
Without selective kernels, module names and shapes are those of DeepMind's
SemPPL release, so that its checkpoints load without renaming. Images are float
[n, H, W, 3] in [0, 1]; the encoder normalises them itself. In training mode
BatchNorm uses the batch's statistics, averaged over `parallel.AXIS` where
`cross_replica` is set: such a call must run inside a function mapped over that
axis. In evaluation mode it uses the running averages and needs no axis.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import jmp

from semppl_jax import errors
from semppl_jax.distributed import parallel
from semppl_jax.models import encoders
from tests.before import structs

PRECISIONS = ('float32', 'bfloat16')

Tree = Mapping[str, Mapping[str, jax.Array]]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_ONLINE_ONLY = ('predictor', 'classifier')


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


@functools.lru_cache(16)  # what was compiled for one run serves the next
def build(
  *,
  encoder: str,
  width: int = 1,
  stem: str = 'imagenet',
  selective_kernels: bool = False,
  padding: str = 'same',
  projector_hidden: int = 4096,
  embedding_size: int = 256,
  num_classes: int = 0,
  classifier_detached: bool = True,
  bn_decay: float = 0.9,
  bn_eps: float = 1e-5,
  cross_replica: bool = True,
  precision: str = 'float32',
  remat: bool = False,
) -> Networks:
  """Builds the online and target networks of SemPPL (BYOL's parts).

  Args:
    encoder: a key of encoders.ENCODERS.
    width: multiplies the channels of the stem and of every group.
    stem: 'imagenet': 7x7 with stride 2, then max-pool; 'small': 3x3 with stride
      1 and no max-pool, for images of up to 64 px.
    selective_kernels: SimCLRv2's SK units, with ResNet-D's stem and shortcuts.
    padding: of convolutions with a stride; 'same': Haiku's, the release's;
      'symmetric': the same on all sides, SimCLRv2's.
    projector_hidden: hidden units of projector and predictor.
    embedding_size: d, their output size.
    num_classes: K of the monitoring classifier; 0: no classifier.
    classifier_detached: the classifier sends no gradient into the encoder.
    bn_decay: decay of BatchNorm's running averages, per pass in training mode.
    bn_eps: added to BatchNorm's variances.
    cross_replica: average training statistics over `parallel.AXIS`.
    precision: of activations and of what products take in, 'float32' or
      'bfloat16'. Parameters, BatchNorm, softmaxes, the spatial mean and all
      outputs are float32 in any case.
    remat: the backward pass computes each residual block again instead of
      keeping what is inside it: less memory, a third more work.

  Raises:
    UserError: an unknown precision, encoder, stem or padding, a width below 1,
      or selective kernels in an encoder without bottleneck blocks.
  """
  architecture = encoders.Architecture(
    encoder, width, stem, selective_kernels, padding
  )
  encoders.check(architecture)
  if precision not in PRECISIONS:
    raise errors.UserError(
      f'precision {precision!r} is unknown; known: {", ".join(PRECISIONS)}'
    )

  def forward(images, is_training, heads, axis):
    bn = {
      'create_scale': True,
      'create_offset': True,
      'decay_rate': bn_decay,
      'eps': bn_eps,
      'cross_replica_axis': axis,
    }
    network = encoders.ResNet(architecture, bn, remat)
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
  online = _apply(functools.partial(forward, heads=heads, axis=axis), precision)
  target = _apply(
    functools.partial(forward, heads=heads[:1], axis=axis), precision
  )
  encoder_only = _apply(
    functools.partial(forward, heads=(), axis=axis), precision
  )

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


def _apply(
  forward: Callable[..., structs.Outputs], precision: str
) -> Callable[..., Any]:
  transformed = hk.transform_with_state(forward)

  def apply(params, state, images, is_training):
    with _policies(precision):
      return transformed.apply(params, state, None, images, is_training)

  return apply


@contextlib.contextmanager
def _policies(precision: str) -> Iterator[None]:
  """Mixed precision for the networks that are applied within."""
  if precision == 'float32':
    yield
    return
  low = jnp.dtype(precision)
  networks = jmp.Policy(jnp.float32, low, jnp.float32)
  # Of a thousand activations a mean, and the difference of two squares, need
  # more than bfloat16's eight bits.
  norms = jmp.Policy(jnp.float32, jnp.float32, low)
  with contextlib.ExitStack() as stack:
    for module in (encoders.ResNet, Head):
      stack.enter_context(hk.mixed_precision.push_policy(module, networks))
    stack.enter_context(hk.mixed_precision.push_policy(hk.BatchNorm, norms))
    yield


def _normalise(images: jax.Array) -> jax.Array:
  """Images in [0, 1] to ImageNet's zero mean and unit variance per channel."""
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise errors.UserError(
      f'Images of dtype {images.dtype} reached the network; '
      'it takes floats in [0, 1].'
    )
  return (images - jnp.array(_IMAGENET_MEAN)) / jnp.array(_IMAGENET_STD)
