"""Optimisers, composed of optax parts.

None has a clock: what `build` gives takes the learning rate as an argument,
`update(grads, state, params, learning_rate=rate)`, so that the train state's
step is the only one. Trees are Haiku's, {module: {name: array}}. Biases and
BatchNorm's parameters take part in neither weight decay nor LARS's trust ratio;
`sgd_l2` and `larc` alone treat all parameters alike.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from semppl_jax import errors
from semppl_jax.utils.text import nearest_name


def lars(
  *, weight_decay: float, momentum: float, trust_coefficient: float
) -> optax.GradientTransformation:
  """LARS (You et al., 2017) in the order of BYOL's and SemPPL's releases.

  Weight decay, then the trust ratio, then momentum; the learning rate comes
  last and is the caller's. With the rate inside the momentum, as `optax.lars`
  and `simclr_lars` have it, it is another optimiser as soon as the rate
  changes.

  Args:
    weight_decay: times the weight, added to the gradient.
    momentum: decay of the trace.
    trust_coefficient: a weight's update has the length of this times the
      weight's own; left as it is where either is zero.
  """
  return optax.chain(
    *_decay_and_trust_ratio(weight_decay, trust_coefficient, is_weight),
    optax.trace(momentum),
  )


def simclr_lars(
  *, weight_decay: float, momentum: float, trust_coefficient: float
) -> optax.GradientTransformationExtraArgs:
  """LARS as SimCLR's release has it: the learning rate inside the momentum.

  m = momentum m + rate u, w -= m, with u as in `lars`
  (google-research/simclr, tf2/lars_optimizer.py). Outside of it, besides, the
  monitoring classifier: neither decay nor trust ratio.

  Args:
    weight_decay: times the weight, added to the gradient.
    momentum: decay of the trace.
    trust_coefficient: see `lars`.

  Returns:
    An optimiser whose update takes `learning_rate`.
  """
  return optax.chain(
    *_decay_and_trust_ratio(
      weight_decay, trust_coefficient, _is_weight_but_classifiers
    ),
    _times_rate(),  # before the momentum
    optax.trace(momentum),
  )


def _decay_and_trust_ratio(weight_decay, trust_coefficient, mask):
  trust_ratio = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
  return (
    optax.add_decayed_weights(weight_decay, mask),
    optax.masked(trust_ratio, mask),
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


def sgd_l2(
  *, weight_decay: float, momentum: float
) -> optax.GradientTransformation:
  """Gradient descent with momentum and L2 decay, as torch's `SGD` has it.

  All parameters decay, biases and BatchNorm's too.

  Args:
    weight_decay: times the parameter, added to the gradient.
    momentum: decay of the trace.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.trace(momentum)
  )


def larc(
  *, weight_decay: float, momentum: float, trust_coefficient: float
) -> optax.GradientTransformation:
  """LARC, SwAV's optimiser, as apex has it (apex/parallel/LARC.py, clip=False).

  u = trust |p| / (|g| + wd |p| + 1e-8) (g + wd p), or g itself, without decay,
  where |p| or |g| is 0; then momentum, m = momentum m + u. It differs from
  `lars` in the denominator, and in that every parameter takes part, biases and
  BatchNorm's too: those that begin as 0 make one step of the raw gradient.

  Args:
    weight_decay: wd, times the parameter.
    momentum: decay of the trace.
    trust_coefficient: trust.
  """

  def scaled(grad, param):
    length, size = jnp.linalg.norm(grad), jnp.linalg.norm(param)
    ratio = trust_coefficient * size / (length + weight_decay * size + 1e-8)
    decayed = ratio * (grad + weight_decay * param)
    return jnp.where((length > 0) & (size > 0), decayed, grad)

  def update(grads, params):
    return jax.tree.map(scaled, grads, params)

  return optax.chain(optax.stateless(update), optax.trace(momentum))


OPTIMIZERS = {
  'lars': lars,
  'adamw': adamw,
  'sgd': sgd,
  'sgd_l2': sgd_l2,
  'larc': larc,
}


def clip_each(grads: optax.Updates, longest: float) -> optax.Updates:
  """Gradient clipping, of each parameter's gradient by itself.

  g times min(1, longest / (|g| + 1e-6)), and not by the norm of all together
  (facebookresearch/dino, utils.py, clip_gradients).

  Args:
    grads: of all parameters.
    longest: what |g| may be.
  """

  def clip(grad):
    return grad * jnp.minimum(1, longest / (jnp.linalg.norm(grad) + 1e-6))

  return jax.tree.map(clip, grads)


def rate_last(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """An optimiser whose updates are multiplied by -learning_rate, at last.

  Its state is that of the optimiser without its rate.
  """

  def update(grads, state, params=None, *, learning_rate, **unused):
    updates, state = optimizer.update(grads, state, params)
    return jax.tree.map(lambda u: -learning_rate * u, updates), state

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _times_rate() -> optax.GradientTransformationExtraArgs:
  return rate_last(optax.identity())


def build(
  name: str, *, rate_in_momentum: bool = False, **settings: Any
) -> optax.GradientTransformationExtraArgs:
  """The optimiser of that name; its update takes `learning_rate`, [].

  Args:
    name: a key of OPTIMIZERS.
    rate_in_momentum: of lars: SimCLR's kind.
    **settings: its keyword arguments.

  Raises:
    UserError: an unknown name.
  """
  if name not in OPTIMIZERS:
    raise errors.UserError(
      f'optimizer {name!r} is unknown; known: {", ".join(OPTIMIZERS)}'
      f'{nearest_name(name, OPTIMIZERS)}'
    )
  if name == 'lars' and rate_in_momentum:
    return simclr_lars(**settings)
  return rate_last(OPTIMIZERS[name](**settings))


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


def _is_weight_but_classifiers(
  params: Mapping[str, Mapping[str, jax.Array]],
) -> dict[str, dict[str, bool]]:
  """`is_weight`, and False for the monitoring classifier."""
  return {
    module: {name: yes and module != 'classifier' for name, yes in mask.items()}
    for module, mask in is_weight(params).items()
  }
