"""Images as records by index, and parts of them.

A source is a sequence of {'image': an encoded file's bytes or [H, W, 3] uint8,
'label': int, 'id': int}; label -1: unknown; id: the image's number in its data
set, whatever part of it a source is. Reading a record has no side effect, so
threads and worker processes may share a source.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Record = dict[str, Any]


def is_remote(source: 'Source') -> bool:
  """Whether its records come from a bucket; a user's own may not say it."""
  return getattr(source, 'remote', False)


class Source(Protocol):
  """Records by index, and all labels at once."""

  labels: np.ndarray  # [N] int32, -1: unknown
  encoded: bool  # whether images are bytes, which take time to decode
  names: Sequence[str] | None  # [N] 'CLASS/FILE' or 'FILE'; None: no names
  remote: bool  # whether they come from a bucket, each after a while

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record:
    """A record; raises `images.Unreadable` if its file cannot be read."""


class Dataset(NamedTuple):
  """What `datasets.load` returns."""

  train: Source
  test: Source | None  # None: the data set has none
  num_classes: int  # K; 0: no image has a label
  class_names: tuple[str, ...]  # K names
  image_shape: tuple[int, int, int]  # (H, W, 3) of arrays that hold an image
  fingerprint: str  # of the training images: masks of others do not fit
  held_out: Sequence[str] = ()  # names of training images kept for validation
  notes: Sequence[str] = ()  # lines about what was taken or left unexpectedly


class Records:
  """A source made of labels and a function from index to image.

  Args:
    labels: [N] int, -1: unknown.
    read: index -> an encoded file's bytes, or [H, W, 3] uint8.
    encoded: whether it gives bytes.
    names: [N], or None.
    remote: whether it waits for a bucket.
  """

  def __init__(
    self,
    labels: Sequence[int] | np.ndarray,
    read: Callable[[int], bytes | np.ndarray],
    encoded: bool = False,
    names: Sequence[str] | None = None,
    remote: bool = False,
  ):
    self.labels = np.asarray(labels, np.int32)
    self.encoded = encoded
    self.names = names
    self.remote = remote
    self._read = read

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    label = int(self.labels[index])
    return {'image': self._read(index), 'label': label, 'id': index}


class Rows:
  """Some rows of another source; an image keeps its id."""

  def __init__(self, source: Source, rows: np.ndarray):
    self.labels = source.labels[rows]
    self.encoded = source.encoded
    self.names = source.names and [source.names[i] for i in rows]
    self.remote = is_remote(source)
    self._source, self._rows = source, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return self._source[int(self._rows[index])]


class Joined:
  """One source after another; ids go on counting.

  Args:
    parts: sources whose ids are their indices.
  """

  def __init__(self, parts: Sequence[Source]):
    self.labels = np.concatenate([part.labels for part in parts])
    self.encoded = any(part.encoded for part in parts)
    self.remote = any(map(is_remote, parts))
    named = all(part.names is not None for part in parts)
    self.names = [n for part in parts for n in part.names] if named else None
    self._parts = parts
    self._starts = np.cumsum([0] + [len(part) for part in parts])

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    part = int(np.searchsorted(self._starts, index, side='right')) - 1
    record = self._parts[part][index - int(self._starts[part])]
    return record | {'id': index}


class Relabelled:
  """Another source's images with other labels."""

  def __init__(self, source: Source, labels: np.ndarray):
    self.labels = np.asarray(labels, np.int32)
    self.encoded, self.names = source.encoded, source.names
    self.remote = is_remote(source)
    self._source = source

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    return self._source[index] | {'label': int(self.labels[index])}


def name(source: Source, index: int) -> str:
  """What an image is called in a message."""
  if source.names is not None:
    return source.names[index]
  return f'image {number(source, index)}'


def number(source: Source, index: int) -> int:
  """An image's id, also of one that cannot be read."""
  if isinstance(source, Rows):
    return number(source._source, int(source._rows[index]))
  if isinstance(source, Relabelled):
    return number(source._source, index)
  return index


def labels_by_id(source: Source) -> np.ndarray:
  """[N] int32 labels, an image's at its id; -1: unknown, or no image of these.

  N is one more than the largest id.
  """
  ids = _ids(source)
  labels = np.full(ids.max(initial=-1) + 1, -1, np.int32)
  labels[ids] = source.labels
  return labels


def _ids(source: Source) -> np.ndarray:
  if isinstance(source, Rows):
    return _ids(source._source)[source._rows]
  if isinstance(source, Relabelled):
    return _ids(source._source)
  return np.arange(len(source))


def split(
  labels: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Sorted rows (rest, part): `part` has `count` rows, stratified by label.

  Rows without a label stay in `rest`. Each class gives its share, rounded so
  that the shares add up (largest remainders first).
  """
  # RandomState's numbers are frozen for ever, a split must be so too.
  random = np.random.RandomState(seed % 2**32)
  classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
  shares = sizes * count / sizes.sum()
  take = np.floor(shares).astype(int)
  most = np.argsort(take - shares, kind='stable')[: count - take.sum()]
  take[most] += 1
  part = [
    random.permutation(np.flatnonzero(labels == c))[:n]
    for c, n in zip(classes, take)
  ]
  part = np.sort(np.concatenate(part))
  return np.setdiff1d(np.arange(len(labels)), part), part
