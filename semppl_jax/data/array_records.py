"""The records of array_record files, out of ranges of their bytes.

Array_record's own reader takes files on a disk, and gs://, but not s3://, and
cannot say whether a record is damaged or the network was away. This one needs
no more than a function that reads a range; a record is one range.

An array_record file is a Riegeli file (its specification: riegeli,
doc/riegeli_records_file_format.md): chunks, interrupted by a header of 24 bytes
at every 64 KiB. Its last block says where the footer is, and the footer where
each chunk begins (array_record, cpp/layout.proto). Lengths and kinds are
checked. Hashes are not (HighwayHash is no affair of Python's): what a server
sends is checked by its protocol, and an image by its decoder.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

_BLOCK = 2**16
_BLOCK_HEADER = 24
_CHUNK_HEADER = 40
_TAIL = 2 * _BLOCK  # the last block, and what holds most footers
_MAGIC = 0x71930E704FDAE05E
_CODECS = {ord('b'): 'brotli', ord('z'): 'zstd', ord('s'): 'snappy'}
_MOST_AT_ONCE = 2**23  # bytes of records that follow each other
_MOST_REQUESTS = 16
_MOST_IN_A_CHUNK = 2**30  # bytes, decompressed

Read = Callable[[str, int, int], bytes]


class Part(NamedTuple):
  """Some records of a file that follow each other."""

  path: str
  size: int  # of the file, in bytes
  first: int  # record
  count: int  # of records


class Records:
  """Records by number, those of several files one after another.

  Safe in threads; a copy in another process has no open file. A file's footer
  is read when its first record is.

  Args:
    parts: of files.
    read: (path, start, end) -> these bytes of a file.
  """

  def __init__(self, parts: Sequence[Part], read: Read):
    self._parts, self._read = list(parts), read
    self._ends = list(itertools.accumulate(part.count for part in parts))
    self._files: dict[str, _File] = {}

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> bytes:
    """A record.

    Raises:
      ValueError: a damaged file.
      Exception: whatever `read` raises.
    """
    part, number = self._place(index)
    return self._file(part).records(number, number + 1)[0]

  def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
    """Several records; neighbours come with one request."""
    runs = list(self._runs(indices))
    with futures.ThreadPoolExecutor(_MOST_REQUESTS) as pool:
      some = pool.map(lambda run: self._file(run[0]).records(*run[1:]), runs)
      return list(itertools.chain.from_iterable(some))

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {'_files': {}}

  def _place(self, index: int) -> tuple[Part, int]:
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    part = self._parts[i := bisect.bisect_right(self._ends, index)]
    return part, part.first + index - (self._ends[i] - part.count)

  def _runs(self, indices: Sequence[int]) -> Iterator[tuple[Part, int, int]]:
    """(part, first, end) of neighbours, not too many bytes at once."""
    run: tuple[Part, int, int] | None = None
    for index in indices:
      part, number = self._place(index)
      if run is not None:
        same, first, end = run
        if (part, number) == (same, end) and (
          self._file(part).size(first, end + 1) <= _MOST_AT_ONCE
        ):
          run = part, first, end + 1
          continue
        yield run
      run = part, number, number + 1
    if run is not None:
      yield run

  def _file(self, part: Part) -> '_File':
    # Of threads that come at once each reads the footer: that does no harm,
    # while one would wait for the footers of others.
    found = self._files.get(part.path)
    if found is None:
      found = self._files[part.path] = _File(part.path, part.size, self._read)
    return found


class _File:
  """Where the records of a file are."""

  def __init__(self, path: str, size: int, read: Read):
    self._path, self._read = path, read
    start = max(0, size - _TAIL)
    tail = self._range(start, size)
    if size % _BLOCK or not size:
      raise ValueError(f'its {size} bytes are not whole blocks: it is cut off')
    postscript = _fields(_records(tail[-_BLOCK:], size - _BLOCK)[0])
    if postscript.get(2) != _MAGIC:
      raise ValueError('its end is not that of an array_record file')
    footer, end = postscript.get(1, 0), size - _BLOCK
    if not 0 < footer < end:
      raise ValueError(f'its footer would be at {footer} of {size} bytes')
    if footer < start:
      chunk = self._range(footer, end)
    else:
      chunk = tail[footer - start : end - start]
    header, *entries = map(_fields, _records(chunk, footer))
    if _fields(header.get(1, b'')).get(1) != 1:
      raise ValueError('its footer is not that of array_record, version 1')
    begins = [entry.get(1, 0) for entry in entries] + [footer]
    if begins != sorted(begins):
      raise ValueError('its footer is damaged')
    self._begins = np.array(begins, np.int64)
    counts = [entry.get(3, 0) for entry in entries]
    self._firsts = np.cumsum([0, *counts])

  def size(self, first: int, end: int) -> int:
    """Bytes that hold the records first .. end - 1."""
    begin, stop = self._chunks(first, end)
    return int(self._begins[stop] - self._begins[begin])

  def records(self, first: int, end: int) -> list[bytes]:
    """The records first .. end - 1."""
    begin, stop = self._chunks(first, end)
    limits = self._begins[begin : stop + 1].tolist()
    data = self._range(limits[0], limits[-1])
    found = [
      record
      for at, past in itertools.pairwise(limits)
      for record in _records(data[at - limits[0] : past - limits[0]], at)
    ]
    skip = first - int(self._firsts[begin])
    return found[skip : skip + end - first]

  def _chunks(self, first: int, end: int) -> tuple[int, int]:
    """The chunks [begin, stop) of the records first .. end - 1."""
    if not 0 <= first < end <= self._firsts[-1]:
      raise ValueError(f'it has {self._firsts[-1]} records, and no {end - 1}')
    begin = int(np.searchsorted(self._firsts, first, 'right')) - 1
    return begin, int(np.searchsorted(self._firsts, end, 'left'))

  def _range(self, start: int, end: int) -> bytes:
    data = self._read(self._path, start, end)
    if len(data) != end - start:
      raise ValueError(f'{len(data)} bytes came, of {end - start}')
    return data


def _records(data: bytes, at: int) -> list[bytes]:
  """The records of a chunk.

  Args:
    data: bytes of the file from the chunk's first on, to its end or beyond.
    at: where in the file they begin.
  """
  data = _without_block_headers(data, at)
  size, count, decoded = (
    int.from_bytes(data[i:j], 'little')
    for i, j in ((8, 16), (25, 32), (32, 40))
  )
  if len(data) < _CHUNK_HEADER + size:
    raise ValueError(
      f'the chunk at {at} does not end where the next one begins'
    )
  if data[24:25] != b'r':
    raise ValueError(
      f'the chunk at {at} is of kind {data[24:25]!r}: only files that were '
      'written without `transpose` can be read from object storage'
    )
  body = data[_CHUNK_HEADER : _CHUNK_HEADER + size]
  length, start = _varint(body, 1)
  sizes = _decompressed(body[0], body[start : start + length])
  values = _decompressed(body[0], body[start + length :])
  found, place, begin = [], 0, 0
  for _ in range(count):
    length, place = _varint(sizes, place)
    found.append(values[begin : begin + length])
    begin += length
  if begin != decoded or len(values) != decoded:
    raise ValueError(f'the chunk at {at} has not the size that it says')
  return found


def _without_block_headers(data: bytes, at: int) -> bytes:
  first = -at % _BLOCK
  if first >= len(data):
    return data
  blocks = range(first, len(data), _BLOCK)
  kept = [data[:first]]
  kept += [data[b + _BLOCK_HEADER : b + _BLOCK] for b in blocks]
  return b''.join(kept)


def _decompressed(kind: int, data: bytes) -> bytes:
  if not kind:
    return data
  if kind not in _CODECS:
    raise ValueError(f'its compression {kind} is not known')
  import pyarrow  # late: only what is read from object storage needs it

  size, start = _varint(data, 0)
  if not size:
    return b''
  if size > _MOST_IN_A_CHUNK:  # a small file can claim any size
    raise ValueError(f'a part of it would be {size:,} bytes')
  try:
    return pyarrow.decompress(
      data[start:], decompressed_size=size, codec=_CODECS[kind], asbytes=True
    )
  except OSError as error:  # which says that a system did not give it
    raise ValueError('a part of it cannot be decompressed') from error


def _varint(data: bytes, place: int) -> tuple[int, int]:
  """A number of 7 bits a byte, the lowest first; and where it ends."""
  value = shift = 0
  while True:
    if place >= len(data) or shift > 63:
      raise ValueError('a number in it is cut off')
    value |= (data[place] & 127) << shift
    if data[place] < 128:
      return value, place + 1
    place, shift = place + 1, shift + 7


def _fields(message: bytes) -> dict[int, Any]:
  """The fields of a protocol buffer with numbers and bytes, by their tags."""
  found: dict[int, Any] = {}
  place = 0
  while place < len(message):
    key, place = _varint(message, place)
    value, place = _varint(message, place)
    if key % 8 == 2:
      value, place = message[place : place + value], place + value
    elif key % 8:
      raise ValueError('its footer has fields of another kind')
    found[key // 8] = value
  return found
