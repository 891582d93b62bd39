"""Evaluation on a run's own data: settings from CHECKPOINT/config.json."""

import ml_collections

from semppl_jax import config
from semppl_jax.config import eval_config
from semppl_jax.errors import UserError
from semppl_jax.workdir import config_file

# Key of an evaluation -> key of the run; what is not here has the same name.
CALLED = {
  'crops.size': 'views.large_size',
  'crops.center': 'evaluation.center',
  'crops.area': 'views.large_area',
  'crops.aspect': 'views.aspect',
  'crops.flip': 'views.flip',
}


def complete(cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Settings of an evaluation with a value for each that is open.

  Args:
    cfg: variant `run` of experiments/eval_*.py leaves data, labels and crops
      open; what the user sets is not open.

  Raises:
    UserError: settings are open, and the checkpoint is no run's folder.
  """
  wanted = config.open_keys(cfg, eval_config.default())
  if not wanted:
    return cfg
  begun = config_file.read(cfg.checkpoint)
  cfg = cfg.copy_and_resolve_references()
  for key in wanted:
    value = config.find(begun, CALLED.get(key, key))
    if value is None:
      raise UserError(
        f'{key} is to be that of the run that the checkpoint is of, but '
        f'{cfg.checkpoint!r} is not the folder of one that says it: set '
        f'--config.{key}, or take another variant.'
      )
    value = tuple(value) if isinstance(value, list) else value
    cfg.update_from_flattened_dict({key: value})
  return cfg
