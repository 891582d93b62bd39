"""MIRA on ImageNet without labels, with the settings of its authors' code.

Paper: Lee et al., NeurIPS 2022; code: movinghoon/MIRA. ResNet-50, 400 epochs,
2 large and 6 small views: 75.6 top-1, linear (its README).

Data: `tfds build imagenet2012 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/imagenet_mira.py \
  --config.dataset.path=DIR --workdir=WORKDIR
Then: experiments/eval_linear.py:imagenet, which takes the target network.

Batch 4096 (two large and six small views an image), 125,113 steps; between
devices travel 31 times a step the largest values and sums of 2 x 3000 numbers,
24 KB each, never the scores. Cost: by its passes 0.66 times a step of SemPPL
(docs/cost.md), 91 GFLOP an image, so 5.4 days for 400 epochs at 100 TFLOP/s
over all devices, which is assumed. Not run: there is no ImageNet on our
machines. Assignments, loss and its gradient equal the authors' in the tests.
"""

from semppl_jax import config


def get_config():
  """The authors' settings."""
  cfg = config.default('mira')
  cfg.dataset.name = 'imagenet2012'
  cfg.encoder.padding = 'symmetric'
  cfg.evaluation.probes = False  # their own tasks at this size
  return cfg
