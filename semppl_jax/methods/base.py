"""Method: what an objective is, as the engine sees it.

An objective is a value made of pure functions, as an optimiser is in optax:
`byol.build(cfg, facts)` is a `Method(heads, loss, ...)`. `train/step.py` runs
it; docs/add_a_method.md shows how to write one.

Shapes: B images in the global batch, D devices, b = B/D here; V views of the
online network, W of the target network; d the size of a projection.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import chex
import jax
import ml_collections
import numpy as np

from semppl_jax.config import checks
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import false_negatives
from semppl_jax.losses.false_negatives import FalseNegatives
from semppl_jax.memory.label_queue import LabelQueue
from semppl_jax.models.heads import ProjectorPredictor
from semppl_jax.types import Views

Outputs = Mapping[str, jax.Array]  # by name, [views, images, ...]
Metrics = dict[str, jax.Array]
Memory = chex.ArrayTree  # () if the objective keeps none
Shared = chex.ArrayTree  # what `prepare` hands to every loss of the step


class RunFacts(NamedTuple):
  """What a method may depend on besides its config."""

  num_classes: int  # K
  num_images: int  # training images
  class_share: np.ndarray  # [K] float32, of the labels; zeros: no labels
  num_labels: int  # training images with a label
  total_steps: int
  steps: Callable[[float], int]  # epochs -> steps


class Keys(NamedTuple):
  """Randomness by an image's index in the global batch, never by its device."""

  index: jax.Array  # [b] int32, of this device's images
  local: jax.Array  # [b] keys
  batch: jax.Array  # [B] keys of all images, the same on all devices

  def fold(self, purpose: int) -> 'Keys':
    """Keys of their own for one use; 0 is the views'."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return self._replace(
      local=fold(self.local, purpose), batch=fold(self.batch, purpose)
    )


class BatchWide(NamedTuple):
  """What is known before any loss, of the whole batch, however it is split."""

  target: Outputs | None  # [W, B, ...] no gradient; None: no target network
  labels: jax.Array  # [B] int32, -1: unlabelled
  ids: jax.Array  # [B] int32, an image's number in its data set
  step: jax.Array  # [] int32, the clock of all that changes in training
  # [W, B/D, ...] the rows of `target` that this device made, in all its
  # microbatches: for what is too large to be gathered
  local_target: Outputs | None = None
  # Weights of the online network as the step finds them, no gradient
  params: chex.ArrayTree = ()
  key: jax.Array | None = None  # of this step, the same on all devices


class Support(NamedTuple):
  """Labelled images beside the batch, s of S here, where cfg.support is."""

  online: Outputs  # [V_s, s, ...] gradients flow
  labels: jax.Array  # [s] int32, all known
  # With support.classes, images of a class stand together; None: of any class
  place: jax.Array | None = None  # [s] int32, of its class among `classes`
  classes: jax.Array | None = None  # [C_s] int32, the same on all devices


class Inputs(NamedTuple):
  """What a loss sees of one step: b images of this device, this microbatch."""

  online: Outputs  # [V, b, ...] large views first; gradients flow
  target: Outputs | None  # [W, b, ...] no gradient
  labels: jax.Array  # [b] int32, -1: unlabelled. Hidden labels never come here
  ids: jax.Array  # [B] int32, of all devices' images of this microbatch
  batch: BatchWide
  shared: Shared  # from `prepare`
  keys: Keys
  # [V, b, ...] of the frozen teacher, see Method.teacher; no gradient
  teacher: jax.Array | None = None
  support: Support | None = None  # None: the config has no section `support`


class Result(NamedTuple):
  """What a loss gives back."""

  loss: jax.Array  # []: its mean over devices and microbatches is the loss
  # Scalars whose means over devices and microbatches are what they say.
  metrics: Metrics = {}
  # [b] int32 (pseudo-)labels, -1: none. The host compares them with the truth.
  labels: jax.Array | None = None
  # [.., b, ..] arrays for `update`, without gradient, b on axis 1.
  kept: Outputs = {}
  # {metric: [b, k] int32 ids of images that are taken for like this one, -1:
  # none}. The host, which knows the truth, tells the share that are.
  alike: Outputs = {}


class Prototypes(NamedTuple):
  """What images are assigned to, and what to do if one takes all.

  A method that has them tells losses.clustering's `assignment_metrics`.
  """

  number: int  # K; both entropies are log K at most
  advice: tuple[str, ...]  # settings to try if one takes all, the best first


class Scratch(NamedTuple):
  """Memory on a device for which a setting says of how many images it is."""

  setting: str  # its dotted name
  images: int
  each: int  # bytes

  @property
  def size(self) -> int:
    """Bytes."""
    return self.images * self.each


class FrozenTeacher(NamedTuple):
  """What a loss compares with of a trained network that stays as it is."""

  output: str  # 'logits' of its classifier, or 'embedding' of its encoder
  size: int  # of the output's last axis, as the student needs it


def all_views(views: Views) -> tuple[jax.Array, ...]:
  """Large and small views."""
  return views.large, views.small


def large_views(views: Views) -> tuple[jax.Array, ...]:
  """Large views only."""
  return (views.large,)


def _no_memory() -> Memory:
  return ()


def _nothing_to_prepare(memory: Memory, batch: BatchWide):
  del batch
  return memory, ()


def _unchanged(memory: Memory, batch: BatchWide, shared: Shared, kept: Outputs):
  del batch, shared, kept
  return memory


class Method(NamedTuple):
  """An objective: pure functions that run inside the mapped step.

  Attributes:
    heads: a Haiku function, (embedding [.., n, e], is_training, is_online,
      BatchNorm's settings) -> outputs by name, [.., n, ...]; an axis of views
      may stand before the images. Modules that the call with is_online=False
      does not make belong to the online network alone.
    loss: (Inputs, Memory) -> Result. Reads the memory, never changes it. May
      use the collectives of `distributed.parallel`; neither value nor gradient
      may depend on the number of devices.
    online_views: (Views) -> groups of views, each [v, b, S, S, 3].
    target_views: likewise of the target network, a moving average of the
      online one; None: there is no target network.
    teacher: what a frozen teacher, the network of `teacher.checkpoint`, makes
      in evaluation mode of the views that the online network sees; None: there
      is no teacher.
    init: () -> the memory before the first step, of all devices together.
    prepare: (Memory, BatchWide) -> (Memory, Shared), once a step and before any
      loss.
    update: (Memory, BatchWide, Shared, kept [.., B, ..]) -> Memory, once a step
      and after the last loss.
    shards: a tree like the memory: along which axis a leaf is split over the
      devices; -1: it is not.
    predict: (outputs of one view, [1, b, ...], Memory) -> labels [b] int32, -1:
      none, of images in evaluation; None: the classifier predicts. Outputs are
      those of the network that evaluation.network names: of the target network
      what the heads make with is_online=False, and 'embedding'.
    queue: the part of the memory whose labelled entries vote on images that
      have no label, looked up by predictions; None: nothing votes there.
    embedding: the output whose spread shows a collapse, of the target network
      if it has it; None: not watched.
    chance: {metric: its value, in nats, if views are told apart by chance}.
    lowest: what the loss can be at least, of a loss that may be negative: the
      watchdog takes a loss for exploded by how far above it is.
    prototypes: the watchdog looks for a collapse of the assignments to these;
      None: there are none.
    labels_train: pseudo-labels of the method's own take part in its loss, so
      that one of them may take over.
    advice: settings to try if one does, or if assignments become uniform, the
      best first; without pseudo-labels, if embeddings collapse or views are
      told apart by chance, too.
    frozen: {Haiku module of the online network: first so many steps in which
      neither its weights nor the optimiser's state of them change}.
    unit_rows: Haiku modules of the online network whose matrices [K, d] have
      rows of length 1: made so at the beginning and after every update.
    accumulates: whether a batch may be taken in parts.
    scratch: what the loss takes for a while of a device's memory beside the
      networks, however many images they see at once; None: little.
  """

  heads: Callable[..., Outputs]
  loss: Callable[[Inputs, Memory], Result]
  online_views: Callable[[Views], tuple[jax.Array, ...]] = all_views
  target_views: Callable[[Views], tuple[jax.Array, ...]] | None = None
  teacher: FrozenTeacher | None = None
  init: Callable[[], Memory] = _no_memory
  prepare: Callable[[Memory, BatchWide], tuple[Memory, Shared]] = (
    _nothing_to_prepare
  )
  update: Callable[[Memory, BatchWide, Shared, Outputs], Memory] = _unchanged
  shards: Any = ()
  predict: Callable[[Outputs, Memory], jax.Array] | None = None
  queue: Callable[[Memory], LabelQueue] | None = None
  embedding: str | None = 'projection'
  chance: Mapping[str, float] = {}
  lowest: float = 0.0
  prototypes: Prototypes | None = None
  labels_train: bool = False
  advice: tuple[str, ...] = ()
  frozen: Mapping[str, int] = {}
  unit_rows: tuple[str, ...] = ()
  accumulates: bool = True
  scratch: Scratch | None = None


def dimensions(inputs: Inputs) -> chex.Dimensions:
  """V, b, d of the online outputs, W of the target's, and B.

  For chex.assert_shape at the door of a loss.
  """
  online, target = inputs.online, inputs.target
  views, images, size = online.get('prediction', online['projection']).shape
  return chex.Dimensions(
    V=views,
    W=0 if target is None else len(target['projection']),
    b=images,
    B=len(inputs.batch.labels),
    d=size,
  )


# Settings of objectives that have a projector and a predictor. ----------------


def projector_section() -> dict[str, int]:
  """BYOL's projector, which SemPPL has too."""
  return {
    'hidden': 4096,  # hidden units [P]
    'size': 256,  # d, of projections and predictions [P]
  }


def predictor_section() -> dict[str, int]:
  """Likewise their predictor."""
  return {
    'hidden': 4096,  # hidden units [P]
  }


PROJECTOR_RANGES = {
  'projector.hidden': (1, None),
  'projector.size': (1, None),
  'predictor.hidden': (1, None),
}


def projector_predictor(
  cfg: ml_collections.FrozenConfigDict,
) -> ProjectorPredictor:
  """The heads of these settings."""
  return ProjectorPredictor(
    cfg.projector.hidden, cfg.projector.size, cfg.predictor.hidden
  )


# Settings of objectives that have negatives. ----------------------------------


def negatives_section() -> dict[str, Any]:
  """Which other images are taken for false negatives, and what becomes of them.

  Numbers are those of FNC; see losses/false_negatives.py.
  """
  return {
    # Which other images are no negatives: none, all are; label, those with the
    # image's (pseudo-)label, if the method has any; similarity, the most
    # similar ones, its false negatives, without labels
    'cancel': 'none',
    'top_k': 10,  # false negatives of an image, at most [P]
    'threshold': 0.7,  # cosine that they are above [P]
    # In place of the threshold, if above 0: the cosine that so large a share of
    # an image's candidates is below, as a mean over the batch [ours]
    'quantile': 0.0,
    'attract': False,  # these false negatives are positives
  }


NEGATIVES_RANGES = {
  'negatives.top_k': (1, None),
  'negatives.threshold': (-1, None),
  'negatives.quantile': (0, 1),
}


def find_false_negatives(
  scores: jax.Array, own: jax.Array, cfg: ml_collections.FrozenConfigDict
) -> FalseNegatives:
  """The most similar candidates of each image, by these settings.

  Args:
    scores: [b, M] similarities of this device's images and all candidates.
    own: [b, M] bool, the image's own.
    cfg: settings.
  """
  threshold = cfg.negatives.threshold
  if cfg.negatives.quantile:
    shares = false_negatives.quantile(scores, own, cfg.negatives.quantile)
    threshold = parallel.pmean(shares.mean())
  return false_negatives.find(
    scores, own, top_k=cfg.negatives.top_k, threshold=threshold
  )


def check_negatives(cfg: ml_collections.ConfigDict) -> None:
  """Refuses settings of false negatives that cannot work together."""
  if cfg.negatives.attract and cfg.negatives.cancel != 'similarity':
    raise UserError(
      f'negatives.attract is True, but negatives.cancel is '
      f'{cfg.negatives.cancel!r}: set it to similarity.'
    )
  most = cfg.batch_size - 2
  if cfg.negatives.cancel == 'similarity' and cfg.negatives.top_k > most:
    raise UserError(
      f'negatives.top_k is {cfg.negatives.top_k}, but of batch_size '
      f'{cfg.batch_size} a negative must be left: set it to {most} or less.'
    )


# Settings of objectives that have prototypes. ---------------------------------


PROTOTYPE_RANGES = {
  'projector.layers': (1, None),
  'projector.hidden': (1, None),
  'projector.size': (1, None),
  'prototypes.number': (2, None),
  'prototypes.freeze_epochs': (0, None),
}


def check_above_zero(cfg: ml_collections.ConfigDict, *keys: str) -> None:
  """Refuses what divides scores and is not above 0."""
  for key in keys:
    value = checks.look_up(cfg, key)
    if not value > 0:
      raise UserError(f'{key} is {value}; it must be above 0.')


# Settings of objectives that have a queue of labelled images. -----------------


def queue_doubts(
  cfg: ml_collections.ConfigDict, facts: RunFacts
) -> Iterator[str]:
  """What can hardly be meant of a queue whose images vote; see `doubts`."""
  if (facts.class_share > 0).sum() == 1 < facts.num_classes:
    yield 'all labelled images are of one class'
  share = cfg.labels.share or facts.num_labels / facts.num_images
  passing = int(share * cfg.batch_size * facts.total_steps)
  if passing < cfg.queue.capacity:
    yield (
      f'queue.capacity {cfg.queue.capacity:,} can never fill: about '
      f'{passing:,} labelled images come by in all {facts.total_steps:,} steps'
    )


# Settings of objectives that have a frozen teacher. ---------------------------


def teacher_section() -> dict[str, str]:
  """Which network is the teacher."""
  return {
    # A file, a run's folder, the name of a released one; WORKDIR has a copy
    # from the run's beginning on
    'checkpoint': '',
  }


def weak_views() -> dict[str, Any]:
  """One view, by crop and flip alone, which student and teacher both see."""
  return {
    'num_large': 1,  # V_L, large views of an image [P]
    'num_small': 0,  # V_S: there are none [P]
    'saliency': 0.0,  # probability: never [P]
    'jitter': 0.0,  # probability: never [P]
    'grayscale': 0.0,  # probability: never [P]
    'blur': (0.0, 0.0),  # probability: never [P]
    'solarize': (0.0, 0.0),  # probability: never [P]
  }


def check_teacher(cfg: ml_collections.ConfigDict) -> None:
  """Refuses a config that names no teacher."""
  if not cfg.teacher.checkpoint:
    raise UserError(
      f"teacher.checkpoint is '', but method {cfg.method!r} learns from a "
      'teacher: set --config.teacher.checkpoint=CHECKPOINT, a file or the '
      'folder of a run.'
    )


# Settings of objectives that assign images to prototypes. ---------------------


def check_two_views(cfg: ml_collections.ConfigDict) -> None:
  """Refuses a single view, of whose assignment no other could be predicted."""
  if cfg.views.num_large + cfg.views.num_small < 2:
    raise UserError(
      f'views.num_large is {cfg.views.num_large} and views.num_small '
      f'{cfg.views.num_small}, but method {cfg.method!r} predicts one view '
      'from another: set views.num_large to 2.'
    )


def check_feature_queue(cfg: ml_collections.ConfigDict) -> None:
  """Refuses a queue of features that whole batches do not fill."""
  if rest := cfg.queue.capacity % cfg.batch_size:
    raise UserError(
      f'queue.capacity is {cfg.queue.capacity}, no multiple of batch_size '
      f'{cfg.batch_size}: set it to {cfg.queue.capacity - rest} or '
      f'{cfg.queue.capacity - rest + cfg.batch_size}; 0 is no queue.'
    )


def check_prototypes(cfg: ml_collections.ConfigDict, num_classes: int) -> int:
  """K, of an objective whose first prototypes are the classes.

  Args:
    cfg: prototypes.number, 0: as many as there are classes.
    num_classes: of the data set.

  Raises:
    UserError: fewer prototypes than classes.
  """
  number = cfg.prototypes.number or num_classes
  if number < num_classes:
    raise UserError(
      f'prototypes.number is {number}, but the data set has {num_classes:,} '
      'classes, which need one each: set it to as many or more, or to 0.'
    )
  return number
