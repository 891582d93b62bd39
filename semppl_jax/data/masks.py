"""Saliency masks, on disk or in a bucket: which pixels are foreground.

A store is a folder with masks.json, which says whose masks they are, and shards
masks-00012.array_record of S records each (the last one may have fewer). Record
i of shard s belongs to the image with id s S + i: a PNG of one bit a pixel, at
low resolution, True: foreground; or nothing at all: this image has no mask.
`python -m semppl_jax.saliency` writes it (tools/mask_store.py).
"""

import dataclasses
import io
import json
import pathlib
import threading
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image

from semppl_jax import storage
from semppl_jax.data import array_records, retry
from semppl_jax.errors import UserError
from semppl_jax.utils.text import first_line

Path = pathlib.Path | storage.RemotePath

FORMAT = 1
_TOOL = 'python -m semppl_jax.saliency'
_LONGEST = 8192  # pixels of a side; masks of ours have 256 at most


@dataclasses.dataclass(frozen=True)
class Layout:
  """Whose masks a store has, and how they lie in it: what masks.json says.

  Attributes:
    dataset: the data set in words; it decides nothing.
    fingerprint: of the data set.
    num_images: N; ids are 0 .. N - 1.
    shard_size: S.
    method: how the masks were made; a store has one for all.
  """

  dataset: str
  fingerprint: str
  num_images: int
  shard_size: int
  method: str

  @property
  def num_shards(self) -> int:
    """How many shards a complete store has."""
    return -(-self.num_images // self.shard_size)

  def ids(self, shard: int) -> range:
    """The images whose masks are in a shard."""
    start = shard * self.shard_size
    return range(start, min(start + self.shard_size, self.num_images))


def shard_path(folder: str | Path, shard: int) -> Path:
  """The file of a shard."""
  return storage.path(folder) / f'masks-{shard:05d}.array_record'


def layout_path(folder: str | Path) -> Path:
  """The file of a store's layout."""
  return storage.path(folder) / 'masks.json'


def missing(folder: str | Path, layout: Layout) -> list[int]:
  """The shards that are not there yet."""
  there = {path.name for path in storage.path(folder).iterdir()}
  return [
    shard
    for shard in range(layout.num_shards)
    if shard_path(folder, shard).name not in there
  ]


class Masks:
  """Reads the masks of a data set; threads and processes may share it.

  Args:
    folder: of the store.
    fingerprint: of the data set.
    num_images: N, the images of the data set; None: not checked.

  Raises:
    UserError: one line that names the file and what would do.
  """

  def __init__(
    self,
    folder: str | Path,
    fingerprint: str,
    num_images: int | None = None,
  ):
    self._folder = storage.path(folder).expanduser()
    path = layout_path(self._folder)
    if not path.exists():
      raise UserError(
        f'{folder} has no masks ({path} is not there): make them; '
        f'`{_TOOL} --help` says how.'
      )
    self._layout = read_layout(path)
    check_data(path, self._layout, fingerprint, num_images)
    lacking = len(missing(self._folder, self._layout))
    if lacking:
      total = self._layout.num_shards
      raise UserError(
        f'{folder} is incomplete: {total - lacking} of {total} shards are '
        f'there: run the same command again (`{_TOOL}`); it makes the rest.'
      )
    self._readers: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._layout.num_images

  def read(self, image_id: int) -> np.ndarray | None:
    """The mask of an image.

    Args:
      image_id: the image's number in its data set.

    Returns:
      [h, w] bool at low resolution, True: foreground; None: it has none.

    Raises:
      UserError: a damaged file.
      ValueError: no image of the data set has this id.
    """
    path, record = self._record(image_id)
    try:
      return _decode(record) if record else None
    except Exception as error:  # of a damaged file Pillow raises one of many
      raise _damaged(path, image_id, error) from error

  def has(self, image_id: int) -> bool:
    """Whether an image has a mask; cheaper than reading it, errors alike."""
    return bool(self._record(image_id)[1])

  def _record(self, image_id: int) -> tuple[Path, bytes]:
    if not 0 <= image_id < len(self):
      raise ValueError(f'There are masks 0 .. {len(self) - 1}, not {image_id}.')
    shard, index = divmod(int(image_id), self._layout.shard_size)
    path = shard_path(self._folder, shard)
    try:
      return path, self._reader(shard, path).read([index])[0]
    except UserError:
      raise
    except (RuntimeError, ValueError, FileNotFoundError) as error:
      raise _damaged(path, image_id, error) from error

  def _reader(self, shard: int, path: Path) -> Any:
    # Readers may be shared by threads, the dictionary is filled by one.
    if shard not in self._readers:
      with self._lock:
        if shard not in self._readers:
          num_records = len(self._layout.ids(shard))
          self._readers[shard] = _open(path, num_records)
    return self._readers[shard]

  def __getstate__(self) -> dict[str, Any]:
    # Readers and locks stay behind: a process opens its own when it reads.
    return {'_folder': self._folder, '_layout': self._layout}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._readers, self._lock = {}, threading.Lock()


def fit(mask: np.ndarray, height: int, width: int) -> np.ndarray:
  """A mask at an image's size: [h, w] bool -> [height, width] bool.

  Nearest neighbour, as all of a pixel is foreground or none of it.
  """
  # The old pixel in which the middle of a new one lies, in whole numbers.
  rows, columns = (
    (2 * np.arange(new) + 1) * old // (2 * new)
    for new, old in zip((height, width), mask.shape)
  )
  # All are in range: 'clip' saves NumPy's check, more than half of the time.
  wide = mask.take(columns, axis=1, mode='clip')  # [h, width]
  return wide.take(rows, axis=0, mode='clip')


def read_layout(path: Path) -> Layout:
  """What masks.json says.

  Raises:
    UserError: it is of another version, or none of ours.
  """
  advice = f'delete the folder and make it anew (`{_TOOL} --help`)'
  try:
    said = dict(json.loads(path.read_text('utf-8')))
  except storage.StorageError:
    raise
  except (ValueError, TypeError, OSError, RecursionError):
    raise UserError(f'{path} cannot be read as JSON: {advice}.') from None
  if (version := said.pop('format', None)) != FORMAT:
    raise UserError(
      f'{path} has format {version!r}, not {FORMAT}: another version of this '
      f'program wrote it; {advice}.'
    )
  types = {f.name: f.type for f in dataclasses.fields(Layout)}
  wrong = [k for k, t in types.items() if type(said.get(k)) is not t]
  if wrong or said['num_images'] < 1 or said['shard_size'] < 1:
    wrong = wrong or ['num_images', 'shard_size']
    raise UserError(f'{path} has no good {", ".join(wrong)}: {advice}.')
  return Layout(**{key: said[key] for key in types})


def check_data(
  path: Path, layout: Layout, fingerprint: str, num_images: int | None
) -> None:
  """Refuses masks of another data set: they would hide what they should show.

  Args:
    path: of masks.json.
    layout: what it says.
    fingerprint: of the data set.
    num_images: N, its images; None: not checked.
  """
  if num_images is not None and layout.num_images != num_images:
    raise UserError(
      f'{path}: these are the masks of {layout.num_images:,} images '
      f'({layout.dataset!r}), but the data set has {num_images:,}: make masks '
      f'of it with `{_TOOL}`, in another folder.'
    )
  if layout.fingerprint != fingerprint:
    raise UserError(
      f'{path}: these are the masks of other images ({layout.dataset!r}, '
      f'fingerprint {layout.fingerprint[:40]!r}, not {fingerprint[:40]!r}): '
      f'make masks of these with `{_TOOL}`, in another folder.'
    )


class _RemoteShard:
  """A reader, as of array_record, of an object."""

  def __init__(self, path: storage.RemotePath, num_records: int):
    size = path.stat().st_size
    part = array_records.Part(str(path), size, 0, num_records)
    self._records = array_records.Records([part], retry.remote)

  def read(self, indices: list[int]) -> list[bytes]:
    """The records of these numbers."""
    return [self._records[index] for index in indices]


def _open(path: Path, num_records: int) -> Any:
  if storage.is_remote(path):
    return _RemoteShard(path, num_records)
  # Reads come in random order: reading ahead would be for nothing.
  reader = array_record_module.ArrayRecordReader(
    str(path),
    options='readahead_buffer_size:0,max_parallelism:0',
    file_reader_buffer_size=2**15,
  )
  if not reader.ok() or reader.num_records() != num_records:
    raise UserError(
      f'{path} is damaged: {reader.num_records()} of {num_records} records can '
      f'be read. Delete it and run `{_TOOL}` again.'
    )
  return reader


def _damaged(path: Path, image_id: int, error: Exception) -> UserError:
  return UserError(
    f'{path} is damaged at the mask of image {image_id} '
    f'({first_line(error)[:100]}): delete it and run `{_TOOL}` again.'
  )


def _decode(record: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(record), formats=['PNG']) as image:
    if image.mode != '1':
      raise ValueError(f'its mode is {image.mode}, not 1 bit')
    if max(image.size) > _LONGEST:
      raise ValueError(f'it is {image.width} x {image.height} pixels')
    return np.array(image)
