"""Suave on ImageNet with 1% or 10% of the labels, with its release's settings.

Variants: 10pct, 1pct, 100 epochs from a SwAV's encoder; finetune_10pct,
finetune_1pct, a few more on large views alone, from such a run.

Paper: Fini et al., CVPR 2023. Its ImageNet scores could not be read, and none
is named here. Settings: suave/scripts/train_*.sh of pietroastolfi/suave-daino,
without mixing of images, which its code leaves at a weight of 1 / R in place of
B / R, practically off. Fine-tuning as released drops the prototypes when it
loads, and its 1% script names a flag that does not exist: here they go on
(--config.init_modules=all), which is our reading.

Data: as imagenet.py; the labelled images are SimCLR's lists.
Run: python -m semppl_jax.main --config=experiments/imagenet_swav.py:800 \
  --config.dataset.path=DIR --workdir=SWAV
     python -m semppl_jax.main --config=experiments/imagenet_suave.py:10pct \
  --config.init=SWAV --config.dataset.path=DIR --workdir=SUAVE
     python -m semppl_jax.main \
  --config=experiments/imagenet_suave.py:finetune_10pct --config.init=SUAVE \
  --config.dataset.path=DIR --workdir=WORKDIR

Batch 256 of all images, with two large and eight small views each, and 128
labelled images with one view: 500,455 steps. Cost: by its passes 0.70 times an
image of SemPPL (docs/cost.md), 96 GFLOP an image, so 1.4 days for 100 epochs at
100 TFLOP/s over all devices, which is assumed, after SwAV's 8.9 for 800. Not
run: there is no ImageNet on our machines, and the authors' files of weights
could not be had. Losses, assignments and six whole updates equal the release's
in the tests.
"""

from semppl_jax import config

VARIANTS = ('10pct', '1pct', 'finetune_10pct', 'finetune_1pct')


def get_config(variant='10pct'):
  """The release's settings for one share of labels."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('suave')
  cfg.dataset.name = 'imagenet2012'
  labels = variant.rpartition('_')[2]
  cfg.labels.subset = f'imagenet2012_subset/{labels}'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  if variant.startswith('finetune'):
    _fine_tune(cfg, one_percent=labels == '1pct')
  return cfg


def _fine_tune(cfg, one_percent):
  cfg.init_modules = 'all'
  cfg.num_epochs = 3.0 if one_percent else 5.0
  cfg.loss.smoothing = 0.01 if one_percent else 0.001
  cfg.views.update(
    num_small=0,
    large_area=(0.08, 1.0),
    jitter=0.0,
    grayscale=0.0,
    blur=(0.0, 0.0),
  )
  cfg.support.update(jitter=0.0, grayscale=0.0)
  rate = 0.02 if one_percent else 0.03
  cfg.optimizer.update(
    learning_rate=rate, final_learning_rate=rate / 100, warmup_epochs=0.0
  )
