"""All that a training step changes, and how it begins."""

from collections.abc import Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from semppl_jax.distributed import parallel
from tests.before import label_queue
from tests.before import networks as networks_lib


class TrainState(NamedTuple):
  """One device's state; on the host every leaf has a leading axis of devices.

  All but `queue.embeddings` is equal on all devices.
  """

  step: jax.Array  # [] int32. The only clock: schedules and keys derive from it
  online_params: hk.Params  # encoder, projector, predictor, classifier
  online_state: hk.State  # BatchNorm's running statistics
  target_params: hk.Params  # encoder, projector: moving average of the online
  target_state: hk.State  # running statistics of the target's own passes
  opt_state: optax.OptState
  queue: label_queue.LabelQueue  # labelled embeddings, 1/D of them here


def init(
  cfg: ml_collections.ConfigDict,
  nets: networks_lib.Networks,
  optimizer: optax.GradientTransformation,
  devices: Sequence[jax.Device],
) -> TrainState:
  """The state before the first step: every leaf [D, ...], of this host's D.

  Weights depend on `cfg.seed` alone, not on the number of devices. The target
  network begins as a copy of the online network, as in BYOL's release.
  """
  size = cfg.views.large_size
  images = jnp.zeros((2, size, size, 3), jnp.float32)
  params, state = jax.jit(nets.init)(jax.random.key(cfg.seed), images)
  one = TrainState(
    step=jnp.zeros((), jnp.int32),
    online_params=params,
    online_state=state,
    target_params=networks_lib.target_tree(params),
    target_state=networks_lib.target_tree(state),
    opt_state=optimizer.init(params),
    queue=label_queue.init(
      cfg.views.num_large,
      cfg.queue.capacity,
      cfg.encoder.embedding_size,
      len(devices),
    ),
  )
  copies = parallel.replicate(one, len(parallel.here(devices)))
  return parallel.place(copies, devices)


def to_portable(state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
  """The state without device axes, the queue joined: [V_L, C, d].

  Fit for a checkpoint that any number of devices and hosts can read. All leaves
  are NumPy arrays but, in a job of several hosts, the queue's embeddings: those
  lie on all hosts' devices, and nothing gathers them.

  Args:
    state: on the devices, leaves [D, ...].
    devices: all devices of the job.
  """
  whole = parallel.joined(state.queue.embeddings, devices, axis=1)
  single = jax.tree.map(
    lambda x: np.asarray(x.addressable_shards[0].data)[0],
    state._replace(queue=state.queue._replace(embeddings=None)),
  )
  if whole.is_fully_addressable:
    whole = np.asarray(whole)  # [V_L, C, d]
  return single._replace(queue=single.queue._replace(embeddings=whole))


def like(cfg: ml_collections.ConfigDict, fresh: TrainState) -> TrainState:
  """Shapes and dtypes of `to_portable`'s leaves, of the state of `init`."""
  kinds = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), fresh
  )
  views, _, size = kinds.queue.embeddings.shape
  whole = jax.ShapeDtypeStruct(
    (views, cfg.queue.capacity, size), kinds.queue.embeddings.dtype
  )
  return kinds._replace(queue=kinds.queue._replace(embeddings=whole))


def from_portable(
  state: TrainState, devices: Sequence[jax.Device]
) -> TrainState:
  """The inverse of `to_portable`, for any devices whose number divides C.

  Args:
    state: NumPy leaves, as a checkpoint gives them.
    devices: all devices of the job.

  Returns:
    Leaves [D, ...], of this host's D devices.
  """
  whole = state.queue.embeddings  # [V_L, C, d]
  shards = np.split(whole, len(devices), axis=1)  # of [V_L, C/D, d]
  mine = [devices.index(device) for device in parallel.here(devices)]
  everywhere = parallel.replicate(
    state._replace(queue=state.queue._replace(embeddings=np.zeros(()))),
    len(mine),
  )
  embeddings = np.stack([shards[i] for i in mine])  # [D, V_L, C/D, d]
  queue = everywhere.queue._replace(embeddings=embeddings)
  return parallel.place(everywhere._replace(queue=queue), devices)
