"""PAWS on ImageNet with 1% or 10% of the labels, with its release's settings.

Variants: 10pct, 1pct, 100 epochs; 10pct_200, 10pct_300, 1pct_200, 1pct_300,
longer. Labels and length alone differ; that 1% has the settings of 10%, we know
from memory of the paper.

Paper: Assran et al., 2021 (arXiv 2104.13963). Top-1 of a ResNet-50, 1% / 10% of
the labels, by soft nearest neighbours and fine-tuned (suncet's README):

  epochs           100           200           300
  neighbours       61.5 / 71.0   63.2 / 71.9   64.2 / 73.1
  fine-tuned       63.8 / 73.9   66.1 / 75.0   66.5 / 75.5

Settings: configs/paws/imgnt_train.yaml of facebookresearch/suncet, whose batch
and support are counted over its 64 GPUs: 64 images and 15 classes each, so on
fewer GPUs its file is another setting. Weight decay and LARS leave out all
BatchNorms here, there those of shortcuts take part; LARS's denominator is the
norm of the sum of gradient and decay, there the sum of both norms.

Data: as imagenet.py; the labelled images are SimCLR's lists, as the release's.
1% has 12 or 13 images a class, of which a step shows 7.
Run: python -m semppl_jax.main --config=experiments/imagenet_paws.py:10pct \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_knn.py:imagenet_10pct with --config.knn.vote=snn
--config.knn.temperature=0.1 --config.knn.of=prediction;
eval_semi_supervised.py:imagenet_10pct with
--config.classifier.on=projector/1 --config.classifier.init=zeros.

Batch 4096 (two large and six small views an image) and 6720 labelled images
(one large view): 31,278 steps in 100 epochs, 62,556 in 200, 93,835 in 300.
Cost: by its passes 0.83 times an image of SemPPL (docs/cost.md), 115 GFLOP an
image, so 1.7 days for 100 epochs at 100 TFLOP/s over all devices, which is
assumed. Between devices travel, besides gradients and BatchNorm's, projections
and predictions of the labelled images, 55 MB each, and the projections of all
views for embedding_std, 268 MB. Not run: there is no ImageNet on our machines.
The loss and its gradient, both heads and the learning rate equal the release's
in the tests.
"""

from semppl_jax import config

VARIANTS = ('10pct', '1pct', '10pct_200', '10pct_300', '1pct_200', '1pct_300')


def get_config(variant='10pct'):
  """The release's settings for one share of labels."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('paws')
  labels, _, epochs = variant.partition('_')
  cfg.num_epochs = float(epochs or 100)
  cfg.dataset.name = 'imagenet2012'
  cfg.labels.subset = f'imagenet2012_subset/{labels}'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  return cfg
