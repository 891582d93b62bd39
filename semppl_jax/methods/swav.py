"""SwAV: Swapping Assignments between Views (Caron et al., arXiv 2006.09882).

Images of the batch are assigned to prototypes, of equal weight each, and every
view predicts the assignment of another. The assignments are the online
network's own, without gradient. A queue of features gives a small batch more
images to share the prototypes with. No target network, no labels.
facebookresearch/swav, main_swav.py.

Shapes: A = V_L views with assignments; K prototypes; Q features in the queue;
others as in `base`.
"""

import functools
import math
from collections.abc import Iterator

import chex
import jax
import ml_collections

from semppl_jax.distributed import parallel
from semppl_jax.losses import clustering
from semppl_jax.memory import label_queue
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.methods import base
from semppl_jax.models import heads


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """SwAV's head, assignments and loss, and its queue if it has one."""
  large, has_queue = cfg.views.num_large, cfg.queue.capacity > 0
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
    dims = base.dimensions(inputs)
    chex.assert_shape(scores, dims['Vb'] + (cfg.prototypes.number,))
    own = jax.lax.stop_gradient(scores[:large])  # [A, b, K]
    q = assign(own, queue, inputs.batch.params)
    value = clustering.swapped_prediction(
      q, scores, cfg.loss.temperature
    ).mean()
    metrics = {'loss/swapped': value}
    metrics |= clustering.assignment_metrics(q, parallel.pmean)
    if not has_queue:
      return base.Result(value, metrics)
    metrics['queue_fill'] = label_queue.fill(queue)
    return base.Result(value, metrics, kept={'projection': features})

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
      num_prototypes=cfg.prototypes.number,
    ),
    loss=loss,
    # All images alike: every assignment and every prediction is uniform.
    chance={'loss/swapped': math.log(cfg.prototypes.number)},
    prototypes=base.Prototypes(
      cfg.prototypes.number, ('more sinkhorn.iterations',)
    ),
    advice=advice(cfg),
    frozen={'prototypes': facts.steps(cfg.prototypes.freeze_epochs)},
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
  """SwAV's own sections, and what it sets of the engine's, for ImageNet.

  Those of the release's scripts/swav_800ep_pretrain.sh and of its code.
  """
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 4096  # B, global [P]
  cfg.num_epochs = 800.0  # passes over all training images [P]
  cfg.encoder = {
    # LARC would move scales of 0 by their gradient itself [P]
    'zero_init_residual': False,
  }
  cfg.views = {
    'num_large': 2,  # V_L, large views of an image [P]
    'num_small': 6,  # V_S, small views, of the online network [P]
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
  }
  cfg.sinkhorn = {
    'epsilon': 0.05,  # divides the scores; smaller: harder assignments [P]
    'iterations': 3,  # of the assignments [P]
  }
  cfg.projector = {
    'layers': 2,  # L, of the projector [P]
    'hidden': 2048,  # hidden units; 8192 for wide encoders [P]
    'size': 128,  # d, of projections [P]
  }
  cfg.prototypes = {
    'number': 3000,  # K [P]
    'freeze_epochs': 1.0,  # so many epochs they stay as they began [P]
  }
  cfg.queue = {
    # Q, features of each large view that take part in the assignments; 0: no
    # queue. The release has 3840 for a batch of 256 [P]
    'capacity': 0,
    # From where on it fills; it counts once it is full [P]
    'start_epoch': 15.0,
  }
  cfg.optimizer = {
    'name': 'larc',  # all parameters alike [P]
    'learning_rate': 0.3,  # for 256 images: 4.8 for 4096 [P]
    'warmup_epochs': 10.0,  # until the rate has its peak [P]
    'warmup_kind': 'swav',  # whose last step has the peak [P]
    'start_learning_rate': 0.3 / 16,  # where the warm-up begins: 0.3 [P]
    'final_learning_rate': 3e-4,  # where the cosine ends: 0.0048 [P]
    'weight_decay': 1e-6,  # of all parameters [P]
    'momentum': 0.9,  # of larc [P]
    'trust_coefficient': 1e-3,  # of larc [P]
  }
  return cfg


RANGES = base.PROTOTYPE_RANGES | {
  'sinkhorn.iterations': (1, None),
  'queue.capacity': (0, None),
  'queue.start_epoch': (0, None),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of SwAV that cannot work."""
  del num_devices  # a multiple of the batch is one of the devices, too
  base.check_above_zero(cfg, 'loss.temperature', 'sinkhorn.epsilon')
  base.check_two_views(cfg)
  base.check_feature_queue(cfg)


def doubts(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> Iterator[str]:
  """What can run but can hardly be meant."""
  images = cfg.batch_size + cfg.queue.capacity
  if images < cfg.prototypes.number:
    yield (
      f'batch_size {cfg.batch_size} and queue.capacity {cfg.queue.capacity} '
      f'are fewer images than prototypes.number {cfg.prototypes.number}, which '
      'are to share them equally'
    )
  fill = cfg.queue.capacity // cfg.batch_size
  counts = facts.steps(cfg.queue.start_epoch) + fill
  if cfg.queue.capacity and facts.total_steps <= counts:
    yield (
      f'queue.capacity {cfg.queue.capacity:,} is full after step {counts:,}, '
      f'but the run ends with step {facts.total_steps:,}'
    )


def advice(cfg: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Settings that keep the loss from staying at log K, the best first.

  By the release's README and its issues.
  """
  ways = {
    'sinkhorn.epsilon=0.03': cfg.sinkhorn.epsilon > 0.03,
    'a later queue.start_epoch': cfg.queue.capacity > 0,
    'a longer prototypes.freeze_epochs': True,
    'a smaller prototypes.number': True,
  }
  return tuple(way for way, helps in ways.items() if helps)
