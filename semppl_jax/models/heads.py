"""Heads on an encoder: multi-layer perceptrons, projector and predictor.

Sources: BYOL (arXiv 2006.07733), whose projector and predictor SemPPL has, and
the module names of DeepMind's releases of both; SimCLRv2's release for its
projector, SimReg's for its.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax

from semppl_jax.models.batch_norm import BatchNorm

Outputs = dict[str, jax.Array]  # by name, [.., n, ...]


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

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, e] -> [.., n, d]."""
    x = hk.Linear(self._hidden)(x)  # [.., n, hidden]
    x = jax.nn.relu(BatchNorm(**self._bn)(x, is_training))
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


class SimCLRMLP(hk.Module):
  """Linear without bias - BatchNorm - ReLU, layer after layer, as in SimCLR.

  The last layer has no ReLU, and its BatchNorm no offset. Weights begin as
  N(0, 0.01^2). google-research/simclr, model_util.py, projection_head.

  Args:
    sizes: of each layer's output.
    bn: settings of BatchNorm.
    name: of the module; parameters are NAME/linear_0, NAME/batch_norm_0, ...
  """

  def __init__(self, sizes: Sequence[int], bn: Mapping[str, Any], name: str):
    super().__init__(name=name)
    self._sizes, self._bn = tuple(sizes), bn

  def __call__(self, x: jax.Array, is_training: bool) -> list[jax.Array]:
    """[.., n, e] -> h_0, the input itself, h_1, ..., h_L, [.., n, d]."""
    init = hk.initializers.RandomNormal(0.01)
    outputs = [x]
    for layer, size in enumerate(self._sizes):
      last = layer == len(self._sizes) - 1
      linear = hk.Linear(
        size, with_bias=False, w_init=init, name=f'linear_{layer}'
      )
      bn = {**self._bn, 'create_offset': not last}
      x = BatchNorm(**bn, name=f'batch_norm_{layer}')(linear(x), is_training)
      if not last:
        x = jax.nn.relu(x)
      outputs.append(x)
    return outputs


@dataclasses.dataclass(frozen=True)
class SimCLRProjector:
  """SimCLR's projector, of any number of layers; no predictor.

  A value, so that networks of equal settings are equal. See base.Method.heads.

  Attributes:
    layers: L, how many.
    hidden: units of all layers but the last; 0: e, those of the embedding.
    size: d, of projections.
  """

  layers: int
  hidden: int
  size: int

  def __call__(
    self,
    embedding: jax.Array,
    is_training: bool,
    is_online: bool,
    bn: Mapping[str, Any],
  ) -> Outputs:
    """[.., n, e] -> projection [.., n, d]."""
    hidden = self.hidden or embedding.shape[-1]
    sizes = [hidden] * (self.layers - 1) + [self.size]
    projector = SimCLRMLP(sizes, bn, 'projector')
    return {'projection': projector(embedding, is_training)[-1]}


class SimRegMLP(hk.Module):
  """Two perceptrons of one hidden layer, one on the other, as in SimReg.

  Linear - BatchNorm - ReLU - Linear, twice; nothing stands between the second
  and the third Linear, and all have a bias. UCDvision/simreg, mlp_arch.py.

  Args:
    hidden: units of both hidden layers.
    size: of the output.
    bn: settings of BatchNorm.
    name: of the module, and of its parameters.
  """

  def __init__(self, hidden: int, size: int, bn: Mapping[str, Any], name: str):
    super().__init__(name=name)
    self._hidden, self._size, self._bn = hidden, size, bn

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, e] -> [.., n, d]."""
    for size in (x.shape[-1], self._size):
      x = hk.Linear(self._hidden)(x)  # [.., n, hidden]
      x = jax.nn.relu(BatchNorm(**self._bn)(x, is_training))
      x = hk.Linear(size)(x)
    return x


@dataclasses.dataclass(frozen=True)
class SimRegProjector:
  """SimReg's projector, from a student's embedding into its teacher's space.

  A value, so that networks of equal settings are equal. See base.Method.heads.

  Attributes:
    hidden: units of both hidden layers; 0: 2e, twice those of the embedding.
    size: d, of projections, that of the teacher's embedding.
  """

  hidden: int
  size: int

  def __call__(
    self,
    embedding: jax.Array,
    is_training: bool,
    is_online: bool,
    bn: Mapping[str, Any],
  ) -> Outputs:
    """[.., n, e] -> projection [.., n, d]."""
    hidden = self.hidden or 2 * embedding.shape[-1]
    projector = SimRegMLP(hidden, self.size, bn, 'projector')
    return {'projection': projector(embedding, is_training)}


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A linear classifier that trains the encoder.

  Attributes:
    num_classes: K.
  """

  num_classes: int

  def __call__(self, embedding: jax.Array, *_: Any) -> Outputs:
    """[.., n, e] -> logits [.., n, K]."""
    return {'logits': hk.Linear(self.num_classes, name='classifier')(embedding)}


def no_heads(*_: Any) -> Outputs:
  """The encoder alone."""
  return {}
