"""SimCLR, as in SimCLRv2's release (arXiv 2002.05709, 2006.10029).

A network learns to tell the other view of an image from all views of all other
images of the batch, on all devices. No target network, no predictor, no labels,
no memory.

Shapes: as in `base`, with V = 2.
"""

import math

import chex
import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import contrastive, false_negatives
from semppl_jax.losses.false_negatives import FalseNegatives
from semppl_jax.methods import base
from semppl_jax.models.heads import SimCLRProjector
from semppl_jax.models.multicrop import l2_normalize


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """SimCLR's projector and loss."""
  del facts

  def loss(inputs: base.Inputs, memory: base.Memory) -> base.Result:
    del memory
    z = inputs.online['projection']  # [2, b, d]
    if cfg.loss.hidden_norm:
      z = l2_normalize(z)
    # All images of all devices are candidates. The gradient flows back through
    # the gather: an image learns as another's negative, too.
    candidates = parallel.all_gather(z, axis=1)  # [2, B, d]
    dims = base.dimensions(inputs)
    chex.assert_shape(candidates, dims['VBd'])
    told = {}
    if cfg.negatives.cancel == 'none':
      losses, logits = contrastive.nt_xent(
        z, candidates, inputs.keys.index, temperature=cfg.loss.temperature
      )
    else:
      similar, told = _find_similar(z, candidates, inputs.keys.index, cfg)
      losses, logits = false_negatives.nt_xent(
        z, candidates, inputs.keys.index, similar,
        temperature=cfg.loss.temperature, attract=cfg.negatives.attract,
      )  # fmt: skip
      logits = logits[0, 1][None]  # of view 1 with view 2
    # A sum over the two views, as released: twice the paper's mean.
    value = losses.mean(axis=1).sum()
    metrics = {'loss/contrastive': value, **told}
    return base.Result(value, metrics | _told(logits[0], inputs.keys.index))

  return base.Method(
    heads=SimCLRProjector(
      cfg.projector.layers, cfg.projector.hidden, cfg.projector.size
    ),
    loss=loss,
    # All views alike: each of the two anchors has 2B - 1 candidates.
    chance={'loss/contrastive': 2 * math.log(2 * cfg.batch_size - 1)},
    accumulates=False,  # a part of the batch lacks the others' negatives
  )


def _find_similar(
  z: jax.Array,
  candidates: jax.Array,
  index: jax.Array,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[FalseNegatives, base.Metrics]:
  """False negatives among all views of the batch, by the projections.

  The score of another image's view is its largest cosine with a view of the
  image.

  Args:
    z: [2, b, d].
    candidates: [2, B, d].
    index: [b] int32, places of this device's images.
    cfg: settings.

  Returns:
    Places among the 2 B views, view by view; and their mean number.
  """
  views, total, size = candidates.shape
  scores = false_negatives.similarity(
    l2_normalize(z), l2_normalize(candidates).reshape(-1, size)
  )  # [b, 2 B]
  own = jnp.tile(index[:, None] == jnp.arange(total), (1, views))
  similar = base.find_false_negatives(scores, own, cfg)
  number = similar.mask.sum(axis=1)  # [b]
  return similar, {'false_negatives': number.mean(dtype=jnp.float32)}


def _told(logits: jax.Array, index: jax.Array) -> base.Metrics:
  """How well the second view is found among that of all images.

  As the release tells it: view 1 asks, and its other images are no candidates.

  Args:
    logits: [b, B] of view 1 with view 2.
    index: [b] int32, which of them is the own image.
  """
  log_p = jax.nn.log_softmax(logits)
  return {
    'contrastive_accuracy': jnp.mean(logits.argmax(axis=-1) == index),
    'contrastive_entropy': -jnp.sum(jnp.exp(log_p) * log_p, axis=-1).mean(),
  }


# Settings. -----------------------------------------------------------------

# Sections of the engine that are of no use here.
WITHOUT = ('ema',)


def default() -> ml_collections.ConfigDict:
  """SimCLR's own sections, and what it sets of the engine's, for ImageNet.

  Those of SimCLRv2; google-research/simclr says them in its README, its code
  and its issues. [ours] are, besides, numbers that only the papers have.
  """
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 4096  # B, global [P]
  cfg.num_epochs = 800.0  # passes over all training images [P]
  cfg.views = {
    'num_large': 2,  # V_L, large views of an image [P]
    'num_small': 0,  # V_S: SimCLR has none [P]
    'large_area': (0.08, 1.0),  # share of the image that a crop covers [P]
    'brightness': 0.8,  # strength: the largest change [P]
    'brightness_mode': 'multiply',  # as SimCLRv2's; the first SimCLR's adds [P]
    'contrast': 0.8,  # likewise [P]
    'saturation': 0.8,  # likewise [P]
    'hue': 0.2,  # likewise [P]
    'blur': (0.5, 0.5),  # probability; both views are alike [P]
    'solarize': (0.0, 0.0),  # probability: never [P]
    # Both views share BatchNorm's statistics, which else tell them apart [P]
    'one_pass': True,
  }
  cfg.loss = {
    'temperature': 0.1,  # tau, divides the similarities [P]
    'hidden_norm': True,  # projections are unit vectors [P]
  }
  cfg.negatives = base.negatives_section()
  cfg.projector = {
    'layers': 3,  # L; the first SimCLR had 2 [P]
    'hidden': 0,  # units of all layers but the last; 0: the encoder's [P]
    'size': 128,  # d, of projections [P]
  }
  cfg.optimizer = {
    'name': 'lars',  # see rate_in_momentum [P]
    'learning_rate': 0.1,  # times sqrt(B) [P]
    'scaling': 'sqrt',  # with the batch size [P]
    'warmup_epochs': 40.0,  # until the rate has its peak, 5% [P]
    'weight_decay': 1e-4,  # of weights only [ours]
    'momentum': 0.9,  # of lars [P]
    'trust_coefficient': 1e-3,  # of lars [P]
    'rate_in_momentum': True,  # of lars [P]
  }
  return cfg


RANGES = base.NEGATIVES_RANGES | {
  'projector.layers': (1, None),
  'projector.hidden': (0, None),
  'projector.size': (1, None),
}
CHOICES = {'negatives.cancel': ('none', 'similarity')}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of SimCLR that cannot work."""
  del num_devices
  base.check_above_zero(cfg, 'loss.temperature')
  base.check_negatives(cfg)
  for key, number in (('num_large', 2), ('num_small', 0)):
    if cfg.views[key] != number:
      raise UserError(
        f"views.{key} is {cfg.views[key]}, but method 'simclr' contrasts two "
        f'large views and no small ones: set it to {number}.'
      )
