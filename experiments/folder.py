"""A folder of images, a few of them with labels: minutes.

DIR/train/CLASS/* (labelled images), DIR/unlabelled/* and, if there are any,
DIR/test/CLASS/*. What depends on the images and on the computer is left open
here and chosen at the start: sizes of the views, colours, encoder, batch,
queue, and as many epochs as fit into --config.minutes (10). It is told, with
its reason; whatever is given as --config.KEY=VALUE stays. Variants, all with
the same labels, views and encoder: semppl (default), relicv2 (no semantic
terms) and supervised (the labelled images alone); `semppl-jax compare` trains
all three. distill is the last stage of docs/simclrv2.md, on all images:
a student of the teacher that --config.teacher.checkpoint names, by crops and
flips alone.

What is not the digits': the classifier's gradient trains the encoder, in all
variants; a quarter of each batch is labelled; nothing is blurred. With
foreground masks in DIR/masks,
  python -m semppl_jax.saliency --dataset=folder --path=DIR --out=DIR/masks
most large views have another background, and colours change less, for those of
objects tell classes apart. What was tried: docs/trials.md.

Run: python -m semppl_jax.main --config=experiments/folder.py \
  --config.dataset.path=DIR --workdir=runs/mine
"""

from experiments import digits
from semppl_jax import config

METHODS = ('semppl', 'relicv2', 'supervised')  # comparable ones
_DISTILL = 'distill'
_OPEN = (
  'batch_size',
  'num_epochs',
  'checkpoint_every_steps',
  'dataset.image_size',
  'dataset.masks',
  'labels.fraction',
  'labels.share',
  'encoder.name',
  'encoder.stem',
  'views.large_size',
  'views.small_size',
  'views.large_area',
  'views.small_area',
  'views.saliency',
  'views.flip',
  'views.brightness',
  'views.contrast',
  'views.saturation',
  'views.hue',
  'views.grayscale',
  'optimizer.warmup_epochs',
)
_OPEN_DISTILL = (
  'batch_size',
  'num_epochs',
  'checkpoint_every_steps',
  'dataset.image_size',
  'labels.fraction',
  'encoder.name',
  'encoder.stem',
  'views.large_size',
  'views.large_area',
  'views.flip',
  'optimizer.warmup_epochs',
)
_OPEN_SEMPPL = (
  'projector.hidden',
  'projector.size',
  'predictor.hidden',
  'loss.num_negatives',
  'negatives.cancel_after_epochs',
  'queue.capacity',
  'queue.target_query_epochs',
)


def get_config(method='semppl'):
  """Settings of one method for a folder that --config.dataset.path names."""
  known = (*METHODS, _DISTILL)
  if method not in known:
    raise ValueError(
      f'Unknown variant {method!r}; known: {", ".join(known)}'
      f'{config.nearest_name(method, known)}'
    )
  if method == _DISTILL:
    return _distill()
  supervised = method == 'supervised'
  cfg = digits.get_config('supervised' if supervised else 'semppl')
  cfg.dataset.name = 'folder'
  cfg.labels.per_class = 0
  cfg.views.update(background='colours', blur=(0.0, 0.0))
  # Views of some folders are hard to tell apart for 180 steps of 812.
  cfg.watchdog.chance_patience = 300
  config.leave_open(cfg, *_OPEN)
  if supervised:
    cfg.labels.share = 1.0
    cfg.views.num_small = 0
    return cfg
  config.leave_open(cfg, *_OPEN_SEMPPL)
  cfg.classifier.detached = False
  cfg.loss.semantic_invariance_weight = 1.0
  if method == 'relicv2':
    cfg.loss.update(alpha=0.0, semantic_invariance_weight=0.0)
    cfg.negatives.cancel = 'none'
  return cfg


def _distill():
  """Settings of a student; no label trains it."""
  cfg = digits.get_config(_DISTILL)
  cfg.dataset.name = 'folder'
  cfg.labels.per_class = 0
  cfg.teacher.checkpoint = ''
  config.leave_open(cfg, *_OPEN_DISTILL)
  return cfg
