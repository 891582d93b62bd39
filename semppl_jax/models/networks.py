"""Online and target network: an encoder with an objective's heads, in Haiku.

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
from semppl_jax.models import heads as heads_lib
from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.heads import Outputs

PRECISIONS = ('float32', 'bfloat16')

Tree = Mapping[str, Mapping[str, jax.Array]]
Trees = tuple[Tree, Tree]  # of params and of state
# (embedding [.., n, e], is_training, is_online, BatchNorm's) -> outputs.
Heads = Callable[..., Outputs]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Networks(NamedTuple):
  """Online and target network: pure functions over trees.

  Images are [n, H, W, 3] float in [0, 1], or [V, n, H, W, 3]: views that go
  through together, [V, n, ...] in every output, and have statistics of their
  own in each BatchNorm, whose running averages see one after another.

  Attributes:
    init: (key, images) -> (params, state), the online tree with all its parts.
      Needs no device axis, whatever `cross_replica`. BatchNorm's averages begin
      with mean 0 and variance 1, which its first pass in training mode forgets.
    online: (params, state, images, is_training) -> (outputs, state). Outputs by
      name: 'embedding' [n, e], the encoder's spatial mean; what the heads give,
      such as 'projection' [n, d] and 'prediction' [n, d]; and 'logits' [n, K],
      if there is a classifier.
    target: the same with the heads of the target network alone, and without
      'embedding'; takes what `target_tree` gives.
    encode: (params, state, images, is_training) -> (embedding [n, e], state),
      the encoder alone; takes any tree that has one.
    target_tree: the part of an online tree that the target network has too.
    features: (params, state, images, is_training) -> (what the classifier sees
      [n, h], state): the embedding, or the output that `classifier_on` names;
      takes any tree that has what `features_tree` gives.
    features_tree: the part of a tree that `features` needs.
    online_heads: (params, state, embedding [n, e] or [V, n, e], is_training) ->
      (outputs, state): what `online` makes of what `encode` made.
    target_heads: likewise of `target`.
  """

  init: Callable[..., tuple[Tree, Tree]]
  online: Callable[..., tuple[Outputs, Tree]]
  target: Callable[..., tuple[Outputs, Tree]]
  encode: Callable[..., tuple[jax.Array, Tree]]
  target_tree: Callable[[Tree], Tree]
  features: Callable[..., tuple[jax.Array, Tree]]
  features_tree: Callable[[Tree], Tree]
  online_heads: Callable[..., tuple[Outputs, Tree]]
  target_heads: Callable[..., tuple[Outputs, Tree]]


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
  heads: Heads | None = None,
  num_classes: int = 0,
  classifier_on: str = 'embedding',
  classifier_detached: bool = True,
  bn_decay: float = 0.9,
  bn_eps: float = 1e-5,
  cross_replica: bool = True,
  precision: str = 'float32',
  remat: bool = False,
  zero_init_residual: bool = True,
) -> Networks:
  """Builds an encoder with an objective's heads.

  Args:
    encoder: a key of encoders.ENCODERS.
    width: multiplies the channels of the stem and of every group.
    stem: 'imagenet': 7x7 with stride 2, then max-pool; 'small': 3x3 with stride
      1 and no max-pool, for images of up to 64 px.
    selective_kernels: SimCLRv2's SK units, with ResNet-D's stem and shortcuts.
    padding: of convolutions with a stride; 'same': Haiku's, the release's;
      'symmetric': the same on all sides, SimCLRv2's.
    projector_hidden: hidden units of projector and predictor, if `heads` is
      None.
    embedding_size: d, their output size, likewise.
    heads: of an objective, see base.Method; None: SemPPL's projector and
      predictor.
    num_classes: K of the monitoring classifier; 0: no classifier, but what the
      heads make.
    classifier_on: the output that it sees, the embedding or one of the heads'.
    classifier_detached: the classifier sends no gradient into what it sees.
    bn_decay: decay of BatchNorm's running averages, per pass in training mode.
    bn_eps: added to BatchNorm's variances.
    cross_replica: average training statistics over `parallel.AXIS`.
    precision: of activations and of what products take in, 'float32' or
      'bfloat16'. Parameters, BatchNorm, softmaxes, the spatial mean and all
      outputs are float32 in any case.
    remat: the backward pass computes each residual block again instead of
      keeping what is inside it: less memory, a third more work.
    zero_init_residual: the last BatchNorm of every bottleneck block begins with
      scale 0, so that the block passes its shortcut on; else with 1.

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
  if heads is None:
    heads = heads_lib.ProjectorPredictor(
      projector_hidden, embedding_size, projector_hidden
    )

  bn = {
    'create_scale': True, 'create_offset': True, 'decay_rate': bn_decay,
    'eps': bn_eps,
  }  # fmt: skip

  def encode(images, is_training, bn):
    network = encoders.ResNet(architecture, bn, remat, zero_init_residual)
    return network(_normalise(images), is_training)  # [n, e]

  def online_heads(embedding, is_training, bn):
    outputs = heads(embedding, is_training, True, bn)
    outputs = {'embedding': embedding, **outputs}
    if num_classes:
      seen = outputs[classifier_on]
      if classifier_detached:
        seen = jax.lax.stop_gradient(seen)
      outputs['logits'] = hk.Linear(num_classes, name='classifier')(seen)
    return outputs

  def online(images, is_training, bn):
    return online_heads(encode(images, is_training, bn), is_training, bn)

  def target_heads(embedding, is_training, bn):
    return heads(embedding, is_training, False, bn)

  def target(images, is_training, bn):
    return target_heads(encode(images, is_training, bn), is_training, bn)

  def features(images, is_training, bn):
    embedding = encode(images, is_training, bn)
    if classifier_on == 'embedding':
      return embedding
    return heads(embedding, is_training, True, bn)[classifier_on]

  def init(forward, key, images):
    # The axis may be unbound here. Only the images' shape is of use: a compiled
    # init computes no pass.
    unsynced = functools.partial(forward, bn=bn)
    params, state = hk.transform_with_state(unsynced).init(key, images, True)
    return params, hk.data_structures.map(_begin, state)

  @functools.cache
  def modules(forward):
    # What its own initialisation makes, in params and in state.
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    own = functools.partial(init, forward)
    trees = jax.eval_shape(own, jax.random.key(0), images)
    return frozenset().union(*trees)

  def part(forward, tree):
    return {k: leaves for k, leaves in tree.items() if k in modules(forward)}

  synced = bn | {'cross_replica_axis': parallel.AXIS if cross_replica else None}
  apply = functools.partial(_apply, bn=synced, precision=precision)
  return Networks(
    init=functools.partial(init, online),
    online=apply(online),
    target=apply(target),
    encode=apply(encode),
    target_tree=functools.partial(part, target),
    features=apply(features),
    features_tree=functools.partial(part, features),
    online_heads=apply(online_heads, views_ndim=3),
    target_heads=apply(target_heads, views_ndim=3),
  )


def _apply(
  forward: Callable[..., Any], bn: Mapping, precision: str, views_ndim: int = 5
) -> Callable[..., Any]:
  transformed = hk.transform_with_state(forward)

  def apply(params, state, inputs, is_training):
    settings = bn | {'views': inputs.ndim == views_ndim}
    with _policies(precision):
      return transformed.apply(
        params, state, None, inputs, is_training, settings
      )

  return apply


def _begin(module: str, name: str, value: jax.Array) -> jax.Array:
  """A leaf of BatchNorm's state before the first pass."""
  if name != 'average':
    return value  # zeros
  return jnp.full_like(value, module.endswith('var_ema'))


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
    for module in (
      encoders.ResNet,
      heads_lib.MLP,
      heads_lib.SimCLRMLP,
      heads_lib.SimRegMLP,
      heads_lib.PAWSMLP,
      heads_lib.PAWSPredictor,
      heads_lib.PrototypeMLP,
    ):
      stack.enter_context(hk.mixed_precision.push_policy(module, networks))
    stack.enter_context(hk.mixed_precision.push_policy(BatchNorm, norms))
    yield


def _normalise(images: jax.Array) -> jax.Array:
  """Images in [0, 1] to ImageNet's zero mean and unit variance per channel."""
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise errors.UserError(
      f'Images of dtype {images.dtype} reached the network; '
      'it takes floats in [0, 1].'
    )
  return (images - jnp.array(_IMAGENET_MEAN)) / jnp.array(_IMAGENET_STD)
