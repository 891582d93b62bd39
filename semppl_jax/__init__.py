"""SemPPL: semantic positives via pseudo-labels, in JAX and Haiku.

model = semppl_jax.load_pretrained('digits')  # or a released one, or a path
model.embed(images)
semppl_jax.pretrain(config, workdir)
semppl_jax.evaluate(config, workdir)
"""

import importlib
from typing import TYPE_CHECKING, Any

from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.utils import optimised_python

if TYPE_CHECKING:
  from semppl_jax import config
  from semppl_jax.config import eval_config
  from semppl_jax.model import (
    FileEmbeddings,
    Model,
    PseudoLabels,
    load_pretrained,
  )
  from semppl_jax.models import networks
  from semppl_jax.selection.usl import select
  from semppl_jax.tasks import evaluate, pretrain
  from semppl_jax.tools.embed import save_embeddings
  from semppl_jax.tools.label import Labels, label
  from semppl_jax.weights.load import Checkpoint, load_checkpoint

__all__ = [
  'Checkpoint',
  'CheckpointError',
  'FileEmbeddings',
  'Labels',
  'Model',
  'PseudoLabels',
  'UserError',
  'config',
  'eval_config',
  'evaluate',
  'label',
  'load_checkpoint',
  'load_pretrained',
  'networks',
  'pretrain',
  'save_embeddings',
  'select',
]
__version__ = '0.1.0'

optimised_python.refuse()

# Where a name lives, or which module it is.
_HOMES = {
  'Checkpoint': 'weights.load',
  'FileEmbeddings': 'model',
  'Labels': 'tools.label',
  'Model': 'model',
  'PseudoLabels': 'model',
  'config': 'config',
  'eval_config': 'config.eval_config',
  'evaluate': 'tasks',
  'label': 'tools.label',
  'load_checkpoint': 'weights.load',
  'load_pretrained': 'model',
  'networks': 'models.networks',
  'pretrain': 'tasks',
  'save_embeddings': 'tools.embed',
  'select': 'selection.usl',
}
_MODULES = ('config', 'eval_config', 'networks')


def __getattr__(name: str) -> Any:
  # Late: JAX takes seconds to import, and a wrong flag needs no JAX.
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  home = importlib.import_module(f'semppl_jax.{_HOMES[name]}')
  return home if name in _MODULES else getattr(home, name)
