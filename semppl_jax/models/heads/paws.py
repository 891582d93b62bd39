"""PAWS's projector and predictor."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax

from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.heads.common import Outputs, torch_linear


class PAWSMLP(hk.Module):
  """PAWS's projector: Linear - BatchNorm - ReLU, twice, and a Linear.

  All Linears have a bias and begin as torch's. facebookresearch/suncet,
  src/paws_train.py, init_model.

  Args:
    hidden: units of both hidden layers.
    size: of the output.
    bn: settings of BatchNorm.
    name: of the module; parameters are NAME/linear, NAME/batch_norm,
      NAME/linear_1, NAME/batch_norm_1, NAME/linear_2.
  """

  def __init__(self, hidden: int, size: int, bn: Mapping[str, Any], name: str):
    super().__init__(name=name)
    self._hidden, self._size, self._bn = hidden, size, bn

  def __call__(
    self, x: jax.Array, is_training: bool, until: int = 3
  ) -> jax.Array:
    """[.., n, e] -> [.., n, d]; until=1 or 2: the hidden layer of that number.

    No layer after it is made.
    """
    for _ in range(min(until, 2)):
      x = torch_linear(self._hidden, x.shape[-1])(x)
      x = jax.nn.relu(BatchNorm(**self._bn)(x, is_training))
    return torch_linear(self._size, x.shape[-1])(x) if until == 3 else x


class PAWSPredictor(hk.Module):
  """PAWS's predictor: BatchNorm - Linear - BatchNorm - ReLU - Linear.

  Args:
    hidden: units between; the release has a quarter of the input's.
    bn: settings of BatchNorm.
    name: of the module; parameters are NAME/batch_norm, NAME/linear,
      NAME/batch_norm_1, NAME/linear_1.
  """

  def __init__(self, hidden: int, bn: Mapping[str, Any], name: str):
    super().__init__(name=name)
    self._hidden, self._bn = hidden, bn

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, d] -> [.., n, d]."""
    size = x.shape[-1]
    x = BatchNorm(**self._bn)(x, is_training)
    x = torch_linear(self._hidden, size)(x)
    x = jax.nn.relu(BatchNorm(**self._bn)(x, is_training))
    return torch_linear(size, self._hidden)(x)


@dataclasses.dataclass(frozen=True)
class PAWSHead:
  """PAWS's projector, and on it its predictor, of the online network alone.

  A value, so that networks of equal settings are equal. See base.Method.heads.

  Attributes:
    hidden: units of the projector's hidden layers.
    size: d, of projections and predictions.
    predictor_hidden: units of the predictor's hidden layer.
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
    outputs = {'projection': self.layer(3, embedding, is_training, bn)}
    if is_online:
      predictor = PAWSPredictor(self.predictor_hidden, bn, 'predictor')
      outputs['prediction'] = predictor(outputs['projection'], is_training)
    return outputs

  def layer(
    self,
    number: int,
    embedding: jax.Array,
    is_training: bool,
    bn: Mapping[str, Any],
  ) -> jax.Array:
    """[.., n, e] -> the projector's layer 1 to 3, [.., n, h]; none after it."""
    projector = PAWSMLP(self.hidden, self.size, bn, 'projector')
    return projector(embedding, is_training, until=number)
