"""Constraints on weights: modules frozen at first, rows of unit length.

What an objective asks for, see base.Method.frozen and .unit_rows. Trees are
Haiku's, {module: {name: array}}.
"""

from collections.abc import Iterable, Mapping

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from semppl_jax.methods import base
from semppl_jax.models.multicrop import l2_normalize


def check(method: base.Method, params: hk.Params) -> None:
  """Refuses constraints on modules that the networks do not have.

  Raises:
    ValueError: a mistake in the objective's file.
  """
  unknown = {*method.frozen, *method.unit_rows} - params.keys()
  if unknown:
    raise ValueError(
      f'The method constrains {sorted(unknown)}; the online network has '
      f'{sorted(params)}.'
    )


def keep_frozen(
  step: jax.Array,
  before: chex.ArrayTree,
  after: chex.ArrayTree,
  frozen: Mapping[str, int],
) -> chex.ArrayTree:
  """What an update leaves: frozen modules are as they were before it.

  Not the same as an update by a gradient of 0, which lets momentum, moments and
  decay go on. Adam's count is of all parameters and goes on, too.

  Args:
    step: [] int32, updates done before this one.
    before: weights and the optimiser's state; whatever lies in them by a
      module's name is that module's.
    after: likewise.
    frozen: module -> first so many steps.
  """

  def keep(path, old, new):
    names = {getattr(key, 'key', None) for key in path}
    steps = max((frozen.get(name, 0) for name in names), default=0)
    return jnp.where(step < steps, old, new) if steps else new

  return jax.tree_util.tree_map_with_path(keep, before, after)


def unit_rows(params: hk.Params, modules: Iterable[str]) -> hk.Params:
  """The weights, matrices in these modules with rows of length 1.

  Modules that are not there are left out: the target network may lack some.
  """
  unit = {
    module: {
      name: l2_normalize(leaf) if leaf.ndim == 2 else leaf
      for name, leaf in params[module].items()
    }
    for module in modules
    if module in params
  }
  return {**params, **unit}
