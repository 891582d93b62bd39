"""Multi-crop contrastive learning on the digits: no invariance loss either.

alpha = 0, lambda = 0 and no I_sempos; all else as digits.py.
Run: python -m semppl_jax.main --config=experiments/digits_contrastive.py \
  --workdir=runs/digits_contrastive
"""

from experiments import digits_relicv2


def get_config():
  """digits_relicv2.py without the invariance loss."""
  cfg = digits_relicv2.get_config()
  cfg.loss.invariance_weight = 0.0
  return cfg
