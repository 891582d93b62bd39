"""What the names in a pickle stand for: functions of ours, not what they name.

Every stand-in takes `spend`, which it tells how many bytes it is about to make,
and the arguments that the file gives, of any type. Functions, `Module`s,
`Dtype`s and `Array`s are for building arrays only: `Args` keeps them out of the
result.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from semppl_jax.weights.release_pickle.tape import MAX_NAME, Refused

DTYPES = ('b1', 'f2', 'f4', 'f8') + tuple(
  kind + size for kind in 'iu' for size in '1248'
)
READ = 'read are bools, integers and floats of 16 to 64 bits'
_MAX_FIELDS = 64  # of a NamedTuple
_MAX_AXES = 32  # NumPy's own limit before version 2
_MAX_ARGS = 16
_PAIR_BYTES = 200  # about what a pair takes in a dict
_KEYS = frozenset({str, int, float, bool, type(None)})
_VALUES = _KEYS | {bytes, dict, list, tuple, np.ndarray}

Spend = Callable[[int], None]


class Args(tuple):
  """A tuple with a stand-in in it: arguments, and nobody's value."""

  __slots__ = ()


class Dtype:
  """Stands for a dtype; its state, the byte order, comes later."""

  __slots__ = ('code', 'order')

  def __init__(self, code: str):
    self.code, self.order = code, '='

  def build(self, state: Any) -> None:
    """Takes what NumPy's dtype.__setstate__ takes."""
    # The rest, sizes and flags, follows from the code.
    _, order, subarray, names, fields, *_ = unpack(state)
    if not (is_text(order, *'<>|=') and subarray is names is fields is None):
      raise Refused('holds an array of records: refused.')
    self.order = order


class Array:
  """Stands for an array whose state has not come yet."""

  __slots__ = ('built',)

  def __init__(self):
    self.built: np.ndarray | None = None


class Module:
  """Stands for a module; nothing is imported, its name is all that counts."""

  __slots__ = ('name',)

  def __init__(self, name: Any):
    self.name = name


def is_text(value: Any, *choices: str) -> bool:
  """Compares by type first: to compare containers may take for ever."""
  return type(value) is str and value in choices


def shown(text: Any) -> str:
  """A text from the file for an error: in one line, whatever is in it."""
  return ascii(text[:100])[1:-1] if type(text) is str else type(text).__name__


def pack(items: list[Any]) -> tuple[Any, ...]:
  """A tuple, marked as `Args` if it is no value."""
  plain = _VALUES.issuperset(map(type, items))
  return tuple(items) if plain else Args(items)


def unpack(args: Any) -> tuple[Any, ...]:
  """The arguments of a call; many, or a text's letters, would be copied."""
  if not isinstance(args, tuple) or len(args) > _MAX_ARGS:
    raise TypeError('no arguments')
  return args


def check_values(items: Iterable[Any]) -> None:
  """Refuses stand-ins where values should be."""
  if not _VALUES.issuperset(map(type, items)):
    raise Refused('keeps a function or a type among its values: refused.')


def fill(target: Any, items: list[Any]) -> None:
  """Puts key, value, key, value, ... into a dict."""
  if type(target) is not dict or len(items) % 2:
    raise TypeError('no dict, or a key without a value')
  check_values(items)
  for key, value in zip(items[::2], items[1::2]):
    _check_key(key)
    target[key] = value


def _check_key(key: Any) -> None:
  if type(key) not in _KEYS:
    raise Refused(f'has a {type(key).__name__} for a key: refused.')
  # Equal texts would be compared in full; huge ints can be made to collide.
  if len(key) > MAX_NAME if type(key) is str else abs(key or 0) >= 2**64:
    raise Refused('has a key that is too long: refused.')


def array_from_state(spend: Spend, state: Any) -> np.ndarray:
  """What ndarray.__setstate__ would make of a state."""
  _, shape, dtype, fortran, data = unpack(state)
  return _array(spend, data, dtype, shape, 'F' if fortran is True else 'C')


def _array(
  spend: Spend, data: Any, dtype: Any, shape: Any, order: Any
) -> np.ndarray:
  """A window on the bytes if their order is native, else a copy."""
  if type(data) is not bytes or type(dtype) is not Dtype:
    raise Refused('holds an array that is not of plain numbers: refused.')
  # A byte may be no valid bool: as numbers they turn into valid ones.
  stored = np.dtype('u1' if dtype.code == 'b1' else dtype.order + dtype.code)
  # In Python's ints, and before NumPy sees it: nothing overflows.
  if not _is_shape(shape) or math.prod(shape) * stored.itemsize != len(data):
    raise Refused('holds an array whose shape does not fit its bytes: refused.')
  if not is_text(order, 'C', 'F'):
    raise Refused('holds an array in an unknown order: refused.')
  array = np.ndarray(shape, stored, data, order=order)
  native = np.dtype(dtype.code)
  if stored == native:
    return array
  spend(len(data))
  return array.astype(native)


def _is_shape(shape: Any) -> bool:
  if type(shape) is not tuple or len(shape) > _MAX_AXES:
    return False
  return all(type(size) is int and size >= 0 for size in shape)


def encode_text(spend: Spend, text: Any, encoding: Any) -> bytes:
  """How protocol 2 writes bytes."""
  if type(text) is not str or not is_text(encoding, 'latin1', 'latin-1'):
    raise TypeError('no text, or another encoding')
  spend(len(text))
  return text.encode('latin-1')


def no_bytes(spend: Spend) -> bytes:
  """How protocol 2 writes b''."""
  return b''


def type_by_name(spend: Spend, name: Any) -> Callable[[Spend], bytes]:
  """How dill names `bytes`."""
  if not is_text(name, 'bytes'):
    raise Refused(
      f'asks for the type {shown(name)}: refused, nothing of it was run.'
    )
  return no_bytes


def module_by_name(spend: Spend, name: Any) -> Module:
  """How dill names a module that it takes a function from."""
  return Module(name)


def dtype(spend: Spend, code: Any, align: Any = 0, copy: Any = 0) -> Dtype:
  """NumPy's dtype, of plain numbers only."""
  if not is_text(code, *DTYPES):
    raise Refused(f'holds arrays of dtype {shown(code)}, {READ}: refused.')
  return Dtype(code)


def plain_array(spend: Spend, *args: Any) -> Any:
  """NumPy's ndarray: an argument of `new_array`, and not to be called."""
  raise Refused('makes an array in an unknown way: refused.')


def new_array(spend: Spend, kind: Any, shape: Any, code: Any) -> Array:
  """NumPy's array before it has its state."""
  if kind is not plain_array:
    raise Refused('holds an array of an unknown kind: refused.')
  return Array()


def whole_array(
  spend: Spend, new: Any, args: Any, state: Any, extra: Any = None
) -> np.ndarray:
  """JAX's arrays, and NumPy's if dill wrote them: all in one call."""
  if new is not new_array:
    raise Refused('makes an array in an unknown way: refused.')
  new_array(spend, *unpack(args))
  return array_from_state(spend, state)


def scalar(spend: Spend, dtype: Any, data: Any) -> np.ndarray:
  """NumPy's scalars."""
  return _array(spend, data, dtype, (), 'C')


def array_from_buffer(
  spend: Spend, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = ()
) -> np.ndarray:
  """How protocol 5 writes arrays; in order K with their axes permuted."""
  if not is_text(order, 'K'):
    return _array(spend, data, dtype, shape, order)
  if not _is_shape(axes):
    raise TypeError('no axes')
  return _array(spend, data, dtype, shape, 'C').transpose(axes)


def as_dict(spend: Spend, content: Any = ()) -> dict[Any, Any]:
  """Any mapping; from pairs too, as old versions write an OrderedDict."""
  if type(content) is dict:
    return content
  if type(content) not in (list, tuple):
    raise TypeError('neither a dict nor pairs')
  spend(_PAIR_BYTES * len(content))  # the same list may come many times
  found: dict[Any, Any] = {}
  for pair in content:
    if type(pair) not in (list, tuple) or len(pair) != 2:
      raise TypeError('no pair')
    fill(found, list(pair))
  return found


def record_of_file(
  spend: Spend, name: Any, fields: Any, module: Any, defaults: Any = None
) -> Callable[..., dict[str, Any]]:
  """How dill writes a NamedTuple: with its fields, so that any may come."""
  if type(fields) is not tuple or len(fields) > _MAX_FIELDS:
    raise TypeError('no fields')
  for field in fields:
    if type(field) is not str or len(field) > MAX_NAME:
      raise TypeError('no field')
  return record(fields)


def record(names: Sequence[str]) -> Callable[..., dict[str, Any]]:
  """The stand-in for a NamedTuple of these fields: it makes a dict."""

  def build(spend: Spend, *values: Any) -> dict[str, Any]:
    spend(_PAIR_BYTES * len(values))
    check_values(values)
    return dict(zip(names, values, strict=True))

  return build
