"""SimCLR on ImageNet without labels, with the settings of Google's release.

Variants: SimCLRv2's networks [sk_]resnet_DEPTH_WIDTHx with 800 epochs, and
`readme_100`, the command of the release's README, ResNet-50 with 100 epochs.

Papers: Chen et al., 2020 (arXiv 2002.05709, SimCLR; 2006.10029, SimCLRv2).
Top-1 of the release's checkpoints (its README): linear; fine-tuned 1% / 10%.

  resnet_50_1x      71.7;  57.9 / 68.4
  sk_resnet_50_1x   74.6;  64.5 / 72.1
  sk_resnet_50_2x   77.7;  70.6 / 77.0
  sk_resnet_152_3x  79.8;  74.9 / 80.1
  readme_100        64.5 linear

Those of SimCLRv2 had a memory of earlier images, too, which was not released
and gives about one point; the public code without it: 71.1 linear for
resnet_50_1x (simclr issue 77). Weight decay 1e-4 of 800 epochs is known from
memory of the paper, and marked [ours].

Data: `tfds build imagenet2012 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/imagenet_simclr.py:VARIANT \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_linear.py:imagenet, eval_semi_supervised.py:simclrv2_1pct
and simclrv2_10pct.

Batch 4096 (two views an image), 250,227 steps; all projections of a batch are
gathered, 4 MB. Cost: by its passes 0.35 times a step of SemPPL (docs/cost.md),
48 GFLOP an image for ResNet-50 1x, so 5.7 days for 800 epochs at 100 TFLOP/s
over all devices, which is assumed; the README names 6 hours on 32 TPU v3 for
its 100 epochs. Not run: there is no ImageNet on our machines. Loss, projector,
schedule and LARS equal the release's in the tests.
"""

import re

from semppl_jax import config

VARIANTS = (
  'resnet_50_1x', 'sk_resnet_50_1x', 'sk_resnet_50_2x', 'sk_resnet_152_3x',
  'readme_100',
)  # fmt: skip


def get_config(variant='resnet_50_1x'):
  """The release's settings for one network."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('simclr')
  cfg.dataset.name = 'imagenet2012'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  if variant == 'readme_100':
    cfg.num_epochs = 100.0
    cfg.optimizer.update(learning_rate=0.075, warmup_epochs=10.0)
    return cfg
  selective, depth, width = re.fullmatch(
    r'(sk_)?resnet_(\d+)_(\d)x', variant
  ).groups()
  cfg.encoder.update(
    name=f'resnet{depth}',
    width=int(width),
    selective_kernels=selective is not None,
  )
  return cfg
