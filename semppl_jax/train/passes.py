"""The passes of a step: views of a batch, and what each network makes of them.

Shapes: B images over D devices, b = B/D here; V views of the online network, W
of the target network; m microbatches.
"""

from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import optax

from semppl_jax import types
from semppl_jax.augment import views as views_lib
from semppl_jax.distributed import parallel
from semppl_jax.methods import base
from semppl_jax.models import multicrop
from semppl_jax.models import networks as networks_lib
from semppl_jax.train import microbatch
from semppl_jax.train import support as support_lib
from semppl_jax.train.state import TrainState


class StepSetup(NamedTuple):
  """What is fixed for a whole run: nothing here is traced."""

  cfg: ml_collections.FrozenConfigDict
  method: base.Method
  nets: networks_lib.Networks
  optimizer: optax.GradientTransformationExtraArgs  # takes its learning rate
  total_steps: int
  warmup_steps: int
  # (params, state, images [V, b, S, S, 3]) -> [V, b, ...] in evaluation mode,
  # what the method compares with; None: there is no teacher
  teacher: Callable[..., jax.Array] | None = None


class Part(NamedTuple):
  """A microbatch: b images on this device, B on all of them."""

  batch: types.Batch  # images, not their views: see `make_views`
  ids: jax.Array  # [B] int32, of all devices' images
  target: base.Outputs | None  # [W, b, ...] of the target network
  keys: base.Keys
  # [V_s, s, S, S, 3] views of the support; None: there is none
  support: jax.Array | None = None


def step_keys(
  base_key: jax.Array, step: jax.Array, shape: tuple[int, int]
) -> base.Keys:
  """Keys that derive from the run, the step and the place in the batch only.

  So neither a resumed run nor another number of devices changes a draw.

  Args:
    base_key: of the run.
    step: [] int32.
    shape: (m, b): microbatches, and this device's images in each.

  Returns:
    Keys with a leading axis of the m microbatches.
  """
  step_key = jax.random.fold_in(base_key, step)
  parts, per_device = shape
  in_part = per_device * parallel.axis_size()  # B/m
  every = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(
    jnp.arange(parts * in_part)
  ).reshape(parts, in_part)
  begins = in_part * jnp.arange(parts)[:, None]  # [m, 1]
  here = parallel.global_indices(per_device)  # [b]
  return base.Keys(index=begins + here, local=every[:, here], batch=every)


def make_views(
  batch: types.Batch, keys: base.Keys, setup: StepSetup
) -> types.Views:
  """Views of b images: [V_L, b, S, S, 3] and [V_S, b, s, s, 3].

  Both networks' passes make them, equal ones. For a batch in one part the
  compiler merges the two; of several parts the views would be there all at
  once, in float32, if they were kept.
  """
  cfg = setup.cfg
  return views_lib.make_views(
    keys.fold(0).local,
    batch.images,
    cfg.views,
    batch.sizes,
    batch.masks,
    _precision(cfg),
  )


def _precision(cfg: ml_collections.FrozenConfigDict) -> jax.lax.Precision:
  # In bfloat16 the network sees no more of a pixel than 8 bits.
  low = cfg.precision == 'bfloat16'
  return jax.lax.Precision.DEFAULT if low else jax.lax.Precision.HIGHEST


def support_views(
  batch: types.Batch,
  base_key: jax.Array,
  step: jax.Array,
  batch_size: int,
  setup: StepSetup,
) -> jax.Array | None:
  """Views of the support [1, V_s, s, S, S, 3]; None: the batch has none."""
  if batch.support is None:
    return None
  support = jax.tree.map(lambda x: x[0], batch.support)  # in one part
  return support_lib.make_views(
    base_key, step, support, batch_size, setup.cfg, _precision(setup.cfg)
  )[None]


def forward_target(
  state: TrainState, batch: types.Batch, keys: base.Keys, setup: StepSetup
) -> tuple[hk.State, base.Outputs | None]:
  """What the target network makes of its views.

  Args:
    state: before the step.
    batch: leaves [m, b, ...].
    keys: leaves [m, ...].
    setup: networks and settings.

  Returns:
    BatchNorm's state; outputs [m, W, b, ...], None: there is no target network.
  """
  target_views = setup.method.target_views
  if target_views is None:
    return state.target_state, None

  def forward(bn_state, part):
    views = make_views(*part, setup)
    outputs, bn_state = _forward_views(
      setup.nets.target,
      setup.nets.target_heads,
      state.target_params,
      bn_state,
      target_views(views),
      setup,
    )
    return bn_state, (), outputs

  target_state, _, target = microbatch.scan(
    forward, state.target_state, (batch, keys)
  )
  return target_state, target


def _forward_views(
  network: Callable[..., tuple[base.Outputs, hk.State]],
  heads: Callable[..., tuple[base.Outputs, hk.State]],
  params: hk.Params,
  bn_state: hk.State,
  views: tuple[jax.Array, ...],
  setup: StepSetup,
) -> tuple[base.Outputs, hk.State]:
  """Outputs [V, b, ...] of a network, whole or encoder and heads apart."""
  joint = setup.cfg.views.heads_joint
  return multicrop.forward_views(
    setup.nets.encode if joint else network,
    params,
    bn_state,
    views,
    one_pass=setup.cfg.views.one_pass,
    heads=heads if joint else None,
  )


def forward_online(
  params: hk.Params,
  bn_state: hk.State,
  views: tuple[jax.Array, ...],
  part: Part,
  setup: StepSetup,
) -> tuple[base.Outputs, base.Support | None, hk.State]:
  """What the online network makes of its views, and of the support's first.

  Args:
    params: its weights.
    bn_state: its running statistics.
    views: groups [v, b, S, S, 3].
    part: has the support, if there is one.
    setup: networks and settings.

  Returns:
    Outputs [V, b, ...]; the support, [V_s, s, ...] of it; the new state.
  """
  nets, cfg = setup.nets, setup.cfg
  network = nets.online, nets.online_heads, params
  if part.support is None:
    outputs, bn_state = _forward_views(*network, bn_state, views, setup)
    return outputs, None, bn_state
  if cfg.support.joint:
    heads_apart = cfg.views.heads_joint
    online, outputs, bn_state = multicrop.forward_joined(
      nets.encode if heads_apart else nets.online,
      params,
      bn_state,
      part.support,
      views,
      heads=nets.online_heads if heads_apart else None,
    )
  else:
    alone = (part.support,)
    online, bn_state = _forward_views(*network, bn_state, alone, setup)
    outputs, bn_state = _forward_views(*network, bn_state, views, setup)
  support = support_lib.for_loss(online, part.batch.support.labels, cfg)
  return outputs, support, bn_state


def forward_teacher(
  teacher: networks_lib.Trees | None,
  views: tuple[jax.Array, ...],
  setup: StepSetup,
) -> jax.Array | None:
  """What the frozen teacher makes of the online network's views.

  Args:
    teacher: (params, state).
    views: groups [v, b, S, S, 3].
    setup: its network.

  Returns:
    [V, b, ...] without gradient; None: the method has no teacher.
  """
  if setup.method.teacher is None:
    return None
  outputs = [setup.teacher(*teacher, group) for group in views if len(group)]
  return jax.lax.stop_gradient(jnp.concatenate(outputs))
