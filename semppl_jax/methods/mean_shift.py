"""MSF and CMSF: mean shift, free or within a class.

The online network's prediction regresses the k target projections of a memory
that are nearest to the image's own target projection, which is always the first
of them. With k = 1 this is BYOL, one direction of it. MSF: Koohpayegani et al.,
ICCV 2021 (arXiv 2105.07269), UMBCvision/MSF, train_msf.py. CMSF looks among the
entries with the image's label only: Navaneet et al., ECCV 2022 (arXiv
2112.04607), UCDvision/CMSF, supervised/train_cmsf_sup.py and
semi_supervised/pseudo_cmsf.py. There a classifier gives pseudo-labels, as it
may here; or they are a vote of the nearest labelled images, as SemPPL's.

The first large view is the target network's, the other views are the online
network's: one direction, as released.

Shapes: V views of the online network; C slots of the memory; k neighbours;
others as in `base`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax.config import checks, defaults
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import regression
from semppl_jax.memory import label_queue, queue_classifier, queue_vote
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.memory.queue_classifier import Classifier
from semppl_jax.methods import base
from semppl_jax.models.multicrop import l2_normalize
from semppl_jax.types import Views

_WEIGHTS, _DRAWS = 1, 2  # purposes of the head's randomness


class Memory(NamedTuple):
  """Target projections of all images, and of labelled ones, who know."""

  images: LabelQueue  # with the (pseudo-)labels of their time, -1: none
  labelled: LabelQueue | tuple  # with true labels; (): nobody is asked
  head: Classifier | tuple = ()  # learns from these; (): there is none


class Shared(NamedTuple):
  """What is found out once a step, of the whole batch."""

  labels: jax.Array  # [B] int32, whose neighbours an image gets; -1: anyone's
  metrics: base.Metrics  # of the pseudo-labels


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """Mean shift's heads, memory and loss, and what gives pseudo-labels."""
  kind, size = cfg.loss.pseudo_labels, cfg.projector.size
  guesses, has_head = kind != 'none', kind == 'head'

  # Push before the search: an image's own target is its first neighbour.
  def prepare(memory: Memory, batch: base.BatchWide):
    targets = l2_normalize(batch.target['projection'])  # [1, B, d]
    labelled, head = memory.labelled, memory.head
    labels, metrics = batch.labels, {}
    if guesses:
      labelled = label_queue.push(labelled, targets, labels, batch.ids)
    if kind == 'vote':
      labels, metrics = assign_labels(targets, batch, labelled, cfg, facts)
    elif has_head:
      head, labels, metrics = train_head(head, targets[0], batch, labelled, cfg)
    elif not cfg.loss.same_label:
      labels = jnp.full_like(labels, -1)
    everyone = jnp.ones(len(labels), bool)
    images = label_queue.push(
      memory.images, targets, labels, batch.ids, keep=everyone
    )
    return Memory(images, labelled, head), Shared(labels, metrics)

  def loss(inputs: base.Inputs, memory: Memory) -> base.Result:
    online = l2_normalize(inputs.online['prediction'])  # [V, b, d]
    targets = l2_normalize(inputs.target['projection'])  # [1, b, d]
    dims = base.dimensions(inputs)
    chex.assert_shape(online, dims['Vbd'])
    chex.assert_shape(targets, (1, *dims['bd']))
    labels = inputs.shared.labels[inputs.keys.index]  # [b]
    slots, alike = find_neighbours(targets, labels, memory.images, cfg)
    rows = label_queue.fetch(memory.images, parallel.all_gather(slots))
    value = regression.neighbour_distances(
      online, rows[:, 0], slots >= 0
    ).mean()
    metrics = {
      'loss/mean_shift': value,
      'memory_fill': label_queue.fill(memory.images),
      **inputs.shared.metrics,
    }
    if not guesses:
      return base.Result(value, metrics, alike=alike)
    metrics['queue_fill'] = label_queue.fill(memory.labelled)
    return base.Result(value, metrics, labels, alike=alike)

  def init() -> Memory:
    key = jax.random.fold_in(jax.random.key(cfg.seed), _WEIGHTS)
    return Memory(
      label_queue.init(1, cfg.memory.capacity, size),
      label_queue.init(1, cfg.queue.capacity, size) if guesses else (),
      queue_classifier.init(key, size, facts.num_classes) if has_head else (),
    )

  return base.Method(
    heads=base.projector_predictor(cfg),
    loss=loss,
    online_views=_online_views,
    target_views=_target_view,
    init=init,
    prepare=prepare,
    shards=Memory(
      label_queue.SHARDS,
      label_queue.SHARDS if guesses else (),
      queue_classifier.shards(size, facts.num_classes) if has_head else (),
    ),
    queue=(lambda memory: memory.labelled) if kind == 'vote' else None,
    labels_train=guesses,
    advice=advice(cfg) if guesses else (),
  )


def _online_views(views: Views) -> tuple[jax.Array, ...]:
  return views.large[1:], views.small


def _target_view(views: Views) -> tuple[jax.Array, ...]:
  return (views.large[:1],)


def find_neighbours(
  targets: jax.Array,
  labels: jax.Array,
  memory: LabelQueue,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[jax.Array, base.Outputs]:
  """The k entries nearest to the targets, among those of the image's label.

  Args:
    targets: [1, b, d] unit projections, of this device's images.
    labels: [b] int32; -1: every entry may be a neighbour.
    memory: with this batch's images in it.
    cfg: settings.

  Returns:
    Slots [b, k] int32, nearest first, -1: there is none; and whose entries
    these are, by the name of their purity, with those that are nearest whatever
    their label, where that is another question.
  """
  wanted = [parallel.all_gather(labels)]  # [B]
  names = ['neighbour_purity']
  if cfg.loss.same_label:
    wanted.append(jnp.full_like(wanted[0], -1))
    names.append('free_neighbour_purity')
  wanted = jnp.stack(wanted)
  found = label_queue.nearest(
    memory,
    parallel.all_gather(targets, axis=1),
    jnp.full_like(wanted, -2),
    k=cfg.memory.k,
    block_size=cfg.memory.block_size,
    wanted=wanted,
  ).slots  # [1 or 2, b, k]
  ids = jnp.where(found >= 0, memory.ids[found], -1)
  return found[0], dict(zip(names, ids, strict=True))


def assign_labels(
  targets: jax.Array,
  batch: base.BatchWide,
  queue: LabelQueue,
  cfg: ml_collections.FrozenConfigDict,
  facts: base.RunFacts,
) -> tuple[jax.Array, base.Metrics]:
  """Votes of the nearest labelled images; a true label overrules them.

  SemPPL's vote, of the whole batch at once, looked up by target projections,
  as the neighbours are.

  Args:
    targets: [1, B, d] unit projections.
    batch: its labels and ids.
    queue: of labelled images, with this batch's in it.
    cfg: settings.
    facts: how often a class should get a vote, if votes are balanced.

  Returns:
    (Pseudo-)labels [B] int32, -1: none; and metrics. The accuracy on labelled
    images is that of a second look-up, blind to the image's own entries.
  """
  labels, metrics = queue_vote.assign_labels(
    queue,
    targets,
    parallel.local_slice(batch.labels),
    batch.ids,
    batch.labels,
    k=cfg.queue.k,
    block_size=cfg.memory.block_size,
    min_share=cfg.queue.min_share,
    balance=cfg.queue.balance,
    class_share=facts.class_share,
  )
  return parallel.all_gather(labels), metrics


def train_head(
  head: Classifier,
  targets: jax.Array,
  batch: base.BatchWide,
  queue: LabelQueue,
  cfg: ml_collections.FrozenConfigDict,
) -> tuple[Classifier, jax.Array, base.Metrics]:
  """Some steps of the head, then its guesses; a true label overrules them.

  Args:
    head: before them.
    targets: [B, d] unit projections.
    batch: its labels and key.
    queue: of labelled images, with this batch's in it.
    cfg: settings.

  Returns:
    The head; (pseudo-)labels [B] int32, -1: none, of all unlabelled images if
    it has not learned yet; and metrics.
  """
  key = jax.random.fold_in(batch.key, _DRAWS)
  head, loss = queue_classifier.train(head, queue, key, **cfg.head)
  logits = queue_classifier.logits(head, targets)  # [B, K]
  labels = queue_classifier.assign(
    logits, batch.labels, cfg.loss.min_confidence
  )
  labels = jnp.where(queue.count > 0, labels, -1)
  return head, labels, {'loss/head': loss}


# Settings. -----------------------------------------------------------------


def default() -> ml_collections.ConfigDict:
  """Mean shift's own sections, and what it sets of the engine's, for ImageNet.

  MSF's, and of what CMSF adds its own.
  """
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 256  # B, global [P]
  cfg.num_epochs = 200.0  # passes over all training images [P]
  cfg.views = {
    # V_L, large views of an image: the first is the target network's, the
    # others are the online network's [P]
    'num_large': 2,
    'num_small': 0,  # V_S: MSF has none [P]
    'large_area': (0.2, 1.0),  # share of the image that a crop covers [P]
    'saliency': 0.0,  # probability: never [P]
    'brightness_mode': 'multiply',  # as torchvision's [P]
    'saturation': 0.4,  # strength: the largest change [P]
    # Probability in the target's view, in the second; jitter and grayscale are
    # those of both, where the release leaves the target's alone [P]
    'blur': (0.0, 0.5),
    'solarize': (0.0, 0.0),  # probability: never [P]
  }
  cfg.loss = {
    # True: an image with a label has neighbours with that label only (CMSF);
    # False: labels change nothing (MSF)
    'same_label': False,
    # Of images without a label: none, all entries may be their neighbours;
    # vote, that of the nearest labelled images (SemPPL's); or head, the guess
    # of a classifier that learns beside (CMSF's)
    'pseudo_labels': 'none',
    # The head's probability, at least, for a guess to be a pseudo-label [P]
    'min_confidence': 0.85,
  }
  cfg.memory = {
    'capacity': 128_000,  # C, images whose target projections are kept [P]
    # Nearest of them that an image regresses; CMSF has 10 [P]
    'k': 5,
    'block_size': 1024,  # entries per product: bounds the temporary memory
  }
  cfg.queue = {
    # Labelled images that vote, or that the head learns from; as SemPPL's
    # [ours]
    'capacity': 81_920,
    'k': 1,  # neighbours that vote [ours]
    'min_share': 0.0,  # of the votes, to get a pseudo-label [ours]
    # How strongly the votes of a batch are scaled until each class has its
    # share of the labels: 0, not at all, to 1; see pseudo_labels.balance
    # [ours]
    'balance': 0.0,
  }
  cfg.head = {
    'steps': 2,  # of the head, in every training step [ours]
    'batch_size': 256,  # labelled images of the queue in each [P]
    'learning_rate': 0.01,  # of SGD, constant [P]
    'momentum': 0.9,  # likewise [P]
    'weight_decay': 1e-4,  # of all its parameters [P]
  }
  cfg.optimizer = {
    'name': 'sgd_l2',  # all parameters decay [P]
    'learning_rate': 0.05,  # for 256 images [P]
    'warmup_epochs': 0.0,  # there is none [P]
    'weight_decay': 1e-4,  # of all parameters [P]
    'momentum': 0.9,  # of sgd_l2 [P]
  }
  cfg.ema = {
    'base': 0.99,  # of the target network [P]
    'constant': True,  # it stays [P]
  }
  cfg.projector = {
    'hidden': 4096,  # hidden units [P]
    'size': 512,  # d, of projections and predictions [P]
  }
  cfg.predictor = base.predictor_section()
  return cfg


RANGES = base.PROJECTOR_RANGES | {
  'views.num_large': (2, None),  # one is the target's, another the online's
  'memory.capacity': (1, None),
  'memory.k': (1, None),
  'memory.block_size': (1, None),
  'queue.capacity': (1, None),
  'queue.k': (1, None),
  'queue.min_share': (0, 1),
  'queue.balance': (0, 1),
  'loss.min_confidence': (0, 1),
  'head.steps': (1, None),
  'head.batch_size': (1, None),
  'head.learning_rate': (0, None),
  'head.momentum': (0, 1),
  'head.weight_decay': (0, None),
}
CHOICES = {'loss.pseudo_labels': ('none', 'vote', 'head')}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of mean shift that cannot work, alone or together."""
  guesses = cfg.loss.pseudo_labels != 'none'
  if guesses and not cfg.loss.same_label:
    raise UserError(
      f'loss.pseudo_labels is {cfg.loss.pseudo_labels!r}, but with '
      'loss.same_label=False labels choose no neighbours: set it to True, or '
      'loss.pseudo_labels to none.'
    )
  if cfg.loss.same_label and not defaults.uses_labels(cfg):
    raise UserError(
      'loss.same_label is True, but no image has a label: set '
      'labels.per_class, .fraction, .file or .subset, or loss.same_label=False '
      '(MSF).'
    )
  for key in ('memory.capacity', *(('queue.capacity',) if guesses else ())):
    value = checks.look_up(cfg, key)
    if value % num_devices:
      raise UserError(
        f'{key} {value} is not a multiple of the {num_devices} devices that '
        'share it.'
      )
  if cfg.memory.capacity < cfg.batch_size:
    raise UserError(
      f'memory.capacity is {cfg.memory.capacity}, but a batch of '
      f'{cfg.batch_size} images enters it whole: set it to batch_size or more.'
    )


def doubts(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> Iterator[str]:
  """What can run but can hardly be meant, with these images and labels."""
  capacity = cfg.memory.capacity
  if cfg.memory.k > 1 and capacity > facts.num_images:
    yield (
      f'memory.capacity {capacity:,} is more than the {facts.num_images:,} '
      'training images: an image would be its own neighbour again and again'
    )
  if cfg.loss.pseudo_labels != 'none' and facts.num_labels:
    yield from base.queue_doubts(cfg, facts)
  if cfg.loss.pseudo_labels == 'head':
    for key in ('k', 'min_share', 'balance'):
      if cfg.queue[key] != default().queue[key]:
        yield (
          f'queue.{key} is {cfg.queue[key]:g}, but with '
          "loss.pseudo_labels='head' nobody votes: it changes nothing"
        )


def advice(cfg: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Settings that keep one pseudo-label from taking over, and are not on.

  Those of SemPPL that its votes have in common with these; of the head a higher
  threshold.
  """
  votes = cfg.loss.pseudo_labels == 'vote'
  ways = {
    'queue.balance=1': votes and cfg.queue.balance == 0,
    'labels.share=0.25': cfg.labels.share == 0,
    'queue.k=5': votes and cfg.queue.k == 1,
    'queue.min_share=0.5': votes and cfg.queue.min_share == 0,
    'loss.min_confidence=0.95': not votes and cfg.loss.min_confidence < 0.95,
    'loss.pseudo_labels=none': True,
  }
  return tuple(way for way, is_off in ways.items() if is_off)
