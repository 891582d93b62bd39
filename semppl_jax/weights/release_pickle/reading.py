"""The interpreter: a stack, the stacks below the marks, and a memo.

Names and calls go to stand-ins. What would make it go wrong is not looked for
one by one: a stack that is too short, a memo entry that is not there, wrong
arguments raise Python's own errors, and `read` says that the file is damaged.
"""

import os
import stat
import types
from collections.abc import Callable
from typing import Any, BinaryIO

from semppl_jax.errors import CheckpointError
from semppl_jax.weights.release_pickle import names, stand_ins
from semppl_jax.weights.release_pickle.tape import Refused, Tape

_SPARE = 1 << 20  # bytes that a small file may expand by
_DAMAGED = (
  LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
  RecursionError,
)  # fmt: skip


def read(path: str | os.PathLike) -> Any:
  """Reads a pickle of protocol 2 to 5, as dill or pickle writes it.

  Args:
    path: the file; no other is opened.

  Returns:
    Dicts, lists, tuples, str, bytes, int, float, bool, None, and NumPy arrays
    of bools, integers or floats in native byte order, which may be read-only;
    NumPy's scalars become arrays [], and NamedTuples dicts. Parts may be
    shared, hold themselves, or be nested too deep for recursion: walk a few
    levels only, and do not print or compare what you have not looked at.

  Raises:
    CheckpointError: one line that says what is wrong. Nothing of the file's was
      run.
  """
  try:
    return _read(path)
  except Refused as error:
    raise CheckpointError(f'{path} {error}') from error
  except FileNotFoundError as error:
    raise CheckpointError(f'{path} does not exist.') from error
  except OSError as error:
    raise CheckpointError(
      f'{path} cannot be read: {error.strerror}.'
    ) from error
  except MemoryError as error:
    raise CheckpointError(f'{path} does not fit into memory.') from error
  except _DAMAGED as error:
    text = f'{path} is damaged: its parts do not fit together.'
    raise CheckpointError(text) from error


def _read(path: str | os.PathLike) -> Any:
  mode = os.stat(path).st_mode
  if not stat.S_ISREG(mode):  # to open a pipe is to wait for its writer
    raise Refused('is a directory.' if stat.S_ISDIR(mode) else 'is no file.')
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    if not size:
      raise Refused('is empty.')
    if file.read(1) != b'\x80':
      raise Refused('is no pickle of protocol 2 to 5.')
    return _load(file, size)


def _load(file: BinaryIO, size: int) -> Any:
  used = set()
  tape = Tape(file, size)
  while (name := tape.opcode()) != 'STOP':
    argument = tape.argument(name, skip=True)
    if name in ('BINGET', 'LONG_BINGET'):
      used.add(argument)
  machine = _Machine(used, 2 * size + _SPARE)
  tape = Tape(file, size)
  while (name := tape.opcode()) != 'STOP':
    # No variable for the argument: it may be an array's text.
    _HANDLERS[name](machine, tape.argument(name))
  return machine.result()


class _Machine:
  """What the opcodes work on."""

  def __init__(self, used: set[int], budget: int):
    self._used, self._budget = used, budget
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []
    self._memo: dict[int, Any] = {}
    self._puts = 0

  def result(self) -> Any:
    value = self._stack.pop()
    stand_ins.check_values([value])
    return value

  def spend(self, size: int) -> None:
    # Memo entries are free to use again and again; what is made of them is not.
    self._budget -= size
    if self._budget < 0:
      raise Refused('expands far beyond its size: refused.')

  def push(self, value: Any) -> None:
    self._stack.append(value)

  def push_text(self, data: bytes) -> None:
    self._stack.append(data.decode())

  def push_int(self, data: bytes) -> None:
    self._stack.append(int.from_bytes(data, 'little', signed=True))

  def mark(self, _) -> None:
    self._below.append(self._stack)
    self._stack = []

  def since_mark(self, _=None) -> list[Any]:
    items, self._stack = self._stack, self._below.pop()
    return items

  def pop(self, _) -> None:
    if self._stack:
      self._stack.pop()
    else:
      self.since_mark()

  def repeat(self, _) -> None:
    self._stack.append(self._stack[-1])

  def list_since_mark(self, _) -> None:
    items = self.since_mark()
    self.push([])
    self._extend(items)

  def append(self, _) -> None:
    self._extend([self._stack.pop()])

  def extend(self, _) -> None:
    self._extend(self.since_mark())

  def _extend(self, items: list[Any]) -> None:
    if type(self._stack[-1]) is not list:
      raise TypeError('no list')
    stand_ins.check_values(items)
    self._stack[-1].extend(items)

  def dict_since_mark(self, _) -> None:
    items = self.since_mark()
    self.push({})
    stand_ins.fill(self._stack[-1], items)

  def set_item(self, _) -> None:
    value, key = self._stack.pop(), self._stack.pop()
    stand_ins.fill(self._stack[-1], [key, value])

  def set_items(self, _) -> None:
    items = self.since_mark()
    stand_ins.fill(self._stack[-1], items)

  def tuple_since_mark(self, _) -> None:
    items = self.since_mark()
    self.push(stand_ins.pack(items))

  def tuple_of(self, size: int) -> None:
    items = [self._stack.pop() for _ in range(size)]
    self.push(stand_ins.pack(items[::-1]))

  def put(self, index: int) -> None:
    self._puts += 1
    if index in self._used:
      self._memo[index] = self._stack[-1]

  def get(self, index: int) -> None:
    value = self._memo[index]
    # An array is put there before its state comes.
    if type(value) is stand_ins.Array and value.built is not None:
      value = value.built
    self.push(value)

  def memoize(self, _) -> None:
    self.put(self._puts)

  def name(self, module_and_name: tuple[str, str]) -> None:
    self.push(names.find(*module_and_name))

  def name_from_stack(self, _) -> None:
    name, module = self._stack.pop(), self._stack.pop()
    self.push(names.find(module, name))

  def call(self, _) -> None:
    args, function = self._stack.pop(), self._stack.pop()
    # No value is a function: those on the stack are ours.
    if type(function) is not types.FunctionType:
      raise TypeError('no function')
    self.push(function(self.spend, *stand_ins.unpack(args)))

  def build(self, _) -> None:
    state, target = self._stack.pop(), self._stack.pop()
    if type(target) is stand_ins.Dtype:
      target.build(state)
      self.push(target)
    elif type(target) is stand_ins.Array and target.built is None:
      target.built = stand_ins.array_from_state(self.spend, state)
      self.push(target.built)
    else:
      raise Refused('gives state to what is no array: refused.')


def _protocol(machine: _Machine, version: int) -> None:
  if not 2 <= version <= 5:
    raise Refused(f'has protocol {version}; read are 2 to 5.')


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push(make())


def _tuple(size: int) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.tuple_of(size)


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
  'PROTO': _protocol,
  'FRAME': lambda machine, _: None,
  'POP': _Machine.pop,
  'POP_MARK': _Machine.since_mark,
  'DUP': _Machine.repeat,
  'MARK': _Machine.mark,
  'NONE': _constant(lambda: None),
  'NEWTRUE': _constant(lambda: True),
  'NEWFALSE': _constant(lambda: False),
  'EMPTY_LIST': _constant(list),
  'EMPTY_TUPLE': _constant(tuple),
  'EMPTY_DICT': _constant(dict),
  **dict.fromkeys(('BININT', 'BININT1', 'BININT2', 'BINFLOAT'), _Machine.push),
  **dict.fromkeys(('LONG1', 'LONG4'), _Machine.push_int),
  **dict.fromkeys(
    ('SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8'), _Machine.push
  ),
  **dict.fromkeys(
    ('SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8'), _Machine.push_text
  ),
  'LIST': _Machine.list_since_mark,
  'APPEND': _Machine.append,
  'APPENDS': _Machine.extend,
  'DICT': _Machine.dict_since_mark,
  'SETITEM': _Machine.set_item,
  'SETITEMS': _Machine.set_items,
  'TUPLE': _Machine.tuple_since_mark,
  'TUPLE1': _tuple(1),
  'TUPLE2': _tuple(2),
  'TUPLE3': _tuple(3),
  **dict.fromkeys(('BINPUT', 'LONG_BINPUT'), _Machine.put),
  **dict.fromkeys(('BINGET', 'LONG_BINGET'), _Machine.get),
  'MEMOIZE': _Machine.memoize,
  'GLOBAL': _Machine.name,
  'STACK_GLOBAL': _Machine.name_from_stack,
  'REDUCE': _Machine.call,
  'NEWOBJ': _Machine.call,
  'BUILD': _Machine.build,
}
