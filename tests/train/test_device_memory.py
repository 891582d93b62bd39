"""What a step needs, and what is said when it does not fit."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.errors import UserError
from semppl_jax.models import convolution
from semppl_jax.train import device_memory, loop


def _compiled(argument, result, alias, temporary):
  found = types.SimpleNamespace(
    argument_size_in_bytes=argument,
    output_size_in_bytes=result,
    alias_size_in_bytes=alias,
    temp_size_in_bytes=temporary,
  )
  return types.SimpleNamespace(memory_analysis=lambda: found)


def _device(limit):
  return types.SimpleNamespace(memory_stats=lambda: {'bytes_limit': limit})


def test_donated_results_count_once():
  assert device_memory.need(_compiled(10, 8, 6, 100)) == device_memory.Need(
    12, 100
  )


def test_the_largest_batch_by_hand():
  # 0.92 x 1000 - 20 = 900 bytes for activations of 10 bytes an image.
  found = device_memory.Need(state=20, temporary=160)
  assert device_memory.largest_batch(found, per_device=16, available=1000) == 90
  assert device_memory.largest_batch(found, per_device=16, available=20) == 0


def test_the_line_names_the_batch_and_what_fits():
  gib = device_memory.GIB
  devices = [_device(10 * gib)] * 2
  compiled = _compiled(gib, 0, 0, 16 * gib)
  line = device_memory.advice(64, 2, devices, compiled)
  assert 'batch_size 64 is 16 images at once on each of 2 devices' in line
  assert '17.0 GiB of 10.0' in line and 'About 8 would fit' in line
  # 8 of the support on each: 12 of 24 would fit, 4 of the batch.
  line = device_memory.advice(64, 2, devices, compiled, support=16)
  assert 'each of 2 devices, and 8 of its support' in line
  assert 'About 4 would fit' in line
  blind = device_memory.advice(64, 2, [_device(None)] * 2)
  assert 'would fit' not in blind and 'GiB' not in blind


def test_what_a_real_step_needs_grows_with_its_input():
  step = jax.jit(lambda x: jnp.sort(x, axis=0).sum())
  sizes = []
  for count in (1000, 4000):
    kind = jax.ShapeDtypeStruct((count, 16), jnp.float32)
    sizes.append(device_memory.need(step.lower(kind).compile()))
  assert sizes[1].state - sizes[0].state == 3000 * 16 * 4
  assert sizes[1].temporary > sizes[0].temporary


@pytest.mark.parametrize('compiles', [True, False])
def test_a_step_that_does_not_fit_ends_in_one_line(compiles):
  def exhausted(*unused):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes too many')

  mapped = types.SimpleNamespace(
    lower=lambda *kinds: types.SimpleNamespace(
      compile=lambda: _compiled(1, 1, 1, 1) if compiles else exhausted()
    )
  )
  # A class: an instance's attribute __call__ is not looked at.
  call = type('Call', (), {'__call__': exhausted, 'lower': mapped.lower})()
  job = loop.LoopSettings(
    types.SimpleNamespace(batch_size=8), 1, [_device(2)], '', None
  )
  with pytest.raises(UserError, match='batch_size 8 is 8 images') as raised:
    loop._guarded(call, (np.zeros(3),), job)
  assert '\n' not in str(raised.value)
  assert ('would fit' in str(raised.value)) == compiles


def test_outputs_that_do_not_come_end_in_one_line():
  """On CPUs the call returns, and what it gives raises when it is read."""
  job = loop.LoopSettings(
    types.SimpleNamespace(batch_size=8), 1, [_device(2)], '', None
  )
  told = pytest.raises(UserError, match='batch_size 8 is 8 images')
  with told as raised, loop._explain_memory(job):
    raise jax.errors.JaxRuntimeError(
      'INTERNAL: Out of memory allocating 99 bytes'
    )
  assert '\n' not in str(raised.value)
  other = pytest.raises(jax.errors.JaxRuntimeError, match='something else')
  with other, loop._explain_memory(job):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


def test_cpu_devices_share_the_machines_memory():
  each = device_memory.capacity(jax.devices()[0])
  assert device_memory.limit(jax.devices()[0]) is None
  assert each * jax.local_device_count() <= 2**50
  assert each * jax.local_device_count() > 2**30


def test_other_errors_of_a_step_pass():
  def broken(*unused):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')

  job = loop.LoopSettings(None, 1, [], '', None)
  with pytest.raises(jax.errors.JaxRuntimeError, match='something else'):
    loop._guarded(broken, (), job)


@pytest.mark.parametrize(('kernel', 'channels'), [(7, 3), (3, 8), (3, 256)])
def test_a_convolution_counts_once_whatever_its_forms(kernel, channels):
  x = jnp.zeros((1, 16, 16, channels))
  w = jnp.zeros((kernel, kernel, channels, 4))
  sides = ((kernel // 2,) * 2,) * 2
  conv = lambda x, w: convolution.conv2d(x, w, 2, sides)
  count = device_memory.convolution_outputs(conv, x, w, axis='i')
  assert count == 8 * 8 * 4
