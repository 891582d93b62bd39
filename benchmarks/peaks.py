"""What a device can do at most: products, and bytes to and from its memory."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def matmul_tflops(device: jax.Device, precision: str) -> float:
  """10^12 operations per second of a large product, the best of five."""
  side = 2048 if device.platform == 'cpu' else 8192
  x = jnp.ones((side, side), precision, device=device)
  return 2 * side**3 / _seconds(lambda x: x @ x, x) / 1e12


def gigabytes_per_second(device: jax.Device) -> float:
  """10^9 bytes read and written per second by adding 1, the best of five."""
  count = 2**25 if device.platform == 'cpu' else 2**29
  x = jnp.zeros((count,), jnp.float32, device=device)
  return 2 * x.nbytes / _seconds(lambda x: x + 1, x) / 1e9


def _seconds(function: Callable, x: jax.Array) -> float:
  """Of a call, of five in a row: a GPU must not wait for the host."""
  compiled = jax.jit(function)
  jax.block_until_ready(compiled(x))

  def once():
    begun = time.perf_counter()
    for _ in range(5):
      y = compiled(x)
    y.block_until_ready()
    return (time.perf_counter() - begun) / 5

  return min(once() for _ in range(5))
