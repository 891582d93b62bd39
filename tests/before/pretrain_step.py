"""The update of SemPPL, from images to metrics. Pure: the step is its clock.

Runs inside `parallel.map_step`. Shapes: B images over D devices, b = B/D here;
V_L large and V_S small views, V = V_L + V_S; d the embedding size; S draws of
semantic positives; n negatives. Source: SemPPL (Bosnjak et al., ICLR 2023),
with ReLICv2's losses and BYOL's networks and target update.
"""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from semppl_jax.augment import views as views_lib
from semppl_jax.distributed import parallel
from semppl_jax.losses import contrastive, negatives
from semppl_jax.memory import pseudo_labels
from semppl_jax.train import schedules
from tests.before import label_queue, objective, passes, structs
from tests.before import networks as networks_lib
from tests.before.train_state import TrainState

Metrics = dict[str, jax.Array]


class Setup(NamedTuple):
  """What is fixed for a whole run: nothing here is traced."""

  cfg: ml_collections.FrozenConfigDict
  nets: networks_lib.Networks
  optimizer: optax.GradientTransformation  # without its learning rate
  total_steps: int
  warmup_steps: int
  target_query_steps: int  # in which target projections ask for votes
  # After which negatives of the same pseudo-label are excluded, if at all.
  exclude_after_steps: int
  class_share: np.ndarray | None  # [K] of the labels, for balanced votes


class Keys(NamedTuple):
  """Randomness of one step, by the image's place in the global batch."""

  places: jax.Array  # [b] int32, places of this device's images
  views: jax.Array  # [b] keys
  negatives: jax.Array  # [b] keys
  positives: jax.Array  # [B] keys, of all images: every device draws for all


class Gathered(NamedTuple):
  """What every device knows: of the whole batch, and the clock."""

  targets: jax.Array  # [V_L, B, d] target projections, unit vectors
  labels: jax.Array  # [B] int32, -1: unlabelled
  ids: jax.Array  # [B] int32
  step: jax.Array  # [] int32


class Part(NamedTuple):
  """A part of the batch: all of it, or one of m that are taken in turn.

  b and B are those of the part here, on one device and on all.
  """

  batch: structs.Batch  # b images, not their views: see `make_views`
  targets: jax.Array  # [V_L, b, d] target projections, unit vectors
  ids: jax.Array  # [B] int32, of all devices' images
  keys: Keys


def train_step(
  state: TrainState, batch: structs.Batch, base_key: jax.Array, *, setup: Setup
) -> tuple[TrainState, Metrics, jax.Array]:
  """One update on one device's part of the batch.

  With cfg.accumulate = m > 1 the networks see the batch in m parts, one after
  another, and the gradients are averaged: memory for views and activations is
  that of a part. Negatives, the queue and its vote are those of the whole
  batch; what changes is BatchNorm, whose statistics are those of a part on all
  devices. Means over some images only would be means of the parts' means, so
  config.validate and runs.prepare refuse the settings that lead to them.

  Args:
    state: see TrainState.
    batch: b images with their labels and ids; with m parts, leaves [m, b/m].
    base_key: the run's key, the same at every step and on every device.
    setup: networks, optimiser and settings.

  Returns:
    The new state, metrics (scalars, equal on all devices) and the
    pseudo-labels, shaped as batch.labels, int32: where there is a true label,
    that one; -1: none.
  """
  cfg = setup.cfg
  shape = batch.labels.shape
  if cfg.accumulate == 1:
    batch = jax.tree.map(lambda x: x[None], batch)  # leaves [1, b, ...]
  keys = step_keys(base_key, state.step, batch.labels.shape)

  # Target network: large views only. Its projections are every loss's
  # candidates and, where the image is labelled, the queue's newest entries.
  def look(bn_state, part):
    return _look(state.target_params, bn_state, *part, setup)

  target_state, _, targets = passes.in_turn(
    look, state.target_state, (batch, keys.views)
  )  # [m, V_L, b, d]
  everyone = _tell_everyone(targets, batch, state.step)
  # Push before the vote: the batch's own labelled images are the freshest
  # neighbours there are.
  queue = label_queue.push(
    state.queue, everyone.targets, everyone.labels, everyone.ids
  )

  # Online network: all views. The vote, the positives and the losses follow.
  def learn(bn_state, part):
    grads, aux = jax.grad(loss_fn, has_aux=True)(
      state.online_params, bn_state, part, queue, everyone, setup
    )
    bn_state, metrics, labels = aux
    return bn_state, (grads, metrics), labels

  online_state, averaged, (labels, all_labels) = passes.in_turn(
    learn,
    state.online_state,
    Part(
      batch,
      targets,
      ids=everyone.ids.reshape(len(targets), -1),
      keys=keys,
    ),
  )
  grads, metrics = parallel.mean(averaged)

  # The optimiser's update; then the target network follows the online one.
  updated, rates = apply_gradients(state, grads, setup)
  metrics |= rates | {
    'queue_fill': label_queue.fill(queue),
    'embedding_std': passes.spread(everyone.targets),
    'top_label_share': pseudo_labels.top_share(
      jnp.where(everyone.labels < 0, all_labels.reshape(-1), -1)
    ),
  }
  new_state = updated._replace(
    step=state.step + 1,
    online_state=online_state,
    target_state=target_state,
    queue=queue,
  )
  return new_state, metrics, labels.reshape(shape)


def _tell_everyone(
  targets: jax.Array, batch: structs.Batch, step: jax.Array
) -> Gathered:
  """The whole batch, in its order, from all devices' parts.

  Args:
    targets: [m, V_L, b, d], of m parts of the batch.
    batch: leaves [m, b, ...].
    step: [] int32.
  """
  joined = parallel.gather(targets, axis=2)  # [m, V_L, B/m, d]
  return Gathered(
    targets=jnp.concatenate(list(joined), axis=1),  # [V_L, B, d]
    labels=parallel.gather(batch.labels, axis=1).reshape(-1),  # [B]
    ids=parallel.gather(batch.ids, axis=1).reshape(-1),  # [B]
    step=step,
  )


def make_views(
  batch: structs.Batch, keys: jax.Array, setup: Setup
) -> structs.Views:
  """Views of b images: [V_L, b, S, S, 3] and [V_S, b, s, s, 3].

  Both networks' passes make them, equal ones. For a batch in one part the
  compiler merges the two; of several parts the views would be there all at
  once, in float32, if they were kept.
  """
  cfg = setup.cfg
  # In bfloat16 the network sees no more of a pixel than 8 bits.
  low = cfg.precision == 'bfloat16'
  precision = jax.lax.Precision.DEFAULT if low else jax.lax.Precision.HIGHEST
  return views_lib.make_views(
    keys, batch.images, cfg.views, batch.sizes, batch.masks, precision
  )


def _look(
  params: hk.Params,
  bn_state: hk.State,
  batch: structs.Batch,
  keys: jax.Array,
  setup: Setup,
) -> tuple[hk.State, tuple, jax.Array]:
  """What the target network makes of the large views of b images.

  Returns:
    BatchNorm's state, nothing to average, targets [V_L, b, d].
  """
  views = make_views(batch, keys, setup)
  target, bn_state = passes.encode(
      setup.nets.target, params, bn_state, (views.large,),
      one_pass=setup.cfg.views.one_pass,
  )  # fmt: skip
  return bn_state, (), passes.unit(target.projection)


def loss_fn(
  params: hk.Params,
  bn_state: hk.State,
  part: Part,
  queue: label_queue.LabelQueue,
  everyone: Gathered,
  setup: Setup,
) -> tuple[jax.Array, tuple[hk.State, Metrics, tuple[jax.Array, jax.Array]]]:
  """This device's part of the loss; its mean over devices is the loss.

  Returns:
    The loss [], and (BatchNorm state, metrics, (pseudo-)labels of this device's
    images [b] and of all [B]).
  """
  cfg, keys = setup.cfg, part.keys
  views = make_views(part.batch, keys.views, setup)
  outputs, bn_state = passes.encode(
    setup.nets.online, params, bn_state, views, one_pass=cfg.views.one_pass
  )
  online = passes.unit(outputs.prediction)  # [V, b, d]

  # Pseudo-labels: a vote among the nearest labelled images; labels overrule.
  queries = jax.lax.stop_gradient(online[: cfg.views.num_large])
  if setup.target_query_steps:
    # An untrained predictor's predictions lie anywhere: all images would get
    # the label of whatever entry lies next to them.
    early = everyone.step < setup.target_query_steps
    queries = jnp.where(early, part.targets, queries)
  labels, vote_metrics = assign_labels(
    queries, part, queue, everyone, setup
  )  # [b]
  all_labels = parallel.gather(labels)  # [B]

  # Semantic positives: labelled images with the same (pseudo-)label.
  slots, exists = label_queue.sample_positives(
      queue, keys.positives, all_labels,
      num_draws=cfg.loss.num_semantic_positives,
  )  # [B, S], [B]  # fmt: skip
  positives = label_queue.fetch(queue, slots)  # [S, V_L, b, d]
  has_positive = parallel.own(exists)  # [b]

  # Negatives: other images of the global batch, the same in all four terms.
  # Which labels they have matters with exclude_same_label only, and then the
  # part is the whole batch. Wrong early pseudo-labels would take the negatives
  # away that keep classes apart, so at first true labels alone exclude.
  labels_that_exclude = everyone.labels
  if cfg.loss.exclude_same_label:
    late = everyone.step >= setup.exclude_after_steps
    labels_that_exclude = jnp.where(late, all_labels, everyone.labels)
  others, present = negatives.sample(
      keys.negatives, keys.places, labels_that_exclude,
      num_negatives=cfg.loss.num_negatives,
      exclude_same_label=cfg.loss.exclude_same_label,
  )  # [b, n], [b, n]  # fmt: skip
  against = everyone.targets[:, others]  # [V_L, b, n, d]
  scores = lambda chosen: contrastive.scores(
    online, chosen, against, temperature=cfg.loss.temperature, mask=present
  )
  augm = scores(part.targets)  # [V, V_L, b, 1 + n]
  sempos = jax.vmap(scores)(positives)  # [S, V, V_L, b, 1 + n]

  # Losses: per image, then means over the images of all devices that count.
  counted = present.any(axis=-1)  # [b], all True unless negatives are excluded
  parts = objective.terms(augm, sempos, counted, counted & has_positive, cfg)
  loss = objective.weighted_sum(parts, cfg)
  monitor = objective.classifier(
    None if outputs.logits is None else outputs.logits[: cfg.views.num_large],
    part.batch.labels,
    everyone.labels,
  )
  everybody = jnp.ones_like(has_positive)
  metrics = {'loss': loss} | parts | vote_metrics | monitor
  metrics['positive_share'] = parallel.masked_mean(has_positive, everybody)
  total = loss + cfg.classifier.weight * monitor['loss_classifier']
  return total, (bn_state, metrics, (labels, all_labels))


def assign_labels(
  queries: jax.Array,
  part: Part,
  queue: label_queue.LabelQueue,
  everyone: Gathered,
  setup: Setup,
) -> tuple[jax.Array, Metrics]:
  """Votes of the nearest labelled images; a true label overrules them.

  Args:
    queries: [V_L, b, d] embeddings of large views, unit vectors: online
      predictions, or at first target projections.
    part: this device's images, and the ids of all.
    queue: with this batch's labelled images in it.
    everyone: its labels say over how many images means are taken.
    setup: settings, and how often a class should get a vote.

  Returns:
    (Pseudo-)labels [b] int32, -1: none; and metrics. The accuracy on labelled
    images is that of a second look-up, blind to the image's own entries.
  """
  cfg = setup.cfg
  queries = parallel.gather(queries, axis=1)  # [V_L, B, d]
  blind_to = jnp.stack([jnp.full_like(part.ids, -2), part.ids])  # [2, B]
  found = label_queue.nearest(
    queue, queries, blind_to, k=cfg.queue.k, block_size=cfg.queue.block_size
  )  # [2, b, V_L * V_L * k]
  voted, share = pseudo_labels.vote(found.labels, found.similarity)  # [2, b]
  known, all_known = part.batch.labels >= 0, everyone.labels >= 0
  vote, vote_share = voted[0], share[0]
  if cfg.queue.balance:
    # Among all images of the batch, which is why it is not taken in parts.
    balanced = pseudo_labels.balance(
      parallel.gather(found.labels[0]), ~all_known,
      jnp.asarray(setup.class_share), strength=cfg.queue.balance,
    )  # fmt: skip
    vote, vote_share = map(parallel.own, balanced)
  labels = pseudo_labels.assign(
    vote, vote_share, part.batch.labels, cfg.queue.min_share
  )
  mean = parallel.masked_mean
  return labels, {
    'vote_share': mean(vote_share, ~known, ~all_known),
    'pseudo_label_share': mean(labels >= 0, ~known, ~all_known),
    'labelled_vote_accuracy': mean(
      voted[1] == part.batch.labels, known, all_known
    ),
  }


def apply_gradients(
  state: TrainState, grads: hk.Params, setup: Setup
) -> tuple[TrainState, Metrics]:
  """Updates the online network, and the target by its moving average.

  Args:
    state: before the update.
    grads: of the loss, the mean over devices.
    setup: the optimiser gives updates without their learning rate.

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
  )
  updates, opt_state = setup.optimizer.update(
    grads, state.opt_state, state.online_params
  )
  updates = jax.tree.map(lambda u: -rate * u, updates)
  online_params = optax.apply_updates(state.online_params, updates)

  keep = schedules.ema_rate(
    state.step,
    base=cfg.ema.base,
    total_steps=setup.total_steps,
    constant=cfg.ema.constant,
  )
  target_params = optax.incremental_update(
    networks_lib.target_tree(online_params), state.target_params, 1 - keep
  )
  updated = state._replace(
    online_params=online_params,
    target_params=target_params,
    opt_state=opt_state,
  )
  return updated, {
    'grad_norm': optax.tree.norm(grads),
    'learning_rate': rate,
    'ema_rate': keep,
  }


def step_keys(
  base_key: jax.Array, step: jax.Array, shape: tuple[int, int]
) -> Keys:
  """Keys that derive from the run, the step and the place in the batch only.

  So neither a resumed run nor another number of devices changes a draw.

  Args:
    base_key: of the run.
    step: [] int32.
    shape: (m, b): parts of the batch, and this device's images in each.

  Returns:
    Keys with a leading axis of the m parts.
  """
  fold = jax.random.fold_in
  step_key = fold(base_key, step)
  parts, per_device = shape
  in_part = per_device * parallel.size()  # B
  every = jax.vmap(lambda i: fold(step_key, i))(
    jnp.arange(parts * in_part)
  ).reshape(parts, in_part)
  begins = in_part * jnp.arange(parts)[:, None]  # [m, 1]
  places = begins + parallel.places(per_device)  # [m, b]
  mine = every[:, parallel.places(per_device)]  # [m, b]
  purpose = jax.vmap(jax.vmap(fold, in_axes=(0, None)), in_axes=(0, None))
  return Keys(
    places=places,
    views=purpose(mine, 0),
    negatives=purpose(mine, 1),
    positives=purpose(every, 2),
  )
