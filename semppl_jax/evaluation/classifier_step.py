"""The update of a classifier on an encoder: linear evaluation, fine-tuning.

That of DeepMind's SemPPL release: cross-entropy, gradient descent with Nesterov
momentum, a cosine schedule; or that of SimCLRv2's, with LARS, from a layer of
the projector on. Pure; runs inside `parallel.map_step`. B images over D
devices, b = B/D here; e the size of what the classifier sees; K classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from semppl_jax import types
from semppl_jax.augment import crops
from semppl_jax.distributed import parallel
from semppl_jax.losses import classification
from semppl_jax.train import optimizers, schedules
from semppl_jax.weights import haiku_trees

Metrics = dict[str, jax.Array]

_HEAD = 'classifier'


class ClassifierState(NamedTuple):
  """One device's state; on the host every leaf has a leading device axis."""

  step: jax.Array  # [] int32. The only clock
  online_params: hk.Params  # what the classifier is on, and the classifier
  online_state: hk.State  # running statistics of the former
  opt_state: optax.OptState  # of what is trained


class Hyperparameters(NamedTuple):
  """What is fixed for a whole training: nothing here is traced."""

  cfg: ml_collections.FrozenConfigDict
  # (params, state, images, is_training) -> (features [b, e], state); None: the
  # batch holds features, not images. See networks.Networks.features.
  encode: Callable[..., tuple[jax.Array, Any]] | None
  learning_rate: float  # of the classifier; see optimizer.scaling
  # Of what the classifier is on; None: it is frozen.
  encoder_learning_rate: float | None
  total_steps: int
  warmup_steps: int

  @property
  def optimizer(self) -> optax.GradientTransformationExtraArgs:
    """Its update takes `learning_rate`."""
    settings = self.cfg.optimizer
    if settings.name == 'sgd':
      return optimizers.build(
        'sgd', momentum=settings.momentum, nesterov=settings.nesterov
      )
    # SimCLR's, which leaves the classifier out.
    return optimizers.build(
      'lars',
      rate_in_momentum=True,
      weight_decay=0.0,
      momentum=settings.momentum,
      trust_coefficient=settings.trust_coefficient,
    )


def init(
  hparams: Hyperparameters,
  params: Mapping[str, Any],
  bn_state: Mapping[str, Any],
  *,
  embedding_size: int,
  num_classes: int,
) -> ClassifierState:
  """The state before the first step, without device axes.

  Args:
    hparams: what is trained.
    params: of the encoder, and of the projector up to the classifier's place.
    bn_state: likewise.
    embedding_size: e.
    num_classes: K. The classifier's weights are Haiku's default, as in the
      release, from the config's seed; or zero.
  """
  w_init = jnp.zeros if hparams.cfg.classifier.init == 'zeros' else None
  head = hk.transform(
    lambda x: hk.Linear(num_classes, w_init=w_init, name=_HEAD)(x)
  )
  key = jax.random.key(hparams.cfg.seed)
  whole = dict(params) | head.init(key, jnp.zeros((1, embedding_size)))
  trained, _ = _split(whole, hparams)
  return ClassifierState(
    step=jnp.zeros((), jnp.int32),
    online_params=whole,
    online_state=dict(bn_state),
    opt_state=hparams.optimizer.init(trained),
  )


def train_step(
  state: ClassifierState,
  batch: types.Batch,
  base_key: jax.Array,
  *,
  hparams: Hyperparameters,
) -> tuple[ClassifierState, Metrics]:
  """One update on one device's part of the batch.

  Args:
    state: see ClassifierState.
    batch: b images, all with a label; without crops.augment crops of their
      middle, [b, S, S, 3] float32 in [0, 1]; without an encoder their
      features, [b, e].
    base_key: the run's key, the same at every step and on every device.
    hparams: the settings.

  Returns:
    The new state and metrics, equal on all devices.
  """
  images = _inputs(batch, base_key, state.step, hparams)
  trained, fixed = _split(state.online_params, hparams)
  grads, (bn_state, metrics) = jax.grad(_loss_fn, has_aux=True)(
    trained, fixed, state.online_state, images, batch.labels, hparams
  )
  grads, metrics = parallel.pmean((grads, metrics))
  share = schedules.learning_rate(
    state.step,
    base=1.0,
    batch_size=hparams.cfg.batch_size,
    total_steps=hparams.total_steps,
    warmup_steps=hparams.warmup_steps,
    scaling=hparams.cfg.optimizer.scaling,
  )
  updates, opt_state = hparams.optimizer.update(
    grads, state.opt_state, trained, learning_rate=share
  )
  # Each module's own, which is constant, may come after any momentum.
  rates = {module: _rate(module, hparams) for module in updates}
  updates = {
    module: {name: rates[module] * u for name, u in leaves.items()}
    for module, leaves in updates.items()
  }
  metrics |= {
    'grad_norm': optax.tree.norm(grads),
    'learning_rate': share * hparams.learning_rate,
  }
  new_state = ClassifierState(
    step=state.step + 1,
    online_params=fixed | optax.apply_updates(trained, updates),
    online_state=bn_state,
    opt_state=opt_state,
  )
  return new_state, metrics


def logits(params: Mapping[str, Any], features: jax.Array) -> jax.Array:
  """The classifier: [n, e] -> [n, K]."""
  return features @ params[_HEAD]['w'] + params[_HEAD]['b']


def _loss_fn(trained, fixed, bn_state, images, labels, hparams):
  params = fixed | trained
  features = images
  if hparams.encode is not None:
    tunes = hparams.encoder_learning_rate is not None
    below = {m: x for m, x in params.items() if m != _HEAD}
    features, bn_state = hparams.encode(below, bn_state, images, tunes)
  scores = logits(params, features)  # [b, K]
  loss = classification.cross_entropy(scores, labels).mean()
  right = (scores.argmax(axis=-1) == labels).mean(dtype=jnp.float32)
  return loss, (bn_state, {'loss': loss, 'accuracy': right})


def _inputs(batch, base_key, step, hparams):
  cfg = hparams.cfg.crops
  if hparams.encode is None or not cfg.augment:
    return batch.images  # features, or crops of the middle
  step_key = jax.random.fold_in(base_key, step)
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return crops.train_crops(
      fold(step_key, parallel.global_indices(len(batch.labels))), batch.images,
      size=cfg.size, area=cfg.area, aspect=cfg.aspect, flip=cfg.flip,
      sizes=batch.sizes,
  )  # fmt: skip


def _rate(module: str, hparams: Hyperparameters) -> float:
  if module == _HEAD:
    return hparams.learning_rate
  return hparams.encoder_learning_rate


def _split(
  params: Mapping[str, Any], hparams: Hyperparameters
) -> tuple[dict, dict]:
  """(what is trained, what is not)."""
  tunes = hparams.encoder_learning_rate is not None
  fixed = {'projector'} if hparams.cfg.classifier.freeze_projector else set()

  def is_trained(module):
    return module == _HEAD or tunes and haiku_trees.root(module) not in fixed

  return (
    {m: x for m, x in params.items() if is_trained(m)},
    {m: x for m, x in params.items() if not is_trained(m)},
  )


def to_host(state: ClassifierState) -> ClassifierState:
  """The host's state without device axes: NumPy arrays."""
  return jax.tree.map(lambda x: np.asarray(x[0]), state)
