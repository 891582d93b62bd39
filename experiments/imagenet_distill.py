"""Distillation on ImageNet, as SimCLRv2's third step: teacher to student.

The teacher is a network that was fine-tuned with 1% or 10% of the labels; the
student learns its class probabilities on all training images, without labels.
Variants name the student: [sk_]resnet_DEPTH_WIDTHx; sk_resnet_152_3x, the
teacher's own network, is self-distillation, with temperature 0.1.

Paper: Chen et al., 2020 (arXiv 2006.10029). Top-1, 1% / 10% of the labels, of
students of SK-ResNet-152 3x (fine-tuned itself 74.9 / 80.1, its README):

  resnet_50_1x      73.9 / 77.5 (abstract)
  sk_resnet_50_2x   75.9 / 80.2 (from memory of the paper)
  sk_resnet_152_3x  76.6 / 80.9 (from memory of the paper)

A ResNet-50 trained on the labels alone: 12.3 / 52.0, distilled to itself 68.9 /
74.3 (from memory). Loss, its factor tau^2, crop and flip are the release's
(colabs/distillation_self_training.ipynb); temperatures, 400 epochs, and batch,
rate and decay as in pre-training are known from memory of the paper, and the
student's start, from random weights, is ours: all marked [ours]. So is LARS
with the classifier in it: the release leaves its pre-training's monitoring
classifier out, at a rate that is not a classifier's here.

Data: `tfds build imagenet2012 --data_dir=DIR --file_format=array_record`.
Teacher: experiments/eval_semi_supervised.py:imagenet_1pct on any checkpoint;
its --workdir is CHECKPOINT.
Run: python -m semppl_jax.main \
  --config=experiments/imagenet_distill.py:VARIANT \
  --config.teacher.checkpoint=CHECKPOINT \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_classifier.py:imagenet.

Batch 4096 (one view an image), 125,113 steps. Cost of an image: the student
forwards and backwards, 24 GFLOP for ResNet-50 1x (by its passes, docs/cost.md),
and the teacher forwards, which is the larger part if it is large. Not run:
there is no ImageNet on our machines. The loss and its gradient equal the
release's in the tests.
"""

import re

from semppl_jax import config

VARIANTS = ('resnet_50_1x', 'sk_resnet_50_2x', 'sk_resnet_152_3x')
_TEACHERS = 'sk_resnet_152_3x'


def get_config(variant='resnet_50_1x'):
  """The paper's settings for one student."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('distill')
  cfg.dataset.name = 'imagenet2012'
  selective, depth, width = re.fullmatch(
    r'(sk_)?resnet_(\d+)_(\d)x', variant
  ).groups()
  cfg.encoder.update(
    name=f'resnet{depth}',
    width=int(width),
    selective_kernels=selective is not None,
    padding='symmetric',
  )
  if variant == _TEACHERS:
    cfg.loss.temperature = 0.1
  cfg.evaluation.probes = False  # their own tasks at this size
  return cfg
