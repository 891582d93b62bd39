"""Checksums of arrays: what is read must be what was written."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# Of each part of an array: where it lies, [begin, end] along each axis, and
# its digest; of JSON types.
Parts = list[list[Any]]


def of(array: np.ndarray | jax.Array) -> Parts:
  """Checksums of an array; if it lies on several hosts, of what is here.

  Of equal copies on several hosts one counts, which is the one that is written.
  """
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    return [
      [_ranges(shard.index, array.shape), _digest(np.asarray(shard.data))]
      for shard in array.addressable_shards
      if shard.replica_id == 0
    ]
  whole = tuple(slice(None) for _ in array.shape)
  return [[_ranges(whole, array.shape), _digest(np.asarray(array))]]


def fits(array: np.ndarray, parts: Parts) -> bool:
  """Whether an array is the one that the checksums were made of, all of it."""
  sizes = [math.prod(end - begin for begin, end in r) for r, _ in parts]
  return sum(sizes) == array.size and all(
    _digest(array[tuple(slice(*ends) for ends in ranges)]) == digest
    for ranges, digest in parts
  )


def of_document(document: Mapping[str, Any]) -> str:
  """Of values of JSON types, whatever the order of their names."""
  text = json.dumps(document, sort_keys=True)
  return _digest(np.frombuffer(text.encode(), np.uint8))


def _ranges(
  index: tuple[slice, ...], shape: tuple[int, ...]
) -> list[list[int]]:
  pairs = zip(index, shape, strict=True)
  return [list(part.indices(size)[:2]) for part, size in pairs]


def _digest(x: np.ndarray) -> str:
  # Not against an attacker, who could write a checksum as well.
  raw = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
  return hashlib.blake2b(raw.data, digest_size=8).hexdigest()
