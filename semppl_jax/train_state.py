"""All that a training step changes, and how it begins."""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from semppl_jax import label_queue, parallel
from semppl_jax import networks as networks_lib


class TrainState(NamedTuple):
  """One device's state; on the host every leaf has a leading device axis.

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
  num_devices: int,
) -> TrainState:
  """The state before the first step, on the host: every leaf [D, ...].

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
      num_devices,
    ),
  )
  return parallel.replicate(one, num_devices)


def to_portable(state: TrainState) -> TrainState:
  """The host's state without device axes, the queue joined: [V_L, C, d].

  NumPy arrays, fit for a checkpoint that any number of devices can read.
  """
  host = jax.tree.map(np.asarray, state)
  shards = host.queue.embeddings  # [D, V_L, C/D, d]
  whole = np.concatenate(list(shards), axis=1)  # [V_L, C, d]
  single = parallel.first(host)
  return single._replace(queue=single.queue._replace(embeddings=whole))


def from_portable(state: TrainState, num_devices: int) -> TrainState:
  """The inverse of `to_portable`, for any number of devices that divides C."""
  whole = state.queue.embeddings  # [V_L, C, d]
  shards = np.stack(np.split(whole, num_devices, axis=1))  # [D, V_L, C/D, d]
  everywhere = parallel.replicate(
    state._replace(queue=state.queue._replace(embeddings=np.zeros(()))),
    num_devices,
  )
  return everywhere._replace(queue=everywhere.queue._replace(embeddings=shards))
