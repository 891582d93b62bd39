"""Everything that knows that there are several devices. The only pmap.

Host-side arrays carry a leading axis of this host's devices; inside a mapped
function it is gone and `AXIS` names all devices of all hosts. All reductions
are written so that the mean over devices is the global mean, whatever the
number of devices.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def axis_index() -> jax.Array:
  """This device's place on the axis, [] int32, inside a mapped function."""
  return jax.lax.axis_index(AXIS)


def global_indices(per_device: int) -> jax.Array:
  """Places of this device's images in the global batch, [b] int32."""
  return axis_index() * per_device + jnp.arange(per_device)


def axis_size() -> int:
  """The number of devices on the axis, a Python int at trace time."""
  return jax.lax.axis_size(AXIS)


def pmean(tree: Any) -> Any:
  """Mean over devices of every leaf."""
  return jax.lax.pmean(tree, AXIS)


def pmax(x: jax.Array) -> jax.Array:
  """The largest of the devices' values."""
  return jax.lax.pmax(x, AXIS)


def logsumexp(x: jax.Array) -> jax.Array:
  """Logarithm of the devices' sum of exp(x), elementwise; x is finite."""
  largest = pmax(x)
  return largest + jnp.log(jax.lax.psum(jnp.exp(x - largest), AXIS))


def all_gather(x: jax.Array, axis: int = 0) -> jax.Array:
  """Joins the devices' parts along `axis`: [.., b, ..] -> [.., B, ..]."""
  return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)


def masked_mean(
  values: jax.Array, mask: jax.Array, everyones: jax.Array | None = None
) -> jax.Array:
  """The device's part of the global mean over the images with mask True.

  B/b x (local masked sum) / (count in the global batch): its mean over devices
  is the global masked mean, and so is its gradient's. 0 where the count is 0.
  Of a batch that is taken in parts, the mean over the parts is that of the
  whole batch only if `everyones` is given, or if every image counts.

  Args:
    values: [b] float or bool.
    mask: [b] bool.
    everyones: [B] bool, the mask of the global batch; None: it is the b images
      of each of the devices, of this part, which then add up their counts.
  """
  total = jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32)
  if everyones is None:
    count, share = jax.lax.psum(jnp.sum(mask), AXIS), axis_size()
  else:
    count, share = jnp.sum(everyones), len(everyones) // len(mask)
  return share * total / jnp.maximum(count, 1)


def local_slice(x: jax.Array) -> jax.Array:
  """This device's part of what all know: [B, ..] -> [b, ..]."""
  return x[global_indices(len(x) // axis_size())]


def some_devices(number: int) -> list[jax.Device]:
  """The first devices that JAX sees, host by host; 0: all.

  Raises:
    UserError: there are not as many, or fewer than all in a job of several
      processes.
  """
  # Host by host, so that a host's slice of the batch is that of its devices.
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  if number > len(devices):
    raise errors.UserError(
      f'num_devices is {number}, but there are {len(devices)}.'
    )
  if jax.process_count() > 1 and number not in (0, len(devices)):
    raise errors.UserError(
      f'num_devices is {number}, but the {jax.process_count()} processes of '
      f'this job have {len(devices)}, and all are used: leave it at 0.'
    )
  return devices[: number or len(devices)]


def local_devices(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Those of the devices that belong to this host."""
  return [d for d in devices if d.process_index == jax.process_index()]


def has_bfloat16(device: jax.Device) -> bool:
  """Whether a device computes in bfloat16, rather than imitating it."""
  if device.platform == 'gpu':
    # Of NVIDIA: from Ampere on. Others have names, not numbers.
    number = str(getattr(device, 'compute_capability', ''))
    return not number.replace('.', '').isdigit() or float(number) >= 8
  return device.platform != 'cpu'


def replicate(tree: Any, num_devices: int) -> Any:
  """Gives every leaf a leading device axis of equal copies (host side).

  Views of one copy, in the host's memory; traced arrays stay traced.
  """

  def copies(x):
    traced = isinstance(x, jax.core.Tracer)
    xp, x = (jnp, x) if traced else (np, np.asarray(x))
    return xp.broadcast_to(x, (num_devices,) + x.shape)

  return jax.tree.map(copies, tree)


def put_sharded(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Puts part i of every leaf on this host's device i, as a mapped step does.

  A state that lies elsewhere would be moved at the first step, and the second
  step, whose input lies right, would be compiled anew.

  Args:
    tree: leaves [D, ...], or of a host's part of D devices.
    devices: all devices of the job.
  """
  mine = local_devices(devices)
  if not getattr(jax.config, 'jax_pmap_shmap_merge', True):
    # The pmap of JAX 0.7 has a layout of its own.
    default = functools.partial(jax.sharding.PmapSharding.default, devices=mine)
    put = lambda x: jax.device_put(x, default(np.shape(x), 0))
    return jax.tree.map(put, tree)
  mesh = jax.sharding.Mesh(np.asarray(mine), (AXIS,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  return jax.device_put(tree, layout)


def global_array(
  x: jax.Array, devices: Sequence[jax.Device], axis: int
) -> jax.Array:
  """All devices' parts as one array that lies where they lie.

  Nothing travels: of several hosts, each sees its own parts only. A copy, so
  that a step may take x for its result.

  Args:
    x: this host's [D, ...], on its devices.
    devices: all devices of the job.
    axis: of the result, along which the parts are joined, in order.
  """
  parts = [shard.data[0] for shard in x.addressable_shards]
  shape = list(parts[0].shape)
  shape[axis] *= len(devices)
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  names = jax.sharding.PartitionSpec(*[None] * axis, AXIS)
  layout = jax.sharding.NamedSharding(mesh, names)
  return jax.make_array_from_single_device_arrays(tuple(shape), layout, parts)


def unreplicate(tree: Any) -> Any:
  """The first device's copy of every leaf (host side)."""
  return jax.tree.map(lambda x: x[0], tree)


def shard(tree: Any, num_devices: int, parts: int = 1) -> Any:
  """[B, ..] -> [D, B/D, ..] of every leaf (host side).

  Args:
    tree: leaves [B, ..], a host's slice.
    num_devices: D, this host's.
    parts: m, in which the batch is taken, one after another: every part is
      shared by all devices, [B, ..] -> [D, m, B/(m D), ..]; 1: no such axis.
  """

  def split(x):
    if parts == 1:
      return np.reshape(x, (num_devices, -1) + np.shape(x)[1:])
    x = np.reshape(x, (parts, num_devices, -1) + np.shape(x)[1:])
    return np.ascontiguousarray(np.swapaxes(x, 0, 1))

  return jax.tree.map(split, tree)


def unshard(x: Any, parts: int = 1) -> np.ndarray:
  """The inverse of `shard` of one array, on the host: [B, ..]."""
  x = np.asarray(x)
  if parts > 1:
    x = np.swapaxes(x, 0, 1)  # [m, D, B/(m D), ..]
  return x.reshape((-1,) + x.shape[2 + (parts > 1) :])


def prefetch(
  inputs: Iterable[tuple[Any, ...]],
  put: Callable[[Any], Any],
  ahead: int = 1,
) -> Iterator[tuple[Any, ...]]:
  """Starts to send batches to the devices before they are asked for.

  Args:
    inputs: tuples whose first part is a batch on the host.
    put: sends it.
    ahead: how many batches.

  Returns:
    An iterator over (batch on the devices, batch on the host, ...).
  """
  waiting: collections.deque = collections.deque()
  for batch, *rest in inputs:
    waiting.append((put(batch), batch, *rest))
    if len(waiting) > ahead:
      yield waiting.popleft()
  yield from waiting
