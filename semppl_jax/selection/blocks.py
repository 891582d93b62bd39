"""Features in blocks, so that products with them have a bounded size."""

import jax
import jax.numpy as jnp
import numpy as np

_PRODUCTS = 2**24  # of a block with all centres: 64 MB [ours]
_LARGEST = 2**14  # rows


def rows(count: int, others: int) -> int:
  """Rows of a block, of `count` features that meet `others` at once."""
  return max(1, min(count, _LARGEST, _PRODUCTS // others))


def split(array: np.ndarray, size: int, fill: float = 0) -> jax.Array:
  """[N, ...] -> [blocks, size, ...] on the device, the last one filled up."""
  number = -(-len(array) // size)
  missing = [(0, number * size - len(array))] + [(0, 0)] * (array.ndim - 1)
  if missing[0][1]:
    array = np.pad(array, missing, constant_values=fill)
  return jnp.asarray(array).reshape(number, size, *array.shape[1:])


def join(array: jax.Array, count: int) -> np.ndarray:
  """[blocks, size, ...] -> [N, ...] on the host, without what filled it up."""
  return np.asarray(array).reshape(-1, *array.shape[2:])[:count]
