"""Every setting, its default and where it comes from.

The defaults are the ImageNet setting. Experiment files change them, the command
line changes those. Marks at the line ends: [P] the paper's abstract or one of
DeepMind's public releases, [ours] our setting, because no public source states
it or we know it from memory of the papers only.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from semppl_jax.utils.diff import flat

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
  'watchdog.chance_factor',
  'watchdog.chance_patience',
  'watchdog.max_label_share',
  'watchdog.min_marginal_entropy',
  'watchdog.max_assignment_entropy',
  'dataset.workers',
  'evaluation.baseline_images',  # a look at the data, not at the network
  'evaluation.labels_csv',
  'evaluation.every_epochs',
  'evaluation.keep_best',
  'evaluation.rank_images',
  'dataset.on_corrupt',  # until it stops a run, both do the same
)


def default() -> ml_collections.ConfigDict:
  """The engine's settings: ResNet-50 on ImageNet, our schedule.

  Those of an objective stand in its file; `methods.default` joins both.
  """
  cfg = ml_collections.ConfigDict()
  cfg.task = 'pretrain'  # the only one here; evaluation has others
  cfg.method = 'semppl'  # the objective: a file of semppl_jax/methods
  cfg.seed = 0  # of weights, batches, views and draws
  cfg.batch_size = 4096  # B, global [ours]
  cfg.num_epochs = 300.0  # passes over all training images [ours]
  # Of training that num_epochs is chosen for, where it is open; see `recipe`
  cfg.minutes = 10.0
  # Checkpoint that a new run takes its weights from: a file, a run's folder,
  # the name of a released one; '': random weights
  cfg.init = ''
  # Of it: all that fits, or names such as encoder,projector, which must fit
  cfg.init_modules = 'all'
  cfg.num_devices = 0  # 0: all that JAX sees
  cfg.log_every_steps = 10  # from line to line of metrics.jsonl
  cfg.checkpoint_every_steps = 500  # and after the last step
  cfg.keep_checkpoints = 3  # the newest ...
  cfg.keep_checkpoints_every = 0  # ... and those of every so many steps
  cfg.progress = True  # a progress bar on the terminal
  # Of activations: float32, or bfloat16 with float32 parameters, BatchNorm
  # statistics, softmaxes and kNN [ours]
  cfg.precision = 'float32'
  # True: less memory, a third more work; see networks.build
  cfg.remat = False
  # Parts of the batch that the networks see one after another, each with
  # BatchNorm statistics of its own; see train.step.train_step [ours]
  cfg.accumulate = 1
  # First and last step (from 1) of a profiler trace in WORKDIR/profile
  cfg.profile_steps = (0, 0)
  cfg.dataset = dataset()
  cfg.labels = _labels()
  cfg.encoder = _encoder()
  cfg.classifier = _classifier()
  cfg.views = _views()
  cfg.optimizer = _optimizer()
  cfg.ema = _ema()
  cfg.watchdog = _watchdog()
  cfg.evaluation = _evaluation()
  return cfg


def dataset() -> dict[str, Any]:
  """Images: where they are, and how they are read."""
  return {
    # digits, arrays, folder, imagenet2012, tfds:NAME, synthetic
    'name': 'synthetic',
    # Of arrays (.npz), of a folder; tfds's data_dir, '': $TFDS_DATA_DIR
    'path': '',
    # Side of the arrays in which encoded images lie whole; larger ones are
    # shrunk [ours]. Of synthetic: the images' side
    'image_size': 512,
    'train_split': '',  # of tfds; '': train
    'test_split': '',  # of tfds; '': test, or else validation
    'unlabelled_split': '',  # of tfds; '': unlabelled, if there is one
    'num_examples': 1024,  # of synthetic
    'num_classes': 10,  # of synthetic
    'validation': 0,  # >0: so many training images stand in for the test
    # 'stratified', or 'first': the first in the data set's order, as the
    # release holds out ImageNet's first 10,000 [P]
    'validation_rule': 'stratified',
    'seed': 0,  # of the validation split, and of synthetic
    # True: training images that have a copy among the test images (or those
    # held out for validation) are left out; see docs/duplicates.md [ours]
    'drop_duplicates': False,
    'masks': '',  # a folder that `python -m semppl_jax.saliency` wrote
    # An image that cannot be decoded: 'replace' by another, or 'error'
    'on_corrupt': 'replace',
    'workers': 0,  # processes that read and decode; 0: threads only
  }


def _labels() -> dict[str, Any]:
  """Which images have a label."""
  return {
    'per_class': 0,  # either so many labels in each class ...
    'fraction': 0.0,  # ... or this share of them ...
    'file': '',  # ... or those of the images that a text file names ...
    'subset': '',  # ... or that are in a data set of tfds, NAME/CONFIG
    # How per_class and fraction draw: stratified, class by class, or random:
    # as many images in all, whatever their classes, as one who labels images
    # at random does [ours]
    'rule': 'stratified',
    'share': 0.0,  # >0: this share of every batch is labelled [ours]
    'seed': 0,  # which images have labels
    # So many of these labels are kept back from training, for what the shares
    # of votes are worth; see docs/label.md [ours]
    'calibration': 0,
  }


def _encoder() -> dict[str, Any]:
  """The encoder."""
  return {
    # resnet18, 34, 50, 101, 152, 200; digits, for 8 to 32 px; tiny, for tests
    'name': 'resnet50',
    'width': 1,  # multiplies the channels: 1, 2 or 4 in the paper
    'stem': 'imagenet',  # or small: 3x3 stride 1 without max-pooling
    'selective_kernels': False,  # True: SimCLRv2's [ours]
    # Of convolutions with a stride: same, or symmetric: SimCLRv2's [P]
    'padding': 'same',
    # The scale of a bottleneck block's last BatchNorm begins as 0; False: as 1,
    # SwAV's and DINO's [P]
    'zero_init_residual': True,
    'bn_decay': 0.9,  # of BatchNorm's running averages [P]
    'bn_eps': 1e-5,  # added to BatchNorm's variances [P]
  }


def _classifier() -> dict[str, Any]:
  """The classifier that trains along."""
  return {
    'weight': 1.0,  # of its loss; monitoring only, while detached [ours]
    'detached': True,  # False: its gradient trains the encoder too
  }


def _views() -> dict[str, Any]:
  """Views, and how they are augmented."""
  return {
    'num_large': 4,  # V_L, large views of an image [ours]
    'num_small': 2,  # V_S, small views, of the online network [ours]
    'large_size': 224,  # pixels a side [ours]
    'small_size': 96,  # pixels a side [ours]
    'large_area': (0.14, 1.0),  # share of the image that a crop covers [ours]
    'small_area': (0.05, 0.14),  # likewise, of small views [ours]
    'aspect': (3 / 4, 4 / 3),  # width / height of a crop [ours]
    'antialias': False,  # True: a wider kernel where crops shrink [ours]
    # Probability that a large view sees the foreground alone, where
    # dataset.masks is set [ours]
    'saliency': 0.1,
    # What is behind it: grey (ReLICv2's), or colours, another gradient of two
    # in each view [ours]
    'background': 'grey',
    'flip': 0.5,  # probability, from left to right [P]
    'jitter': 0.8,  # probability of the four colour operations together [P]
    'brightness': 0.4,  # strength: the largest change [P]
    # What is done with it: add (BYOL's), or multiply (SimCLRv2's) [P]
    'brightness_mode': 'add',
    'contrast': 0.4,  # likewise [P]
    'saturation': 0.2,  # likewise [P]
    'hue': 0.1,  # likewise [P]
    'grayscale': 0.2,  # probability [P]
    'blur': (1.0, 0.1),  # probability in views of type A, of type B [P]
    'blur_kernel': 0.1,  # width of the kernel, share of the side [P]
    'blur_sigma': (0.1, 2.0),  # pixels, lowest and highest [P]
    'solarize': (0.0, 0.2),  # probability in views of type A, of type B [P]
    'solarize_threshold': 0.5,  # brighter values are inverted [P]
    # Probability of blur in small views; None: as in large ones, by type [ours]
    'small_blur': config_dict.placeholder(float),
    # Probability of solarize in small views; None: likewise [ours]
    'small_solarize': config_dict.placeholder(float),
    'one_pass': False,  # views of a size share statistics [ours]
    # True: all views, of every size, share the statistics of the heads'
    # BatchNorms, as in SwAV and DINO [P]
    'heads_joint': False,
  }


def _optimizer() -> dict[str, Any]:
  """Optimiser and learning rate."""
  return {
    # Or adamw, sgd, sgd_l2 (SGD with weight decay), larc (SwAV's)
    'name': 'lars',
    'learning_rate': 0.3,  # of the peak, before its scaling [ours]
    # With the batch size: linear, times B / 256, or sqrt, times the root of B
    # (SimCLR's) [P]
    'scaling': 'linear',
    'warmup_epochs': 10.0,  # until the rate has its peak [ours]
    # Of the warm-up's steps: byol, the first has the start, the one after the
    # last has the peak; swav (DINO's, too), the first and the last have them;
    # mira, none has them [P]
    'warmup_kind': 'byol',
    'start_learning_rate': 0.0,  # where the warm-up begins, scaled alike [P]
    'final_learning_rate': 0.0,  # where the cosine ends, scaled alike [P]
    # The largest norm of a gradient, of each parameter by itself (DINO's); 0:
    # any [ours]
    'clip': 0.0,
    # Of lars, adamw: of weights only; of sgd_l2, larc: of all parameters [ours]
    'weight_decay': 1e-6,
    'momentum': 0.9,  # of lars, sgd, sgd_l2, larc [ours]
    'trust_coefficient': 1e-3,  # of lars, larc [ours]
    # Of lars: False, the rate is applied after the momentum (BYOL's); True,
    # it is in what the momentum sums up (SimCLR's) [P]
    'rate_in_momentum': False,
    'b1': 0.9,  # of adamw
    'b2': 0.999,  # of adamw
  }


def _ema() -> dict[str, Any]:
  """The moving average that the target network is."""
  return {
    'base': 0.996,  # of the target network [ours]
    'constant': False,  # False: rises to 1 along a cosine [P]
  }


def _watchdog() -> dict[str, Any]:
  """When a run is stopped."""
  return {
    # What is not finite, explodes or collapses: 'stop', or 'roll_back' to the
    # last good checkpoint, and on with other batches and keys [ours]
    'action': 'stop',
    'rollbacks': 3,  # at most; then it stops [ours]
    # Bad steps in a row; NaN and infinity alarm at once [ours]
    'patience': 20,
    # Of the loss: times the median of the 100 steps before; 0: off [ours]
    'loss_factor': 5.0,
    'min_spread': 0.2,  # of embedding_std, about 1 in health; 0: off [ours]
    # Of the contrastive loss: times what chance gives; 0: off
    # [ours]
    'chance_factor': 0.93,
    # Steps after twice the warm-up in which it may still be above that, three
    # times `patience` at least [ours]
    'chance_patience': 60,
    # Of the way from the largest class's share of the labels to 1, which the
    # most frequent pseudo-label's share may go; 1: off [ours]
    'max_label_share': 0.9,
    # Of marginal_entropy, times log K: below it, one prototype has taken all;
    # 0: off [ours]
    'min_marginal_entropy': 0.1,
    # Of assignment_entropy, times log K: above it, assignments are uniform; 1:
    # off [ours]
    'max_assignment_entropy': 0.99,
  }


def _evaluation() -> dict[str, Any]:
  """The evaluation at the end, and while training."""
  return {
    # online, or target: whose encoder and predictions are evaluated, at the end
    # and by the evaluation tasks unless they are told otherwise [ours]
    'network': 'online',
    'batch_size': 256,  # images at once, in these evaluations
    'center': 0.875,  # side of the crop / shorter side of the image [P]
    # So many unlabelled training images are looked at in the end: their
    # pseudo-labels are judged, the probe of all labels learns from them; 0:
    # all
    'train_images': 50_000,
    'k': 1,  # neighbours of knn_top1 among the labelled training images
    'probes': True,  # logistic regression on the frozen encoder at the end
    'probe_c': 1.0,  # its inverse L2 strength, on standardised features
    # Pixels and colours are tried, too, where labelled and test images
    # together are not more than this; 0: never
    'baseline_images': 10_000,
    'labels_csv': True,  # WORKDIR/labels.csv at the end, see docs/label.md
    # kNN and RankMe are measured every so many epochs of training, and after
    # the last step, see docs/running.md; 0: never
    'every_epochs': 0.0,
    # True: the checkpoint with the best of these kNN is kept beside the newest
    'keep_best': False,
    # RankMe is of so many training images at most, at random; 0: all [ours]
    'rank_images': 25_600,
  }


def support() -> dict[str, Any]:
  """Labelled images that come with every batch, for methods that ask for them.

  Their views are of views.large_size, and as those of the batch where nothing
  here says otherwise. Augmented as Suave's labelled images.
  """
  return {
    # Either S labelled images of any class with every batch, global ...
    'images': 128,
    'classes': 0,  # ... or so many classes, others in each step,
    'images_per_class': 0,  # and so many images of each
    'views': 1,  # of an image [P]
    # True: they go first through the pass of the large views and share its
    # BatchNorm statistics, which views.one_pass must join; False: before it
    'joint': True,
    'area': (0.08, 1.0),  # share of the image that a crop covers [P]
    'saliency': 0.0,  # probability, as views.saliency
    'jitter': 0.8,  # probability of the four colour operations together [P]
    'brightness': 0.4,  # strength: the largest change [P]
    'contrast': 0.4,  # likewise [P]
    'saturation': 0.4,  # likewise [P]
    'hue': 0.1,  # likewise [P]
    'grayscale': 0.2,  # probability [P]
    'blur': (0.0, 0.0),  # probability in views of type A, of type B: never [P]
    'solarize': (0.0, 0.0),  # likewise [P]
  }


def support_size(cfg: ml_collections.ConfigDict) -> int:
  """S, labelled images that come with every batch; 0: there are none."""
  if 'support' not in cfg:
    return 0
  section = cfg.support
  return section.images or section.classes * section.images_per_class


def leave_open(cfg: ml_collections.ConfigDict, *keys: str) -> None:
  """Leaves settings to `recipe`, which chooses them for the images.

  Args:
    cfg: is changed: the settings are None, and of their type when they are set.
    *keys: dotted names.
  """
  for key in keys:
    section, _, name = key.rpartition('.')
    inside = cfg[section] if section else cfg
    kind = type(inside[name])
    del inside[name]
    inside[name] = config_dict.placeholder(kind)


def open_keys(
  cfg: ml_collections.ConfigDict, like: ml_collections.ConfigDict
) -> list[str]:
  """Dotted names of the settings that are open.

  Args:
    cfg: the settings.
    like: the defaults.
  """
  usual = dict(flat(like))
  return [
    key
    for key, value in flat(cfg)
    if value is None and usual.get(key) is not None
  ]


def uses_labels(cfg: ml_collections.ConfigDict) -> bool:
  """Whether any training image has a label."""
  labels = cfg.labels
  by_name = bool(labels.file or labels.subset)
  return labels.per_class > 0 or labels.fraction > 0 or by_name
