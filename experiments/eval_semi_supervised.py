"""Semi-supervised evaluation: all weights fine-tuned on the labelled images.

The two learning rates are chosen on a fifth of the labelled images, out of a
grid of nine pairs; then all labelled images are trained on. The paper's
headline numbers (68.5 / 76.0 top-1 with 1% / 10%) are of this kind; its
hyperparameters are unknown, so that these are ours: B 512 and 50 epochs (1%),
B 1024 and 30 epochs (10%), no weight decay. Not run here on ImageNet.

Variants: imagenet_1pct, imagenet_10pct, digits_20 (the 20 labelled images of
digits.py), digits_10pct. digits: docs/results.md.

Run: python -m semppl_jax.main \
  --config=experiments/eval_semi_supervised.py:digits_20 \
  --config.checkpoint=runs/digits --workdir=runs/digits_fine_tuned
"""

from experiments import _eval_data
from semppl_jax.config import eval_config


def get_config(variant='imagenet_1pct'):
  """Fine-tuning on a data set's labelled subset."""
  cfg = eval_config.default()
  cfg.task = 'semi_supervised'
  _eval_data.use(cfg, variant)
  if variant == 'imagenet_1pct':
    cfg.batch_size, cfg.num_epochs = 512, 50.0
  elif variant == 'imagenet_10pct':
    cfg.batch_size, cfg.num_epochs = 1024, 30.0
  else:
    cfg.num_epochs = 400.0 if variant == 'digits_20' else 60.0
  return cfg
