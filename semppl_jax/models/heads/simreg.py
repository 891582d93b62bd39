"""SimReg's projector, of a student."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax

from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.heads.common import Outputs


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
