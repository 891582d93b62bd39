"""Checksums of arrays: what is read must be what was written."""

import hashlib
from typing import Any

import jax
import numpy as np

# Of each part of an array: where it lies, [begin, end] along each axis, and
# its digest; of JSON types.
Parts = list[list[Any]]


def of(array: np.ndarray | jax.Array) -> Parts:
  """Checksums of an array; if it lies on several hosts, of what is here."""
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    places = {str(s.index): s for s in array.addressable_shards}
    return [
      [_ranges(shard.index, array.shape), _digest(np.asarray(shard.data))]
      for shard in places.values()
    ]
  whole = tuple(slice(None) for _ in array.shape)
  return [[_ranges(whole, array.shape), _digest(np.asarray(array))]]


def joined(parts_of_hosts: list[Parts]) -> Parts:
  """Those of all hosts, each once."""
  every = [part for parts in parts_of_hosts for part in parts]
  return [part for i, part in enumerate(every) if part not in every[:i]]


def fits(array: np.ndarray, parts: Parts) -> bool:
  """Whether an array is the one that the checksums were made of."""
  return all(
    _digest(array[tuple(slice(*ends) for ends in ranges)]) == digest
    for ranges, digest in parts
  )


def _ranges(
  index: tuple[slice, ...], shape: tuple[int, ...]
) -> list[list[int]]:
  pairs = zip(index, shape, strict=True)
  return [list(part.indices(size)[:2]) for part, size in pairs]


def _digest(x: np.ndarray) -> str:
  # Not against an attacker, who could write a checksum as well.
  raw = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
  return hashlib.blake2b(raw.data, digest_size=8).hexdigest()
