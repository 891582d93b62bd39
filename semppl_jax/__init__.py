"""SemPPL: semantic positives via pseudo-labels, in JAX and Haiku."""

import importlib
from typing import Any

from semppl_jax.errors import CheckpointError, UserError

__all__ = [
  'Checkpoint',
  'CheckpointError',
  'UserError',
  'load_checkpoint',
  'networks',
]
__version__ = '0.1.0'

_FROM_WEIGHTS = ('Checkpoint', 'load_checkpoint')


def __getattr__(name: str) -> Any:
  # Late: JAX takes seconds to import, and a wrong flag needs no JAX.
  if name in _FROM_WEIGHTS:
    return getattr(importlib.import_module('semppl_jax.weights'), name)
  if name == 'networks':
    return importlib.import_module('semppl_jax.networks')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
