"""SemPPL on ImageNet with 1% or 10% of the labels, as DeepMind's checkpoints.

One variant for each of the 14 files of SemPPL's that DeepMind released:
[sk_]resnet_DEPTH_WIDTHx_1pct or _10pct, with DEPTH and WIDTH 50 1, 50 2, 50 4,
200 2; sk_ (selective kernels): 50 1, 50 2, 200 2.

Paper: Bosnjak et al., ICLR 2023. Fine-tuned top-1 with 1% / 10% of the labels:
ResNet-50 1x 68.5 / 76.0, with selective kernels 72.3 / 78.3. The wider and
deeper ones' scores were not available to us. What is marked [ours] in
semppl_jax/config/defaults.py is not confirmed by a public source.

Data: `tfds build imagenet2012 imagenet2012_subset/1pct
imagenet2012_subset/10pct --data_dir=DIR --file_format=array_record` (needs
TensorFlow and the two archives of ImageNet). The labelled images are SimCLR's
lists; --config.labels.subset= --config.labels.file=LIST reads a list itself.

Run: python -m semppl_jax.main --config=experiments/imagenet.py:VARIANT \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_semi_supervised.py:imagenet_1pct and eval_linear.py.

Batch 4096 (four large and two small views an image), 300 epochs, 93,835 steps.
Devices: any number that divides 4096 and the queue. Cost (docs/cost.md has the
table, `python -m benchmarks.cost` makes it): 138 GFLOP an image for ResNet-50
1x, 6.2 days at 100 TFLOP/s over all devices, which is assumed; measured on 2
CPU cores: 0.22 images per second. Not run: there is no ImageNet on our
machines, and no pod. Data, step and evaluation run in the tests, on small data
in the same formats, at tiny sizes.
"""

import re

from semppl_jax import config

VARIANTS = tuple(
  f'{net}_{labels}'
  for net in (
    'resnet_50_1x', 'resnet_50_2x', 'resnet_50_4x', 'resnet_200_2x',
    'sk_resnet_50_1x', 'sk_resnet_50_2x', 'sk_resnet_200_2x',
  )
  for labels in ('1pct', '10pct')
)  # fmt: skip


def get_config(variant='resnet_50_1x_10pct'):
  """Our setting of the paper's experiment for one network and label share."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  selective, depth, width, labels = re.fullmatch(
    r'(sk_)?resnet_(\d+)_(\d)x_(\d+pct)', variant
  ).groups()
  cfg = config.default()
  cfg.dataset.name = 'imagenet2012'
  cfg.labels.subset = f'imagenet2012_subset/{labels}'
  cfg.encoder.update(
    name=f'resnet{depth}',
    width=int(width),
    selective_kernels=selective is not None,
  )
  cfg.evaluation.probes = False  # their own tasks at this size
  return cfg
