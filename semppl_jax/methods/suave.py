"""Suave: semi-supervised clustering, prototypes that are the classes.

SwAV with labels ("Semi-supervised learning made simple with self-supervised
clustering", Fini et al., CVPR 2023): there are as many prototypes as classes,
and they are the classifier. Views of the batch predict the assignments of other
views, as in SwAV; labelled images, which come beside the batch, predict their
labels by the same scores. pietroastolfi/suave-daino, suave/main_suave.py,
without its mixing of images. It begins with the encoder of a SwAV.

Shapes: A = V_L views with assignments; K prototypes; C classes; Q features in
the queue; V_s views of s labelled images on this device; others as in `base`.
"""

import functools
import math
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax.config import defaults
from semppl_jax.distributed import parallel
from semppl_jax.losses import clustering
from semppl_jax.memory import label_queue
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.methods import base
from semppl_jax.models import heads


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """Suave's head, assignments and loss, and its queue if it has one."""
  large, has_queue = cfg.views.num_large, cfg.queue.capacity > 0
  number = base.check_prototypes(cfg, facts.num_classes)
  sinkhorn = functools.partial(
    clustering.sinkhorn,
    epsilon=cfg.sinkhorn.epsilon,
    iterations=cfg.sinkhorn.iterations,
    over_devices=parallel.logsumexp,
  )

  def assign(scores: jax.Array, queue: LabelQueue, params) -> jax.Array:
    """[A, b, K] assignments; each view with a queue of its own."""
    if not has_queue:
      return sinkhorn(scores)
    # This device's slots alone: only sums of them travel.
    older = heads.prototype_scores(queue.embeddings, params['prototypes'])
    return sinkhorn(scores, older, label_queue.is_full(queue))

  def loss(inputs: base.Inputs, queue: LabelQueue | tuple) -> base.Result:
    scores = inputs.online['scores']  # [V, b, K]
    features = jax.lax.stop_gradient(inputs.online['projection'][:large])
    chex.assert_shape(scores, (*base.dimensions(inputs)['Vb'], number))
    # Labelled images take no part in the assignments.
    own = jax.lax.stop_gradient(scores[:large])  # [A, b, K]
    q = assign(own, queue, inputs.batch.params)
    value, metrics = clustering.semi_supervised(
      q,
      scores,
      inputs.support.online['scores'],
      inputs.support.labels,
      temperature=cfg.loss.temperature,
      smoothing=cfg.loss.smoothing,
    )
    metrics |= clustering.assignment_metrics(q, parallel.pmean)
    guesses = clustering.largest_class(q, facts.num_classes)  # [b]
    labels = jnp.where(inputs.labels >= 0, inputs.labels, guesses)
    if not has_queue:
      return base.Result(value, metrics, labels)
    metrics['queue_fill'] = label_queue.fill(queue)
    return base.Result(value, metrics, labels, {'projection': features})

  # Every image enters, after its own assignment, once the queue has begun.
  def update(
    queue: LabelQueue,
    batch: base.BatchWide,
    shared: base.Shared,
    kept: base.Outputs,
  ):
    del shared
    begun = batch.step >= facts.steps(cfg.queue.start_epoch)
    return label_queue.push_all(queue, kept['projection'], batch.ids, begun)

  method = base.Method(
    heads=heads.PrototypeHead(
      layers=cfg.projector.layers,
      hidden=cfg.projector.hidden,
      size=cfg.projector.size,
      num_prototypes=number,
    ),
    loss=loss,
    predict=lambda outputs, memory: clustering.largest_class(
      outputs['scores'], facts.num_classes
    ),
    # All images alike: every assignment and every prediction is uniform.
    chance={'loss/swapped': math.log(number)},
    prototypes=base.Prototypes(number, ('more sinkhorn.iterations',)),
    labels_train=True,
    advice=(
      'sinkhorn.epsilon=0.03',
      'a larger support.images',
      'a smaller queue.capacity',
    ),
    unit_rows=('prototypes',),
    accumulates=False,  # a part of the batch is too little to share out
  )
  if not has_queue:
    return method
  size = cfg.projector.size
  return method._replace(
    init=lambda: label_queue.init(large, cfg.queue.capacity, size),
    update=update,
    shards=label_queue.SHARDS,
  )


# Settings. -----------------------------------------------------------------

# Sections of the engine that are of no use here.
WITHOUT = ('ema',)


def default() -> ml_collections.ConfigDict:
  """Suave's own sections, and what it sets of the engine's, for ImageNet.

  Those of the release's suave/scripts/train_10perc.sh and train_1perc.sh, which
  are alike, but for its mixing.
  """
  cfg = ml_collections.ConfigDict()
  cfg.init_modules = 'encoder'  # of `init`: prototypes and projector anew [P]
  cfg.batch_size = 256  # B, global, of all images, labelled or not [P]
  cfg.num_epochs = 100.0  # passes over all training images [P]
  cfg.support = defaults.support()
  cfg.encoder = {
    # LARC would move scales of 0 by their gradient itself [P]
    'zero_init_residual': False,
  }
  cfg.views = {
    'num_large': 2,  # V_L, large views of an image [P]
    'num_small': 8,  # V_S, small views [P]
    'large_area': (0.14, 1.0),  # share of the image that a crop covers [P]
    'small_area': (0.05, 0.14),  # likewise, of small views [P]
    'brightness': 0.8,  # strength: the largest change [P]
    'brightness_mode': 'multiply',  # as torchvision's [P]
    'contrast': 0.8,  # likewise [P]
    'saturation': 0.8,  # likewise [P]
    'hue': 0.2,  # likewise [P]
    'blur': (0.5, 0.5),  # probability; all views are alike [P]
    'solarize': (0.0, 0.0),  # probability: never [P]
    'one_pass': True,  # views of a size share statistics in the encoder [P]
    'heads_joint': True,  # all views share those of the projector [P]
  }
  cfg.loss = {
    'temperature': 0.1,  # tau, divides the scores that predict [P]
    'smoothing': 0.01,  # of labels: so much goes to all prototypes alike [P]
  }
  cfg.sinkhorn = {
    'epsilon': 0.05,  # divides the scores; smaller: harder assignments [P]
    'iterations': 3,  # of the assignments [P]
  }
  cfg.projector = {
    'layers': 2,  # L, of the projector [P]
    'hidden': 2048,  # hidden units [P]
    'size': 128,  # d, of projections [P]
  }
  cfg.prototypes = {
    # K, the first of which are the classes; 0: as many as classes [P]
    'number': 0,
  }
  cfg.queue = {
    # Q, features of each large view that take part in the assignments; 0: no
    # queue [P]
    'capacity': 3840,
    # From where on it fills; it counts once it is full [P]
    'start_epoch': 0.0,
  }
  cfg.optimizer = {
    'name': 'larc',  # all parameters alike [P]
    'learning_rate': 0.4,  # for 256 images [P]
    'warmup_epochs': 5.0,  # until the rate has its peak [P]
    'warmup_kind': 'swav',  # whose last step has the peak [P]
    'final_learning_rate': 1e-3,  # where the cosine ends [P]
    'weight_decay': 1e-6,  # of all parameters [P]
    'momentum': 0.9,  # of larc [P]
    'trust_coefficient': 1e-3,  # of larc [P]
  }
  return cfg


RANGES = {
  'loss.smoothing': (0, 1),
  'sinkhorn.iterations': (1, None),
  'projector.layers': (1, None),
  'projector.hidden': (1, None),
  'projector.size': (1, None),
  'prototypes.number': (0, None),
  'queue.capacity': (0, None),
  'queue.start_epoch': (0, None),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of Suave that cannot work."""
  del num_devices  # a multiple of the batch is one of the devices, too
  base.check_above_zero(cfg, 'loss.temperature', 'sinkhorn.epsilon')
  base.check_two_views(cfg)
  base.check_feature_queue(cfg)


def doubts(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> Iterator[str]:
  """What can run but can hardly be meant."""
  images = cfg.batch_size + cfg.queue.capacity
  number = base.check_prototypes(cfg, facts.num_classes)
  if images < number:
    yield (
      f'batch_size {cfg.batch_size} and queue.capacity {cfg.queue.capacity} '
      f'are fewer images than the {number:,} prototypes, which are to share '
      'them equally'
    )
