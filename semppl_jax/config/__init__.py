"""The settings of pre-training.

`defaults` has every setting of the engine, its default and its source; those of
an objective stand in its file in `methods`. `checks` knows what can be wrong
with one, `validation` which of them cannot work together, `upgrade` what older
versions called them.
"""

import ml_collections

from semppl_jax.config import defaults
from semppl_jax.config.checks import (
  check_choices,
  check_kinds,
  check_ranges,
  check_rising,
  find,
  look_up,
)
from semppl_jax.config.defaults import (
  COSMETIC,
  leave_open,
  support_size,
  uses_labels,
)
from semppl_jax.config.upgrade import RENAMED
from semppl_jax.config.validation import (
  SHARED_CHOICES,
  SHARED_RANGES,
  check_devices,
  check_one_subset,
  check_profile,
)
from semppl_jax.utils.diff import flat
from semppl_jax.utils.text import nearest_name

__all__ = [
  'COSMETIC',
  'SHARED_CHOICES',
  'SHARED_RANGES',
  'check_choices',
  'check_devices',
  'check_kinds',
  'check_one_subset',
  'check_profile',
  'check_ranges',
  'check_rising',
  'default',
  'find',
  'flat',
  'leave_open',
  'look_up',
  'nearest_name',
  'open_keys',
  'support_size',
  'uses_labels',
  'validate',
  'why_unknown',
]


def default(method: str = 'semppl') -> ml_collections.ConfigDict:
  """All settings of an objective: the engine's and its own.

  Args:
    method: a key of `methods.METHODS`: semppl, byol, simclr, swav, dino,
      mira, suave, daino, paws, mean_shift, distill, simreg, supervised.

  Raises:
    UserError: an unknown method.
  """
  # Late, and the only way up: a method's settings stand in its own file.
  from semppl_jax import methods

  return methods.default(method)


def open_keys(
  cfg: ml_collections.ConfigDict,
  like: ml_collections.ConfigDict | None = None,
) -> list[str]:
  """Dotted names of the settings that are open, see `leave_open`.

  Args:
    cfg: the settings.
    like: the defaults; None: those of its method.
  """
  method = cfg.get('method', 'semppl')
  usual = default(method) if like is None else like
  return defaults.open_keys(cfg, usual)


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings that cannot work, see `methods.validate`."""
  from semppl_jax import methods

  methods.validate(cfg, num_devices)


def why_unknown(key: str) -> str:
  """Why a config does not have a setting, in a line.

  Args:
    key: dotted, of the command line; of pre-training or of evaluation.
  """
  from semppl_jax import methods
  from semppl_jax.config import eval_config

  if key in RENAMED:
    return f'{key} is called {" and ".join(RENAMED[key])} now.'
  evaluation = {name for name, _ in flat(eval_config.default())}
  whose = [f'method {name}' for name in methods.owners(key)]
  if key in evaluation:
    whose.append('evaluation')
  if whose:
    return (
      f'{key} is a setting of {" and ".join(whose)}; this experiment does not '
      'have it.'
    )
  known = evaluation.union(*(dict(flat(default(m))) for m in methods.METHODS))
  return f'Unknown config key {key!r}{nearest_name(key, sorted(known))}'
