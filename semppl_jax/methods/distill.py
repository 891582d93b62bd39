"""Distillation: a student learns a teacher's class probabilities (SimCLRv2).

Hinton et al., arXiv 1503.02531, as in SimCLRv2 (arXiv 2006.10029, section 2):
the teacher is a trained network with a classifier, of any encoder, fixed and in
evaluation mode. Student and teacher see the same crop of every image, with a
label or without. The student, an encoder and a linear classifier, may be as
large as the teacher (self-distillation) or smaller.

Shapes: K classes; others as in `base`.
"""

import jax
import jax.numpy as jnp
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
  """The student's classifier and its loss."""
  temperature, weight = cfg.loss.temperature, cfg.loss.labelled_weight
  scale = temperature**2 if cfg.loss.scaled else 1.0

  def loss(inputs: base.Inputs, memory: base.Memory) -> base.Result:
    del memory
    student, teacher = inputs.online['logits'], inputs.teacher  # [V, b, K]
    per_image = classification.soft_cross_entropy(student, teacher, temperature)
    distilled = scale * per_image.mean()
    agreed = student.argmax(axis=-1) == teacher.argmax(axis=-1)  # [V, b]
    metrics = {
      'loss/distillation': distilled,
      'teacher_agreement': jnp.mean(agreed),
    }
    value = distilled
    if defaults.uses_labels(cfg):
      known = _of_labelled(student, inputs)
      value = (1 - weight) * distilled + weight * known['loss/classifier']
      metrics |= known
    # The teacher's choice in the first view; a true label overrules it.
    chosen = teacher[0].argmax(axis=-1).astype(jnp.int32)  # [b]
    labels = jnp.where(inputs.labels >= 0, inputs.labels, chosen)
    return base.Result(value, metrics, labels)

  return base.Method(
    heads=Classifier(facts.num_classes),
    loss=loss,
    online_views=base.large_views,
    teacher=base.FrozenTeacher('logits', facts.num_classes),
    embedding=None,
  )


def _of_labelled(logits: jax.Array, inputs: base.Inputs) -> base.Metrics:
  """Cross-entropy and top-1 on labelled images, of logits [V, b, K]."""
  known = inputs.labels >= 0, inputs.batch.labels >= 0  # [b], [B]
  per_image = classification.cross_entropy(logits, inputs.labels).mean(axis=0)
  hit = classification.top1(logits, inputs.labels).mean(axis=0)  # [b]
  return {
    'loss/classifier': parallel.masked_mean(per_image, *known),
    'classifier_accuracy': parallel.masked_mean(hit, *known),
  }


# Settings. -----------------------------------------------------------------

# Sections of the engine that are of no use here.
WITHOUT = ('classifier', 'ema')


def default() -> ml_collections.ConfigDict:
  """Its own sections, and what it sets of the engine's, for ImageNet.

  SimCLRv2's, from a large teacher to a small student. [ours] are, besides,
  numbers that only the paper has.
  """
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 4096  # B, global [ours]
  cfg.num_epochs = 400.0  # passes over all training images [ours]
  cfg.views = base.weak_views()
  # Share of the image that a crop covers [P]
  cfg.views.large_area = (0.08, 1.0)
  cfg.teacher = base.teacher_section()
  cfg.loss = {
    # tau, of both networks' logits; 0.1 for self-distillation [ours]
    'temperature': 1.0,
    'scaled': True,  # the loss is times tau^2, as in the release [P]
    # Of the cross-entropy with the labels, where images have some; the rest
    # is distillation's [ours]
    'labelled_weight': 0.0,
  }
  cfg.optimizer = {
    'name': 'lars',  # the classifier's rate is LARS's, too [ours]
    'learning_rate': 0.1,  # times sqrt(B) [ours]
    'scaling': 'sqrt',  # with the batch size [P]
    'warmup_epochs': 20.0,  # until the rate has its peak, 5% [ours]
    'weight_decay': 1e-4,  # of weights only [ours]
    'momentum': 0.9,  # of lars [P]
    'trust_coefficient': 1e-3,  # of lars [P]
  }
  return cfg


RANGES = {
  'loss.labelled_weight': (0, 1),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of distillation that cannot work."""
  del num_devices
  base.check_teacher(cfg)
  base.check_above_zero(cfg, 'loss.temperature')
  if cfg.loss.labelled_weight > 0 and not defaults.uses_labels(cfg):
    raise UserError(
      f'loss.labelled_weight is {cfg.loss.labelled_weight:g}, but no image has '
      'a label: set labels.per_class, .fraction, .file or .subset.'
    )


def validate_with_data(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> None:
  """Refuses a data set without classes."""
  if not facts.num_classes:
    data = f'dataset {cfg.dataset.name!r} {cfg.dataset.path}'.rstrip()
    raise UserError(
      f"{data} has no classes, which a student of method 'distill' needs: name "
      "them by folders, or take method 'simreg', which needs none."
    )
