"""SimCLR's projector, as in SimCLRv2's release."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax

from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.heads.common import Outputs


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

  def __call__(
    self, x: jax.Array, is_training: bool, until: int | None = None
  ) -> list[jax.Array]:
    """[.., n, e] -> h_0, the input itself, h_1, ..., h_L, [.., n, d].

    Args:
      x: h_0.
      is_training: see BatchNorm.
      until: j: h_j is the last, and no layer after it is made; None: L.
    """
    init = hk.initializers.RandomNormal(0.01)
    outputs = [x]
    for layer, size in enumerate(self._sizes[:until]):
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
    return {'projection': self.layer(self.layers, embedding, is_training, bn)}

  def layer(
    self,
    number: int,
    embedding: jax.Array,
    is_training: bool,
    bn: Mapping[str, Any],
  ) -> jax.Array:
    """[.., n, e] -> layer 1 to L, [.., n, h]; none after it."""
    hidden = self.hidden or embedding.shape[-1]
    sizes = [hidden] * (self.layers - 1) + [self.size]
    projector = SimCLRMLP(sizes, bn, 'projector')
    return projector(embedding, is_training, until=number)[-1]
