"""SemPPL: Semantic Positives via Pseudo-Labels (Bosnjak et al., ICLR 2023).

Labelled images' target projections stand in a queue. An image's nearest ones
vote on its label; images of the queue with that label are further positives.
The losses are ReLICv2's (arXiv 2201.05119), the networks and the target update
BYOL's (arXiv 2006.07733). Settings of it are

  ReLICv2: loss.alpha = 0 and loss.semantic_invariance_weight = 0
  multi-crop contrastive learning: loss.invariance_weight = 0 besides
  FNC's rule (arXiv 2011.11765): negatives.cancel = similarity, .attract

Shapes: V = V_L + V_S large and small views; S draws of semantic positives; n
negatives; C slots of the queue; others as in `base`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict

from semppl_jax.config import defaults
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import contrastive, dense, false_negatives, negatives
from semppl_jax.losses.false_negatives import FalseNegatives
from semppl_jax.memory import label_queue, pseudo_labels, queue_vote
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.methods import base
from semppl_jax.models.multicrop import l2_normalize

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
      similar, told = _find_similar(targets, inputs, cfg, facts)

    # Semantic positives: labelled images with the same (pseudo-)label.
    if similar is not None and cfg.negatives.attract:
      positives = _similar_positives(inputs.shared, similar)
    elif cfg.loss.semantic_positives == 'nearest':
      positives = _nearest_positives(targets, all_labels, inputs, queue, cfg)
    else:
      positives = _drawn_positives(all_labels, inputs, queue, cfg)

    # Negatives: other images of the global batch, the same in all four terms.
    excluding = _labels_that_exclude(all_labels, inputs.batch, cfg, facts)
    contrast = _against_sampled if cfg.loss.num_negatives else _against_all
    per_image, counted = contrast(
      online, targets, positives.embeddings, excluding, similar, inputs, cfg
    )

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
  chance = math.log(1 + _num_negatives(cfg))
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
    scratch=_scratch(cfg),
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
  positives: jax.Array,
  excluding: jax.Array,
  similar: FalseNegatives | None,
  inputs: base.Inputs,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[PerImage, jax.Array]:
  """The terms against n other images, drawn for each.

  Args:
    online: [V, b, d].
    targets: [V_L, b, d].
    positives: [S, V_L, b, d].
    excluding: [B] labels by which images are left out, if they are.
    similar: others that are left out.
    inputs: all images' targets, and keys.
    cfg: settings.

  Returns:
    The terms; and [b] bool, whether an image has a negative at all.
  """
  keys = inputs.keys.fold(_NEGATIVES).local, inputs.keys.index
  number = {'num_negatives': _num_negatives(cfg)}
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
  return _per_image(terms, targets, positives), counted


def _against_all(
  online: jax.Array,
  targets: jax.Array,
  positives: jax.Array,
  excluding: jax.Array,
  similar: FalseNegatives | None,
  inputs: base.Inputs,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[PerImage, jax.Array]:
  """The terms against all other images; as `_against_sampled`."""
  index, total = inputs.keys.index, len(excluding)
  mask = index[:, None] != jnp.arange(total)  # [b, B]
  if cfg.negatives.cancel == 'label':
    own = excluding[index][:, None]
    mask &= (own < 0) | (own != excluding)
  if similar is not None:
    mask &= ~similar.table(total)
  form = {'stop_gradient': cfg.loss.stop_gradient}
  scale = {'temperature': cfg.loss.temperature}
  against = dense.negatives(
    online,
    inputs.shared,
    mask,
    block_size=cfg.negatives.block_size,
    **form,
    **scale,
  )

  def terms(chosen):  # [V_L, b, d]
    logits = dense.positive_logits(online, chosen, **scale)  # [V, V_L, b]
    invariance = dense.invariance(logits[: len(targets)], against, **form)
    return dense.info_nce(logits, against), invariance

  return _per_image(terms, targets, positives), mask.any(axis=-1)


def _per_image(
  terms: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
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


# Options: who is left out, and other positives. ------------------------------


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
  if cfg.negatives.cancel != 'label':
    return batch.labels
  # Then the batch is not taken in parts: all_labels are those of all of it.
  late = batch.step >= facts.steps(cfg.negatives.cancel_after_epochs)
  return jnp.where(late, all_labels, batch.labels)


def _find_similar(
  targets: jax.Array,
  inputs: base.Inputs,
  cfg: ml_collections.FrozenConfigDict,
  facts: base.RunFacts,
) -> tuple[FalseNegatives, base.Metrics]:
  """False negatives among the images of the batch, by target projections.

  The score of another image is the largest cosine of a view of its with a view
  of this one. At first there are none, as with pseudo-labels.

  Args:
    targets: [V_L, b, d] of this device's images.
    inputs: those of all images, and the step.
    cfg: settings.
    facts: of the run.

  Returns:
    Places in the batch; and metrics: their mean number and, if all images have
    labels, the share of those with the image's.
  """
  scores = functools.reduce(
    jnp.maximum,
    [false_negatives.similarity(targets, view) for view in inputs.shared],
  )  # [b, B]
  own = inputs.keys.index[:, None] == jnp.arange(scores.shape[1])
  similar = base.find_false_negatives(scores, own, cfg)
  late = inputs.batch.step >= facts.steps(cfg.negatives.cancel_after_epochs)
  similar = similar._replace(mask=similar.mask & late)
  number = similar.mask.sum(axis=1)  # [b]
  told = {'false_negatives': number.mean(dtype=jnp.float32)}
  # Of few labels hardly a pair would be known; and the parts of a batch do not
  # know how many there are.
  if facts.num_labels == facts.num_images and cfg.accumulate == 1:
    mine, theirs = inputs.labels[:, None], inputs.batch.labels[similar.index]
    known = similar.mask & (mine >= 0) & (theirs >= 0)  # [b, k]
    told['false_negative_precision'] = parallel.masked_mean(
      (mine == theirs).ravel(), known.ravel()
    )
  return similar, told


def _similar_positives(shared: jax.Array, similar: FalseNegatives) -> Positives:
  """All false negatives, by their targets among those of the batch."""
  embeddings = shared[:, similar.index]  # [V_L, b, k, d]
  return Positives(
    jnp.moveaxis(embeddings, 2, 0), similar.mask.any(axis=1), similar.mask.T
  )


def _nearest_positives(
  targets: jax.Array,
  all_labels: jax.Array,
  inputs: base.Inputs,
  queue: LabelQueue,
  cfg: ml_collections.FrozenConfigDict,
) -> Positives:
  """The queue's images with the label that are nearest to the image.

  As CMSF takes them: the S entries with the largest cosine of a view with a
  view, fewer if there are fewer. The image's own entries, whose cosine is
  about 1, are none of them.

  Args:
    targets: [V_L, b, d] of this device's images.
    all_labels: [B] (pseudo-)labels, -1: none.
    inputs: the images' ids.
    queue: with this batch's labelled images in it.
    cfg: settings.
  """
  number = cfg.loss.num_semantic_positives
  found = label_queue.nearest(
    queue,
    parallel.all_gather(targets, axis=1),
    inputs.ids[None],
    k=number,
    block_size=cfg.queue.block_size,
    wanted=all_labels[None],
  )  # [1, b, V_L * V_L * S]
  slots = label_queue.best_slots(found, number)[0]  # [b, S]
  # Without a label every entry was wanted.
  slots = jnp.where(parallel.local_slice(all_labels)[:, None] < 0, -1, slots)
  rows = label_queue.fetch(queue, parallel.all_gather(slots))
  return Positives(rows, (slots >= 0).any(axis=1), slots.T >= 0)


def _num_negatives(cfg: ml_collections.FrozenConfigDict) -> int:
  """n: in a small batch, and if it is 0, all other images are negatives."""
  others = cfg.batch_size - 1
  return min(cfg.loss.num_negatives or others, others)


def _scratch(cfg: ml_collections.FrozenConfigDict) -> base.Scratch | None:
  """A block's logits with all images, about four such arrays."""
  if cfg.loss.num_negatives:
    return None
  views = cfg.views.num_large + cfg.views.num_small
  logits = views * cfg.views.num_large * cfg.batch_size
  images = min(cfg.negatives.block_size, cfg.batch_size)
  return base.Scratch('negatives.block_size', images, 4 * 4 * logits)


# Settings. -----------------------------------------------------------------


def default() -> ml_collections.ConfigDict:
  """SemPPL's own sections; the paper's numbers are those of ImageNet."""
  cfg = ml_collections.ConfigDict()
  cfg.loss = {
    'contrastive_weight': 0.3,  # c, of both contrastive terms [ours]
    'alpha': 0.2,  # weight of the semantic positives [ours]
    'invariance_weight': 5.0,  # lambda, of views of one image [ours]
    'temperature': 0.2,  # tau, divides the similarities [ours]
    # Other images of the batch, for each; 0: all, see negatives.block_size
    # [ours]
    'num_negatives': 10,
    'num_semantic_positives': 3,  # drawn for each image [ours]
    # Which labelled images of the class: uniform, drawn at random; or nearest,
    # those most similar to the image
    'semantic_positives': 'uniform',
    # Form of the invariance: entropy (ReLICv2's), or teacher [ours]
    'stop_gradient': 'entropy',
  }
  # lambda_s, of semantic positives; None: as invariance_weight [ours]
  cfg.loss.semantic_invariance_weight = config_dict.placeholder(float)
  cfg.negatives = base.negatives_section()
  # So many epochs true labels alone cancel, and none do by similarity, for
  # pseudo-labels and embeddings are wrong at first [ours]
  cfg.negatives.cancel_after_epochs = 0.0
  # Images whose logits with all others are there at once, if all are negatives:
  # bounds the temporary memory
  cfg.negatives.block_size = 64
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


RANGES = (
  base.PROJECTOR_RANGES
  | base.NEGATIVES_RANGES
  | {
    'loss.contrastive_weight': (0, None),
    'loss.alpha': (0, None),
    'loss.invariance_weight': (0, None),
    'loss.num_negatives': (0, None),
    'loss.num_semantic_positives': (1, None),
    'negatives.cancel_after_epochs': (0, None),
    'negatives.block_size': (1, None),
    'queue.capacity': (1, None),
    'queue.k': (1, None),
    'queue.block_size': (1, None),
    'queue.min_share': (0, 1),
    'queue.target_query_epochs': (0, None),
    'queue.balance': (0, 1),
  }
)
CHOICES = {
  'loss.stop_gradient': contrastive.STOP_GRADIENTS,
  'loss.semantic_positives': ('uniform', 'nearest'),
  'negatives.cancel': ('none', 'label', 'similarity'),
}


def semantic_invariance_weight(cfg: ml_collections.ConfigDict) -> float:
  """lambda_s: its own value, or lambda where it is None."""
  own = cfg.loss.semantic_invariance_weight
  return cfg.loss.invariance_weight if own is None else own


def uses_semantic_positives(cfg: ml_collections.ConfigDict) -> bool:
  """Whether a semantic term is on."""
  alpha = cfg.loss.contrastive_weight * cfg.loss.alpha
  return alpha > 0 or semantic_invariance_weight(cfg) > 0


def needs_labels(cfg: ml_collections.ConfigDict) -> bool:
  """Whether labels choose the semantic positives of a term that is on."""
  return uses_semantic_positives(cfg) and not cfg.negatives.attract


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of SemPPL that cannot work, alone or together."""
  base.check_above_zero(cfg, 'loss.temperature')
  if not semantic_invariance_weight(cfg) >= 0:
    raise UserError(
      'loss.semantic_invariance_weight is '
      f'{cfg.loss.semantic_invariance_weight}; it must be at least 0.'
    )
  if needs_labels(cfg) and not defaults.uses_labels(cfg):
    raise UserError(
      'labels.per_class, .fraction, .file and .subset are not set, but a '
      'semantic term is on: set one of them, or loss.alpha=0 and '
      'loss.semantic_invariance_weight=0 (ReLICv2, which needs no labels; '
      'semppl-jax select then names images to label).'
    )
  base.check_negatives(cfg)
  nearest = cfg.loss.semantic_positives == 'nearest'
  if nearest and cfg.negatives.attract:
    raise UserError(
      "loss.semantic_positives is 'nearest', but with negatives.attract=True "
      'semantic positives are the false negatives: set one of them back.'
    )
  if cfg.queue.capacity % num_devices:
    raise UserError(
      f'queue.capacity {cfg.queue.capacity} is not a multiple of the '
      f'{num_devices} devices that share it.'
    )
  if cfg.accumulate > 1:
    _check_parts(cfg)


def _check_parts(cfg: ml_collections.ConfigDict) -> None:
  """Refuses what needs the whole batch at once, of a batch taken in parts."""
  mean = 'in the whole batch for the mean of the semantic terms'
  cancel, nearest = cfg.negatives.cancel, cfg.loss.semantic_positives
  for is_on, key, needs in (
    (
      cancel == 'label',
      'negatives.cancel=label',
      'the pseudo-labels of the whole batch at once',
    ),
    (
      cancel == 'similarity' and cfg.negatives.quantile,
      'negatives.quantile',
      'the similarities of the whole batch at once',
    ),
    (
      cfg.negatives.attract,
      'negatives.attract',
      f'the number of images with a false negative {mean}',
    ),
    (
      nearest == 'nearest',
      'loss.semantic_positives=nearest',
      f'the number of images with a semantic positive {mean}',
    ),
    (
      cfg.queue.balance,
      'queue.balance',
      'the votes of the whole batch at once',
    ),
    (
      cfg.queue.min_share,
      'queue.min_share',
      f'the number of pseudo-labels {mean}',
    ),
  ):
    if is_on:
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
  if too_many and needs_labels(cfg):
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
  if needs_labels(cfg) and facts.num_labels:
    yield from base.queue_doubts(cfg, facts)


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
