"""SemPPL: Semantic Positives via Pseudo-Labels (Bosnjak et al., ICLR 2023).

Labelled images' target projections stand in a queue. An image's nearest ones
vote on its label; images of the queue with that label are further positives.
The losses are ReLICv2's (arXiv 2201.05119), the networks and the target update
BYOL's (arXiv 2006.07733). Settings of it are

  ReLICv2: loss.alpha = 0 and loss.semantic_invariance_weight = 0
  multi-crop contrastive learning: loss.invariance_weight = 0 besides

Shapes: V = V_L + V_S large and small views; S draws of semantic positives; n
negatives; C slots of the queue; others as in `base`.
"""

import functools
import math
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict

from semppl_jax.config import checks, defaults
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import contrastive, negatives
from semppl_jax.memory import label_queue, pseudo_labels
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.methods import base
from semppl_jax.models.multicrop import l2_normalize

_NEGATIVES, _POSITIVES = 1, 2  # purposes of randomness


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """SemPPL's heads, queue and loss."""
  large = cfg.views.num_large
  # In a small batch all other images are negatives.
  num_negatives = min(cfg.loss.num_negatives, cfg.batch_size - 1)

  # Push before the vote: the batch's own labelled images are the freshest
  # neighbours there are.
  def prepare(queue: LabelQueue, batch: base.BatchWide):
    targets = l2_normalize(batch.target['projection'])  # [V_L, B, d]
    return label_queue.push(queue, targets, batch.labels, batch.ids), targets

  def loss(inputs: base.Inputs, queue: LabelQueue) -> base.Result:
    online = l2_normalize(inputs.online['prediction'])  # [V, b, d]
    targets = l2_normalize(inputs.target['projection'])  # [V_L, b, d]
    dims = base.dimensions(inputs)
    chex.assert_shape(online, dims['Vbd'])
    chex.assert_shape(targets, dims['Wbd'])

    # Pseudo-labels: a vote among the nearest labelled images; labels overrule.
    queries = _queries(online[:large], targets, inputs.batch.step, cfg, facts)
    labels, votes = assign_labels(queries, inputs, queue, cfg, facts)  # [b]
    all_labels = parallel.all_gather(labels)  # [B]

    # Semantic positives: labelled images with the same (pseudo-)label.
    slots, exists = label_queue.sample_positives(
      queue,
      inputs.keys.fold(_POSITIVES).batch,
      all_labels,
      num_draws=cfg.loss.num_semantic_positives,
    )  # [B, S], [B]
    positives = label_queue.fetch(queue, slots)  # [S, V_L, b, d]
    has_positive = parallel.local_slice(exists)  # [b]

    # Negatives: other images of the global batch, the same in all four terms.
    others, present = negatives.sample(
      inputs.keys.fold(_NEGATIVES).local,
      inputs.keys.index,
      _labels_that_exclude(all_labels, inputs.batch, cfg, facts),  # [B]
      num_negatives=num_negatives,
      exclude_same_label=cfg.loss.exclude_same_label,
    )  # [b, n], [b, n]
    against = inputs.shared[:, others]  # [V_L, b, n, d]
    logits = lambda chosen: contrastive.similarity_logits(
      online, chosen, against, temperature=cfg.loss.temperature, mask=present
    )
    augm = logits(targets)  # [V, V_L, b, 1 + n]
    sempos = jax.vmap(logits)(positives)  # [S, V, V_L, b, 1 + n]

    # Four terms, each a mean over all devices' images that have what it needs.
    counted = present.any(axis=-1)  # [b], all True unless some are excluded
    terms = loss_terms(augm, sempos, counted, counted & has_positive, cfg)
    share = parallel.masked_mean(has_positive, jnp.ones_like(has_positive))
    metrics = terms | votes | {
      'positive_share': share,
      'queue_fill': label_queue.fill(queue),
    }  # fmt: skip
    return base.Result(weighted_sum(terms, cfg), metrics, labels)

  learns = cfg.loss.contrastive_weight > 0
  return base.Method(
    heads=base.projector_predictor(cfg),
    loss=loss,
    target_views=base.large_views,
    init=lambda: label_queue.init(
      large, cfg.queue.capacity, cfg.projector.size
    ),
    prepare=prepare,
    shards=label_queue.SHARDS,
    predict=functools.partial(predict, cfg=cfg),
    queue=lambda queue: queue,
    embedding='projection' if learns or cfg.loss.invariance_weight else None,
    chance={'loss/augmentation': math.log(1 + num_negatives)} if learns else {},
    labels_train=uses_semantic_positives(cfg),
    advice=advice(cfg),
  )


def _queries(
  predictions: jax.Array,
  targets: jax.Array,
  step: jax.Array,
  cfg: ml_collections.FrozenConfigDict,
  facts: base.RunFacts,
) -> jax.Array:
  """What looks up neighbours, [V_L, b, d]: online predictions.

  At first target projections, if the config says so: an untrained predictor's
  predictions lie anywhere, and all images would get the label of whatever entry
  lies next to them.
  """
  queries = jax.lax.stop_gradient(predictions)
  early_steps = facts.steps(cfg.queue.target_query_epochs)
  if not early_steps:
    return queries
  return jnp.where(step < early_steps, targets, queries)


def assign_labels(
  queries: jax.Array,
  inputs: base.Inputs,
  queue: LabelQueue,
  cfg: ml_collections.FrozenConfigDict,
  facts: base.RunFacts,
) -> tuple[jax.Array, base.Metrics]:
  """Votes of the nearest labelled images; a true label overrules them.

  Args:
    queries: [V_L, b, d] embeddings of large views, unit vectors.
    inputs: this device's labels, all ids, and the labels of the whole batch.
    queue: with this batch's labelled images in it.
    cfg: settings.
    facts: how often a class should get a vote, if votes are balanced.

  Returns:
    (Pseudo-)labels [b] int32, -1: none; and metrics. The accuracy on labelled
    images is that of a second look-up, blind to the image's own entries.
  """
  queries = parallel.all_gather(queries, axis=1)  # [V_L, B, d]
  blind_to = jnp.stack([jnp.full_like(inputs.ids, -2), inputs.ids])  # [2, B]
  found = label_queue.nearest(
    queue, queries, blind_to, k=cfg.queue.k, block_size=cfg.queue.block_size
  )  # [2, b, V_L * V_L * k]
  voted, share = pseudo_labels.vote(found.labels, found.similarity)  # [2, b]
  known, all_known = inputs.labels >= 0, inputs.batch.labels >= 0
  vote, vote_share = voted[0], share[0]
  if cfg.queue.balance:
    # Among all images of the batch, which is why it is not taken in parts.
    balanced = pseudo_labels.balance(
      parallel.all_gather(found.labels[0]),
      ~all_known,
      jnp.asarray(facts.class_share),
      strength=cfg.queue.balance,
    )
    vote, vote_share = map(parallel.local_slice, balanced)
  labels = pseudo_labels.assign(
    vote, vote_share, inputs.labels, cfg.queue.min_share
  )
  mean = parallel.masked_mean
  return labels, {
    'vote_share': mean(vote_share, ~known, ~all_known),
    'labelled_vote_accuracy': mean(voted[1] == inputs.labels, known, all_known),
  }


def _labels_that_exclude(
  all_labels: jax.Array,
  batch: base.BatchWide,
  cfg: ml_collections.FrozenConfigDict,
  facts: base.RunFacts,
) -> jax.Array:
  """[B] labels by which negatives are excluded, if they are.

  Wrong early pseudo-labels would take the negatives away that keep classes
  apart, so at first true labels alone exclude.
  """
  if not cfg.loss.exclude_same_label:
    return batch.labels
  # Then the batch is not taken in parts: all_labels are those of all of it.
  late = batch.step >= facts.steps(cfg.loss.exclude_after_epochs)
  return jnp.where(late, all_labels, batch.labels)


def loss_terms(
  augm: jax.Array,
  sempos: jax.Array,
  counted: jax.Array,
  counted_sempos: jax.Array,
  cfg: ml_collections.FrozenConfigDict,
) -> base.Metrics:
  """The four terms, each a mean over the images that have what it needs.

  Args:
    augm: [V, V_L, b, 1 + n] logits of the image's own views and negatives.
    sempos: [S, V, V_L, b, 1 + n] the same with S draws of semantic positives.
    counted: [b] bool, images with a negative.
    counted_sempos: [b] bool, those of them with a semantic positive.
    cfg: settings.

  Returns:
    The terms of `weighted_sum`, parts of the global means.
  """
  large = cfg.views.num_large
  invariance = lambda x: contrastive.invariance(
    x[:large], stop_gradient=cfg.loss.stop_gradient
  )
  over_draws = lambda f: jax.vmap(f)(sempos).mean(axis=0)  # [b]
  mean = parallel.masked_mean
  return {
    'loss/augmentation': mean(contrastive.info_nce(augm), counted),
    'loss/semantic': mean(over_draws(contrastive.info_nce), counted_sempos),
    'invariance/augmentation': mean(invariance(augm), counted),
    'invariance/semantic': mean(over_draws(invariance), counted_sempos),
  }


def weighted_sum(
  terms: base.Metrics, cfg: ml_collections.FrozenConfigDict
) -> jax.Array:
  """L = c (L_augm + alpha L_sempos) + lambda I_augm + lambda_s I_sempos."""
  both = terms['loss/augmentation'] + cfg.loss.alpha * terms['loss/semantic']
  return (
    cfg.loss.contrastive_weight * both
    + cfg.loss.invariance_weight * terms['invariance/augmentation']
    + semantic_invariance_weight(cfg) * terms['invariance/semantic']
  )


def predict(
  outputs: base.Outputs,
  queue: LabelQueue,
  *,
  cfg: ml_collections.FrozenConfigDict,
) -> jax.Array:
  """[b] int32 labels by a vote in the queue; -1: it is empty.

  The target network, which does not predict, looks up by its projection.
  """
  found = outputs.get('prediction', outputs['projection'])
  queries = parallel.all_gather(l2_normalize(found), axis=1)
  nobody = jnp.full((1, queries.shape[1]), -2, jnp.int32)
  found = label_queue.nearest(
    queue, queries, nobody, k=cfg.queue.k, block_size=cfg.queue.block_size
  )  # [1, b, V_L * k]
  return pseudo_labels.vote(found.labels[0], found.similarity[0])[0]


# Settings. -----------------------------------------------------------------


def default() -> ml_collections.ConfigDict:
  """SemPPL's own sections; the paper's numbers are those of ImageNet."""
  cfg = ml_collections.ConfigDict()
  cfg.loss = {
    'contrastive_weight': 0.3,  # c, of both contrastive terms [ours]
    'alpha': 0.2,  # weight of the semantic positives [ours]
    'invariance_weight': 5.0,  # lambda, of views of one image [ours]
    'temperature': 0.2,  # tau, divides the similarities [ours]
    'num_negatives': 10,  # other images of the batch, for each [ours]
    'num_semantic_positives': 3,  # drawn for each image [ours]
    # Form of the invariance: entropy (ReLICv2's), or teacher [ours]
    'stop_gradient': 'entropy',
    'exclude_same_label': False,  # no negatives of the own (pseudo-)label
    # So many epochs true labels alone exclude, for pseudo-labels are wrong at
    # first [ours]
    'exclude_after_epochs': 0.0,
  }
  # lambda_s, of semantic positives; None: as invariance_weight [ours]
  cfg.loss.semantic_invariance_weight = config_dict.placeholder(float)
  cfg.queue = {
    'capacity': 81_920,  # C = 20 B, labelled images that it holds [ours]
    'k': 1,  # neighbours that vote, for each pair of views [ours]
    'block_size': 1024,  # keys per product: bounds the temporary memory
    'min_share': 0.0,  # of the votes, to get a pseudo-label [ours]
    # So many epochs target projections look up the neighbours: the predictor
    # is untrained, and what it predicts lies anywhere [ours]
    'target_query_epochs': 0.0,
    # How strongly the votes of a batch are scaled until each class has its
    # share of the labels: 0, not at all, to 1; see pseudo_labels.balance
    # [ours]
    'balance': 0.0,
  }
  cfg.projector = base.projector_section()
  cfg.predictor = base.predictor_section()
  return cfg


RANGES = base.PROJECTOR_RANGES | {
  'loss.contrastive_weight': (0, None),
  'loss.alpha': (0, None),
  'loss.invariance_weight': (0, None),
  'loss.num_negatives': (1, None),
  'loss.num_semantic_positives': (1, None),
  'loss.exclude_after_epochs': (0, None),
  'queue.capacity': (1, None),
  'queue.k': (1, None),
  'queue.block_size': (1, None),
  'queue.min_share': (0, 1),
  'queue.target_query_epochs': (0, None),
  'queue.balance': (0, 1),
}
CHOICES = {'loss.stop_gradient': contrastive.STOP_GRADIENTS}


def semantic_invariance_weight(cfg: ml_collections.ConfigDict) -> float:
  """lambda_s: its own value, or lambda where it is None."""
  own = cfg.loss.semantic_invariance_weight
  return cfg.loss.invariance_weight if own is None else own


def uses_semantic_positives(cfg: ml_collections.ConfigDict) -> bool:
  """Whether a semantic term is on: such a run needs labels."""
  alpha = cfg.loss.contrastive_weight * cfg.loss.alpha
  return alpha > 0 or semantic_invariance_weight(cfg) > 0


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of SemPPL that cannot work, alone or together."""
  base.check_above_zero(cfg, 'loss.temperature')
  if not semantic_invariance_weight(cfg) >= 0:
    raise UserError(
      'loss.semantic_invariance_weight is '
      f'{cfg.loss.semantic_invariance_weight}; it must be at least 0.'
    )
  if uses_semantic_positives(cfg) and not defaults.uses_labels(cfg):
    raise UserError(
      'labels.per_class, .fraction, .file and .subset are not set, but a '
      'semantic term is on: set one of them, or loss.alpha=0 and '
      'loss.semantic_invariance_weight=0 (ReLICv2).'
    )
  if cfg.queue.capacity % num_devices:
    raise UserError(
      f'queue.capacity {cfg.queue.capacity} is not a multiple of the '
      f'{num_devices} devices that share it.'
    )
  for key, needs in (
    ('loss.exclude_same_label', 'the pseudo-labels of the whole batch at once'),
    ('queue.balance', 'the votes of the whole batch at once'),
    (
      'queue.min_share',
      'the number of pseudo-labels in the whole batch for the mean of the '
      'semantic terms',
    ),
  ):
    if cfg.accumulate > 1 and checks.look_up(cfg, key):
      raise UserError(
        f'accumulate is {cfg.accumulate}, but {key} needs {needs}: set one of '
        'them back.'
      )


def validate_with_data(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> None:
  """Refuses what cannot work with these labels."""
  natural = min(cfg.batch_size, facts.num_labels)
  most = round(cfg.labels.share * cfg.batch_size) or natural
  too_many = cfg.accumulate > 1 and most > cfg.queue.capacity
  if too_many and uses_semantic_positives(cfg):
    raise UserError(
      f'accumulate is {cfg.accumulate}, but of up to {most} labelled images in '
      f'a batch only queue.capacity {cfg.queue.capacity} find a place, and the '
      'semantic terms are means over the whole batch: set one of them back.'
    )


def doubts(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> Iterator[str]:
  """What can run but can hardly be meant, with these images and labels."""
  others = cfg.batch_size - 1
  if cfg.loss.num_negatives > others:
    yield (
      f'batch_size {cfg.batch_size} has {others} negatives for an image, not '
      f'loss.num_negatives {cfg.loss.num_negatives}: all of them are taken'
    )
  if not uses_semantic_positives(cfg) or not facts.num_labels:
    return
  if (facts.class_share > 0).sum() == 1 < facts.num_classes:
    yield 'all labelled images are of one class'
  share = cfg.labels.share or facts.num_labels / facts.num_images
  passing = int(share * cfg.batch_size * facts.total_steps)
  if passing < cfg.queue.capacity:
    yield (
      f'queue.capacity {cfg.queue.capacity:,} can never fill: about '
      f'{passing:,} labelled images come by in all {facts.total_steps:,} steps'
    )


def advice(cfg: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Settings that keep one pseudo-label from taking over, and are not on.

  docs/trials.md says which of them were tried, and where.
  """
  whole = cfg.accumulate == 1  # what needs all votes of a batch
  ways = {
    'queue.balance=1': whole and cfg.queue.balance == 0,
    'labels.share=0.25': cfg.labels.share == 0,
    'queue.target_query_epochs=6': cfg.queue.target_query_epochs == 0,
    'loss.alpha=0.2': cfg.loss.alpha > 0.2,
    'queue.k=5': cfg.queue.k == 1,
    'queue.min_share=0.5': whole and cfg.queue.min_share == 0,
  }
  return tuple(way for way, is_off in ways.items() if is_off)
