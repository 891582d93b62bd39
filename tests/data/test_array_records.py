"""Records out of ranges of bytes, against array_record's own writer."""

import contextlib
import os
import pathlib
import pickle

import numpy as np
import pytest
from array_record.python import array_record_module

from semppl_jax.data import array_records

_BLOCK = 2**16
_SIZES = [0, 1, 24, 40, _BLOCK - 64, _BLOCK - 24, _BLOCK, 200_000, 7]


def made(sizes, seed=0):
  random = np.random.default_rng(seed)
  # Every other one can be compressed.
  return [
    random.integers(0, 3 + 253 * (i % 2), size, np.uint8).tobytes()
    for i, size in enumerate(sizes)
  ]


def write(path, records, options='group_size:1'):
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  for record in records:
    writer.write(record)
  writer.close()
  return str(path)


class Reader:
  """Ranges of files, and which were asked for."""

  def __init__(self):
    self.asked = []

  def __call__(self, path, start, end):
    self.asked.append((start, end))
    with open(path, 'rb') as file:
      file.seek(start)
      return file.read(end - start)


def parts(path, *spans):
  size = os.path.getsize(path)
  return [array_records.Part(path, size, first, n) for first, n in spans]


@pytest.mark.parametrize(
  'options',
  [
    'group_size:1',
    'group_size:1,uncompressed',
    'group_size:1,brotli',
    'group_size:4,zstd',
    'group_size:3,snappy',
    'group_size:1,pad_to_block_boundary:true',
  ],
)
def test_what_was_written_is_read(tmp_path, options):
  records = made(_SIZES * 2)
  path = write(tmp_path / 'a', records, options)
  found = array_records.Records(parts(path, (0, len(records))), Reader())
  assert [found[i] for i in range(len(found))] == records
  assert found.__getitems__(range(len(found))) == records
  some = [5, 6, 7, 2, 2, 17, 0]
  assert found.__getitems__(some) == [records[i] for i in some]


def test_a_footer_of_several_blocks(tmp_path):
  records = made(np.arange(20_000) % 97)
  path = write(tmp_path / 'a', records, 'group_size:1,uncompressed')
  found = array_records.Records(parts(path, (0, len(records))), Reader())
  assert [found[i] for i in (0, 1, 9_999, 19_999)] == [
    records[i] for i in (0, 1, 9_999, 19_999)
  ]


def test_parts_of_files(tmp_path):
  """As tfds slices splits."""
  first, second = made([10] * 6, 1), made([10] * 6, 2)
  paths = [write(tmp_path / n, r) for n, r in (('a', first), ('b', second))]
  found = array_records.Records(
    parts(paths[0], (4, 2)) + parts(paths[1], (0, 1), (3, 3)), Reader()
  )
  wanted = first[4:] + second[:1] + second[3:]
  assert len(found) == 6 and [found[i] for i in range(6)] == wanted
  assert found.__getitems__(range(6)) == wanted
  with pytest.raises(IndexError):
    found[6]


def test_a_record_is_one_request_and_neighbours_are_one(tmp_path):
  records = made([1000] * 50)
  path = write(tmp_path / 'a', records)
  read = Reader()
  found = array_records.Records(parts(path, (0, 50)), read)
  found[3]
  assert len(read.asked) == 2  # the footer, once
  found[4]
  assert len(read.asked) == 3
  found.__getitems__(range(50))
  assert len(read.asked) == 4
  there = pickle.loads(pickle.dumps(found))
  assert there[7] == records[7]


@pytest.mark.parametrize('cut', [1, _BLOCK, 3 * _BLOCK])
def test_a_file_that_is_cut_off(tmp_path, cut):
  path = write(tmp_path / 'a', made([60_000] * 9))
  os.truncate(path, os.path.getsize(path) - cut)
  found = array_records.Records(parts(path, (0, 9)), Reader())
  with pytest.raises(ValueError):
    found[0]


def test_other_bytes_are_refused(tmp_path):
  """Whatever a byte becomes, an error says so or other bytes come."""
  path = write(tmp_path / 'a', made([300] * 5))
  whole = bytearray(pathlib.Path(path).read_bytes())
  part = array_records.Part(path, len(whole), 0, 5)
  random = np.random.default_rng(0)
  for place in random.integers(0, len(whole), 300):
    bad = whole.copy()
    bad[place] ^= int(random.integers(1, 256))
    found = array_records.Records(
      [part], lambda path, start, end, bad=bad: bytes(bad[start:end])
    )
    for i in range(5):
      with contextlib.suppress(ValueError):
        assert isinstance(found[i], bytes)


def test_transposed_records_are_refused(tmp_path):
  path = write(tmp_path / 'a', made([9] * 3), 'group_size:1,transpose:true')
  found = array_records.Records(parts(path, (0, 3)), Reader())
  with pytest.raises(ValueError, match='without `transpose`'):
    found[0]


def test_fewer_records_than_the_data_set_says(tmp_path):
  path = write(tmp_path / 'a', made([9] * 3))
  found = array_records.Records(parts(path, (0, 5)), Reader())
  with pytest.raises(ValueError, match='has 3 records'):
    found[4]


def test_a_small_file_that_claims_any_size():
  claim = bytes([0x80] * 5 + [0x40])  # 2**41, in sevens of bits
  with pytest.raises(ValueError, match='2,199,023,255,552 bytes'):
    array_records._decompressed(ord('z'), claim + b'(\xb5/\xfd')
