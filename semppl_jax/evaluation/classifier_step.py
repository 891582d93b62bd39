"""The update of a classifier on an encoder: linear evaluation, fine-tuning.

That of DeepMind's SemPPL release: cross-entropy, gradient descent with Nesterov
momentum, a cosine schedule. Pure; runs inside `parallel.map_step`. B images
over D devices, b = B/D here; e the embedding size; K classes.
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

Metrics = dict[str, jax.Array]

_HEAD = 'classifier'


class ClassifierState(NamedTuple):
  """One device's state; on the host every leaf has a leading device axis."""

  step: jax.Array  # [] int32. The only clock
  online_params: hk.Params  # encoder and classifier
  online_state: hk.State  # the encoder's running statistics
  opt_state: optax.OptState  # of what is trained


class Hyperparameters(NamedTuple):
  """What is fixed for a whole training: nothing here is traced."""

  cfg: ml_collections.FrozenConfigDict
  # (params, state, images, is_training) -> (embedding [b, e], state); None:
  # the batch holds embeddings, not images.
  encode: Callable[..., tuple[jax.Array, Any]] | None
  learning_rate: float  # of the classifier, for 256 images
  encoder_learning_rate: float | None  # None: the encoder is frozen
  total_steps: int
  warmup_steps: int

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Without its learning rate."""
    settings = self.cfg.optimizer
    return optimizers.sgd(
      momentum=settings.momentum, nesterov=settings.nesterov
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
    params: the encoder's.
    bn_state: the encoder's.
    embedding_size: e.
    num_classes: K. The classifier's weights are Haiku's default, as in the
      release, from the config's seed.
  """
  head = hk.transform(lambda x: hk.Linear(num_classes, name=_HEAD)(x))
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
      embeddings, [b, e].
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
  )
  updates, opt_state = hparams.optimizer.update(grads, state.opt_state, trained)
  rates = {module: -share * _rate(module, hparams) for module in updates}
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


def logits(params: Mapping[str, Any], embedding: jax.Array) -> jax.Array:
  """The classifier: [n, e] -> [n, K]."""
  return embedding @ params[_HEAD]['w'] + params[_HEAD]['b']


def _loss_fn(trained, fixed, bn_state, images, labels, hparams):
  params = fixed | trained
  embedding = images
  if hparams.encode is not None:
    tunes = hparams.encoder_learning_rate is not None
    encoder = {m: x for m, x in params.items() if m != _HEAD}
    embedding, bn_state = hparams.encode(encoder, bn_state, images, tunes)
  scores = logits(params, embedding)  # [b, K]
  loss = classification.cross_entropy(scores, labels).mean()
  right = (scores.argmax(axis=-1) == labels).mean(dtype=jnp.float32)
  return loss, (bn_state, {'loss': loss, 'accuracy': right})


def _inputs(batch, base_key, step, hparams):
  cfg = hparams.cfg.crops
  if hparams.encode is None or not cfg.augment:
    return batch.images  # embeddings, or crops of the middle
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
  is_trained = lambda module: tunes or module == _HEAD
  return (
    {m: x for m, x in params.items() if is_trained(m)},
    {m: x for m, x in params.items() if not is_trained(m)},
  )


def to_host(state: ClassifierState) -> ClassifierState:
  """The host's state without device axes: NumPy arrays."""
  return jax.tree.map(lambda x: np.asarray(x[0]), state)
