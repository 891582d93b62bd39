"""TrainState: all that a training step changes, how it begins, and on disk."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from semppl_jax.models import networks as networks_lib
from semppl_jax.train import constraints, initial_weights


class TrainState(NamedTuple):
  """One device's state; on the host every leaf has a leading axis of devices.

  All is equal on all devices but what the objective's memory splits.
  """

  step: jax.Array  # [] int32. The only clock: schedules and keys derive from it
  online_params: hk.Params  # encoder and all heads
  online_state: hk.State  # BatchNorm's running statistics
  target_params: hk.Params  # moving average of the online ones; {}: no target
  target_state: hk.State  # running statistics of the target's own passes
  opt_state: optax.OptState
  memory: base.Memory  # the objective's, its shard of it


def init(
  cfg: ml_collections.ConfigDict,
  method: base.Method,
  nets: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  devices: Sequence[jax.Device],
  start: initial_weights.Start | None = None,
) -> TrainState:
  """The state before the first step: every leaf [D, ...], of this host's D.

  Weights depend on `cfg.seed` alone, not on the number of devices. The target
  network begins as a copy of the online network, as in BYOL's release.

  Args:
    cfg: seed and size of views.
    method: the objective.
    nets: its networks.
    optimizer: begins anew in any case.
    devices: all devices of the job.
    start: weights in place of random ones; None: all are random.
  """
  size = cfg.views.large_size
  images = jnp.zeros((2, size, size, 3), jnp.float32)
  params, state = jax.jit(nets.init)(jax.random.key(cfg.seed), images)
  constraints.check(method, params)
  has_target = method.target_views is not None
  target_tree = nets.target_tree if has_target else lambda tree: {}
  target = target_tree(params), target_tree(state)
  if start is not None:
    (params, state), target = start.replace((params, state), target_tree)
  params, target_params = (
    constraints.unit_rows(tree, method.unit_rows)
    for tree in (params, target[0])
  )
  whole = TrainState(
    step=jnp.zeros((), jnp.int32),
    online_params=params,
    online_state=state,
    target_params=target_params,
    target_state=target[1],
    opt_state=optimizer.init(params),
    memory=method.init(),
  )
  return from_host(whole, method, devices)


def to_host(
  state: TrainState, method: base.Method, devices: Sequence[jax.Device]
) -> TrainState:
  """The state without device axes, the memory's shards joined.

  Fit for a checkpoint that any number of devices and hosts can read. All leaves
  are NumPy arrays but, in a job of several hosts, those of the memory that are
  split: they lie on all hosts' devices, and nothing gathers them.

  Args:
    state: on the devices, leaves [D, ...].
    method: knows which leaves of the memory are split.
    devices: all devices of the job.
  """

  def whole(x, axis):
    if axis < 0:
      return np.asarray(x.addressable_shards[0].data)[0]
    joined = parallel.global_array(x, devices, axis=axis)
    return np.asarray(joined) if joined.is_fully_addressable else joined

  return _map(whole, state, method)


def abstract_state(
  fresh: TrainState, method: base.Method, num_devices: int
) -> TrainState:
  """Shapes and dtypes of `to_host`'s leaves.

  Args:
    fresh: a state on the devices, or its shapes, leaves [D, ...].
    method: knows which leaves of the memory are split.
    num_devices: of the job.
  """

  def kind(x, axis):
    shape = list(x.shape[1:])
    if axis >= 0:
      shape[axis] *= num_devices
    return jax.ShapeDtypeStruct(tuple(shape), x.dtype)

  return _map(kind, fresh, method)


def from_host(
  state: TrainState, method: base.Method, devices: Sequence[jax.Device]
) -> TrainState:
  """The inverse of `to_host`, for any devices that can share the memory.

  Args:
    state: leaves without device axis, as a checkpoint gives them.
    method: knows which leaves of the memory are split.
    devices: all devices of the job.

  Returns:
    Leaves [D, ...], of this host's D devices.

  Raises:
    UserError: the devices cannot have equal parts of the memory.
  """
  here = [devices.index(device) for device in parallel.local_devices(devices)]

  def parts(x, axis):
    if axis < 0:
      return parallel.replicate(x, len(here))
    if x.shape[axis] % len(devices):
      raise UserError(
        f'A memory of {x.shape[axis]:,} entries cannot be shared by '
        f'{len(devices)} devices equally.'
      )
    xp = jnp if isinstance(x, jax.core.Tracer) else np
    shards = xp.split(xp.asarray(x), len(devices), axis=axis)
    return xp.stack([shards[i] for i in here])

  return parallel.put_sharded(_map(parts, state, method), devices)


def _map(
  fn: Callable[[Any, int], Any], state: TrainState, method: base.Method
) -> TrainState:
  """fn(leaf, axis) of all leaves; axis: along which it is split, or -1."""
  mapped = jax.tree.map(lambda x: fn(x, -1), state._replace(memory=()))
  return mapped._replace(memory=jax.tree.map(fn, state.memory, method.shards))
