"""Heads on an encoder: perceptrons, projector, predictor, prototypes.

Sources: BYOL (arXiv 2006.07733), whose projector and predictor SemPPL has, and
the module names of DeepMind's releases of both; SimCLRv2's release for its
projector, SimReg's for its, PAWS's for both of its.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.models.multicrop import l2_normalize

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
      x = _torch_linear(self._hidden, x.shape[-1])(x)
      x = jax.nn.relu(BatchNorm(**self._bn)(x, is_training))
    return _torch_linear(self._size, x.shape[-1])(x) if until == 3 else x


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
    x = _torch_linear(self._hidden, size)(x)
    x = jax.nn.relu(BatchNorm(**self._bn)(x, is_training))
    return _torch_linear(size, self._hidden)(x)


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
    leaves = {leaf: hk.get_parameter(leaf, shape, init=_uniform(head.size))}
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
    uniform = _uniform(inputs)
    return hk.Linear(size, with_bias, w_init=uniform, b_init=uniform)


_ACTIVATIONS = {
  'relu': jax.nn.relu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
}


def _torch_linear(size: int, inputs: int) -> hk.Linear:
  """A layer with a bias, to be, which begins as torch's."""
  return hk.Linear(size, w_init=_uniform(inputs), b_init=_uniform(inputs))


def _uniform(inputs: int) -> hk.initializers.Initializer:
  """torch's of a layer of so many inputs, weights and bias alike."""
  limit = inputs**-0.5
  return hk.initializers.RandomUniform(-limit, limit)


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
