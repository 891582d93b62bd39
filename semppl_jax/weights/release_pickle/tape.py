"""A pickle file as a tape of opcodes; no size in it is believed unchecked."""

import os
import pickletools
import struct
from typing import Any, BinaryIO

MAX_STEPS = 5_000_000  # opcodes; a release with all optimiser state: 200,000
MAX_NAME = 1000  # characters of a name or a key
_MAX_INT = 1024  # bytes

_NAMES = {op.code.encode('latin-1'): op.name for op in pickletools.opcodes}


def _forms(table: dict[str, str]) -> dict[str, struct.Struct]:
  return {
    name: struct.Struct(form)
    for form, names in table.items()
    for name in names.split()
  }


_FIXED = _forms(
  {
    'B': 'PROTO BININT1 BINGET BINPUT',
    '<H': 'BININT2',
    '<I': 'LONG_BINGET LONG_BINPUT',
    '<i': 'BININT',
    '<Q': 'FRAME',
    '>d': 'BINFLOAT',
  }
)
# What comes with its size in front. (A negative size of LONG4 is just huge.)
_COUNTED = _forms(
  {
    'B': 'LONG1 SHORT_BINBYTES SHORT_BINUNICODE',
    '<I': 'LONG4 BINBYTES BINUNICODE',
    '<Q': 'BINBYTES8 BINUNICODE8 BYTEARRAY8',
  }
)
_BARE = (
  'STOP POP POP_MARK DUP MARK NONE NEWTRUE NEWFALSE EMPTY_LIST EMPTY_TUPLE '
  'EMPTY_DICT LIST TUPLE TUPLE1 TUPLE2 TUPLE3 DICT APPEND APPENDS SETITEM '
  'SETITEMS MEMOIZE STACK_GLOBAL REDUCE NEWOBJ BUILD'
)
OPCODES = frozenset({'GLOBAL', *_FIXED, *_COUNTED, *_BARE.split()})


class Refused(Exception):
  """What is wrong with a file, without the file's name."""


class Tape:
  """Reads a file opcode by opcode, from its beginning."""

  def __init__(self, file: BinaryIO, size: int):
    file.seek(0)
    self._file, self._left, self._steps = file, size, MAX_STEPS

  def opcode(self) -> str:
    """The next opcode's name, one of OPCODES; `argument` must follow."""
    self.count(1)
    code = self._take(1)
    name = _NAMES.get(code)
    if name not in OPCODES:
      name = name or f'0x{code.hex()}'
      raise Refused(f'uses opcode {name}: refused, nothing of it was run.')
    return name

  def argument(self, name: str, *, skip: bool = False) -> Any:
    """What comes with an opcode.

    Args:
      name: the opcode that was read just now.
      skip: leave out what may be big.

    Returns:
      A number, bytes, the two texts of GLOBAL, or None.
    """
    if form := _FIXED.get(name):
      return form.unpack(self._take(form.size))[0]
    if form := _COUNTED.get(name):
      size = form.unpack(self._take(form.size))[0]
      if name in ('LONG1', 'LONG4') and size > _MAX_INT:
        raise Refused(f'has an int of more than {_MAX_INT} bytes: refused.')
      return self._skip(size) if skip else self._take(size)
    if name == 'GLOBAL':
      return self._line(), self._line()
    return None

  def count(self, steps: int) -> None:
    """Keeps account of the work; too much of it is refused."""
    self._steps -= steps
    if self._steps < 0:
      raise Refused(f'takes more than {MAX_STEPS:,} steps: refused.')

  def _take(self, size: int) -> bytes:
    self._claim(size)
    found = self._file.read(size)
    if len(found) < size:  # somebody shortened it meanwhile
      raise Refused('is cut off.')
    return found

  def _skip(self, size: int) -> None:
    self._claim(size)
    self._file.seek(size, os.SEEK_CUR)

  def _line(self) -> str:
    line = self._file.readline(MAX_NAME + 1)
    self._claim(len(line))
    if len(line) > MAX_NAME:
      raise Refused(f'has a name of more than {MAX_NAME} characters: refused.')
    if not line.endswith(b'\n'):
      raise Refused('is cut off in the middle of a name.')
    return line[:-1].decode()

  def _claim(self, size: int) -> None:
    if size > self._left:
      missing = size - self._left
      raise Refused(f'is cut off: {missing:,} bytes or more are missing.')
    self._left -= size
