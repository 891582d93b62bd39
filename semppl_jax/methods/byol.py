"""BYOL: Bootstrap Your Own Latent (Grill et al., arXiv 2006.07733).

The online network's prediction of one view regresses the target network's
projection of another; the target is a moving average of the online network. No
negatives, no labels, no memory. Small views, which BYOL does not have, regress
all large views' targets.

Shapes: as in `base`.
"""

import chex
import ml_collections

from semppl_jax.losses import regression
from semppl_jax.methods import base
from semppl_jax.models.multicrop import l2_normalize


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """BYOL's heads and loss."""
  del facts

  def loss(inputs: base.Inputs, memory: base.Memory) -> base.Result:
    del memory
    online = l2_normalize(inputs.online['prediction'])  # [V, b, d]
    targets = l2_normalize(inputs.target['projection'])  # [W, b, d]
    dims = base.dimensions(inputs)
    chex.assert_shape(online, dims['Vbd'])
    chex.assert_shape(targets, dims['Wbd'])
    # A sum over the two directions, as released: twice their mean.
    value = 2 * regression.squared_distances(online, targets).mean()
    return base.Result(value, {'loss/regression': value})

  return base.Method(
    heads=base.projector_predictor(cfg),
    loss=loss,
    target_views=base.large_views,
  )


# Settings. -----------------------------------------------------------------


def default() -> ml_collections.ConfigDict:
  """BYOL's own sections, and what it sets of the engine's, for ImageNet."""
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 4096  # B, global [P]
  # Passes over all training images. The release has settings for 40, 100, 300
  # and 1000 of them: experiments/imagenet_byol.py; these are those for 300 [P]
  cfg.num_epochs = 300.0
  cfg.views = {
    'num_large': 2,  # V_L, large views of an image [P]
    'num_small': 0,  # V_S: BYOL has none [P]
    'large_area': (0.08, 1.0),  # share of the image that a crop covers [P]
  }
  cfg.optimizer = {
    'name': 'lars',  # with the rate after the momentum [P]
    'learning_rate': 0.3,  # for 256 images, of 300 epochs [P]
    'warmup_epochs': 10.0,  # until the rate has its peak [P]
    'weight_decay': 1e-6,  # of weights only, of 300 epochs [P]
    'momentum': 0.9,  # of lars [P]
    'trust_coefficient': 1e-3,  # of lars [P]
  }
  cfg.ema = {
    'base': 0.99,  # of the target network, of 300 epochs; rises to 1 [P]
  }
  cfg.projector = base.projector_section()
  cfg.predictor = base.predictor_section()
  return cfg


RANGES = base.PROJECTOR_RANGES | {
  'views.num_large': (2, None),  # a view learns another's target
}
