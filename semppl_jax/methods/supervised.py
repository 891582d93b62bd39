"""Supervised only: cross-entropy on the labelled images, the usual baseline.

The classifier and the encoder learn from the large views. No heads besides, no
target network, no memory.

Shapes: K classes; others as in `base`.
"""

from collections.abc import Iterator

import ml_collections

from semppl_jax.config import defaults
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import classification
from semppl_jax.methods import base
from semppl_jax.models.heads import Classifier


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """The classifier and its loss."""
  del cfg

  def loss(inputs: base.Inputs, memory: base.Memory) -> base.Result:
    del memory
    logits = inputs.online['logits']  # [V, b, K]
    known = inputs.labels >= 0, inputs.batch.labels >= 0  # [b], [B]
    per_image = classification.cross_entropy(logits, inputs.labels).mean(axis=0)
    hit = classification.top1(logits, inputs.labels).mean(axis=0)  # [b]
    value = parallel.masked_mean(per_image, *known)
    return base.Result(
      value,
      {
        'loss/classifier': value,
        'classifier_accuracy': parallel.masked_mean(hit, *known),
      },
    )

  return base.Method(
    heads=Classifier(facts.num_classes),
    loss=loss,
    online_views=base.large_views,
    embedding=None,
  )


# Settings. -----------------------------------------------------------------

# Sections of the engine that are of no use here.
WITHOUT = ('classifier', 'ema')
RANGES = {}


def default() -> ml_collections.ConfigDict:
  """What it sets of the engine's settings; it has none of its own."""
  cfg = ml_collections.ConfigDict()
  cfg.labels = {
    'share': 1.0,  # of every batch, which has labelled images only
  }
  cfg.views = {
    'num_small': 0,  # the classifier sees large views
  }
  return cfg


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses a run without labels."""
  del num_devices
  if not defaults.uses_labels(cfg):
    raise UserError(
      'labels.per_class, .fraction, .file and .subset are not set, but method '
      "'supervised' learns from labels alone: set one of them."
    )


def doubts(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> Iterator[str]:
  """What can run but can hardly be meant."""
  del facts
  if cfg.labels.share < 1:
    yield (
      f'labels.share is {cfg.labels.share:g}, but method supervised learns '
      'nothing from images without a label: 1 wastes none'
    )
