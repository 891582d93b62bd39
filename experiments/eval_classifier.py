"""The classifier that a checkpoint has, on the test images.

For linear-evaluation files of DeepMind's, and for our own runs, of pre-training
(the classifier that trained along; of Suave and Daino the prototypes) or of
evaluation. With --config.follow=True it is the release's evaluation worker: it
waits for new checkpoints of a running job, evaluates each, and ends with the
job. Variants: as in eval_linear.py; run: those of the run itself.

Run: python -m semppl_jax.main --config=experiments/eval_classifier.py:digits \
  --config.checkpoint=runs/digits --workdir=runs/digits_worker \
  --config.follow=True
"""

from experiments import _eval_data
from semppl_jax.config import eval_config


def get_config(variant='imagenet'):
  """A checkpoint's own classifier on a data set."""
  cfg = eval_config.default()
  cfg.task = 'classifier'
  _eval_data.use(cfg, variant)
  return cfg
