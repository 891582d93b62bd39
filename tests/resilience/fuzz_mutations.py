"""Changes to the bytes of a file, blind ones and such as know its format."""

import io
import json
import random
import struct
import warnings
import zipfile
from typing import Any

_SIZES = (0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60)
_VALUES = (
  None, True, -1, 0, 2**31, 10**30, 1.5, 1e308, float('nan'), float('inf'),
  '', 'x\ny', 'é\0', '../' * 9, 'a' * 5000, [], {}, [[]], [{}],
  {'a': {'b': []}},
)  # fmt: skip
# What JSON's grammar allows, and few think of.
_TEXTS = (
  b'[' * 100_000, b'{"a":' * 100_000, b'9' * 5000, b'NaN', b'null', b'[1]',
  b'"x"', b'{"a": 1, "a": 2}', b'"\\ud800"', b'\xef\xbb\xbf{}', b'\xff\xfe{',
)  # fmt: skip


def _flip(rng, data, others):
  for _ in range(rng.choice((1, 1, 2, 8))):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng, data, others):
  at = rng.randrange(len(data))
  part = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))
  data[at : at + len(part)] = part


def _cut(rng, data, others):
  del data[rng.randrange(len(data)) :]


def _delete(rng, data, others):
  at = rng.randrange(len(data))
  del data[at : at + rng.choice((1, 4, 100, 5000))]


def _repeat(rng, data, others):
  at = rng.randrange(len(data))
  part = data[at : at + rng.choice((1, 4, 100, 5000))]
  data[at:at] = part * rng.choice((1, 2, 50))


def _splice(rng, data, others):
  other = rng.choice(others)
  start = rng.randrange(len(other) + 1)
  at = rng.randrange(len(data))
  part = other[start : start + rng.choice((4, 100, 5000))]
  data[at : at + rng.choice((0, len(part)))] = part


def _resize(rng, data, others):
  """An interesting number where a header may have a size."""
  at = rng.choice((rng.randrange(64), rng.randrange(len(data))))
  form = rng.choice(('<B', '<H', '>H', '<I', '>I', '<Q', '>Q'))
  width = struct.calcsize(form)
  number = struct.pack(form, rng.choice(_SIZES) % 256**width)
  data[at : at + width] = number


def _replace_all(rng, data, others):
  data[:] = rng.choice((b'', rng.randbytes(50), *_TEXTS))


_BLIND = (
  *(_flip, _overwrite, _cut, _delete, _repeat, _splice, _resize) * 3,
  _replace_all,
)  # fmt: skip


def blind(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
  """Changes some bytes; `others` are files to take parts from."""
  changed = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    if changed:
      rng.choice(_BLIND)(rng, changed, others)
  return bytes(changed)


def change_json(rng: random.Random, value: Any) -> Any:
  """Another value somewhere in a tree of JSON."""
  inside = isinstance(value, (dict, list)) and value
  if not inside or rng.random() < 0.1:
    return rng.choice(_VALUES)
  if isinstance(value, list):
    value, key = list(value), rng.randrange(len(value))
  else:
    value, key = dict(value), rng.choice(list(value))
  way = rng.random()
  if way < 0.15:
    del value[key]
  elif way < 0.25 and isinstance(value, dict):
    value[rng.choice(('', 'x\ny', 'é', key.upper()))] = value.pop(key)
  else:
    value[key] = change_json(rng, value[key])
  return value


def json_file(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
  """A file of one JSON value."""
  return json.dumps(change_json(rng, json.loads(data))).encode()


def json_lines(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
  """A file with a JSON value in each line."""
  lines = data.splitlines()
  at = rng.randrange(len(lines))
  lines[at] = rng.choice((json_file(rng, lines[at], others), *_TEXTS))
  return b'\n'.join(lines)


def lines(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
  """Lines dropped, repeated, out of order, and such as are blank."""
  known = data.splitlines()
  ends = (b'\n', b'\r\n', b'\n\n ', b' \n')
  count = rng.randrange(1, 2 * len(known))
  return rng.choice(ends).join(rng.choices(known, k=count))


def safetensors(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
  """Another header, of the right length."""
  end = 8 + int.from_bytes(data[:8], 'little')
  header = json_file(rng, data[8:end], others)
  return len(header).to_bytes(8, 'little') + header + data[end:]


def npz(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
  """Members changed, renamed, packed otherwise; arrays that claim much."""
  with zipfile.ZipFile(io.BytesIO(data)) as file:
    members = {name: file.read(name) for name in file.namelist()}
  name = rng.choice(list(members))
  way = rng.randrange(4)
  if way == 0:
    members[name] = blind(rng, members[name], list(members.values()))
  elif way == 1:
    members[name] = _other_header(rng, members[name])
  elif way == 2:
    members[rng.choice(('x\ny.npy', '.npy', 'a' * 999, name))] = members[name]
  else:
    members[name] += bytes(rng.choice((1, 2**21)))
  packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, 12, 14))
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', packing) as out, warnings.catch_warnings():
    warnings.simplefilter('ignore')  # of names that come twice
    for key, content in members.items():
      out.writestr(key, content)
      if rng.random() < 0.02:
        out.writestr(key, content)
  return file.getvalue()


def _other_header(rng: random.Random, array: bytes) -> bytes:
  """An .npy whose header says something else of the same bytes."""
  kind = rng.choice((
    '|u1', '<i4', '>i8', '<f4', '<f8', '|b1', '|O', '<U4', '|S0', '<M8[s]',
    '|V3', '<c8',
  ))  # fmt: skip
  shape = tuple(
    rng.choice((0, 1, 2, 3, 5, 2**20, 2**40, -1))
    for _ in range(rng.randrange(5))
  )
  text = repr({'descr': kind, 'fortran_order': False, 'shape': shape})
  text = rng.choice((text, text, text, '(' * 5000, '-' * 5000 + '1'))
  head = text.encode() + b'\n'
  magic = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head))
  return magic + head + array[128:]
