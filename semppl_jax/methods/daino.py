"""Daino: Suave with a target network, DINO with labels.

The semi-supervised form of DINO ("Semi-supervised learning made simple with
self-supervised clustering", Fini et al., CVPR 2023): there are as many
prototypes as classes, and they are the classifier. The online network's views
predict what the target network assigns another view to, as in DINO; labelled
images, which come beside the batch, predict their labels by the same scores.
pietroastolfi/suave-daino, daino/main_daino.py, without its mixing of images,
and with BatchNorm in training mode; on a ResNet in place of a transformer. It
begins with the encoder of a DINO.

Shapes: as in `base`, with K prototypes, C classes; W large views have
assignments; V_s views of s labelled images on this device.
"""

import math

import chex
import jax.numpy as jnp
import ml_collections

from semppl_jax.config import defaults
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
  """Daino's head, loss and centre."""
  number = base.check_prototypes(cfg, facts.num_classes)

  def prepare(memory, batch):
    temperature = ramps.linear_by_epoch(
      batch.step,
      *cfg.loss.target_temperature,
      epochs=cfg.loss.target_temperature_epochs,
      steps=facts.steps,
    )
    q = center.assign(memory, batch.local_target['scores'], temperature)
    return memory, (q, clustering.assignment_metrics(q, parallel.pmean))

  def loss(inputs: base.Inputs, memory: center.Center) -> base.Result:
    del memory
    q, of_assignments = inputs.shared  # [W, b, K]
    scores = inputs.online['scores']  # [V, b, K]
    dims = base.dimensions(inputs)
    chex.assert_shape(scores, (*dims['Vb'], number))
    chex.assert_shape(q, (*dims['Wb'], number))
    value, metrics = clustering.semi_supervised(
      q,
      scores,
      inputs.support.online['scores'],
      inputs.support.labels,
      temperature=cfg.loss.temperature,
      smoothing=cfg.loss.smoothing,
    )
    guesses = clustering.largest_class(q, facts.num_classes)  # [b]
    labels = jnp.where(inputs.labels >= 0, inputs.labels, guesses)
    return base.Result(value, metrics | of_assignments, labels)

  # After the loss, which uses the centre of before; [K] travels. Labelled
  # images have no part in it: the target network does not see them.
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
      scale_trained=cfg.prototypes.scale_trained,
      init='normal',
    ),
    loss=loss,
    target_views=base.large_views,
    init=lambda: center.init(number),
    prepare=prepare,
    update=update,
    shards=center.SHARDS,
    predict=lambda outputs, memory: clustering.largest_class(
      outputs['scores'], facts.num_classes
    ),
    chance={'loss/swapped': math.log(number)},  # all assignments are uniform
    prototypes=base.Prototypes(
      number,
      ('a higher loss.target_temperature', 'a lower loss.center_momentum'),
    ),
    labels_train=True,
    advice=(
      'a lower loss.target_temperature',
      'a larger support.images',
      'a larger ema.base',
    ),
    accumulates=False,
  )


# Settings. -----------------------------------------------------------------


def default() -> ml_collections.ConfigDict:
  """Daino's own sections, and what it sets of the engine's, for ImageNet.

  The release trains a vision transformer: [P] are its scripts' settings that a
  ResNet-50 can have, too (daino/scripts/train_10perc.sh), the others are those
  of our DINO.
  """
  cfg = ml_collections.ConfigDict()
  cfg.init_modules = 'encoder'  # of `init`: prototypes and projector anew [P]
  cfg.batch_size = 1024  # B, global, of all images, labelled or not [P]
  cfg.num_epochs = 60.0  # passes over all training images [P]
  cfg.support = defaults.support()
  cfg.support.images = 512  # S, labelled images of any class with a batch [P]
  cfg.encoder = {
    'zero_init_residual': False,  # as DINO's ResNet-50 [ours]
  }
  cfg.views = {
    'num_large': 2,  # V_L, large views of an image [P]
    'num_small': 8,  # V_S, small views, of the online network [P]
    'large_area': (0.14, 1.0),  # share of the image that a crop covers [ours]
    'small_area': (0.05, 0.14),  # likewise, of small views [ours]
    'brightness_mode': 'multiply',  # as torchvision's [P]
    'small_blur': 0.5,  # probability of blur in small views [P]
    'small_solarize': 0.0,  # probability: never [P]
    'one_pass': True,  # views of a size share statistics [P]
    'heads_joint': True,  # and those of all sizes in the head [P]
  }
  cfg.optimizer = {
    'name': 'lars',  # with the rate after the momentum [ours]
    'learning_rate': 0.3,  # for 256 images [ours]
    'final_learning_rate': 3e-4,  # where the cosine ends, likewise [ours]
    'warmup_epochs': 4.0,  # until the rate has its peak [P]
    'warmup_kind': 'swav',  # whose last step has the peak [P]
    'weight_decay': 1e-6,  # of weights only [ours]
    'momentum': 0.9,  # of lars [ours]
    'trust_coefficient': 1e-3,  # of lars [ours]
    'clip': 0.0,  # 0: gradients are left as they are [P]
  }
  cfg.ema = {
    'base': 0.99,  # of the target network; rises to 1 [P]
  }
  cfg.evaluation = {
    'network': 'target',  # the average is what is evaluated [P]
  }
  cfg.loss = {
    'temperature': 0.1,  # tau, divides the online network's scores [P]
    'smoothing': 0.01,  # of labels: so much goes to all prototypes alike [P]
    # tau_t, of the target's: of the first epoch, and of the last of so many;
    # it rises from epoch to epoch [P]
    'target_temperature': (0.04, 0.07),
    'target_temperature_epochs': 10,  # in which it rises [P]
    'center_momentum': 0.9,  # of the centre of the target's scores [P]
  }
  cfg.projector = {
    'layers': 3,  # of the perceptron, its last one included [P]
    'hidden': 2048,  # units of all layers but the last [P]
    'size': 256,  # d, of projections [P]
    'batch_norm': True,  # after all layers but the last [ours]
  }
  cfg.prototypes = {
    # K, the first of which are the classes; 0: as many as classes [P]
    'number': 0,
    # Their lengths are parameters; False: all have length 1, as DINO's [P]
    'scale_trained': True,
  }
  return cfg


RANGES = {
  'views.num_large': (2, None),  # a view predicts another's assignment
  'loss.smoothing': (0, 1),
  'loss.target_temperature_epochs': (0, None),
  'loss.center_momentum': (0, 1),
  'projector.layers': (1, None),
  'projector.hidden': (1, None),
  'projector.size': (1, None),
  'prototypes.number': (0, None),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of Daino that cannot work."""
  del num_devices
  base.check_above_zero(cfg, 'loss.temperature')
  both = tuple(cfg.loss.target_temperature)
  if len(both) != 2 or not all(each > 0 for each in both):
    raise UserError(
      f'loss.target_temperature is {both}; it must be two numbers above 0, '
      'such as (0.04, 0.07).'
    )
