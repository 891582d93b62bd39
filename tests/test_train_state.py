"""The state on disk knows no devices."""

import functools

import jax
import numpy as np
import optax
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.memory import label_queue
from semppl_jax.models import networks
from semppl_jax.train import train_state
from tests import tiny


@functools.cache
def _state():
  """A first state on 4 devices, its queue filled with distinct rows."""
  cfg = tiny.make_config()
  nets = networks.build(
    encoder='digits', stem='small', projector_hidden=4, embedding_size=8,
    num_classes=3,
  )  # fmt: skip
  state = train_state.init(cfg, nets, optax.trace(0.9), jax.devices()[:4])
  shape = state.queue.embeddings.shape  # [4, 2, C/4, 8]
  rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  rows = parallel.place(rows, jax.devices()[:4])
  return state._replace(queue=state.queue._replace(embeddings=rows))


@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_any_number_of_devices_reads_what_four_wrote(num_devices):
  portable = train_state.to_portable(_state(), jax.devices()[:4])
  assert portable.queue.embeddings.shape == (2, 16, 8)
  # Slot order: the first shard's slots come first, in every view's queue.
  np.testing.assert_array_equal(
    portable.queue.embeddings[:, :4], _state().queue.embeddings[0]
  )
  devices = jax.devices()[:num_devices]
  back = train_state.from_portable(portable, devices)
  shape = (num_devices, 2, 16 // num_devices, 8)
  assert back.queue.embeddings.shape == shape
  again = train_state.to_portable(back, devices)
  equal = lambda a, b: np.testing.assert_array_equal(a, b, strict=True)
  jax.tree.map(equal, again, portable)


def test_the_target_begins_as_a_copy_without_predictor_and_classifier():
  state = _state()
  modules = {name.split('/')[0] for name in state.target_params}
  assert modules == {'digits_res_net', 'projector'}
  for module, leaves in state.target_params.items():
    for name, leaf in leaves.items():
      np.testing.assert_array_equal(leaf, state.online_params[module][name])
  assert isinstance(state.queue, label_queue.LabelQueue)
  assert state.step.shape == (4,) and state.queue.labels.shape == (4, 16)
