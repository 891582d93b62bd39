"""MIRA: mutual information regularised assignment (Lee et al., NeurIPS 2022).

The online network's view predicts to which prototypes another view of the image
is assigned: as the target network says, but so that images and prototypes tell
as much of each other as they can. The assignments solve a small problem of the
whole batch, so that neither a queue nor a centre is needed.

Shapes: as in `base`, with K prototypes; W large views have assignments.
"""

import math

import chex
import jax
import ml_collections

from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import clustering
from semppl_jax.methods import base
from semppl_jax.models.heads import PrototypeHead, prototype_scores
from semppl_jax.utils import ramps


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """MIRA's head, assignments and loss."""
  number = cfg.prototypes.number

  # Of all images at once, and with the online network's prototypes, to which
  # the target network's projections are compared.
  def prepare(memory, batch):
    scores = prototype_scores(
      batch.local_target['projection'], batch.params['prototypes']
    )
    q = clustering.mira(
      scores,
      temperature=cfg.loss.target_temperature,
      beta=ramps.cosine(batch.step, *cfg.loss.beta, facts.total_steps),
      iterations=cfg.loss.iterations,
      over_devices=parallel.logsumexp,
    )
    q = jax.lax.stop_gradient(q)
    return memory, (q, clustering.assignment_metrics(q, parallel.pmean))

  def loss(inputs: base.Inputs, memory: base.Memory) -> base.Result:
    del memory
    q, metrics = inputs.shared  # [W, b, K]
    scores = inputs.online['scores']  # [V, b, K]
    dims = base.dimensions(inputs)
    chex.assert_shape(scores, (*dims['Vb'], number))
    chex.assert_shape(q, (*dims['Wb'], number))
    value = clustering.swapped_prediction(
      q, scores, cfg.loss.temperature
    ).mean()
    return base.Result(value, {'loss/swapped': value} | metrics)

  return base.Method(
    heads=PrototypeHead(
      cfg.projector.layers,
      cfg.projector.hidden,
      cfg.projector.size,
      number,
      hidden_bias=False,
      weight_norm=True,
    ),
    loss=loss,
    target_views=base.large_views,
    prepare=prepare,
    chance={'loss/swapped': math.log(number)},  # all assignments are uniform
    prototypes=base.Prototypes(number, ('a larger loss.beta',)),
    advice=(
      'a lower loss.target_temperature',
      'a larger loss.beta',
      'a longer prototypes.freeze_epochs',
      'a smaller prototypes.number',
    ),
    frozen={'prototypes': facts.steps(cfg.prototypes.freeze_epochs)},
    accumulates=False,  # a part of the batch lacks the others' assignments
  )


# Settings. -----------------------------------------------------------------


def default() -> ml_collections.ConfigDict:
  """MIRA's own sections, and what it sets of the engine's, for ImageNet.

  Those of the authors' code, movinghoon/MIRA, for 400 epochs of large and small
  views.
  """
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 4096  # B, global [P]
  cfg.num_epochs = 400.0  # passes over all training images [P]
  cfg.views = {
    'num_large': 2,  # V_L, large views of an image [P]
    'num_small': 6,  # V_S, small views, of the online network [P]
    'large_area': (0.14, 1.0),  # share of the image that a crop covers [P]
    'small_area': (0.05, 0.14),  # likewise, of small views [P]
    'brightness_mode': 'multiply',  # as torchvision's [P]
    'small_blur': 0.5,  # probability of blur in small views [P]
    'small_solarize': 0.0,  # probability: never [P]
  }
  cfg.optimizer = {
    'name': 'lars',  # with the rate after the momentum [P]
    'learning_rate': 0.3,  # for 256 images: 4.8 [P]
    'start_learning_rate': 0.3 / 16,  # where the warm-up begins: 0.3 [P]
    'warmup_epochs': 10.0,  # until the rate has its peak [P]
    'warmup_kind': 'mira',  # which begins above its start [P]
    'weight_decay': 1e-6,  # of weights only [P]
    'momentum': 0.9,  # of lars [P]
    'trust_coefficient': 1e-3,  # of lars [P]
  }
  cfg.ema = {
    'base': 0.99,  # of the target network; rises to 1 [P]
  }
  cfg.evaluation = {
    'network': 'target',  # whose encoder and predictions are evaluated [P]
  }
  cfg.loss = {
    'temperature': 0.1,  # tau, divides the online network's scores [P]
    'target_temperature': 0.225,  # tau_t, the target's [P]
    # Of the mutual information: from the first to the last along a cosine; 0:
    # the target's own softmax [P]
    'beta': (3 / 4, 2 / 3),
    'iterations': 30,  # of the fixed point [P]
  }
  cfg.projector = {
    'layers': 3,  # of the perceptron, its last one included [P]
    'hidden': 2048,  # units of all layers but the last [P]
    'size': 256,  # d, of projections [P]
  }
  cfg.prototypes = {
    'number': 3000,  # K [P]
    'freeze_epochs': 1.0,  # in which they stay as they begin [P]
  }
  return cfg


RANGES = base.PROTOTYPE_RANGES | {
  'views.num_large': (2, None),  # a view predicts another's assignment
  'loss.iterations': (1, None),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of MIRA that cannot work."""
  del num_devices
  base.check_above_zero(cfg, 'loss.temperature', 'loss.target_temperature')
  beta = tuple(cfg.loss.beta)
  if len(beta) != 2 or not all(0 <= each < 1 for each in beta):
    raise UserError(
      f'loss.beta is {beta}; it must be two numbers from 0 to 1, 1 excluded.'
    )
