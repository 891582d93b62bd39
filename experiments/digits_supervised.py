"""Supervised only, on the same labels as digits.py: the baseline.

Batches hold labelled images only, the classifier trains the encoder on the
large views, and all self-supervised terms are off. Its pseudo-label accuracy is
the accuracy of the classifier on the unlabelled training images.
Run: python -m semppl_jax.main --config=experiments/digits_supervised.py \
  --workdir=runs/digits_supervised
"""

from experiments import digits


def get_config():
  """digits.py with cross-entropy on the labelled images alone."""
  cfg = digits.get_config()
  cfg.batch_size = 64
  cfg.num_epochs = 30.0  # as many steps as digits.py
  cfg.labels.share = 1.0
  cfg.classifier.detached = False
  cfg.loss.update(
    contrastive_weight=0.0,
    invariance_weight=0.0,
    semantic_invariance_weight=0.0,
    exclude_same_label=False,
  )
  return cfg
