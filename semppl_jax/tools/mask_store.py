"""A folder of masks while it is made: begun, locked, written, resumed.

`data/masks.py` says what lies in it, and reads it.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from array_record.python import array_record_module
from PIL import Image

from semppl_jax.data import masks
from semppl_jax.errors import UserError
from semppl_jax.utils import files
from semppl_jax.utils.text import first_line

# A store is at most so many files, which each process that reads it holds open.
_MOST_SHARDS = 256
_FEWEST_RECORDS = 64


def shard_size(num_images: int) -> int:
  """How many records a shard has in a new store."""
  return max(_FEWEST_RECORDS, -(-num_images // _MOST_SHARDS))


def create(folder: str | pathlib.Path, layout: masks.Layout) -> masks.Layout:
  """Makes the folder and its masks.json, or checks that they say the same.

  Args:
    folder: of the store.
    layout: what it shall hold.

  Returns:
    What it holds; of a store that was there, shards keep their size.

  Raises:
    UserError: the folder cannot be made, or holds other masks.
  """
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if (path := masks.layout_path(folder)).exists():
      return _checked(path, masks.read_layout(path), layout)
    if stray := sorted(folder.glob('masks-*.array_record')):
      raise UserError(
        f'{stray[0]} is there, but no masks.json says whose masks these are: '
        'delete them or choose another folder.'
      )
    said = {'format': masks.FORMAT} | dataclasses.asdict(layout)
    files.write_text(path, json.dumps(said, indent=2) + '\n')
    return layout
  except OSError as error:
    raise UserError(
      f'{folder} cannot be written: {error.strerror}. Choose another folder.'
    ) from error


def _checked(
  path: pathlib.Path, there: masks.Layout, wanted: masks.Layout
) -> masks.Layout:
  """The layout that is there, if a run for `wanted` can go on with it."""
  masks.check_data(path, there, wanted.fingerprint, wanted.num_images)
  if there.method != wanted.method:
    raise UserError(
      f'{path}: these masks were made by {there.method!r}, not by '
      f'{wanted.method!r}: choose another folder.'
    )
  return there


@contextlib.contextmanager
def locked(folder: str | pathlib.Path) -> Iterator[None]:
  """While it lasts, no other process writes the store.

  Raises:
    UserError: another process writes it.
  """
  # Held by the open file: whatever ends the process, ends the lock.
  with masks.layout_path(folder).open('rb') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f'{folder}: another process writes these masks; wait for it.'
      ) from None
    except OSError:
      pass  # a file system without locks
    yield


def write_shard(
  folder: str | pathlib.Path,
  layout: masks.Layout,
  shard: int,
  found: Iterable[np.ndarray | None],
) -> None:
  """Writes a shard that is there whole or not at all.

  Args:
    folder: of the store.
    layout: its layout.
    shard: which one.
    found: one [h, w] bool for each of `layout.ids(shard)`, in their order;
      None: this image has none.

  Raises:
    UserError: the file cannot be written.
    ValueError: too few masks, or too many.
  """
  records = [b'' if mask is None else _encode(mask) for mask in found]
  wanted = len(layout.ids(shard))
  if len(records) != wanted:
    raise ValueError(f'{len(records)} masks for {wanted} images.')
  path = masks.shard_path(folder, shard)
  # One process at a time writes a store: what a killed one left is overwritten.
  with files.atomic(path, '.part') as part:
    _write_records(part, records)
  files.sync(path.parent)


def _write_records(path: pathlib.Path, records: Iterable[bytes]) -> None:
  try:
    # One record a group, as every read is of one.
    writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
    for record in records:
      writer.write(record)
    writer.close()
  except RuntimeError as error:
    raise UserError(f'{path} cannot be written: {first_line(error)}') from None


def _encode(mask: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.asarray(mask, bool)).save(file, 'PNG')
  return file.getvalue()
