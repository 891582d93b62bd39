"""Mutated pickles, and what must hold for every one of them.

  python -m tests.resilience.fuzz_pickles --count=10000 --seed=1

Mutations start from small whole pickles of every kind that is read, and change
bytes, opcodes, sizes and their order. Whatever comes out is read or refused in
one line, quickly, in little memory, and nothing else happens meanwhile.
"""

import argparse
import collections
import contextlib
import io
import pathlib
import pickle
import pickletools
import random
import struct
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Sequence

import numpy as np

from semppl_jax.errors import CheckpointError
from semppl_jax.weights import release_pickle
from semppl_jax.weights.release_pickle import names
from tests.helpers import deepmind_files, golden

GOLDEN = golden.FOLDER / 'release_checkpoint_tiny.pkl'
_VALUES = {dict, list, tuple, str, bytes, int, float, bool, type(None)}
_SECONDS = 2  # of the processor, whoever else uses the machine
_OPCODES = [op.code.encode('latin-1') for op in pickletools.opcodes]


def fragment(value) -> bytes:
  """The opcodes that push a value."""
  return pickle.dumps(value, 2)[2:-1]


def call(name: str, *arguments: bytes, opcode: bytes = b'R') -> bytes:
  """The opcodes that call 'module name' with what fragments push."""
  head = 'c{}\n{}\n'.format(*name.split()).encode()
  return head + b'(' + b''.join(arguments) + b't' + opcode


def whole(*opcodes: bytes) -> bytes:
  """A pickle."""
  return b'\x80\x02' + b''.join(opcodes) + b'.'


def state_of(array) -> tuple[bytes, bytes, bytes]:
  """An array as three fragments: function, its arguments, state."""
  function, arguments, state = array.__reduce__()
  return fragment(function), fragment(arguments), fragment(state)


def small_golden() -> bytes:
  """The golden checkpoint with its first module only."""
  data = GOLDEN.read_bytes()
  ops = [(op.name, arg, at) for op, arg, at in pickletools.genops(data)]
  end = next(at for name, _, at in ops if name == 'SETITEMS')
  rest = next(at for _, arg, at in ops if arg == 'step')
  return data[: end + 1] + b'uu' + data[rest:]  # close the two dicts around it


def _trees():
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  return {
    'leaves': [None, True, False, 0, -1, 70_000, 2**40, 1.5, 'é', 'x' * 300],
    'containers': (
      {},
      [],
      (),
      (1,),
      (1, 2),
      (1, 2, 3),
      (1, 2, 3, 4),
      b'',
      b'z',
    ),
    'arrays': {
      'c': array,
      'f': np.asfortranarray(array),
      'k': array.reshape(1, 2, 3).transpose(1, 2, 0),
      '': np.zeros((0, 4), np.int8),
      'big': array.astype('>f4'),
      'bool': array > 2,
      'high': np.arange(256, dtype=np.uint8),
    },
    'scalars': [np.float32(1), np.int64(2), np.bool_(True), np.array(3.5)],
    'shared': [array, array, collections.OrderedDict(a=1)],
  }


def seeds() -> list[bytes]:
  """Whole pickles of every kind."""
  found = [
    pickle.dumps(tree, protocol)
    for tree in _trees().values()
    for protocol in (2, 3, 4, 5)
  ]
  one, array = fragment(1), state_of(np.arange(3, dtype=np.float32))
  for module, name in names._ALLOWED:
    full = f'{module} {name}'
    if 'reconstruct_' in name or 'create_array' in name:
      found.append(whole(call(full, *array, fragment({}))))
    elif name.startswith('Flat') or name in ('frozendict', 'dict'):
      found.append(whole(call(full, fragment({'a': {'w': 1}}))))
  for key, fields in names._RECORDS.items():
    for module, name in names._pairs(key):
      values = [one] * len(fields.split())
      found.append(whole(call(f'{module} {name}', *values, opcode=b'\x81')))
  new = ('State', ('a', 'b'), 'main', (0,))
  kind = call('dill._dill _create_namedtuple', *map(fragment, new))
  found.append(whole(kind + fragment((1, {})) + b'\x81'))
  params = {'projector/linear_1': {'w': np.ones((1, 2), np.float32)}}
  content = deepmind_files.byol((params, {}), (params, {}))
  found.append(deepmind_files.dumps(content))
  pairs = [['a', 1], ['b', 2]]
  found.append(whole(call('collections OrderedDict', fragment(pairs))))
  # Others much less often than there are kinds of them.
  return [small_golden()] * 10 + found


def _split(data: bytes) -> list[bytes]:
  """Opcode by opcode, each with its argument."""
  places = [at for _, _, at in pickletools.genops(io.BytesIO(data))]
  return [
    data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)
  ]


def _random_opcode(rng: random.Random) -> bytes:
  size = rng.choice((0, 1, 2, 4, 8, rng.randrange(40)))
  return rng.choice(_OPCODES) + rng.randbytes(size)


def _place(rng: random.Random, ops: Sequence) -> int:
  # Without PROTO at the beginning, nothing else is looked at.
  return rng.randrange(min(1, len(ops) - 1), len(ops))


def _insert(rng, ops, others):
  ops.insert(_place(rng, ops), _random_opcode(rng))


def _splice(rng, ops, others):
  start = rng.randrange(len(others))
  at = _place(rng, ops)
  ops[at:at] = others[start : start + rng.randrange(30)]


def _cross(rng, ops, others):
  ops[_place(rng, ops) :] = others[_place(rng, others) :]


def _delete(rng, ops, others):
  at = _place(rng, ops)
  del ops[at : at + rng.choice((1, 1, 2, 10))]
  ops.append(b'.')


def _repeat(rng, ops, others):
  at = _place(rng, ops)
  part = ops[at : at + rng.choice((1, 2, 5, 20))]
  ops[at:at] = part * rng.choice((1, 1, 10, 50))


def _swap(rng, ops, others):
  a, b = _place(rng, ops), _place(rng, ops)
  ops[a], ops[b] = ops[b], ops[a]


def _resize(rng, ops, others):
  """Changes what may be a size, an index or a number of bytes."""
  at = _place(rng, ops)
  code, rest = ops[at][:1], ops[at][1:]
  width = rng.choice((1, 2, 4, 8))
  number = rng.choice((0, 1, 2**7, 2**31, 2**32 - 1, 2**60, 2**64 - 1))
  form = {1: 'B', 2: '<H', 4: '<I', 8: '<Q'}[width]
  number %= 256**width
  ops[at] = code + struct.pack(form, number) + rest[width:]


def _nest(rng, ops, others):
  at = _place(rng, ops)
  code = rng.choice((b'(', b']', b'}', b')', b'\x85', b'a', b'l', b't', b'2'))
  ops.insert(at, code * rng.choice((10, 200, 5000)))


def _bomb(rng, ops, others):
  """Memoizes what is there, and gets it again and again."""
  at = _place(rng, ops)
  again = rng.choice((b'h\xf0', b'h\xf0h\xf0\x86', b'h\xf0h\xf1\x86R0'))
  after = rng.choice((b'', b'\x86', b'u', b't', b'e', b'R', b'b'))
  ops.insert(at, b'q\xf0' + again * rng.choice((2, 50, 1000)) + after)


def _flip(rng, ops, others):
  data = bytearray(b''.join(ops))
  for _ in range(rng.choice((1, 1, 2, 8))):
    data[_place(rng, data)] = rng.randrange(256)
  ops[:] = [bytes(data)]


def _cut(rng, ops, others):
  data = b''.join(ops)
  ops[:] = [data[: rng.randrange(1, len(data) + 1)]]


_MUTATIONS = (
  _insert, _splice, _cross, _delete, _repeat, _swap, _resize, _nest, _bomb,
  _flip, _cut,
)  # fmt: skip


def mutations(seed: int, count: int):
  """Yields mutated pickles, the same for the same seed."""
  rng = random.Random(seed)
  pool = [_split(data) for data in seeds()]
  for _ in range(count):
    ops, others = list(rng.choice(pool)), rng.choice(pool)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
      rng.choice(_MUTATIONS)(rng, ops, others)
    yield b''.join(ops)


_events: list[tuple] | None = None
_watcher: int | None = None


def _hook(event, arguments):
  if _events is not None and threading.get_ident() == _watcher:
    _events.append((event, str(arguments[0]) if arguments else ''))


@contextlib.contextmanager
def watched():
  """Collects what Python audits: files, imports, sockets, processes, code."""
  global _events, _watcher
  if _watcher is None:
    sys.addaudithook(_hook)  # it can never be taken off again
  _watcher, _events = threading.get_ident(), []
  try:
    yield _events
  finally:
    _events = None


def check_values(value) -> None:
  """Nothing but values in there; whatever its depth, each part once."""
  waiting, seen = [value], {}
  while waiting:
    part = waiting.pop()
    if id(part) in seen:
      continue
    seen[id(part)] = part
    if isinstance(part, np.ndarray):
      assert part.dtype.kind in 'biuf' and part.dtype.isnative
    else:
      assert type(part) in _VALUES, type(part)
    if isinstance(part, dict):
      waiting += part.values()
    elif isinstance(part, (list, tuple)):
      waiting += part


def check(data: bytes, path: pathlib.Path) -> str:
  """Reads a pickle at a path of ours; returns '' or why it was refused."""
  path.write_bytes(data)
  tracemalloc.reset_peak()
  memory, start = tracemalloc.get_traced_memory()[0], time.thread_time()
  result, text = None, ''
  with watched() as events:
    try:
      result = release_pickle.read(path)
    except CheckpointError as error:
      text = str(error)
  seconds = time.thread_time() - start
  peak = tracemalloc.get_traced_memory()[1] - memory
  assert set(events) <= {('open', str(path))}, events
  assert seconds < _SECONDS, seconds
  assert peak <= 20e6 + 8 * len(data), (peak, len(data))
  assert not text or (text.startswith(f'{path} ') and text.isprintable()), text
  check_values(result)
  return text.removeprefix(f'{path} ')


def run(seed: int, count: int) -> collections.Counter:
  """Checks that many; returns how often each answer came, '' is loaded."""
  answers = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'x.pkl')
    tracemalloc.start()
    try:
      for number, data in enumerate(mutations(seed, count)):
        try:
          answers[check(data, path)] += 1
        except BaseException:
          print(f'seed {seed}, number {number}: {data[:2000]!r}', flush=True)
          raise
    finally:
      tracemalloc.stop()
  return answers


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--count', type=int, default=10_000)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  start = time.perf_counter()
  answers = run(flags.seed, flags.count)
  seconds = time.perf_counter() - start
  kinds = collections.Counter()
  for text, number in answers.items():
    kinds[' '.join(text.split()[:3]) or 'loaded'] += number
  for text, number in kinds.most_common(12):
    print(f'{number:7} {text}')
  print(f'{answers[""]} loaded, {flags.count - answers[""]} refused', end=', ')
  print(f'{seconds:.1f} seconds')


if __name__ == '__main__':
  main()
