"""ReLICv2 on the digits: the special case of SemPPL without semantic terms.

alpha = 0, no I_sempos, and pseudo-labels exclude no negatives; all else as
digits.py. The labels feed the queue and the probes, so that pseudo-labels are
measured, but no loss sees them.
Run: python -m semppl_jax.main --config=experiments/digits_relicv2.py \
  --workdir=runs/digits_relicv2
"""

from experiments import digits


def get_config():
  """digits.py with the semantic terms off."""
  cfg = digits.get_config()
  cfg.loss.alpha = 0.0
  cfg.loss.semantic_invariance_weight = 0.0
  cfg.negatives.cancel = 'none'
  return cfg
