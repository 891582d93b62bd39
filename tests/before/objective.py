"""From scores per image to the loss: global means and their weighted sum."""

import functools

import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax.distributed import parallel
from semppl_jax.losses import classification, contrastive
from semppl_jax.methods import semppl

Terms = dict[str, jax.Array]


def terms(
  augm: jax.Array,
  sempos: jax.Array,
  counted: jax.Array,
  counted_sempos: jax.Array,
  cfg: ml_collections.FrozenConfigDict,
) -> Terms:
  """The four terms, each a mean over the images that have what it needs.

  Args:
    augm: [V, V_L, b, 1 + n] scores of the image's own views and negatives.
    sempos: [S, V, V_L, b, 1 + n] the same with S draws of semantic positives.
    counted: [b] bool, images with a negative.
    counted_sempos: [b] bool, those of them with a semantic positive.
    cfg: settings.

  Returns:
    loss_augm, loss_sempos, inv_augm, inv_sempos: parts of the global means.
  """
  large = cfg.views.num_large
  invariance = lambda x: contrastive.invariance(
    x[:large], stop_gradient=cfg.loss.stop_gradient
  )
  over_draws = lambda f: jax.vmap(f)(sempos).mean(axis=0)  # [b]
  mean = parallel.masked_mean
  return {
    'loss_augm': mean(contrastive.contrastive(augm), counted),
    'loss_sempos': mean(over_draws(contrastive.contrastive), counted_sempos),
    'inv_augm': mean(invariance(augm), counted),
    'inv_sempos': mean(over_draws(invariance), counted_sempos),
  }


def weighted_sum(
  parts: Terms, cfg: ml_collections.FrozenConfigDict
) -> jax.Array:
  """L = c (L_augm + alpha L_sempos) + lambda I_augm + lambda_s I_sempos."""
  contrastive = parts['loss_augm'] + cfg.loss.alpha * parts['loss_sempos']
  return (
    cfg.loss.contrastive_weight * contrastive
    + cfg.loss.invariance_weight * parts['inv_augm']
    + semppl.semantic_invariance_weight(cfg) * parts['inv_sempos']
  )


def classifier(
  logits: jax.Array | None, labels: jax.Array, everyones: jax.Array
) -> Terms:
  """Cross-entropy and top-1 of the classifier, on labelled images only.

  Args:
    logits: [V, b, K], or None without a classifier.
    labels: [b] int32, -1: left out.
    everyones: [B] int32, of the global batch: how many images count.
  """
  if logits is None:
    return {'loss_classifier': jnp.zeros(())}
  per_view = classification.cross_entropy(logits, labels)  # [V, b]
  hit = (logits.argmax(axis=-1) == labels).astype(jnp.float32)  # [V, b]
  mean = functools.partial(
    parallel.masked_mean, mask=labels >= 0, everyones=everyones >= 0
  )
  return {
    'loss_classifier': mean(per_view.mean(axis=0)),
    'classifier_accuracy': mean(hit.mean(axis=0)),
  }
