"""Settings of evaluation, one data set or many; and what can be wrong.

The defaults are linear evaluation in DeepMind's release. Marks
at the line ends: [P] the release or the paper, [ours] our setting.
"""

from typing import Any

import ml_collections

from semppl_jax import config
from semppl_jax.config import defaults
from semppl_jax.errors import UserError

# Of one data set; and of many, which end in a table.
TASKS = ('linear', 'semi_supervised', 'knn', 'classifier')
TABLES = ('robustness', 'transfer')
TRAIN_A_CLASSIFIER = ('linear', 'semi_supervised', 'transfer')

# Settings that change how a run is watched, not what it computes.
COSMETIC = config.COSMETIC + (
  'evaluation.batch_size',
  'follow',
  'follow_seconds',
  'robustness.missing',
  'transfer.missing',
)


def default() -> ml_collections.ConfigDict:
  """The release's linear evaluation, on whatever data set."""
  cfg = ml_collections.ConfigDict()
  # linear, semi_supervised, knn, classifier; robustness, transfer: a table
  cfg.task = 'linear'
  cfg.checkpoint = ''  # a file, the folder of a run, or a released file's name
  cfg.mapping = ''  # JSON {their module: ours}, for unpublished SK names
  cfg.follow = False  # evaluate each new checkpoint of a run, until it ends
  cfg.follow_seconds = 10.0  # between two looks [P]
  cfg.seed = 0  # of new weights, batches, crops and held-out images
  cfg.batch_size = 1024  # of training, over all devices [P]
  cfg.num_epochs = 100.0  # passes over the labelled images [P]
  cfg.num_devices = 0  # 0: all that JAX sees
  cfg.log_every_steps = 10  # from line to line of metrics.jsonl
  cfg.checkpoint_every_steps = 500  # and after the last step
  cfg.keep_checkpoints = 2  # the newest ...
  cfg.keep_checkpoints_every = 0  # ... and those of every so many steps
  cfg.progress = True  # a progress bar on the terminal
  cfg.dataset = defaults.dataset()
  cfg.labels = _labels()
  cfg.encoder = _encoder()
  # online: computed at every step; cached: once, for crops of the middle
  cfg.features = 'online'
  cfg.classifier = _classifier()
  cfg.crops = _crops()
  cfg.optimizer = _optimizer()
  cfg.grid = _grid()
  cfg.knn = _knn()
  cfg.evaluation = {
    # online, or target: of a run or a file that has both; '': the one that the
    # run's method reports, of a file the online one
    'network': '',
    'batch_size': 256,  # images at once, outside of training
  }
  cfg.robustness = _robustness()
  cfg.transfer = _transfer()
  return cfg


def _labels() -> dict[str, Any]:
  """Which images have a label."""
  return {
    'per_class': 0,  # so many labels in each class ...
    'fraction': 0.0,  # ... or this share of them ...
    'file': '',  # ... or those of images that a file names ...
    'subset': '',  # ... or a data set of tfds; none set: all
    'rule': 'stratified',  # or random; as in pre-training
    'seed': 0,  # which images have labels; as in pre-training
    'calibration': 0,  # so many are kept back; as in pre-training
  }


def _encoder() -> dict[str, Any]:
  """What the checkpoint must be."""
  return {
    'name': '',  # what the checkpoint must be; '': whatever it is
    'width': 0,  # likewise; 0: whatever it is
    'padding': '',  # same, symmetric; '': as the checkpoint says, else same
  }


def _crops() -> dict[str, Any]:
  """Crops of images."""
  return {
    'size': 224,  # pixels [P]
    'augment': True,  # random crops in training; False: of the middle
    'area': (0.08, 1.0),  # share of the image that a crop covers [P]
    'aspect': (3 / 4, 4 / 3),  # width / height of a crop [P]
    'flip': 0.5,  # probability [P]
    'center': 0.875,  # side of a crop of the middle / shorter side [P]
  }


def _classifier() -> dict[str, Any]:
  """The classifier that linear and semi_supervised train."""
  return {
    # encoder, or the projector's first layer, projector/1, or a later one: the
    # layers after it are dropped. SimCLRv2 and PAWS fine-tune from the first
    'on': 'encoder',
    # truncated_normal, Haiku's; zeros, SimCLRv2's and PAWS's [P]
    'init': 'truncated_normal',
    # True: its layers stay as they are, as in SimCLRv2's TF1 code; its TF2 code
    # trains them [P]
    'freeze_projector': False,
  }


def _optimizer() -> dict[str, Any]:
  """Gradient descent, or SimCLR's LARS."""
  return {
    'name': 'sgd',  # or lars, SimCLRv2's; the classifier is outside of it [P]
    'learning_rate': 0.3,  # of the classifier, for 256 images [P]
    # Of fine-tuning, of what the classifier is on, likewise [ours]
    'encoder_learning_rate': 0.03,
    'scaling': 'linear',  # with the batch size; sqrt: rates for one image [P]
    'warmup_epochs': 0.0,  # until the rates have their peak [P]
    'momentum': 0.9,  # of both optimisers [P]
    'nesterov': True,  # momentum in Nesterov's form; lars has none [P]
    'trust_coefficient': 1e-3,  # of lars [P]
  }


def _grid() -> dict[str, Any]:
  """Learning rates that are tried."""
  return {
    # Of the classifier. Fine-tuning tries all pairs on a part of the labelled
    # images; empty: none [ours]
    'learning_rates': (0.03, 0.1, 0.3),
    'encoder_learning_rates': (0.003, 0.01, 0.03),  # of the encoder [ours]
    'holdout': 0.2,  # share of the labelled images [ours]
  }


def _knn() -> dict[str, Any]:
  """Nearest neighbours."""
  return {
    'k': 1,  # neighbours that vote, as in the method itself
    # Other numbers of neighbours that results.json has the scores of, too
    'more_k': (),
    # majority, as in the method itself; weighted: a vote counts for
    # exp(similarity / temperature), DINO's; snn, likewise, but all labelled
    # images vote, whatever k is: PAWS's soft nearest neighbours [P]
    'vote': 'majority',
    'temperature': 0.07,  # of weighted votes; PAWS has 0.1 for snn [P]
    'of': 'embedding',  # or projection, prediction: which output they are of
  }


def _robustness() -> dict[str, Any]:
  """Test sets of the robustness table."""
  return {
    # Which test sets; imagenet: the official validation set
    'sets': (
      'imagenet', 'imagenet_v2', 'imagenet_c', 'imagenet_r',
      'imagenet_sketch', 'objectnet',
    ),
    # The folder of ObjectNet, with images/ and mappings/; the others are
    # looked for where dataset.path says
    'objectnet': '',
    'missing': 'error',  # a data set that is not there; or 'skip'
  }  # fmt: skip


def _transfer() -> dict[str, Any]:
  """Data sets of the transfer table, and how each is learnt."""
  return {
    # Which data sets
    'sets': (
      'food101', 'cifar10', 'cifar100', 'birdsnap', 'sun397', 'cars',
      'aircraft', 'dtd', 'pets', 'caltech101', 'flowers',
    ),
    'mode': 'linear',  # or fine_tune
    'missing': 'error',  # a data set that is not there; or 'skip'
    # Strengths of the L2 penalty that are tried, evenly in the logarithm [P]
    'l2': (1e-6, 1e5),
    'num_l2': 45,  # how many strengths are tried [P]
    'max_iterations': 1000,  # of L-BFGS, for each [ours]
    'steps': 20_000,  # of fine-tuning [P]
  }  # fmt: skip


_RANGES = config.SHARED_RANGES | {
  'follow_seconds': (0, None),
  'encoder.width': (0, None),
  'crops.size': (1, None),
  'crops.flip': (0, 1),
  'crops.center': (0.01, 1),
  'optimizer.encoder_learning_rate': (0, None),
  'optimizer.momentum': (0, 1),
  'optimizer.trust_coefficient': (0, None),
  'knn.k': (1, None),
  'knn.temperature': (1e-6, None),
  'transfer.num_l2': (1, None),
  'transfer.max_iterations': (1, None),
  'transfer.steps': (1, None),
}
_CHOICES = config.SHARED_CHOICES | {
  'task': TASKS + TABLES,
  'features': ('online', 'cached'),
  'classifier.init': ('truncated_normal', 'zeros'),
  'optimizer.name': ('sgd', 'lars'),
  'optimizer.scaling': ('linear', 'sqrt'),
  'encoder.padding': ('', 'same', 'symmetric'),
  'robustness.missing': ('error', 'skip'),
  'transfer.missing': ('error', 'skip'),
  'transfer.mode': ('linear', 'fine_tune'),
  'knn.of': ('embedding', 'projection', 'prediction'),
  'knn.vote': ('majority', 'weighted', 'snn'),
  'evaluation.network': ('', 'online', 'target'),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of evaluation that cannot work, see `methods.validate`."""
  config.check_kinds(cfg, default(), ('grid', 'knn', 'robustness', 'transfer'))
  config.check_ranges(cfg, _RANGES)
  config.check_choices(cfg, _CHOICES)
  config.check_one_subset(cfg)
  if not cfg.checkpoint:
    raise UserError(
      'checkpoint is empty: set --config.checkpoint=PATH (a file, the folder '
      'of a run, or the name of a released checkpoint).'
    )
  if cfg.task != 'knn':
    config.check_devices(cfg, num_devices)
  if cfg.features == 'cached' and cfg.task == 'semi_supervised':
    raise UserError(
      'features is cached, but fine-tuning changes them: set features=online.'
    )
  if cfg.features == 'cached' and cfg.task == 'linear' and cfg.crops.augment:
    raise UserError(
      'features is cached, but crops.augment draws new crops at every step: '
      'set crops.augment=False, or features=online.'
    )
  if cfg.follow and cfg.task in TABLES:
    raise UserError(
      f'follow is on, but task {cfg.task} looks at one checkpoint: set '
      'follow=False.'
    )
  _check_knn(cfg)
  _check_classifier(cfg)
  config.check_rising(cfg, 'crops.area', most=1)
  config.check_rising(cfg, 'crops.aspect')
  config.check_rising(cfg, 'transfer.l2')
  _check_grid(cfg)


def _check_knn(cfg: ml_collections.ConfigDict) -> None:
  more = cfg.knn.more_k
  if more and cfg.knn.vote == 'snn':
    raise UserError(
      f'knn.more_k is {more}, but with knn.vote=snn all labelled images vote: '
      'set it to ().'
    )
  if not all(type(k) is int and k >= 1 for k in more):
    raise UserError(f'knn.more_k is {more}; it must be whole numbers >= 1.')
  if len({cfg.knn.k, *more}) <= len(more):
    raise UserError(
      f'knn.more_k is {more}, and knn.k is {cfg.knn.k}: the same value twice.'
    )


def _check_classifier(cfg: ml_collections.ConfigDict) -> None:
  on = cfg.classifier.on
  if on != 'encoder' and cfg.task not in ('linear', 'semi_supervised'):
    raise UserError(
      f'classifier.on is {on!r}, but task {cfg.task} trains no classifier on a '
      'projector: leave it at encoder.'
    )
  if on == 'encoder' and cfg.classifier.freeze_projector:
    raise UserError(
      'classifier.freeze_projector is on, but classifier.on is encoder: set '
      'classifier.on=projector/1, or freeze_projector=False.'
    )
  if cfg.optimizer.name == 'lars' and cfg.optimizer.nesterov:
    raise UserError(
      "optimizer.name is lars, which has no Nesterov's momentum: set "
      'optimizer.nesterov=False.'
    )


def _check_grid(cfg: ml_collections.ConfigDict) -> None:
  names = ('learning_rates', 'encoder_learning_rates')
  for name in names:
    value = cfg.grid[name]
    if any(x < 0 for x in value):
      raise UserError(f'grid.{name} is {value}; it must be numbers >= 0.')
    if len(set(value)) < len(value):
      raise UserError(f'grid.{name} is {value}: the same value twice.')
  if bool(cfg.grid[names[0]]) != bool(cfg.grid[names[1]]):
    raise UserError(
      'One of grid.learning_rates and grid.encoder_learning_rates is empty: '
      'set both, or none for no grid.'
    )
  if not 0 < cfg.grid.holdout < 1:
    raise UserError(
      f'grid.holdout is {cfg.grid.holdout}; it must be between 0 and 1.'
    )
