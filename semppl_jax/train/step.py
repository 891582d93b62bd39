"""The update of every objective, from images to metrics. Pure.

Runs inside `parallel.map_step`; the step is its only clock. Shapes: B images
over D devices, b = B/D here; V views of the online network, W of the target
network; m microbatches.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from semppl_jax import types
from semppl_jax.distributed import parallel
from semppl_jax.losses import classification
from semppl_jax.memory import pseudo_labels
from semppl_jax.methods import base
from semppl_jax.models import multicrop
from semppl_jax.models import networks as networks_lib
from semppl_jax.train import (
  constraints,
  microbatch,
  optimizers,
  passes,
  schedules,
)
from semppl_jax.train.passes import Part, StepSetup
from semppl_jax.train.state import TrainState

# The new state, metrics, (pseudo-)labels, and maybe images taken for alike
Update = (
  tuple[TrainState, base.Metrics, jax.Array]
  | tuple[TrainState, base.Metrics, jax.Array, base.Outputs]
)
_NO_PLACE = 2**32 - 1  # in the batch: of no image


def train_step(
  state: TrainState,
  batch: types.Batch,
  base_key: jax.Array,
  teacher: networks_lib.Trees | None = None,
  *,
  setup: StepSetup,
) -> Update:
  """One update on one device's part of the batch.

  With cfg.accumulate = m > 1 the networks see the batch in m microbatches, one
  after another, and the gradients are averaged: memory for views and
  activations is that of a microbatch. What `base.BatchWide` has is of the whole
  batch; what changes is BatchNorm, whose statistics are those of a microbatch
  on all devices.

  Args:
    state: see TrainState.
    batch: b images with their labels and ids, and maybe a support; with m > 1,
      and then without support, leaves [m, b/m, ...].
    base_key: the run's key, the same at every step and on every device.
    teacher: (params, state) of the frozen teacher, if the method has one.
    setup: objective, networks, optimiser and settings.

  Returns:
    The new state, metrics (scalars, equal on all devices) and the
    (pseudo-)labels, shaped as batch.labels, int32, -1: none; where there is a
    true label, that one. If the loss tells which images it takes for alike,
    these, too: {metric: ids, of the labels' shape and k}.
  """
  method, shape = setup.method, batch.labels.shape
  if setup.cfg.accumulate == 1:
    batch = jax.tree.map(lambda x: x[None], batch)  # leaves [1, b, ...]
  keys = passes.step_keys(base_key, state.step, batch.labels.shape)

  # Target network: no gradient.
  target_state, target = passes.forward_target(state, batch, keys, setup)
  batch_wide = gather_batch(target, batch, state, base_key)

  # The objective's memory sees the whole batch before any loss.
  memory, shared = method.prepare(state.memory, batch_wide)

  # Online network, loss and gradient, microbatch after microbatch.
  whole = memory, shared, batch_wide

  def loss_and_grad(bn_state, part):
    grads, aux = jax.grad(loss_fn, has_aux=True)(
      state.online_params, bn_state, part, *whole, setup, teacher
    )
    bn_state, metrics, per_image = aux
    return bn_state, (grads, metrics), per_image

  ids = batch_wide.ids.reshape(len(batch.ids), -1)  # [m, B/m]
  support = passes.support_views(batch, base_key, state.step, ids.size, setup)
  online_state, averaged, per_image = microbatch.scan(
    loss_and_grad, state.online_state, Part(batch, ids, target, keys, support)
  )
  grads, metrics = parallel.pmean(averaged)
  labels, kept, embeddings, alike = per_image

  # The optimiser's update; then the target network follows the online one, and
  # the memory whatever the objective keeps of the batch.
  updated, rates = apply_gradients(state, grads, setup)
  memory = method.update(memory, batch_wide, shared, _gather_images(kept))
  if method.target_views and method.embedding:
    embeddings = multicrop.l2_normalize(batch_wide.target[method.embedding])
  elif method.embedding:
    embeddings = _gather_images(embeddings)  # [V, B, d]
  metrics |= rates | _health(embeddings, labels, batch_wide)
  new_state = updated._replace(
    step=state.step + 1,
    online_state=online_state,
    target_state=target_state,
    memory=memory,
  )
  labels = batch.labels if labels is None else labels
  alike = {name: x.reshape(*shape, -1) for name, x in alike.items()}
  return new_state, metrics, labels.reshape(shape), *([alike] if alike else [])


def gather_batch(
  target: base.Outputs | None,
  batch: types.Batch,
  state: TrainState,
  base_key: jax.Array,
) -> base.BatchWide:
  """The whole batch, in its order, from all devices' microbatches.

  What the method does not read of it is not gathered: compiling leaves it out.

  Args:
    target: leaves [m, W, b, ...].
    batch: leaves [m, b, ...].
    state: before the step.
    base_key: of the run.
  """
  step_key = jax.random.fold_in(base_key, state.step)
  return base.BatchWide(
    target=target and _gather_images(target),
    labels=parallel.all_gather(batch.labels, axis=1).reshape(-1),  # [B]
    ids=parallel.all_gather(batch.ids, axis=1).reshape(-1),  # [B]
    step=state.step,
    local_target=target and jax.tree.map(_join_parts, target),
    params=state.online_params,
    key=jax.random.fold_in(step_key, _NO_PLACE),
  )


def _gather_images(tree: base.Outputs) -> base.Outputs:
  """[m, views, b, ...] here -> [views, B, ...] of all devices."""

  def gather(x):
    return _join_parts(parallel.all_gather(x, axis=2))

  return jax.tree.map(gather, tree)


def _join_parts(x: jax.Array) -> jax.Array:
  """[m, views, n, ...] -> [views, m n, ...]: microbatches in their order."""
  return jnp.concatenate(list(x), axis=1)


def loss_fn(
  params: hk.Params,
  bn_state: hk.State,
  part: Part,
  memory: base.Memory,
  shared: base.Shared,
  batch_wide: base.BatchWide,
  setup: StepSetup,
  teacher: networks_lib.Trees | None = None,
) -> tuple[jax.Array, tuple]:
  """This device's part of the loss; its mean over devices is the loss.

  Returns:
    The loss [], and (BatchNorm state, metrics, per image: (pseudo-)labels [b],
    what the objective keeps, embeddings [V, b, d] whose spread is watched,
    ids of images that are taken for alike).
  """
  cfg, method = setup.cfg, setup.method
  views = method.online_views(passes.make_views(part.batch, part.keys, setup))
  outputs, support, bn_state = passes.forward_online(
    params, bn_state, views, part, setup
  )
  result = method.loss(
    base.Inputs(
      online=outputs,
      target=part.target,
      labels=part.batch.labels,
      ids=part.ids,
      batch=batch_wide,
      shared=shared,
      keys=part.keys,
      teacher=passes.forward_teacher(teacher, views, setup),
      support=support,
    ),
    memory,
  )
  metrics, total = {'loss': result.loss} | result.metrics, result.loss
  if 'classifier' in cfg:
    logits = outputs.get('logits')
    monitor = _classifier(
      logits, part.batch.labels, batch_wide.labels, len(views[0])
    )
    metrics |= monitor
    total += cfg.classifier.weight * monitor['loss/classifier']
  embeddings = None
  if method.embedding and not method.target_views:
    embeddings = jax.lax.stop_gradient(outputs[method.embedding])
    embeddings = multicrop.l2_normalize(embeddings)  # [V, b, d]
  per_image = result.labels, result.kept, embeddings, result.alike
  return total, (bn_state, metrics, per_image)


def _classifier(
  logits: jax.Array | None,
  labels: jax.Array,
  all_labels: jax.Array,
  large: int,
) -> base.Metrics:
  """Cross-entropy and top-1 of the monitoring classifier on large views.

  Args:
    logits: [V, b, K], or None without labels.
    labels: [b] int32, -1: left out.
    all_labels: [B] int32, of the global batch: how many images count.
    large: how many of the views are large ones.
  """
  if logits is None:
    return {'loss/classifier': jnp.zeros(())}
  logits = logits[:large]
  mean = functools.partial(
    parallel.masked_mean, mask=labels >= 0, everyones=all_labels >= 0
  )
  per_image = classification.cross_entropy(logits, labels).mean(axis=0)
  hit = classification.top1(logits, labels).mean(axis=0)
  return {'loss/classifier': mean(per_image), 'classifier_accuracy': mean(hit)}


def _health(
  embeddings: jax.Array | None,
  labels: jax.Array | None,
  batch: base.BatchWide,
) -> base.Metrics:
  """What shows a collapse, of the whole batch.

  Args:
    embeddings: [views, B, d] unit vectors.
    labels: [m, b] (pseudo-)labels of this device's images.
    batch: its labels.
  """
  metrics = {}
  if embeddings is not None:
    metrics['embedding_std'] = multicrop.embedding_std(embeddings)
  if labels is not None:
    all_labels = parallel.all_gather(labels, axis=1).reshape(-1)  # [B]
    unlabelled = batch.labels < 0
    pseudo = jnp.where(unlabelled, all_labels, -1)
    metrics['top_label_share'] = pseudo_labels.top_share(pseudo)
    metrics['pseudo_label_share'] = jnp.sum(pseudo >= 0) / jnp.maximum(
      jnp.sum(unlabelled), 1
    )
  return metrics


def apply_gradients(
  state: TrainState, grads: hk.Params, setup: StepSetup
) -> tuple[TrainState, base.Metrics]:
  """Updates the online network, and the target by its moving average.

  Args:
    state: before the update.
    grads: of the loss, the mean over devices.
    setup: the optimiser takes the learning rate of this step.

  Returns:
    The state with new weights and optimiser state, and metrics.
  """
  cfg = setup.cfg
  rate = schedules.learning_rate(
    state.step,
    base=cfg.optimizer.learning_rate,
    batch_size=cfg.batch_size,
    total_steps=setup.total_steps,
    warmup_steps=setup.warmup_steps,
    scaling=cfg.optimizer.scaling,
    start=cfg.optimizer.start_learning_rate,
    final=cfg.optimizer.final_learning_rate,
    warmup_kind=cfg.optimizer.warmup_kind,
  )
  metrics = {'grad_norm': optax.tree.norm(grads), 'learning_rate': rate}
  if cfg.optimizer.clip:
    grads = optimizers.clip_each(grads, cfg.optimizer.clip)
  updates, opt_state = setup.optimizer.update(
    grads, state.opt_state, state.online_params, learning_rate=rate
  )
  online_params = optax.apply_updates(state.online_params, updates)
  online_params = constraints.unit_rows(online_params, setup.method.unit_rows)
  online_params, opt_state = constraints.keep_frozen(
    state.step,
    (state.online_params, state.opt_state),
    (online_params, opt_state),
    setup.method.frozen,
  )
  updated = state._replace(online_params=online_params, opt_state=opt_state)
  if setup.method.target_views is None:
    return updated, metrics

  # The target follows the new online weights, as in BYOL's release.
  keep = schedules.ema_rate(
    state.step,
    base=cfg.ema.base,
    total_steps=setup.total_steps,
    constant=cfg.ema.constant,
  )
  target_params = optax.incremental_update(
    setup.nets.target_tree(online_params), state.target_params, 1 - keep
  )
  return updated._replace(target_params=target_params), metrics | {
    'ema_rate': keep
  }
