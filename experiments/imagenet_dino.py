"""DINO on ImageNet without labels, with the settings of Meta's release.

Variants: resnet_50, the released network's settings; readme_100, the README's
recipe for 8 GPUs, 100 epochs.

Paper: Caron et al., 2021 (arXiv 2104.14294). ResNet-50, target network, top-1
of the released network (dino's README): 75.3 linear, 67.5 kNN. The file with
its arguments could not be read. Batch and GPUs are the author's words (dino
issue 133); rate, weight decay, K, temperatures, areas and the number of small
views are quoted alike, as far as each goes, in four public projects (a fifth
has a rate of 0.2 and a decay of 1e-4), and marked [ours].

Data: `tfds build imagenet2012 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/imagenet_dino.py:VARIANT \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_knn.py and eval_linear.py, which take the target network;
the authors' linear rate for it is 0.3, not their script's default (issue 131).

resnet_50: batch 4080 (two large and six small views an image), 251,209 steps.
Scores are 1.9 MB an image in float32, about three times that at once, so that
one GPU takes prototypes.number=8192; they do not travel between devices. Cost:
by its passes 0.66 times a step of SemPPL (docs/cost.md), 91 GFLOP an image, so
11 days for 800 epochs at 100 TFLOP/s over all devices, which is assumed.
readme_100: batch 512 (two and eight views), 250,227 steps; its result is not
known to us. Not run: there is no ImageNet on our machines. Loss, head, centre
and six whole updates equal the release's in the tests.

What differs: of readme_100 biases and BatchNorm's parameters decay, too
(sgd_l2).
"""

from semppl_jax import config

VARIANTS = ('resnet_50', 'readme_100')


def get_config(variant='resnet_50'):
  """The settings of the released ResNet-50, or of the README."""
  if variant not in VARIANTS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(VARIANTS)}'
      f'{config.nearest_name(variant, VARIANTS)}'
    )
  cfg = config.default('dino')
  cfg.dataset.name = 'imagenet2012'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  if variant == 'readme_100':
    cfg.batch_size = 512
    cfg.num_epochs = 100.0
    cfg.views.num_small = 8
    cfg.optimizer.update(
      name='sgd_l2',
      learning_rate=0.03,
      final_learning_rate=5e-7,  # 1e-6 for the batch of 512
      weight_decay=1e-4,
      clip=3.0,
    )
    cfg.loss.target_temperature = (0.04, 0.04)
    cfg.projector.batch_norm = False
    cfg.prototypes.number = 65536
  return cfg
