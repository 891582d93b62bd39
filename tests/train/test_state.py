"""The state on disk knows no devices."""

import functools

import jax
import numpy as np
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.memory import label_queue
from semppl_jax.train import state as state_lib
from tests.helpers import tiny


@functools.cache
def _state():
  """A first state on 4 devices, its queue filled with distinct rows."""
  run = tiny.prepare()
  state = tiny.first_state(run, 4)
  shape = state.memory.embeddings.shape  # [4, 2, C/4, 8]
  rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  rows = parallel.put_sharded(rows, jax.devices()[:4])
  memory = state.memory._replace(embeddings=rows)
  return state._replace(memory=memory), run.setup.method


@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_any_number_of_devices_reads_what_four_wrote(num_devices):
  state, method = _state()
  whole = state_lib.to_host(state, method, jax.devices()[:4])
  assert whole.memory.embeddings.shape == (2, 16, 8)
  # Slot order: the first shard's slots come first, in every view's queue.
  np.testing.assert_array_equal(
    whole.memory.embeddings[:, :4], state.memory.embeddings[0]
  )
  devices = jax.devices()[:num_devices]
  back = state_lib.from_host(whole, method, devices)
  shape = (num_devices, 2, 16 // num_devices, 8)
  assert back.memory.embeddings.shape == shape
  again = state_lib.to_host(back, method, devices)
  equal = lambda a, b: np.testing.assert_array_equal(a, b, strict=True)
  jax.tree.map(equal, again, whole)
  kinds = state_lib.abstract_state(back, method, num_devices)
  same = lambda kind, x: (kind.shape, kind.dtype) == (np.shape(x), x.dtype)
  assert all(jax.tree.leaves(jax.tree.map(same, kinds, whole)))


def test_a_memory_that_cannot_be_shared_is_refused():
  state, method = _state()
  whole = state_lib.to_host(state, method, jax.devices()[:4])
  with pytest.raises(UserError, match='16 entries .* 3 devices'):
    state_lib.from_host(whole, method, jax.devices()[:3])


def test_the_target_begins_as_a_copy_without_predictor_and_classifier():
  state, _ = _state()
  modules = {name.split('/')[0] for name in state.target_params}
  assert modules == {'one_block_res_net', 'projector'}
  for module, leaves in state.target_params.items():
    for name, leaf in leaves.items():
      np.testing.assert_array_equal(leaf, state.online_params[module][name])
  assert isinstance(state.memory, label_queue.LabelQueue)
  assert state.step.shape == (4,) and state.memory.labels.shape == (4, 16)


def test_a_method_without_target_has_none():
  state = tiny.first_state(tiny.prepare('supervised'), 2)
  assert (state.target_params, state.target_state, state.memory) == ({}, {}, ())
  modules = {name.split('/')[0] for name in state.online_params}
  assert modules == {'one_block_res_net', 'classifier'}
