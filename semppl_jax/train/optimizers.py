"""Optimisers, composed of optax parts and without their learning rate.

The caller multiplies the updates by -rate(step), so that the rate has one
clock: the train state's step. Trees are Haiku's, {module: {name: array}}.
Biases and BatchNorm's parameters take part in neither weight decay nor LARS's
trust ratio.
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from semppl_jax import errors
from semppl_jax.utils.text import nearest_name


def lars(
  *, weight_decay: float, momentum: float, trust_coefficient: float
) -> optax.GradientTransformation:
  """LARS (You et al., 2017) in the order of BYOL's and SemPPL's releases.

  Weight decay, then the trust ratio, then momentum; the learning rate comes
  last and is the caller's. `optax.lars` takes the rate into the momentum and
  is another optimiser as soon as the rate changes.

  Args:
    weight_decay: times the weight, added to the gradient.
    momentum: decay of the trace.
    trust_coefficient: a weight's update has the length of this times the
      weight's own; left as it is where either is zero.
  """
  trust_ratio = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
  return optax.chain(
    optax.add_decayed_weights(weight_decay, is_weight),
    optax.masked(trust_ratio, is_weight),
    optax.trace(momentum),
  )


def adamw(
  *, weight_decay: float, b1: float, b2: float
) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter, 2019): the decay is added after scaling.

  Args:
    weight_decay: times the weight, added to Adam's update.
    b1: decay of the mean of gradients.
    b2: decay of the mean of squared gradients.
  """
  return optax.chain(
    optax.scale_by_adam(b1, b2),
    optax.add_decayed_weights(weight_decay, is_weight),
  )


def sgd(
  *, momentum: float, nesterov: bool = False
) -> optax.GradientTransformation:
  """Gradient descent with momentum, no weight decay."""
  return optax.trace(momentum, nesterov)


OPTIMIZERS = {'lars': lars, 'adamw': adamw, 'sgd': sgd}


def build(name: str, **settings: Any) -> optax.GradientTransformation:
  """The optimiser of that name.

  Args:
    name: a key of OPTIMIZERS.
    **settings: its keyword arguments.

  Raises:
    UserError: an unknown name.
  """
  if name not in OPTIMIZERS:
    raise errors.UserError(
      f'optimizer {name!r} is unknown; known: {", ".join(OPTIMIZERS)}'
      f'{nearest_name(name, OPTIMIZERS)}'
    )
  return OPTIMIZERS[name](**settings)


def is_weight(
  params: Mapping[str, Mapping[str, jax.Array]],
) -> dict[str, dict[str, bool]]:
  """Mask: False for biases and for all parameters of a normalisation layer."""
  return {
    module: {
      name: name != 'b' and 'norm' not in module.rsplit('/', 1)[-1]
      for name in leaves
    }
    for module, leaves in params.items()
  }
