"""DINO: self-distillation with no labels (Caron et al., arXiv 2104.14294).

The online network's view predicts to which prototypes the target network
assigns another view of the image; the target is a moving average. A centre,
subtracted from the target's scores, keeps one prototype from taking all, and a
low temperature keeps assignments from becoming uniform. As for the ResNet-50 of
the release.

Shapes: as in `base`, with K prototypes; W large views have assignments.
"""

import math

import chex
import ml_collections

from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import clustering
from semppl_jax.memory import center
from semppl_jax.methods import base
from semppl_jax.models.heads import PrototypeHead
from semppl_jax.utils import ramps


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """DINO's head, loss and centre."""
  number = cfg.prototypes.number

  def assign(scores, memory, step):
    temperature = ramps.linear_by_epoch(
      step,
      *cfg.loss.target_temperature,
      epochs=cfg.loss.target_temperature_epochs,
      steps=facts.steps,
    )
    return center.assign(memory, scores, temperature)

  # Of the whole batch: a mean over microbatches would not say how many
  # prototypes are used.
  def prepare(memory, batch):
    q = assign(batch.local_target['scores'], memory, batch.step)
    return memory, clustering.assignment_metrics(q, parallel.pmean)

  def loss(inputs: base.Inputs, memory: center.Center) -> base.Result:
    scores = inputs.online['scores']  # [V, b, K]
    q = assign(inputs.target['scores'], memory, inputs.batch.step)  # [W, b, K]
    dims = base.dimensions(inputs)
    chex.assert_shape(scores, (*dims['Vb'], number))
    chex.assert_shape(q, (*dims['Wb'], number))
    value = clustering.swapped_prediction(
      q, scores, cfg.loss.temperature
    ).mean()
    return base.Result(value, {'loss/swapped': value} | inputs.shared)

  # After the losses, which use the centre of before; once a step, whatever the
  # number of microbatches. Scores stay where they are: [K] travels.
  def update(memory, batch, shared, kept):
    del shared, kept
    scores = batch.local_target['scores']
    return center.follow(memory, scores, cfg.loss.center_momentum)

  return base.Method(
    heads=PrototypeHead(
      cfg.projector.layers,
      cfg.projector.hidden,
      cfg.projector.size,
      number,
      batch_norm=cfg.projector.batch_norm,
      activation='gelu',
      weight_norm=True,
      init='normal',
    ),
    loss=loss,
    target_views=base.large_views,
    init=lambda: center.init(number),
    prepare=prepare,
    update=update,
    shards=center.SHARDS,
    chance={'loss/swapped': math.log(number)},  # all assignments are uniform
    # What keeps assignments from becoming uniform lets one take all.
    prototypes=base.Prototypes(
      number,
      ('a higher loss.target_temperature', 'a lower loss.center_momentum'),
    ),
    advice=(
      'a lower loss.target_temperature',
      'a longer prototypes.freeze_epochs',
      'a smaller prototypes.number',
    ),
    frozen={'prototypes': facts.steps(cfg.prototypes.freeze_epochs)},
  )


# Settings. -----------------------------------------------------------------


def default() -> ml_collections.ConfigDict:
  """DINO's own sections, and what it sets of the engine's, for ImageNet.

  Those of the released ResNet-50. Its file of arguments could not be read: [P]
  are the defaults of the authors' code and what their README and issues say,
  the others come at second hand, quoted alike in public projects.
  """
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 4080  # B, global: 80 GPUs with 51 images [P]
  cfg.num_epochs = 800.0  # passes over all training images [P]
  cfg.encoder = {
    'zero_init_residual': False,  # torchvision's default [P]
  }
  cfg.views = {
    'num_large': 2,  # V_L, large views of an image [P]
    'num_small': 6,  # V_S, small views, of the online network [ours]
    'large_area': (0.14, 1.0),  # share of the image that a crop covers [ours]
    'small_area': (0.05, 0.14),  # likewise, of small views [ours]
    'brightness_mode': 'multiply',  # as torchvision's [P]
    'small_blur': 0.5,  # probability of blur in small views [P]
    'small_solarize': 0.0,  # probability: never [P]
    'one_pass': True,  # views of a size share statistics [P]
    'heads_joint': True,  # and those of all sizes in the head [P]
  }
  cfg.optimizer = {
    'name': 'lars',  # with the rate after the momentum [P]
    'learning_rate': 0.3,  # for 256 images [ours]
    'final_learning_rate': 3e-4,  # where the cosine ends, likewise [ours]
    'warmup_epochs': 10.0,  # until the rate has its peak [P]
    'warmup_kind': 'swav',  # whose last step has the peak [P]
    'weight_decay': 1e-6,  # of weights only [ours]
    'momentum': 0.9,  # of lars [P]
    'trust_coefficient': 1e-3,  # of lars [P]
    'clip': 0.0,  # 0: gradients are left as they are [ours]
  }
  cfg.ema = {
    'base': 0.996,  # of the target network; rises to 1 [P]
  }
  cfg.evaluation = {
    'network': 'target',  # whose encoder and predictions are evaluated [P]
  }
  cfg.loss = {
    'temperature': 0.1,  # tau, divides the online network's scores [P]
    # tau_t, of the target's: at first, and after a rise from epoch to epoch
    # [ours]
    'target_temperature': (0.04, 0.07),
    'target_temperature_epochs': 50,  # of that rise [ours]
    'center_momentum': 0.9,  # of the centre of the target's scores [P]
  }
  cfg.projector = {
    'layers': 3,  # of the perceptron, its last one included [P]
    'hidden': 2048,  # units of all layers but the last [P]
    'size': 256,  # d, of projections [P]
    'batch_norm': True,  # after all layers but the last [ours]
  }
  cfg.prototypes = {
    'number': 60000,  # K; memory grows with it: 8192 for one GPU [ours]
    'freeze_epochs': 1.0,  # in which they stay as they begin [P]
  }
  return cfg


RANGES = base.PROTOTYPE_RANGES | {
  'views.num_large': (2, None),  # a view predicts another's assignment
  'loss.target_temperature_epochs': (0, None),
  'loss.center_momentum': (0, 1),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of DINO that cannot work."""
  del num_devices
  base.check_above_zero(cfg, 'loss.temperature')
  both = tuple(cfg.loss.target_temperature)
  if len(both) != 2 or not min(both) > 0:
    raise UserError(
      f'loss.target_temperature is {both}; it must be two numbers above 0, '
      'such as (0.04, 0.07).'
    )
