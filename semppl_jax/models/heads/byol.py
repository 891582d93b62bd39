"""BYOL's projector and predictor (arXiv 2006.07733), which SemPPL has too.

Modules are named as in DeepMind's releases of both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax

from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.heads.common import Outputs


class MLP(hk.Module):
  """Linear - BatchNorm - ReLU - Linear without bias.

  Args:
    hidden: units of the hidden layer.
    size: of the output.
    bn: settings of BatchNorm.
    name: of the module, and of its parameters.
  """

  def __init__(self, hidden: int, size: int, bn: Mapping[str, Any], name: str):
    super().__init__(name=name)
    self._hidden, self._size, self._bn = hidden, size, bn

  def __call__(
    self, x: jax.Array, is_training: bool, until: int = 2
  ) -> jax.Array:
    """[.., n, e] -> [.., n, d]; until=1: the hidden layer, [.., n, hidden]."""
    x = hk.Linear(self._hidden)(x)  # [.., n, hidden]
    x = jax.nn.relu(BatchNorm(**self._bn)(x, is_training))
    if until == 1:
      return x
    return hk.Linear(self._size, with_bias=False)(x)  # [.., n, d]


@dataclasses.dataclass(frozen=True)
class ProjectorPredictor:
  """Projector, and on it a predictor of the online network alone.

  A value, so that networks of equal settings are equal. See base.Method.heads.

  Attributes:
    hidden: units of the projector's hidden layer.
    size: d, of projections and predictions.
    predictor_hidden: units of the predictor's hidden layer; 0: no predictor.
  """

  hidden: int
  size: int
  predictor_hidden: int

  def __call__(
    self,
    embedding: jax.Array,
    is_training: bool,
    is_online: bool,
    bn: Mapping[str, Any],
  ) -> Outputs:
    """[.., n, e] -> projection [.., n, d] and, online, prediction."""
    projector = MLP(self.hidden, self.size, bn, 'projector')
    outputs = {'projection': projector(embedding, is_training)}
    if is_online and self.predictor_hidden:
      predictor = MLP(self.predictor_hidden, self.size, bn, 'predictor')
      outputs['prediction'] = predictor(outputs['projection'], is_training)
    return outputs

  def layer(
    self,
    number: int,
    embedding: jax.Array,
    is_training: bool,
    bn: Mapping[str, Any],
  ) -> jax.Array:
    """[.., n, e] -> the projector's layer 1 or 2, [.., n, h]; none after it."""
    projector = MLP(self.hidden, self.size, bn, 'projector')
    return projector(embedding, is_training, until=number)
