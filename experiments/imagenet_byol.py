"""BYOL on ImageNet without labels, with the settings of DeepMind's release.

Variants are numbers of epochs, each with rates of its own: 40, 100, 300, 1000.

Paper: Grill et al., 2020 (arXiv 2006.07733). ResNet-50, linear evaluation: 74.3
top-1 after 1000 epochs (abstract), 72.5 after 300; fine-tuned with 1% / 10% of
the labels 53.2 / 68.8 (the 68.8 from memory of the paper). The release trains a
classifier on all labels beside it, to watch: --config.labels.fraction=1 does.

Data: `tfds build imagenet2012 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/imagenet_byol.py:300 \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_linear.py:imagenet and
eval_semi_supervised.py:imagenet_1pct.

Batch 4096 (two large views an image); 12,511, 31,278, 93,835 and 312,784 steps.
Cost: by its passes 0.47 times a step of SemPPL (docs/cost.md), 65 GFLOP an
image, so 2.9 days for 300 epochs at 100 TFLOP/s over all devices, which is
assumed; the release names 8 hours on 512 TPU v3 for 1000 epochs. Not run: there
is no ImageNet on our machines. Loss, schedules and three whole updates equal
the release's in the tests.
"""

from semppl_jax import config

# Epochs -> base rate, weight decay, and with what the target network begins:
# configs/byol.py of the release.
PRESETS = {
  '40': (0.45, 1e-6, 0.97),
  '100': (0.45, 1e-6, 0.99),
  '300': (0.3, 1e-6, 0.99),
  '1000': (0.2, 1.5e-6, 0.996),
}


def get_config(epochs='300'):
  """The release's settings for one of its numbers of epochs."""
  if epochs not in PRESETS:
    raise ValueError(
      f'Unknown variant {epochs!r}; known: {", ".join(PRESETS)}'
      f'{config.nearest_name(epochs, PRESETS)}'
    )
  rate, decay, ema = PRESETS[epochs]
  cfg = config.default('byol')
  cfg.num_epochs = float(epochs)
  cfg.dataset.name = 'imagenet2012'
  cfg.optimizer.update(learning_rate=rate, weight_decay=decay)
  cfg.ema.base = ema
  cfg.evaluation.probes = False  # their own tasks at this size
  return cfg
