"""Transfer: what the encoder is worth on 11 other data sets, as BYOL's D.

  linear      logistic regression on the frozen encoder's features: no
              augmentation, shorter side to 224 px and the middle square; 45
              strengths of the L2 penalty, 1e-6 .. 1e5, chosen on validation
  fine_tune   all weights, 20,000 steps of 256 images, Nesterov momentum 0.9;
              pairs of learning rates, chosen on validation

What was chosen is trained anew on training + validation images; the score is
that of the test images: top-1, or the mean over classes for pets, aircraft,
caltech101 and flowers.

Ours, where BYOL's text is silent or the release's parts differ: which images
are held out for validation; the L2 term is strength / 2 x |weights|^2 beside
the sum of the cross-entropies; bicubic without antialias; fine-tuning has a
cosine schedule, no weight decay, and the default 3 x 3 grid of learning rates.

Paper: SemPPL transfers in its appendix; its numbers were not available to us.
For orientation, BYOL's ResNet-50, linear (its table 13): food101 75.3, cifar10
91.3, cifar100 78.4, birdsnap 57.3, sun397 62.6, cars 67.2, aircraft 60.6, dtd
76.5, pets 90.4, caltech101 94.3, flowers 96.1. Not run here on the real sets.

Data, with TensorFlow installed, into DIR:

  tfds build food101 cifar10 cifar100 sun397/standard-part1-120k cars196 dtd \
    oxford_iiit_pet caltech101 oxford_flowers102 --data_dir=DIR \
    --file_format=array_record

Birdsnap and Aircraft are not in tfds: DIR/birdsnap/{train,test}/CLASS/*,
DIR/aircraft/{train,validation,test}/CLASS/*. Without them, or others:
--config.transfer.missing=skip.

Run: python -m semppl_jax.main --config=experiments/eval_transfer.py:linear \
  --config.checkpoint=resnet_50_1x_10_pct --config.dataset.path=DIR \
  --workdir=runs/transfer
A part: --config.transfer.sets="('cifar10','dtd')"
"""

from semppl_jax.config import eval_config

_VARIANTS = ('linear', 'fine_tune')


def get_config(variant='linear'):
  """Transfer to 11 data sets."""
  if variant not in _VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(_VARIANTS)}'
    )
  cfg = eval_config.default()
  cfg.task = 'transfer'
  cfg.transfer.mode = variant
  cfg.batch_size = 256
  if variant == 'linear':
    cfg.crops.center = 1.0
  return cfg
