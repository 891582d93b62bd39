"""Linear evaluation: a classifier on the frozen encoder, all labels.

DeepMind's protocol: Nesterov momentum 0.9, learning rate
0.3 x B / 256, cosine to 0, no weight decay, 100 epochs of B = 1024, random
resized crops and flips (of images that are shrunk to dataset.image_size where
they are larger; the release crops the file); test: the middle of the image.
Variants:

  imagenet      the protocol; data: see imagenet.py
  imagenet_1pct, imagenet_10pct   the same on SimCLR's labelled subset alone
  digits        for checkpoints of digits.py: 30 epochs of B = 128, 8 px
  digits_20     the same on the 20 labelled images of digits.py

Paper: ReLICv2 reaches 77.1 top-1 with all labels (ResNet-50); SemPPL's own
number was not available to us. Not run here on ImageNet; digits:
docs/results.md.

Run: python -m semppl_jax.main --config=experiments/eval_linear.py:digits \
  --config.checkpoint=runs/digits --workdir=runs/digits_linear
Fast, without augmentation: --config.features=cached \
  --config.crops.augment=False
"""

from experiments import _eval_data
from semppl_jax.config import eval_config


def get_config(variant='imagenet'):
  """Linear evaluation on a data set."""
  cfg = eval_config.default()
  cfg.task = 'linear'
  _eval_data.use(cfg, variant)
  if variant.startswith('digits'):
    cfg.num_epochs = 30.0 if variant == 'digits' else 1000.0
  return cfg
