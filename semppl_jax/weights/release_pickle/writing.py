"""Pickles as NumPy 1 and dill wrote them at protocol 2; both read them.

NumPy 2 would name `numpy._core`, which older versions do not have. No memo is
used, so that arrays can be written piece by piece.
"""

import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from semppl_jax.errors import CheckpointError
from semppl_jax.utils import files
from semppl_jax.weights.release_pickle.stand_ins import DTYPES

_CHUNK = 1 << 20  # bytes of an array that are written at once

Put = Callable[[bytes], Any]


def write(path: str | os.PathLike, tree: Any) -> None:
  """Writes a pickle that DeepMind's code reads with `dill.load`.

  Others see the file whole or not at all. Needs little memory beside the tree:
  a copy of an array that is not in C order.

  Args:
    path: the file; one that is there is replaced.
    tree: nested dicts. Keys and leaves are str, int, float, bool or None;
      arrays of bools, integers and floats of 16 to 64 bits are leaves too.

  Raises:
    CheckpointError: the file cannot be written.
    TypeError: another type or dtype.
  """
  try:
    with files.atomic(path) as part, part.open('wb') as file:
      file.write(b'\x80\x02')  # PROTO 2
      _put(file.write, tree)
      file.write(b'.')  # STOP
  except OSError as error:
    text = f'{path} cannot be written: {error.strerror}.'
    raise CheckpointError(text) from error


def _put(put: Put, tree: Any) -> None:
  if isinstance(tree, Mapping):
    put(b'}(')  # EMPTY_DICT MARK
    for key, value in tree.items():
      put(_simple(key))
      _put(put, value)
    put(b'u')  # SETITEMS
  elif isinstance(tree, np.ndarray | np.generic):
    _put_array(put, np.asarray(tree))
  else:
    put(_simple(tree))


def _simple(value: Any) -> bytes:
  if value is None or isinstance(value, bool):
    return {None: b'N', True: b'\x88', False: b'\x89'}[value]
  if isinstance(value, int):
    return _int(value)
  if isinstance(value, float):
    return b'G' + struct.pack('>d', value)  # BINFLOAT
  if isinstance(value, str):
    data = value.encode()
    return _text_head(len(data)) + data
  raise TypeError(f'Pickles of a {type(value).__name__} are not written.')


def _int(value: int) -> bytes:
  if -(2**31) <= value < 2**31:
    return b'J' + struct.pack('<i', value)  # BININT
  size = value.bit_length() // 8 + 1
  return b'\x8a' + bytes([size]) + value.to_bytes(size, 'little', signed=True)


def _text_head(size: int) -> bytes:
  if size < 2**32:
    return b'X' + struct.pack('<I', size)  # BINUNICODE
  # Protocol 4's BINUNICODE8, which is read at protocol 2 as well.
  return b'\x8d' + struct.pack('<Q', size)


def _put_array(put: Put, array: np.ndarray) -> None:
  """The calls and the state that ndarray.__reduce__ gives."""
  code = array.dtype.str[1:]
  if code not in DTYPES:
    raise TypeError(f'Pickles of dtype {array.dtype} are not written.')
  order = '|' if array.dtype.itemsize == 1 else '<'
  put(b'cnumpy.core.multiarray\n_reconstruct\n' + b'cnumpy\nndarray\n')
  put(_int(0) + b'\x85')  # TUPLE1: the shape until the state comes
  _put_bytes(put, np.frombuffer(b'b', np.uint8))
  put(b'\x87R(' + _int(1))  # TUPLE3 REDUCE MARK
  put(b'(' + b''.join(map(_int, array.shape)) + b't')  # MARK ... TUPLE
  put(b'cnumpy\ndtype\n' + _simple(code) + b'\x89\x88\x87R(')
  put(_int(3) + _simple(order) + b'NNN' + _int(-1) * 2 + _int(0) + b'tb')
  put(_simple(False))  # C order
  little = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
  _put_bytes(put, little.reshape(-1).view(np.uint8))
  put(b'tb')  # TUPLE BUILD


def _put_bytes(put: Put, data: np.ndarray) -> None:
  """Protocol 2 has no bytes: it calls an encoder with a text [n] of them."""
  chunks = [data[at : at + _CHUNK] for at in range(0, data.size, _CHUNK)]
  # Upper bytes take two in UTF-8.
  size = data.size + sum(np.count_nonzero(chunk & 128) for chunk in chunks)
  put(b'c_codecs\nencode\n' + _text_head(int(size)))
  for chunk in chunks:
    put(chunk.tobytes().decode('latin-1').encode())
  put(_simple('latin1') + b'\x86R')  # TUPLE2 REDUCE
