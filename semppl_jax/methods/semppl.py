"""SemPPL: Semantic Positives via Pseudo-Labels (Bosnjak et al., ICLR 2023).

Labelled images' target projections stand in a queue. An image's nearest ones
vote on its label; images of the queue with that label are further positives.
The losses are ReLICv2's (arXiv 2201.05119), the networks and the target update
BYOL's (arXiv 2006.07733). Settings of it are

  ReLICv2: loss.alpha = 0 and loss.semantic_invariance_weight = 0
  multi-crop contrastive learning: loss.invariance_weight = 0 besides
  FNC's rule (arXiv 2011.11765): negatives.cancel = similarity, .attract

Other negatives and positives than the paper's are in `semppl_options`, settings
and what they cannot be in `semppl_settings`.

Shapes: V = V_L + V_S large and small views; S draws of semantic positives; n
negatives; C slots of the queue; others as in `base`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax.distributed import parallel
from semppl_jax.losses import contrastive, negatives
from semppl_jax.losses.false_negatives import FalseNegatives
from semppl_jax.memory import label_queue, pseudo_labels, queue_vote
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.methods import base
from semppl_jax.methods import semppl_options as options
from semppl_jax.methods.semppl_settings import (
  CHOICES,
  RANGES,
  advice,
  default,
  doubts,
  needs_labels,
  num_negatives,
  scratch,
  semantic_invariance_weight,
  uses_semantic_positives,
  validate,
  validate_with_data,
)
from semppl_jax.models.multicrop import l2_normalize

__all__ = [
  'CHOICES',
  'RANGES',
  'PerImage',
  'Positives',
  'advice',
  'assign_labels',
  'build',
  'default',
  'doubts',
  'loss_terms',
  'needs_labels',
  'predict',
  'semantic_invariance_weight',
  'uses_semantic_positives',
  'validate',
  'validate_with_data',
  'weighted_sum',
]

_NEGATIVES, _POSITIVES = 1, 2  # purposes of randomness


def build(
  cfg: ml_collections.FrozenConfigDict,
  facts: base.RunFacts,
  *,
  assign: Callable[..., tuple[jax.Array, base.Metrics]] | None = None,
) -> base.Method:
  """SemPPL's heads, queue and loss.

  Args:
    cfg: settings.
    facts: of the run.
    assign: gives (pseudo-)labels, called as `assign_labels`, which it replaces:
      a benchmark may put the truth in place of the vote.
  """
  assign = assign or assign_labels
  large = cfg.views.num_large

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
    labels, votes = assign(queries, inputs, queue, cfg, facts)  # [b]
    all_labels = parallel.all_gather(labels)  # [B]

    # Other images of the batch that look like the image, if they are asked for.
    similar, told = None, {}
    if cfg.negatives.cancel == 'similarity':
      similar, told = options.find_similar(targets, inputs, cfg, facts)

    # Semantic positives: labelled images with the same (pseudo-)label.
    if similar is not None and cfg.negatives.attract:
      positives = Positives(*options.similar_positives(inputs.shared, similar))
    elif cfg.loss.semantic_positives == 'nearest':
      positives = Positives(
        *options.nearest_positives(targets, all_labels, inputs, queue, cfg)
      )
    else:
      positives = _drawn_positives(all_labels, inputs, queue, cfg)

    # Negatives: other images of the global batch, the same in all four terms.
    excluding = options.labels_that_exclude(
      all_labels, inputs.batch, cfg, facts
    )
    against = _against_sampled
    if not cfg.loss.num_negatives:
      against = options.against_all
    contrast, counted = against(
      online, targets, excluding, similar, inputs, cfg
    )
    per_image = _per_image(contrast, targets, positives.embeddings)

    # Four terms, each a mean over all devices' images that have what it needs.
    terms = loss_terms(per_image, positives, counted)
    exists = positives.exists
    share = parallel.masked_mean(exists, jnp.ones_like(exists))
    metrics = terms | votes | told | {
      'positive_share': share,
      'queue_fill': label_queue.fill(queue),
    }  # fmt: skip
    return base.Result(weighted_sum(terms, cfg), metrics, labels)

  learns = cfg.loss.contrastive_weight > 0
  chance = math.log(1 + num_negatives(cfg))
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
    chance={'loss/augmentation': chance} if learns else {},
    labels_train=needs_labels(cfg),
    advice=advice(cfg),
    scratch=scratch(cfg),
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
  return queue_vote.assign_labels(
    queue,
    parallel.all_gather(queries, axis=1),
    inputs.labels,
    inputs.ids,
    inputs.batch.labels,
    k=cfg.queue.k,
    block_size=cfg.queue.block_size,
    min_share=cfg.queue.min_share,
    balance=cfg.queue.balance,
    class_share=facts.class_share,
  )


class Positives(NamedTuple):
  """S semantic positives of every image."""

  embeddings: jax.Array  # [S, V_L, b, d] unit target projections
  exists: jax.Array  # [b] bool: there is one
  # [S, b] bool, False: this place is empty; None: all are there, or none
  mask: jax.Array | None = None


class PerImage(NamedTuple):
  """The terms before their means over images."""

  augmentation: jax.Array  # [b] of L_augm
  semantic: jax.Array  # [S, b] of L_sempos
  augmentation_invariance: jax.Array  # [b]
  semantic_invariance: jax.Array  # [S, b]


def _drawn_positives(
  all_labels: jax.Array,
  inputs: base.Inputs,
  queue: LabelQueue,
  cfg: ml_collections.FrozenConfigDict,
) -> Positives:
  """Draws from the queue's images with the (pseudo-)label [B], uniformly."""
  slots, exists = label_queue.sample_positives(
    queue,
    inputs.keys.fold(_POSITIVES).batch,
    all_labels,
    num_draws=cfg.loss.num_semantic_positives,
  )  # [B, S], [B]
  positives = label_queue.fetch(queue, slots)  # [S, V_L, b, d]
  return Positives(positives, parallel.local_slice(exists))


def _against_sampled(
  online: jax.Array,
  targets: jax.Array,
  excluding: jax.Array,
  similar: FalseNegatives | None,
  inputs: base.Inputs,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[options.Contrast, jax.Array]:
  """The terms against n other images, drawn for each.

  Args:
    online: [V, b, d].
    targets: [V_L, b, d].
    excluding: [B] labels by which images are left out, if they are.
    similar: others that are left out.
    inputs: all images' targets, and keys.
    cfg: settings.

  Returns:
    Terms of positives, see `options.Contrast`; and [b] bool, whether an image
    has a negative at all.
  """
  keys = inputs.keys.fold(_NEGATIVES).local, inputs.keys.index
  number = {'num_negatives': num_negatives(cfg)}
  if similar is None:
    same = cfg.negatives.cancel == 'label'
    others, present = negatives.sample(
      *keys, excluding, exclude_same_label=same, **number
    )  # [b, n], [b, n]
  else:
    others, present = negatives.sample_without(
      *keys, *similar, batch_size=len(excluding), **number
    )
  against = inputs.shared[:, others]  # [V_L, b, n, d]

  def terms(chosen):  # [V_L, b, d]
    logits = contrastive.similarity_logits(
      online, chosen, against, temperature=cfg.loss.temperature, mask=present
    )  # [V, V_L, b, 1 + n]
    invariance = contrastive.invariance(
      logits[: len(targets)], stop_gradient=cfg.loss.stop_gradient
    )
    return contrastive.info_nce(logits), invariance

  # All True unless some are excluded.
  counted = present.any(axis=-1)  # [b]
  return terms, counted


def _per_image(
  terms: options.Contrast,
  targets: jax.Array,
  positives: jax.Array,
) -> PerImage:
  (augm, invariance), (sempos, semantic_invariance) = (
    terms(targets), jax.vmap(terms)(positives)
  )  # fmt: skip
  return PerImage(augm, sempos, invariance, semantic_invariance)


def loss_terms(
  per_image: PerImage, positives: Positives, counted: jax.Array
) -> base.Metrics:
  """The four terms, each a mean over the images that have what it needs.

  Args:
    per_image: of this device's images.
    positives: which of them there are.
    counted: [b] bool, images with a negative.

  Returns:
    The terms of `weighted_sum`, parts of the global means.
  """
  mean = parallel.masked_mean
  semantic = counted & positives.exists

  def over_positives(x):  # [S, b] -> [b]
    if positives.mask is None:
      return x.mean(axis=0)
    there = positives.mask
    return jnp.sum(x * there, axis=0) / jnp.maximum(there.sum(axis=0), 1)

  return {
    'loss/augmentation': mean(per_image.augmentation, counted),
    'loss/semantic': mean(over_positives(per_image.semantic), semantic),
    'invariance/augmentation': mean(per_image.augmentation_invariance, counted),
    'invariance/semantic': mean(
      over_positives(per_image.semantic_invariance), semantic
    ),
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
