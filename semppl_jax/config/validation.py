"""Which settings of pre-training cannot work, alone or together."""

import ml_collections

from semppl_jax.config import checks, defaults
from semppl_jax.errors import UserError

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
  'labels.calibration': (0, None),
  'optimizer.learning_rate': (0, None),
  'optimizer.warmup_epochs': (0, None),
  'evaluation.batch_size': (1, None),
}
SHARED_CHOICES = {  # with evaluation
  'dataset.on_corrupt': ('replace', 'error'),
  'dataset.validation_rule': ('stratified', 'first'),
  'labels.rule': ('stratified', 'random'),
}
RANGES = SHARED_RANGES | {
  'minutes': (0, None),
  'batch_size': (2, None),
  'accumulate': (1, None),
  'labels.share': (0, 1),
  'encoder.width': (1, None),
  'views.num_large': (1, None),
  'views.num_small': (0, None),
  'views.large_size': (1, None),
  'views.small_size': (1, None),
  'views.saliency': (0, 1),
  'ema.base': (0, 1),
  'watchdog.rollbacks': (0, None),
  'watchdog.patience': (1, None),
  'watchdog.loss_factor': (0, None),
  'watchdog.min_spread': (0, None),
  'watchdog.chance_factor': (0, None),
  'watchdog.chance_patience': (0, None),
  'watchdog.max_label_share': (0, 1),
  'watchdog.min_marginal_entropy': (0, 1),
  'watchdog.max_assignment_entropy': (0, 1),
  'evaluation.k': (1, None),
  'evaluation.center': (0.01, 1),
  'evaluation.train_images': (0, None),
  'evaluation.baseline_images': (0, None),
  'evaluation.every_epochs': (0, None),
  'evaluation.rank_images': (0, None),
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
  'support.images': (0, None),
  'support.classes': (0, None),
  'support.images_per_class': (0, None),
  'support.views': (1, None),
  'support.saliency': (0, 1),
  'support.jitter': (0, 1),
  'support.brightness': (0, None),
  'support.contrast': (0, None),
  'support.saturation': (0, None),
  'support.hue': (0, None),
  'support.grayscale': (0, 1),
  'optimizer.start_learning_rate': (0, None),
  'optimizer.final_learning_rate': (0, None),
  'optimizer.clip': (0, None),
  'optimizer.weight_decay': (0, None),
  'optimizer.momentum': (0, 1),
  'optimizer.trust_coefficient': (0, None),
  'optimizer.b1': (0, 0.999999),  # at 1, Adam divides by 0
  'optimizer.b2': (0, 0.999999),
  'evaluation.probe_c': (1e-9, None),
}
CHOICES = SHARED_CHOICES | {
  'task': ('pretrain',),
  'views.background': ('grey', 'colours'),
  'views.brightness_mode': ('add', 'multiply'),
  'optimizer.scaling': ('linear', 'sqrt'),
  'optimizer.warmup_kind': ('byol', 'swav', 'mira'),
  'watchdog.action': ('stop', 'roll_back'),
  'encoder.stem': ('imagenet', 'small'),
  'encoder.padding': ('same', 'symmetric'),
  'precision': ('float32', 'bfloat16'),
  'evaluation.network': ('online', 'target'),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses the engine's settings that cannot work, see `methods.validate`."""
  _check_views(cfg)
  check_profile(cfg)
  _check_labels(cfg)
  _check_init(cfg)
  _check_parts(cfg, num_devices)
  _check_keep_best(cfg)
  if 'support' in cfg:
    _check_support(cfg, num_devices)


def _check_init(cfg: ml_collections.ConfigDict) -> None:
  """What is known before the checkpoint is; see `train.initial_weights`."""
  modules = cfg.init_modules
  if not all(name.strip() for name in modules.split(',')):
    raise UserError(
      f'init_modules is {modules!r}; it must be all, or names with commas '
      'between them, such as encoder,projector.'
    )


def _check_keep_best(cfg: ml_collections.ConfigDict) -> None:
  """What is known before the labels are; see `evaluation.quality`."""
  if cfg.evaluation.keep_best and not cfg.evaluation.every_epochs:
    raise UserError(
      'evaluation.keep_best is True, but evaluation.every_epochs is 0, so that '
      'nothing is measured while training: set it above 0.'
    )


def _check_parts(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  check_devices(cfg, num_devices)
  if cfg.batch_size % (num_devices * cfg.accumulate):
    raise UserError(
      f'batch_size {cfg.batch_size} is not a multiple of accumulate '
      f'{cfg.accumulate} times the {num_devices} devices that share it.'
    )


def _check_views(cfg: ml_collections.ConfigDict) -> None:
  for key in ('large_area', 'small_area'):
    checks.check_rising(cfg, f'views.{key}', most=1)
  for key in ('aspect', 'blur_sigma'):
    checks.check_rising(cfg, f'views.{key}')
  for key in ('blur', 'solarize'):
    _check_shares(cfg, f'views.{key}')
    if cfg.views[f'small_{key}'] is not None:
      checks.check_ranges(cfg, {f'views.small_{key}': (0, 1)})


def _check_shares(cfg: ml_collections.ConfigDict, key: str) -> None:
  value = checks.look_up(cfg, key)
  if not all(0 <= share <= 1 for share in value):
    raise UserError(f'{key} is {value}; it must be two numbers from 0 to 1.')


def _check_support(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """What is known before the labels are; see `data.support`."""
  support, size = cfg.support, defaults.support_size(cfg)
  by_class = support.classes or support.images_per_class
  if not size or (support.images and by_class):
    raise UserError(
      f'support.images is {support.images}, support.classes '
      f'{support.classes} and support.images_per_class '
      f'{support.images_per_class}; either the first or both others must be '
      'above 0.'
    )
  if size % num_devices:
    raise UserError(
      f'The support of {size} images is not a multiple of the {num_devices} '
      'devices, of all hosts, that share it.'
    )
  checks.check_rising(cfg, 'support.area', most=1)
  for key in ('blur', 'solarize'):
    _check_shares(cfg, f'support.{key}')
  if not defaults.uses_labels(cfg):
    raise UserError(
      f'Method {cfg.method!r} learns from labelled images, but no image has a '
      'label: set labels.per_class, .fraction, .file or .subset.'
    )
  if cfg.accumulate > 1:
    raise UserError(
      f'accumulate is {cfg.accumulate}, but method {cfg.method!r} takes its '
      'support with the whole batch at once: set it to 1.'
    )
  if support.joint and not cfg.views.one_pass:
    raise UserError(
      'support.joint is True, but with views.one_pass=False each large view '
      'has BatchNorm statistics of its own: set one of them to the other.'
    )


def check_devices(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses a batch that the devices cannot share equally."""
  if cfg.batch_size % num_devices:
    raise UserError(
      f'batch_size {cfg.batch_size} is not a multiple of the {num_devices} '
      'devices that share it.'
    )


def check_profile(cfg: ml_collections.ConfigDict) -> None:
  """Refuses what is not a first and a last step."""
  steps = tuple(cfg.profile_steps)
  if len(steps) != 2 or not 0 <= steps[0] <= steps[1]:
    raise UserError(
      f'profile_steps is {steps}; it must be (first, last) step, from 1; '
      '(0, 0): none.'
    )


def check_one_subset(cfg: ml_collections.ConfigDict) -> None:
  """Refuses two ways at once of saying which images have labels."""
  names = ('per_class', 'fraction', 'file', 'subset')
  said = [f'labels.{n} is {cfg.labels[n]!r}' for n in names if cfg.labels[n]]
  if len(said) > 1:
    raise UserError(f'{" and ".join(said)}; only one of them may be set.')


def _check_labels(cfg: ml_collections.ConfigDict) -> None:
  check_one_subset(cfg)
  if defaults.uses_labels(cfg):
    return
  for key in ('share', 'calibration'):
    if cfg.labels[key] > 0:
      raise UserError(
        f'labels.{key} is {cfg.labels[key]}, but no image has a label: set '
        'labels.per_class, .fraction, .file or .subset.'
      )
