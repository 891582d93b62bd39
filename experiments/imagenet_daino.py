"""Daino on ImageNet with 1% or 10% of the labels, for a ResNet-50.

Variants: 10pct, 1pct, 60 epochs from a DINO's encoder.

Paper: Fini et al., CVPR 2023, which trains a ViT-S/16; there is no recipe for a
ResNet. Batch, labelled images, epochs, number of views, temperatures, moving
average and warm-up are those of its daino/scripts (pietroastolfi/suave-daino),
the others those of our DINO (imagenet_dino.py): [ours]. Without mixing of
images, and with BatchNorm in training mode, which the release's code leaves in
evaluation mode.

Data: as imagenet.py; the labelled images are SimCLR's lists.
Run: python -m semppl_jax.main --config=experiments/imagenet_dino.py \
  --config.dataset.path=DIR --workdir=DINO
     python -m semppl_jax.main --config=experiments/imagenet_daino.py:10pct \
  --config.init=DINO --config.dataset.path=DIR --workdir=WORKDIR

Batch 1024 of all images, with two large and eight small views each, and 512
labelled images with one view: 75,068 steps. Cost: by its passes 0.81 times an
image of SemPPL (docs/cost.md), 112 GFLOP an image, so 1 day for 60 epochs at
100 TFLOP/s over all devices, which is assumed, after DINO's 11 for 800. Not
run: there is no ImageNet on our machines. Losses, centre and four whole updates
of a small network with AdamW equal the release's in the tests.
"""

from semppl_jax import config

VARIANTS = ('10pct', '1pct')


def get_config(variant='10pct'):
  """Our settings for one share of labels."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('daino')
  cfg.dataset.name = 'imagenet2012'
  cfg.labels.subset = f'imagenet2012_subset/{variant}'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  return cfg
