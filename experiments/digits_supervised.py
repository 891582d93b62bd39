"""Supervised only, on the same labels as digits.py: the baseline.

digits.py:supervised: batches of labelled images only, cross-entropy on the
large views. Its pseudo-label accuracy is the accuracy of the classifier on the
unlabelled training images.
Run: python -m semppl_jax.main --config=experiments/digits_supervised.py \
  --workdir=runs/digits_supervised
"""

from experiments import digits


def get_config():
  """digits.py with cross-entropy on the labelled images alone."""
  return digits.get_config('supervised')
