"""Everything that knows that there are several devices. The only pmap.

Host-side arrays carry a leading axis of local devices; inside a mapped function
it is gone and `AXIS` names it. All reductions are written so that the mean over
devices is the global mean, whatever the number of devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax import errors

AXIS = 'devices'


def map_step(
  step: Callable[..., Any],
  devices: Sequence[jax.Device] | None = None,
  donate: bool = True,
) -> Callable[..., Any]:
  """Maps `step(state, batch, key)` over devices.

  Args:
    step: state and batch have a leading device axis outside; the key is shared.
    devices: the devices to use, default all.
    donate: whether the state's buffers are reused for the new state.

  Returns:
    The mapped function; compiled once per batch shape.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(0, 0, None),
    devices=devices,
    donate_argnums=(0,) if donate else (),
  )


def map_evaluation(
  forward: Callable[..., Any], devices: Sequence[jax.Device] | None = None
) -> Callable[..., Any]:
  """Maps `forward(state, images)` over devices; nothing is donated."""
  return jax.pmap(forward, axis_name=AXIS, in_axes=(0, 0), devices=devices)


def index() -> jax.Array:
  """This device's place on the axis, [] int32, inside a mapped function."""
  return jax.lax.axis_index(AXIS)


def places(per_device: int) -> jax.Array:
  """Places of this device's images in the global batch, [b] int32."""
  return index() * per_device + jnp.arange(per_device)


def size() -> int:
  """The number of devices on the axis, a Python int at trace time."""
  return jax.lax.axis_size(AXIS)


def mean(tree: Any) -> Any:
  """Mean over devices of every leaf."""
  return jax.lax.pmean(tree, AXIS)


def gather(x: jax.Array, axis: int = 0) -> jax.Array:
  """Joins the devices' parts along `axis`: [.., b, ..] -> [.., B, ..]."""
  return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """The device's part of the global mean over the images with mask True.

  D x (local masked sum) / (count over all devices): its mean over devices is
  the global masked mean, and so is its gradient's. 0 where the count is 0.

  Args:
    values: [b] float or bool.
    mask: [b] bool.
  """
  count = jax.lax.psum(jnp.sum(mask), AXIS)  # [] int32, over all devices
  total = jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32)
  return size() * total / jnp.maximum(count, 1)


def some_devices(number: int) -> list[jax.Device]:
  """The first devices that JAX sees; 0: all.

  Raises:
    UserError: there are not as many, or several processes run this job.
  """
  if jax.process_count() > 1:
    raise errors.UserError(
      f'{jax.process_count()} processes run this job; only 1 is supported yet.'
    )
  devices = jax.devices()
  if number > len(devices):
    raise errors.UserError(
      f'num_devices is {number}, but there are {len(devices)}.'
    )
  return devices[: number or len(devices)]


def replicate(tree: Any, num_devices: int) -> Any:
  """Gives every leaf a leading device axis of equal copies (host side)."""
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x, (num_devices,) + jnp.shape(x)), tree
  )


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Puts part i of every leaf [D, ...] on device i, as a mapped step does.

  A state that lies elsewhere would be moved at the first step, and the second
  step, whose input lies right, would be compiled anew.
  """
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  return jax.device_put(tree, layout)


def first(tree: Any) -> Any:
  """The first device's copy of every leaf (host side)."""
  return jax.tree.map(lambda x: x[0], tree)


def shard(tree: Any, num_devices: int) -> Any:
  """[B, ..] -> [D, B/D, ..] of every leaf (host side)."""
  return jax.tree.map(
    lambda x: np.reshape(x, (num_devices, -1) + np.shape(x)[1:]), tree
  )
