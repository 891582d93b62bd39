"""SwAV on ImageNet without labels, with the settings of Meta's release.

Variants: 100, 200, 400, 800, epochs of batches of 4096; bs256_200, bs256_400,
for 4 GPUs, with a queue of 3840 features from epoch 15 on.

Paper: Caron et al., 2020 (arXiv 2006.09882). Linear evaluation of the released
ResNet-50s, top-1 (swav's README):

  100: 72.1   200: 73.9   400: 74.6   800: 75.3   bs256_200: 72.7
  bs256_400: 74.3

Fine-tuned with 1% / 10% of the labels, of 800: 53.9 / 70.2, from memory of the
paper. The authors' loss values do not rank runs (issue 62).

Data: `tfds build imagenet2012 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/imagenet_swav.py:800 \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_linear.py:imagenet and
eval_semi_supervised.py:imagenet_1pct; the authors' own settings of these differ
(docs/methods/swav.md).

Batch 4096 (two large and six small views an image): 31,278, 62,556, 125,113 and
250,227 steps; 256: 1,000,911 and 2,001,823. Cost: by its passes 0.54 times a
step of SemPPL (docs/cost.md), 75 GFLOP an image, so 8.9 days for 800 epochs at
100 TFLOP/s over all devices, which is assumed; the README names 220 seconds an
epoch on 64 V100. Between devices travel, besides gradients and BatchNorm's,
three times a step the largest values and sums of 2 x 3000 numbers, with a queue
2 x 256 features, and for embedding_std the projections of all views, 17 MB of a
batch of 4096. Not run: there is no ImageNet on our machines. Assignments,
losses and eight whole updates, with and without a queue, equal the release's in
the tests.
"""

from semppl_jax import config

VARIANTS = ('100', '200', '400', '800', 'bs256_200', 'bs256_400')


def get_config(variant='800'):
  """The release's settings for a batch of 4096 or of 256."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('swav')
  cfg.num_epochs = float(variant.rpartition('_')[2])
  cfg.dataset.name = 'imagenet2012'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  if variant.startswith('bs256'):
    cfg.batch_size = 256
    cfg.optimizer.update(
      learning_rate=0.6, final_learning_rate=6e-4, warmup_epochs=0.0
    )
    cfg.queue.update(capacity=3840, start_epoch=15.0)
  return cfg
