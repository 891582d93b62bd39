"""A folder of small coloured images with a few labels per class: minutes.

DIR/train/CLASS/* (a few labelled images of each class), DIR/unlabelled/* and,
if there are any, DIR/test/CLASS/*. Variants, all with the same labels, views
and encoder: semppl (default), relicv2 (no semantic terms) and supervised (the
labelled images alone). Made for some hundred images of objects on all kinds of
backgrounds, and tuned on emoji (`python -m benchmarks.folder` makes them, and
the table in docs/trials.md; what was tried is there, too).

What is not the digits': the classifier's gradient trains the encoder, in all
variants; a quarter of each batch is labelled; colours change little, for they
tell classes apart, and nothing is blurred at 32 pixels. With foreground masks,
  python -m semppl_jax.saliency --dataset=folder --path=DIR --out=DIR/masks
and --config.dataset.masks=DIR/masks, most large views have another background.

Run: python -m semppl_jax.main --config=experiments/folder.py \
  --config.dataset.path=DIR --workdir=runs/mine
Durations are for 520 training images, in 812 steps; `scale` gives those of as
many steps for another number.
"""

import ml_collections

from experiments import digits
from semppl_jax import config

METHODS = ('semppl', 'relicv2', 'supervised')
_IMAGES = 520  # that the durations are for
_DURATIONS = (
  'num_epochs',
  'optimizer.warmup_epochs',
  'queue.target_query_epochs',
  'loss.exclude_after_epochs',
)


def get_config(method='semppl'):
  """Settings of one method for a folder that --config.dataset.path names."""
  if method not in METHODS:
    raise ValueError(
      f'Unknown variant {method!r}; known: {", ".join(METHODS)}'
      f'{config.nearest_name(method, METHODS)}'
    )
  cfg = digits.get_config()
  cfg.batch_size = 64
  cfg.num_epochs = 100.0
  cfg.checkpoint_every_steps = 200
  cfg.dataset.update(name='folder', image_size=64)
  cfg.labels.update(per_class=5, share=0.25)
  cfg.encoder.stem = 'imagenet'
  cfg.classifier.detached = False
  cfg.views.update(
    large_size=32,
    small_size=16,
    large_area=(0.3, 1.0),
    small_area=(0.1, 0.3),
    saliency=0.7,
    background='colours',
    flip=0.5,
    brightness=0.2,
    contrast=0.2,
    saturation=0.1,
    hue=0.02,
    blur=(0.0, 0.0),
  )
  cfg.loss.update(semantic_invariance_weight=1.0, exclude_after_epochs=25.0)
  cfg.queue.capacity = 128
  if method != 'semppl':
    cfg.loss.update(
      alpha=0.0, semantic_invariance_weight=0.0, exclude_same_label=False
    )
  if method == 'supervised':
    cfg.batch_size = 24
    cfg.num_epochs = 30.0
    cfg.labels.share = 1.0
    cfg.views.num_small = 0
    cfg.loss.update(
      contrastive_weight=0.0, invariance_weight=0.0, num_negatives=5
    )
  return cfg


def scale(cfg: ml_collections.ConfigDict, images: int) -> None:
  """As many steps as with 520 training images, with another number of them."""
  changed = {
    key: value * _IMAGES / images
    for key, value in config.flat(cfg)
    if key in _DURATIONS
  }
  cfg.update_from_flattened_dict(changed)
