"""Every setting, its default and where it comes from; and what can be wrong.

The defaults are the ImageNet setting. Experiment files change them, the command
line changes those. Marks at the line ends: [P] the paper's abstract or one of
DeepMind's public releases, [ours] our setting, because no public source states
it or we know it from memory of the papers only.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from semppl_jax.errors import UserError

# Settings that change how a run is watched, not what it computes.
COSMETIC = (
  'log_every_steps',
  'checkpoint_every_steps',
  'keep_checkpoints',
  'keep_checkpoints_every',
  'progress',
  'num_devices',
  'profile_steps',
  'remat',  # up to rounding
  # Until there is an alarm, all do the same.
  'watchdog.action',
  'watchdog.rollbacks',
  'watchdog.patience',
  'watchdog.loss_factor',
  'watchdog.min_spread',
  'watchdog.max_label_share',
  'dataset.workers',
  'dataset.on_corrupt',  # until it stops a run, both do the same
)


def default() -> ml_collections.ConfigDict:
  """SemPPL on ImageNet, ResNet-50; labels, data set and schedule as ours."""
  cfg = ml_collections.ConfigDict()
  cfg.task = 'pretrain'
  cfg.seed = 0
  cfg.batch_size = 4096  # B, global [ours]
  cfg.num_epochs = 300.0  # [ours]
  cfg.num_devices = 0  # 0: all that JAX sees
  cfg.log_every_steps = 10
  cfg.checkpoint_every_steps = 500
  cfg.keep_checkpoints = 3  # the newest ...
  cfg.keep_checkpoints_every = 0  # ... and those of every so many steps
  cfg.progress = True  # a progress bar on the terminal
  # Of activations: float32, or bfloat16 with float32 parameters, BatchNorm
  # statistics, softmaxes and kNN [ours]
  cfg.precision = 'float32'
  # True: less memory, a third more work; see networks.build
  cfg.remat = False
  # Parts of the batch that the networks see one after another, each with
  # BatchNorm statistics of its own; see pretrain_step.train_step [ours]
  cfg.accumulate = 1
  # First and last step (from 1) of a profiler trace in WORKDIR/profile
  cfg.profile_steps = (0, 0)
  cfg.dataset = ml_collections.ConfigDict(
    {
      # digits, arrays, folder, imagenet2012, tfds:NAME, synthetic
      'name': 'synthetic',
      # Of arrays (.npz), of a folder; tfds's data_dir, '': $TFDS_DATA_DIR
      'path': '',
      # Side of the arrays in which encoded images lie whole; larger ones are
      # shrunk [ours]. Of synthetic: the images' side
      'image_size': 512,
      'train_split': '',  # of tfds; '': train
      'test_split': '',  # '': test, or else validation
      'unlabelled_split': '',  # '': unlabelled, if there is one
      'num_examples': 1024,  # of synthetic
      'num_classes': 10,  # of synthetic
      'validation': 0,  # >0: so many training images stand in for the test
      # 'stratified', or 'first': the first in the data set's order, as the
      # release holds out ImageNet's first 10,000 [P]
      'validation_rule': 'stratified',
      'seed': 0,  # of the validation split, and of synthetic
      'masks': '',  # a folder that `python -m semppl_jax.saliency` wrote
      # An image that cannot be decoded: 'replace' by another, or 'error'
      'on_corrupt': 'replace',
      'workers': 0,  # processes that read and decode; 0: threads only
    }
  )
  cfg.labels = ml_collections.ConfigDict(
    {
      'per_class': 0,  # either so many labels in each class ...
      'fraction': 0.0,  # ... or this share of them ...
      'file': '',  # ... or those of the images that a text file names ...
      'subset': '',  # ... or that are in a data set of tfds, NAME/CONFIG
      'share': 0.0,  # >0: this share of every batch is labelled [ours: 0]
      'seed': 0,  # which images have labels
    }
  )
  cfg.encoder = ml_collections.ConfigDict(
    {
      'name': 'resnet50',
      'width': 1,
      'stem': 'imagenet',  # or small: 3x3 stride 1 without max-pooling
      'selective_kernels': False,  # True: SimCLRv2's [ours]
      'padding': 'same',  # [P]; or symmetric: SimCLRv2's
      'bn_decay': 0.9,  # [P]
      'bn_eps': 1e-5,  # [P]
      'projector_hidden': 4096,  # also the predictor's [P]
      'embedding_size': 256,  # d [P]
    }
  )
  cfg.classifier = ml_collections.ConfigDict(
    {
      'weight': 1.0,  # monitoring only, while it is detached [ours]
      'detached': True,  # False: its gradient trains the encoder too
    }
  )
  cfg.views = ml_collections.ConfigDict(
    {
      'num_large': 4,  # V_L [ours]
      'num_small': 2,  # V_S [ours]
      'large_size': 224,  # [ours]
      'small_size': 96,  # [ours]
      'large_area': (0.14, 1.0),  # share of the image that a crop covers [ours]
      'small_area': (0.05, 0.14),  # [ours]
      'aspect': (3 / 4, 4 / 3),  # [ours]
      'antialias': False,  # [ours]
      # Probability that a large view sees the foreground alone, where
      # dataset.masks is set [ours]
      'saliency': 0.1,
      'flip': 0.5,  # probability [P], like all below
      'jitter': 0.8,  # probability of the four colour operations together
      'brightness': 0.4,  # the four strengths
      'contrast': 0.4,
      'saturation': 0.2,
      'hue': 0.1,
      'grayscale': 0.2,  # probability
      'blur': (1.0, 0.1),  # probability in views of type A, of type B
      'blur_kernel': 0.1,  # share of the side
      'blur_sigma': (0.1, 2.0),  # pixels
      'solarize': (0.0, 0.2),  # probability in views of type A, of type B
      'solarize_threshold': 0.5,
      'one_pass': False,  # all views of a size in one pass [ours: no]
    }
  )
  cfg.loss = ml_collections.ConfigDict(
    {
      'contrastive_weight': 0.3,  # c [ours]
      'alpha': 0.2,  # weight of the semantic positives [ours]
      'invariance_weight': 5.0,  # lambda [ours]
      'temperature': 0.2,  # tau [ours]
      'num_negatives': 10,  # [ours]
      'num_semantic_positives': 3,  # [ours]
      'stop_gradient': 'entropy',  # ReLICv2's form, or teacher [ours]
      'exclude_same_label': False,  # no negatives of the own (pseudo-)label
    }
  )
  # lambda_s; None: as invariance_weight [ours]
  cfg.loss.semantic_invariance_weight = config_dict.placeholder(float)
  cfg.queue = ml_collections.ConfigDict(
    {
      'capacity': 81_920,  # C = 20 B [ours]
      'k': 1,  # neighbours [ours]
      'block_size': 1024,  # keys per product: bounds the temporary memory
      'min_share': 0.0,  # of the votes, to get a pseudo-label [ours: 0]
    }
  )
  cfg.optimizer = ml_collections.ConfigDict(
    {
      'name': 'lars',  # or adamw, sgd
      'learning_rate': 0.3,  # for 256 images; times B / 256 [ours]
      'warmup_epochs': 10.0,  # [ours]
      'weight_decay': 1e-6,  # [ours]
      'momentum': 0.9,  # of lars, sgd [ours]
      'trust_coefficient': 1e-3,  # of lars [ours]
      'b1': 0.9,  # of adamw
      'b2': 0.999,  # of adamw
    }
  )
  cfg.ema = ml_collections.ConfigDict(
    {
      'base': 0.996,  # of the target network [ours]
      'constant': False,  # False: rises to 1 along a cosine [P]
    }
  )
  cfg.watchdog = ml_collections.ConfigDict(
    {
      # What is not finite, explodes or collapses: 'stop', or 'roll_back' to the
      # last good checkpoint, and on with other batches and keys [ours: all]
      'action': 'stop',
      'rollbacks': 3,  # at most; then it stops
      'patience': 20,  # bad steps in a row; NaN and infinity alarm at once
      'loss_factor': 5.0,  # times the median of the 100 steps before; 0: off
      'min_spread': 0.1,  # of embedding_std, about 1 in health; 0: off
      # Of the way from the largest class's share of the labels to 1, which the
      # most frequent pseudo-label's share may go; 1: off
      'max_label_share': 0.9,
    }
  )
  cfg.evaluation = ml_collections.ConfigDict(
    {
      'batch_size': 256,
      'center': 0.875,  # side of the crop / shorter side of the image [P]
      # So many unlabelled training images are looked at in the end: their
      # pseudo-labels are judged, the probe of all labels learns from them; 0:
      # all
      'train_images': 50_000,
      'k': 1,  # neighbours of knn_top1 among the labelled training images
      'probes': True,  # logistic regression on the frozen encoder at the end
      'probe_c': 1.0,  # its inverse L2 strength, on standardised features
    }
  )
  return cfg


def nearest_name(name: str, known: Any) -> str:
  """'; did you mean X?' for a misspelt name, or an empty string."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
  return f'; did you mean {close[0]!r}?' if close else ''


def semantic_invariance_weight(cfg: ml_collections.ConfigDict) -> float:
  """lambda_s: its own value, or lambda where it is None."""
  own = cfg.loss.semantic_invariance_weight
  return cfg.loss.invariance_weight if own is None else own


def uses_labels(cfg: ml_collections.ConfigDict) -> bool:
  """Whether any training image has a label."""
  labels = cfg.labels
  by_name = bool(labels.file or labels.subset)
  return labels.per_class > 0 or labels.fraction > 0 or by_name


def uses_semantic_positives(cfg: ml_collections.ConfigDict) -> bool:
  """Whether a semantic term is on: such a run needs labels."""
  alpha = cfg.loss.contrastive_weight * cfg.loss.alpha
  return alpha > 0 or semantic_invariance_weight(cfg) > 0


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses, before anything expensive, settings that cannot work.

  Args:
    cfg: the resolved config.
    num_devices: over all hosts.

  Raises:
    UserError: one line that names the setting, its value and what would do.
  """
  check_kinds(cfg, default())
  check_ranges(cfg, _RANGES)
  _check_views(cfg)
  _check_loss(cfg)
  check_choices(cfg, _CHOICES)
  check_profile(cfg)
  _check_labels(cfg)
  _check_parts(cfg, num_devices)
  if cfg.queue.capacity % num_devices:
    raise UserError(
      f'queue.capacity {cfg.queue.capacity} is not a multiple of the '
      f'{num_devices} devices that share it.'
    )
  if cfg.batch_size <= cfg.loss.num_negatives:
    raise UserError(
      f'batch_size {cfg.batch_size} has too few images for '
      f'loss.num_negatives {cfg.loss.num_negatives}: it must be larger.'
    )


def _check_parts(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  if cfg.batch_size % num_devices:
    raise UserError(
      f'batch_size {cfg.batch_size} is not a multiple of the {num_devices} '
      'devices that share it.'
    )
  if cfg.batch_size % (num_devices * cfg.accumulate):
    raise UserError(
      f'batch_size {cfg.batch_size} is not a multiple of accumulate '
      f'{cfg.accumulate} times the {num_devices} devices that share it.'
    )
  if cfg.accumulate > 1 and cfg.loss.exclude_same_label:
    raise UserError(
      f'accumulate is {cfg.accumulate}, but loss.exclude_same_label needs the '
      'pseudo-labels of the whole batch at once: set one of them back.'
    )


# Smallest and largest value of a setting; None: no bound.
SHARED_RANGES = {  # with evaluation
  'batch_size': (1, None),
  'num_epochs': (0, None),
  'num_devices': (0, None),
  'log_every_steps': (1, None),
  'checkpoint_every_steps': (1, None),
  'keep_checkpoints': (1, None),
  'keep_checkpoints_every': (0, None),
  'dataset.validation': (0, None),
  'dataset.workers': (0, None),
  'labels.per_class': (0, None),
  'labels.fraction': (0, 1),
  'optimizer.learning_rate': (0, None),
  'optimizer.warmup_epochs': (0, None),
  'evaluation.batch_size': (1, None),
}
SHARED_CHOICES = {  # with evaluation
  'dataset.on_corrupt': ('replace', 'error'),
  'dataset.validation_rule': ('stratified', 'first'),
}
_RANGES = SHARED_RANGES | {
  'batch_size': (2, None),
  'accumulate': (1, None),
  'labels.share': (0, 1),
  'encoder.width': (1, None),
  'encoder.projector_hidden': (1, None),
  'encoder.embedding_size': (1, None),
  'views.num_large': (1, None),
  'views.num_small': (0, None),
  'views.large_size': (1, None),
  'views.small_size': (1, None),
  'views.saliency': (0, 1),
  'loss.contrastive_weight': (0, None),
  'loss.alpha': (0, None),
  'loss.invariance_weight': (0, None),
  'loss.num_negatives': (1, None),
  'loss.num_semantic_positives': (1, None),
  'queue.capacity': (1, None),
  'queue.k': (1, None),
  'queue.block_size': (1, None),
  'queue.min_share': (0, 1),
  'ema.base': (0, 1),
  'watchdog.rollbacks': (0, None),
  'watchdog.patience': (1, None),
  'watchdog.loss_factor': (0, None),
  'watchdog.min_spread': (0, None),
  'watchdog.max_label_share': (0, 1),
  'evaluation.k': (1, None),
  'evaluation.center': (0.01, 1),
  'evaluation.train_images': (0, None),
  'encoder.bn_decay': (0, 1),
  'encoder.bn_eps': (0, None),
  'classifier.weight': (0, None),
  'views.flip': (0, 1),
  'views.jitter': (0, 1),
  'views.brightness': (0, None),
  'views.contrast': (0, None),
  'views.saturation': (0, None),
  'views.hue': (0, None),
  'views.grayscale': (0, 1),
  'views.blur_kernel': (0, 1),
  'views.solarize_threshold': (0, 1),
  'optimizer.weight_decay': (0, None),
  'optimizer.momentum': (0, 1),
  'optimizer.trust_coefficient': (0, None),
  'optimizer.b1': (0, 0.999999),  # at 1, Adam divides by 0
  'optimizer.b2': (0, 0.999999),
  'evaluation.probe_c': (1e-9, None),
}
_CHOICES = SHARED_CHOICES | {
  'task': ('pretrain',),
  'loss.stop_gradient': ('entropy', 'teacher'),
  'watchdog.action': ('stop', 'roll_back'),
  'encoder.stem': ('imagenet', 'small'),
  'encoder.padding': ('same', 'symmetric'),
  'precision': ('float32', 'bfloat16'),
}


def look_up(cfg: ml_collections.ConfigDict, key: str) -> Any:
  """The value of a setting by its dotted name."""
  for part in key.split('.'):
    cfg = cfg[part]
  return cfg


def check_kinds(
  cfg: ml_collections.ConfigDict,
  like: ml_collections.ConfigDict,
  any_length: Sequence[str] = (),
) -> None:
  """Refuses values of another kind than the defaults, and what is not finite.

  Args:
    cfg: the settings.
    like: the defaults; None there: a number, or None.
    any_length: sections whose tuples may have another length.
  """
  for key, usual in _flat(like):
    value = look_up(cfg, key)
    if usual is None and value is None:
      continue
    if isinstance(usual, tuple):
      first = 0.0 if not usual else usual[0]
      fits = isinstance(value, tuple) and all(_is(x, first) for x in value)
      if key.split('.')[0] not in any_length:
        fits = fits and len(value) == len(usual)
      wanted = f'like {usual}'
    else:
      fits = _is(value, 0.0 if usual is None else usual)
      wanted = _WANTED[float if usual is None else type(usual)]
    if not fits:
      raise UserError(f'{key} is {value!r:.200}; it must be {wanted}.')


_WANTED = {
  bool: 'True or False',
  int: 'a whole number of 64 bits',
  float: 'a finite number',
  str: 'a text',
}


def _flat(
  cfg: ml_collections.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  for key, value in cfg.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _is(value: Any, usual: Any) -> bool:
  """Whether a value is of the kind of the usual one."""
  if isinstance(usual, float):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1e38  # of float32
  same = type(value) is type(usual)
  return same and (type(value) is not int or -(2**63) <= value < 2**63)


def _check_views(cfg: ml_collections.ConfigDict) -> None:
  for key, most in (
    ('large_area', 1), ('small_area', 1), ('aspect', None),
    ('blur_sigma', None),
  ):  # fmt: skip
    low, high = cfg.views[key]
    if not 0 < low <= high or (most and high > most):
      raise UserError(
        f'views.{key} is {cfg.views[key]}; it must be two rising numbers above '
        f'0{" and at most 1" if most else ""}.'
      )
  for key in ('blur', 'solarize'):
    if not all(0 <= share <= 1 for share in cfg.views[key]):
      raise UserError(
        f'views.{key} is {cfg.views[key]}; it must be two numbers from 0 to 1.'
      )


def check_ranges(
  cfg: ml_collections.ConfigDict, ranges: Mapping[str, tuple[Any, Any]]
) -> None:
  """Refuses numbers outside {key: (lowest, highest)}; None: no bound."""
  for key, (low, high) in ranges.items():
    value = look_up(cfg, key)
    # Written so that NaN is out of range too.
    if not (value >= low and (high is None or value <= high)):
      wanted = f'at least {low}' if high is None else f'from {low} to {high}'
      raise UserError(f'{key} is {value}; it must be {wanted}.')


def check_choices(
  cfg: ml_collections.ConfigDict, choices: Mapping[str, tuple[str, ...]]
) -> None:
  """Refuses values that are not among {key: known values}."""
  for key, known in choices.items():
    value = look_up(cfg, key)
    if value not in known:
      hint = nearest_name(value, known)
      raise UserError(f'{key} is {value!r}; known: {", ".join(known)}{hint}')


def check_profile(cfg: ml_collections.ConfigDict) -> None:
  """Refuses what is not a first and a last step."""
  steps = tuple(cfg.profile_steps)
  if len(steps) != 2 or not 0 <= steps[0] <= steps[1]:
    raise UserError(
      f'profile_steps is {steps}; it must be (first, last) step, from 1; '
      '(0, 0): none.'
    )


def _check_loss(cfg: ml_collections.ConfigDict) -> None:
  if not cfg.loss.temperature > 0:
    raise UserError(
      f'loss.temperature is {cfg.loss.temperature}; it must be above 0.'
    )
  if not semantic_invariance_weight(cfg) >= 0:
    raise UserError(
      'loss.semantic_invariance_weight is '
      f'{cfg.loss.semantic_invariance_weight}; it must be at least 0.'
    )


def check_one_subset(cfg: ml_collections.ConfigDict) -> None:
  """Refuses two ways at once of saying which images have labels."""
  names = ('per_class', 'fraction', 'file', 'subset')
  said = [f'labels.{n} is {cfg.labels[n]!r}' for n in names if cfg.labels[n]]
  if len(said) > 1:
    raise UserError(f'{" and ".join(said)}; only one of them may be set.')


def _check_labels(cfg: ml_collections.ConfigDict) -> None:
  check_one_subset(cfg)
  if uses_labels(cfg):
    return
  if uses_semantic_positives(cfg):
    raise UserError(
      'labels.per_class, .fraction, .file and .subset are not set, but a '
      'semantic term is on: set one of them, or loss.alpha=0 and '
      'loss.semantic_invariance_weight=0 (ReLICv2).'
    )
  if cfg.labels.share > 0:
    raise UserError(
      f'labels.share is {cfg.labels.share}, but no image has a label: set '
      'labels.per_class, .fraction, .file or .subset.'
    )
