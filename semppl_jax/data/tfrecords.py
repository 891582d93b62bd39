"""The records of a TFRecord file, without TensorFlow; checksums verified.

A file is (length uint64, its masked CRC-32C uint32, data, its masked CRC-32C)
again and again, little-endian. The checksum is computed with NumPy, for no
package that we depend on has a fast one.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from semppl_jax.errors import UserError

_POLYNOMIAL = 0x82F63B78  # of CRC-32C, its bits reversed
_ALL_ONES = (0x641F6454).to_bytes(4, 'little')  # turn a state of 0 into ~0


def read(path: pathlib.Path, expected: int) -> Iterator[bytes]:
  """The records of a tfrecord file, with both checksums verified.

  Raises:
    UserError: the file is damaged, or has not the expected number of records.
  """
  size = path.stat().st_size
  number = 0
  with path.open('rb') as file:
    while file.tell() < size:
      number += 1
      what = f'{path}: record {number} of {expected}'
      length = int.from_bytes(_read_checked(file, 8, size, what), 'little')
      yield _read_checked(file, length, size, what)
  if number != expected:
    raise UserError(
      f'{path} holds {number} records, but dataset_info.json says {expected}.'
    )


def crc32c(data: bytes) -> int:
  """The checksum of a tfrecord file's parts, before masking."""
  # To append data is to pass zeros of its length through the state, and to add
  # its own checksum; so pairs of words join to words of twice the length. Zeros
  # in front change nothing.
  words = np.frombuffer(bytes(-len(data) % 4) + _ALL_ONES + data, '<u4')
  level = 0
  while len(words) > 1:
    if len(words) % 2:
      words = np.concatenate([np.zeros(1, '<u4'), words])
    words = _pass_zeros(words, level, every=2) ^ words[1::2]
    level += 1
  return int(_pass_zeros(words, 0)[0]) ^ 0xFFFFFFFF


def _read_checked(file: BinaryIO, count: int, size: int, what: str) -> bytes:
  """Reads `count` bytes and their checksum."""
  if file.tell() + count + 4 > size:
    raise UserError(f'{what} is cut short.')
  data = file.read(count)
  crc = crc32c(data)
  masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
  if masked != int.from_bytes(file.read(4), 'little'):
    raise UserError(f'{what} is damaged: its checksum is wrong.')
  return data


def _pass_zeros(states: np.ndarray, level: int, every: int = 1) -> np.ndarray:
  """What 4 * 2**level zero bytes make of the checksum's state, for each."""
  octets = states.view(np.uint8)
  parts = (
    table.take(octets[i :: 4 * every]) for i, table in enumerate(_tables(level))
  )
  return functools.reduce(np.bitwise_xor, parts)


@functools.cache
def _tables(level: int) -> list[np.ndarray]:
  """What becomes of each byte of a state: 4 x [256], small for the cache."""
  bits = 1 << np.arange(32, dtype='<u4')
  if level:  # twice the zeros of the level before
    images = _pass_zeros(_pass_zeros(bits, level - 1), level - 1)
  else:
    images = bits
    for _ in range(32):
      images = images >> 1 ^ images % 2 * np.uint32(_POLYNOMIAL)
  add = lambda table, image: np.concatenate([table, table ^ image])
  nothing = np.zeros(1, '<u4')
  return [functools.reduce(add, x, nothing) for x in np.split(images, 4)]
