"""Memory that XLA gives back and asks for again, in a process of its own."""

import os
import subprocess
import sys

import pytest

from semppl_jax.utils import allocator

# Page faults of a call, already compiled, that needs 32 MB between its sums.
_CALLS = """
import resource
from semppl_jax.utils import allocator
kept = allocator.keep_freed_memory()
import jax, jax.numpy as jnp
x = jnp.arange(2**23, dtype=jnp.float32)
f = jax.jit(lambda x: jnp.cumsum(jnp.cumsum(x)[::-1])[0])
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  f(x).block_until_ready()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, f.lower(x).compile().memory_analysis().temp_size_in_bytes, faults)
"""
_PAGE = 4096
_GLIBC = pytest.mark.skipif(sys.platform != 'linux', reason="glibc's")


def _calls(**environment):
  clean = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('MALLOC_') and name != 'GLIBC_TUNABLES'
  }
  done = subprocess.run(
    [sys.executable, '-c', _CALLS],
    env={**clean, **environment}, capture_output=True, text=True, check=True,
  )  # fmt: skip
  kept, size, faults = done.stdout.split()
  assert int(size) >= 2**25
  return kept, int(faults) * _PAGE / int(size)


@_GLIBC
@pytest.mark.parametrize('devices', [1, 2])
def test_temporaries_are_not_cleared_anew(devices):
  flags = f'--xla_force_host_platform_device_count={devices}'
  kept, share = _calls(JAX_PLATFORMS='cpu', XLA_FLAGS=flags)
  assert kept == 'True' and share < 0.1


@_GLIBC
def test_settings_of_the_user_count():
  kept, share = _calls(JAX_PLATFORMS='cpu', MALLOC_TOP_PAD_='65536')
  assert kept == 'False' and share > 0.5


@pytest.mark.parametrize(
  'environment',
  [
    {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': 'glibc.malloc.top_pad=65536'},
    {'JAX_PLATFORMS': 'cuda,cpu'},
  ],
)
def test_these_and_accelerators_are_left_alone(environment, monkeypatch):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert not allocator.keep_freed_memory()
