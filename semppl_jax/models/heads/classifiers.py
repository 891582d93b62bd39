"""What a classifier is on, or is: a layer of a projector, a linear layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax

from semppl_jax.models.heads.byol import ProjectorPredictor
from semppl_jax.models.heads.common import Outputs
from semppl_jax.models.heads.paws import PAWSHead
from semppl_jax.models.heads.simclr import SimCLRProjector


@dataclasses.dataclass(frozen=True)
class ProjectorLayer:
  """Middle layer of a projector (SimCLRv2's `ft_proj_selector`), none after it.

  What a classifier is on that is fine-tuned from the middle of the head. A
  value, so that networks of equal settings are equal.

  Attributes:
    projector: whose layer.
    number: j from 1 on, h_j; the last one is the projection.
  """

  projector: ProjectorPredictor | SimCLRProjector | PAWSHead
  number: int

  def __call__(
    self,
    embedding: jax.Array,
    is_training: bool,
    is_online: bool,
    bn: Mapping[str, Any],
  ) -> Outputs:
    """[.., n, e] -> hidden [.., n, h]."""
    hidden = self.projector.layer(self.number, embedding, is_training, bn)
    return {'hidden': hidden}


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
