"""PAWS: views predict each other's soft labels among labelled images.

"Semi-supervised learning of visual features by non-parametrically predicting
view assignments with support samples" (Assran et al., arXiv 2104.13963). An
image's soft label is the similarity-weighted mean of the labels of labelled
images that come beside the batch, the support. The prediction of one view
learns the projection's soft label of another, sharpened; the batch as a whole
is to use all classes alike. No target network, no memory.
facebookresearch/suncet, src/losses.py, src/paws_train.py.

Shapes: V = 2 + V_S views; V_s views of S labelled images on all devices, of C_s
classes, those of the step; others as in `base`.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax.config import defaults
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import clustering, similarity
from semppl_jax.methods import base
from semppl_jax.models.heads import PAWSHead
from semppl_jax.models.multicrop import l2_normalize


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """PAWS's heads and loss."""
  del facts
  number = cfg.support.classes

  def loss(inputs: base.Inputs, memory: base.Memory) -> base.Result:
    del memory
    online, support = inputs.online, inputs.support
    # Classes by their place among those of the step, on all devices alike.
    place = parallel.all_gather(support.place)  # [S]
    classes = clustering.smoothed(place, number, cfg.loss.smoothing)
    soft_labels = functools.partial(
      similarity.soft_labels,
      classes=jnp.tile(classes, (cfg.support.views, 1)),  # [V_s S, C_s]
      temperature=cfg.loss.temperature,
    )

    def of_support(name):
      # All labelled images of all devices; the gradient flows back through the
      # gather: a labelled image learns from everyone's views.
      rows = parallel.all_gather(l2_normalize(support.online[name]), axis=1)
      return rows.reshape(-1, rows.shape[-1])  # [V_s S, d]

    p = soft_labels(
      l2_normalize(online['prediction']), of_support('prediction')
    )  # [V, b, C_s]
    chex.assert_shape(p, (*base.dimensions(inputs)['Vb'], number))
    # The same network's projections, where nothing flows.
    q = jax.lax.stop_gradient(
      soft_labels(
        l2_normalize(online['projection'][:2]), of_support('projection')
      )
    )  # [2, b, C_s]
    targets = similarity.swapped_targets(
      similarity.sharpen(q, cfg.loss.sharpening),
      len(p),
      least=cfg.loss.least_target,
    )  # [V, b, C_s]
    consistency = similarity.cross_entropy(targets, p).mean()
    # Of the sharpened predictions of all views of the global batch.
    mean = similarity.sharpen(p, cfg.loss.sharpening).mean(axis=(0, 1))
    entropy = similarity.entropy(parallel.pmean(mean))  # of [C_s]
    guesses = support.classes[q.mean(axis=0).argmax(axis=-1)]  # [b]
    return base.Result(
      consistency - cfg.loss.entropy_weight * entropy,
      {'loss/consistency': consistency, 'mean_entropy': entropy},
      labels=jnp.where(inputs.labels >= 0, inputs.labels, guesses),
    )

  most = math.log(number)
  return base.Method(
    heads=PAWSHead(
      cfg.projector.hidden, cfg.projector.size, cfg.predictor.hidden
    ),
    loss=loss,
    # All images alike: every soft label is uniform.
    chance={'loss/consistency': most},
    lowest=-cfg.loss.entropy_weight * most,
    labels_train=True,
    advice=(
      'a larger loss.entropy_weight',
      'a larger support.images_per_class',
      'a larger loss.temperature',
    ),
    accumulates=False,  # all images of the batch share the support
  )


# Settings. -----------------------------------------------------------------

# Sections of the engine that are of no use here.
WITHOUT = ('ema',)


def default() -> ml_collections.ConfigDict:
  """PAWS's own sections, and what it sets of the engine's, for ImageNet.

  Those of the release's configs/paws/imgnt_train.yaml and src/paws_train.py,
  counted over its 64 devices.
  """
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 4096  # B, global, of all images, labelled or not [P]
  cfg.num_epochs = 100.0  # passes over all training images; also 200, 300 [P]
  cfg.encoder = {
    'zero_init_residual': False,  # torchvision's default [P]
  }
  cfg.views = {
    'num_large': 2,  # V_L: each learns the other's soft label [P]
    'num_small': 6,  # V_S: each learns the mean of both [P]
    'large_area': (0.14, 1.0),  # share of the image that a crop covers [P]
    'small_area': (0.05, 0.14),  # likewise, of small views [P]
    'brightness': 0.8,  # strength: the largest change [P]
    'brightness_mode': 'multiply',  # as torchvision's [P]
    'contrast': 0.8,  # likewise [P]
    'saturation': 0.8,  # likewise [P]
    'hue': 0.2,  # likewise [P]
    'blur': (0.5, 0.5),  # probability; all views are alike [P]
    'solarize': (0.0, 0.0),  # probability: never [P]
    'one_pass': True,  # views of a size share BatchNorm's statistics [P]
  }
  cfg.support = defaults.support()
  cfg.support.images = 0  # there are so many of each class [P]
  cfg.support.classes = 960  # C_s, others in each step [P]
  cfg.support.images_per_class = 7  # n [P]
  cfg.support.area = (0.14, 1.0)  # as large views [P]
  cfg.support.brightness = 0.8  # likewise [P]
  cfg.support.contrast = 0.8  # likewise [P]
  cfg.support.saturation = 0.8  # likewise [P]
  cfg.support.hue = 0.2  # likewise [P]
  cfg.support.blur = (0.5, 0.5)  # likewise [P]
  cfg.loss = {
    'temperature': 0.1,  # tau, divides the similarities [P]
    'sharpening': 0.25,  # T: targets are p^(1 / T), to sum 1 again [P]
    'smoothing': 0.1,  # of labels: so much goes to all C_s classes alike [P]
    'least_target': 1e-4,  # smaller entries of targets become 0 [P]
    'entropy_weight': 1.0,  # of the mean soft label's entropy; 0: off [P]
  }
  cfg.projector = {
    'hidden': 2048,  # hidden units, of both layers: the embedding's [P]
    'size': 2048,  # d, of projections and predictions: likewise [P]
  }
  cfg.predictor = {
    'hidden': 512,  # hidden units: a quarter [P]
  }
  cfg.optimizer = {
    'name': 'lars',  # see rate_in_momentum [P]
    'learning_rate': 0.4,  # for 256 images [P]
    'warmup_epochs': 10.0,  # until the rate has its peak [P]
    'start_learning_rate': 0.01875,  # where the warm-up begins [P]
    'final_learning_rate': 0.004,  # where the cosine ends [P]
    'weight_decay': 1e-6,  # of weights only [P]
    'momentum': 0.9,  # of lars [P]
    'trust_coefficient': 1e-3,  # of lars [P]
    'rate_in_momentum': True,  # of lars, as torch's [P]
  }
  return cfg


RANGES = base.PROJECTOR_RANGES | {
  'loss.smoothing': (0, 1),
  'loss.least_target': (0, 1),
  'loss.entropy_weight': (0, None),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of PAWS that cannot work."""
  del num_devices
  base.check_above_zero(cfg, 'loss.temperature', 'loss.sharpening')
  if cfg.loss.sharpening > 1:
    raise UserError(
      f'loss.sharpening is {cfg.loss.sharpening}, which would blur targets: '
      'set it to 1, which leaves them as they are, or less.'
    )
  if cfg.views.num_large != 2:
    raise UserError(
      f"views.num_large is {cfg.views.num_large}, but method 'paws' swaps the "
      'soft labels of two large views: set it to 2.'
    )
  if cfg.support.images:
    raise UserError(
      f"support.images is {cfg.support.images}, but method 'paws' needs as "
      'many labelled images of each of its classes: set it to 0, and '
      'support.classes and support.images_per_class.'
    )
  if cfg.support.classes < 2:
    raise UserError(
      f'support.classes is {cfg.support.classes}, of which nothing could be '
      'told apart: set it to 2 or more.'
    )
