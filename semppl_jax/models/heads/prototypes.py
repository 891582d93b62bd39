"""Projector onto the unit sphere, and prototypes that it is compared with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.heads.common import Outputs, torch_uniform
from semppl_jax.models.multicrop import l2_normalize


class PrototypeMLP(hk.Module):
  """Linear, then BatchNorm and activation, layer after layer; the last alone.

  Args:
    head: its settings.
    bn: settings of BatchNorm.
    name: of the module; parameters are NAME/linear, NAME/batch_norm,
      NAME/linear_1, ...
  """

  def __init__(self, head: 'PrototypeHead', bn: Mapping[str, Any], name: str):
    super().__init__(name=name)
    self._head, self._bn = head, bn

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    """[.., n, e] -> [.., n, d]."""
    head = self._head
    for _ in range(head.layers - 1):
      x = head.linear(head.hidden, x.shape[-1], head.hidden_bias)(x)
      if head.batch_norm:
        x = BatchNorm(**self._bn)(x, is_training)
      x = _ACTIVATIONS[head.activation](x)
    return head.linear(head.size, x.shape[-1], True)(x)


class Prototypes(hk.Module):
  """Rows that a projection is compared with.

  Args:
    head: its settings.
    name: of the module. Parameters: w [K, d]; with weight norm v [K, d] in its
      place, and g [K] if it is trained.
  """

  def __init__(self, head: 'PrototypeHead', name: str):
    super().__init__(name=name)
    self._head = head

  def __call__(self, projection: jax.Array) -> jax.Array:
    """[.., n, d] -> scores [.., n, K] float32."""
    head = self._head
    shape = (head.num_prototypes, head.size)
    leaf = 'v' if head.weight_norm else 'w'
    leaves = {
      leaf: hk.get_parameter(leaf, shape, init=torch_uniform(head.size))
    }
    if head.weight_norm and head.scale_trained:
      leaves['g'] = hk.get_parameter('g', shape[:1], init=jnp.ones)
    return prototype_scores(projection, leaves)


def prototype_scores(
  projection: jax.Array, leaves: Mapping[str, jax.Array]
) -> jax.Array:
  """Inner products with all prototypes; with unit rows they are cosines.

  Args:
    projection: [.., n, d] unit rows.
    leaves: of the module `prototypes`: w [K, d], whose rows are taken as they
      are; or v [K, d], taken at length 1 (weight norm), times g [K], if there.

  Returns:
    [.., n, K] float32, in the highest precision: they are divided by a
    temperature and exponentiated.
  """
  rows = leaves['w'] if 'w' in leaves else l2_normalize(leaves['v'])
  scores = jnp.einsum(
    '...d,kd->...k', projection, rows, precision=jax.lax.Precision.HIGHEST
  )
  return scores * leaves['g'] if 'g' in leaves else scores


@dataclasses.dataclass(frozen=True)
class PrototypeHead:
  """Projector onto the unit sphere, and scores with prototypes on it.

  The heads of SwAV (facebookresearch/swav, src/resnet50.py), DINO
  (facebookresearch/dino, vision_transformer.py, DINOHead) and MIRA
  (movinghoon/MIRA, train.py). A value, so that networks of equal settings are
  equal. See base.Method.heads.

  Attributes:
    layers: of the projector, its last one included.
    hidden: units of all layers but the last.
    size: d, of projections.
    num_prototypes: K.
    batch_norm: between a hidden layer and its activation.
    activation: relu, or gelu, the exact one.
    hidden_bias: of all layers but the last, which has one in any case.
    weight_norm: prototypes have length 1, or g if it is trained, whatever the
      length of their weights; else they are the weights.
    scale_trained: g [K] is a parameter, 1 at the start.
    init: of the projector: 'uniform', up to 1 / sqrt(inputs) either way,
      biases too, torch's; 'normal', of deviation 0.02, biases 0. Prototypes
      begin as torch's in any case.
  """

  layers: int
  hidden: int
  size: int
  num_prototypes: int
  batch_norm: bool = True
  activation: str = 'relu'
  hidden_bias: bool = True
  weight_norm: bool = False
  scale_trained: bool = False
  init: str = 'uniform'

  def __call__(
    self,
    embedding: jax.Array,
    is_training: bool,
    is_online: bool,
    bn: Mapping[str, Any],
  ) -> Outputs:
    """[.., n, e] -> projection [.., n, d], unit rows; scores [.., n, K]."""
    projector = PrototypeMLP(self, bn, 'projector')
    projection = l2_normalize(projector(embedding, is_training))
    scores = Prototypes(self, 'prototypes')(projection)
    return {'projection': projection, 'scores': scores}

  def linear(self, size: int, inputs: int, with_bias: bool) -> hk.Linear:
    """A layer of the projector, to be."""
    if self.init == 'normal':
      # As released: cut off at -2 and 2, a hundred deviations away.
      return hk.Linear(size, with_bias, hk.initializers.RandomNormal(0.02))
    uniform = torch_uniform(inputs)
    return hk.Linear(size, with_bias, w_init=uniform, b_init=uniform)


_ACTIVATIONS = {
  'relu': jax.nn.relu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class PrototypeClassifier:
  """Prototypes as a classifier: the first of them are the classes.

  Suave's and Daino's, see methods/suave.py. A value, as its head is.

  Attributes:
    head: projector and prototypes.
    num_classes: C, at most the K prototypes.
    temperature: tau, divides the scores.
  """

  head: PrototypeHead
  num_classes: int
  temperature: float

  def __call__(self, *inputs: Any) -> Outputs:
    """As the head, and logits [.., n, C]: scores / tau of the classes."""
    outputs = self.head(*inputs)
    of_classes = outputs['scores'][..., : self.num_classes]
    return {**outputs, 'logits': of_classes / self.temperature}
