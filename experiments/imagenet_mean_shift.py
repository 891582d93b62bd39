"""Mean shift on ImageNet: MSF, and CMSF with 10% of the labels.

Variants: msf, without labels; cmsf_10pct_head, with the labels and a head that
guesses the others', as released; cmsf_10pct, with a vote of the nearest
labelled images in the head's place.

Papers: Koohpayegani et al., ICCV 2021 (arXiv 2105.07269), UMBCvision/MSF;
Navaneet et al., ECCV 2022 (arXiv 2112.04607), UCDvision/CMSF. ResNet-50, 200
epochs, top-1 in their tables: MSF 72.4 linear, 55.5 and 66.5 linear on 1% and
10% of the labels; CMSF 69.9 fine-tuned on 10% by their script, whose
pseudo-labels the head gives. That it learns in every step, and the vote in its
place, are ours, and what this file would reach nobody knows.

Data: `tfds build imagenet2012 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/imagenet_mean_shift.py:msf \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_linear.py:imagenet, or of cmsf_10pct and its head
eval_semi_supervised.py:imagenet_10pct.

Batch 256, two large views an image, one for each network: 1,000,911 steps.
Cost: by its passes 0.23 times a step of SemPPL (docs/cost.md), 32 GFLOP an
image, so a day for 200 epochs at 100 TFLOP/s over all devices, which is
assumed; the search in 128,000 entries adds 0.13 GFLOP an image. The memory is
262 MB of all devices together; the neighbours' rows, 5 or 10 x 512 numbers an
image, travel. The head's two steps on 256 rows are 5 GFLOP a step, on every
device. Not run: there is no ImageNet on our machines. Loss, gradient and
memory equal the releases' in the tests.

What differs: jitter and grayscale are as likely in the target's view as in the
other (released: a weak target's has neither, nor blur); the target network
follows after the update; the memory begins empty, not with random vectors.
"""

from semppl_jax import config

VARIANTS = ('msf', 'cmsf_10pct', 'cmsf_10pct_head')


def get_config(variant='msf'):
  """The releases' settings, without labels or with 10% of them."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('mean_shift')
  cfg.dataset.name = 'imagenet2012'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  if variant != 'msf':
    cfg.labels.subset = 'imagenet2012_subset/10pct'
    kind = 'head' if variant.endswith('_head') else 'vote'
    cfg.loss.update(same_label=True, pseudo_labels=kind)
    cfg.memory.k = 10
  return cfg
