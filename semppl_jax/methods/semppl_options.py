"""SemPPL's options: other negatives, and other positives.

What the paper has stands in `semppl`: negatives drawn among all other images,
positives drawn among the images with the label. Here stands what may take their
place: images left out of the negatives by their label or by similarity, all
images of the batch as negatives, positives that are nearest or without labels.
docs/methods/semppl.md says what becomes of them.

Shapes: as in `semppl`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax.distributed import parallel
from semppl_jax.losses import dense, false_negatives
from semppl_jax.losses.false_negatives import FalseNegatives
from semppl_jax.memory import label_queue
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.methods import base

# Positives [V_L, b, d] -> the contrastive term and the invariance, each [b],
# against negatives that stay the same
Contrast = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def labels_that_exclude(
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


def find_similar(
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


def against_all(
  online: jax.Array,
  targets: jax.Array,
  excluding: jax.Array,
  similar: FalseNegatives | None,
  inputs: base.Inputs,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[Contrast, jax.Array]:
  """The terms against all other images of the global batch.

  Args:
    online: [V, b, d].
    targets: [V_L, b, d].
    excluding: [B] labels by which images are left out, if they are.
    similar: others that are left out.
    inputs: all images' targets, and this device's places among them.
    cfg: settings.

  Returns:
    Terms of positives; and [b] bool, whether an image has a negative at all.
  """
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

  return terms, mask.any(axis=-1)


def similar_positives(
  shared: jax.Array, similar: FalseNegatives
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """All false negatives, by their targets among those of the batch.

  Args:
    shared: [V_L, B, d] target projections.
    similar: k of them for each image, at most.

  Returns:
    What `semppl.Positives` has, of k positives.
  """
  embeddings = shared[:, similar.index]  # [V_L, b, k, d]
  exists = similar.mask.any(axis=1)
  return jnp.moveaxis(embeddings, 2, 0), exists, similar.mask.T


def nearest_positives(
  targets: jax.Array,
  all_labels: jax.Array,
  inputs: base.Inputs,
  queue: LabelQueue,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[jax.Array, jax.Array, jax.Array]:
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

  Returns:
    What `semppl.Positives` has, of S positives.
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
  return rows, (slots >= 0).any(axis=1), slots.T >= 0
