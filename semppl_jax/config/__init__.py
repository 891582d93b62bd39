"""The settings of pre-training.

`defaults` has every setting, its default and its source; `checks` knows what
can be wrong with one, `validation` which of them cannot work together.
"""

from semppl_jax.config.checks import (
  check_choices,
  check_kinds,
  check_ranges,
  find,
  flat,
  look_up,
  nearest_name,
)
from semppl_jax.config.defaults import (
  ADDED,
  COSMETIC,
  default,
  leave_open,
  open_keys,
  semantic_invariance_weight,
  uses_labels,
  uses_semantic_positives,
)
from semppl_jax.config.validation import (
  SHARED_CHOICES,
  SHARED_RANGES,
  check_one_subset,
  check_profile,
  validate,
)

__all__ = [
  'ADDED',
  'COSMETIC',
  'SHARED_CHOICES',
  'SHARED_RANGES',
  'check_choices',
  'check_kinds',
  'check_one_subset',
  'check_profile',
  'check_ranges',
  'default',
  'find',
  'flat',
  'leave_open',
  'look_up',
  'nearest_name',
  'open_keys',
  'semantic_invariance_weight',
  'uses_labels',
  'uses_semantic_positives',
  'validate',
]
