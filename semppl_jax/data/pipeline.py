"""The input: what `order` says, read and decoded by threads and processes.

Host h of H gets the h-th of the H contiguous slices of every global batch.
Neither the number of hosts nor that of worker processes changes a batch, and
the saved position of a run is its step. An image that cannot be decoded is
replaced by the next of its kind, wherever the run was started.
"""

import dataclasses
import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging
from grain import experimental

from semppl_jax import structs
from semppl_jax.data import images as images_lib
from semppl_jax.data import masks as masks_lib
from semppl_jax.data import order as order_lib
from semppl_jax.data import sources
from semppl_jax.errors import UserError

ON_CORRUPT = ('replace', 'error')

# So many unreadable images in a row are no accident: the disk is gone, say.
_MOST_STAND_INS = 100

_MOST_IN_A_PIECE = 64  # images; a canvas of 512 x 512 is 0.8 MB
_MOST_THREADS = 32  # of a process: Python's own share of the work is serial

OnUnreadable = Callable[[str, str], None]  # (image's name, reason)


@dataclasses.dataclass(frozen=True)
class Images:
  """How a record's image becomes an array of a batch.

  Without canvas and crop, images are arrays and pass as they are.

  Attributes:
    canvas: (H, W) of arrays in whose corner images of any size lie whole;
      larger ones are shrunk.
    crop: (size in pixels, share of the shorter side) of the middle, as the
      release's evaluation sees it: float32 [size, size, 3] in [0, 1].
    masks: saliency masks by image id; None: none.
    on_corrupt: 'replace' or 'error': an image that cannot be decoded.
  """

  canvas: tuple[int, int] | None = None
  crop: tuple[int, float] | None = None
  masks: masks_lib.Masks | None = None
  on_corrupt: str = 'replace'

  def array(self, data: bytes | np.ndarray) -> np.ndarray:
    """A record's image; raises images.Unreadable."""
    if self.crop is not None:
      size, share = self.crop
      whole = images_lib.decode(data)
      return images_lib.center_crop(whole, size=size, share=share)
    return images_lib.load(data, min(self.canvas) if self.canvas else None)


def whole(cfg: Any, data: sources.Dataset) -> Images:
  """Training images, whole: views and crops are cut on the device.

  Why there: a large canvas costs the host nothing but a copy, and decoding is
  then all that it does (benchmarks/input.py).

  Args:
    cfg: the `dataset` section of the config.
    data: the data set.
  """
  return Images(
    canvas=data.image_shape[:2] if data.train.encoded else None,
    masks=masks_lib.Masks(cfg.masks, data.fingerprint) if cfg.masks else None,
    on_corrupt=cfg.on_corrupt,
  )


def batches(
  source: sources.Source,
  labels: np.ndarray,
  *,
  seed: int,
  batch_size: int,
  start_step: int,
  num_steps: int,
  host_index: int = 0,
  host_count: int = 1,
  labelled_share: float = 0.0,
  workers: int = 0,
  threads: int | None = None,
  images: Images = Images(),  # noqa: B008, it is frozen
  on_unreadable: OnUnreadable | None = None,
) -> Iterator[tuple[structs.Batch, np.ndarray]]:
  """This host's part of batches start_step .. start_step + num_steps - 1.

  Args:
    source: N images.
    labels: [N] labels that training sees, -1: none.
    seed: of the run.
    batch_size: B, over all hosts.
    start_step: the first batch.
    num_steps: how many batches.
    host_index: h, this host.
    host_count: H.
    labelled_share: see `order.lay_out`.
    workers: processes that read and decode; 0: this one. Grain starts them
      only where absl's command line is parsed, as `main` does.
    threads: that read and decode where there are no workers; 0: none; None: as
      suits the source.
    images: how they become arrays.
    on_unreadable: told of every image that another one stands in for, once;
      None: a warning is logged.

  Returns:
    An iterator over (batch, truth): a Batch of NumPy arrays, [B/H, ...], and
    the labels that the source knows, [B/H] int32, -1: unknown. Truth is for
    metrics on the host; the batch has the labels of `labels` only. Close the
    iterator (or drop it) to stop its threads and processes.

  Raises:
    UserError: hosts that do not divide the batch, an empty source, a share
      that the labels cannot fill, or an image that cannot be decoded.
  """
  if batch_size % host_count:
    raise UserError(
      f'batch_size {batch_size} is not a multiple of the {host_count} hosts '
      'that share it.'
    )
  if not len(source):
    raise UserError('The data set has no training image.')
  if len(labels) != len(source):
    raise ValueError(f'{len(labels)} labels for {len(source)} images.')
  plan = order_lib.lay_out(
    labels, seed=seed, batch_size=batch_size, labelled_share=labelled_share
  )
  per_host = batch_size // host_count
  record = _Shuffled(
    source=source,
    labels=np.asarray(labels, np.int32),
    order=plan,
    start_step=start_step,
    first=host_index * per_host,
    per_host=per_host,
    images=images,
  )
  pieces = _Pieces(record, num_steps * per_host, per_host, images)
  every = _read(pieces, source.encoded, workers, threads)
  return _training_batches(every, source, images, on_unreadable)


def in_order(
  source: sources.Source,
  *,
  batch_size: int,
  workers: int = 0,
  threads: int | None = None,
  images: Images = Images(),  # noqa: B008, it is frozen
  on_unreadable: OnUnreadable | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """All images of a source, once, in its order: for evaluation.

  Args:
    source: N images.
    batch_size: images at a time; the last batch may be smaller.
    workers: see `batches`.
    threads: see `batches`.
    images: how they become arrays, all of one shape.
    on_unreadable: see `batches`.

  Returns:
    An iterator over (arrays [n, ...], whether each could be read [n] bool);
    one that could not is zeros.

  Raises:
    UserError: an image that cannot be decoded, if that is an error.
  """
  pieces = _Pieces(_InOrder(source, images), len(source), batch_size, images)
  every = _read(pieces, source.encoded, workers, threads)
  tell = _Teller(source, images, on_unreadable)
  for x in every:
    tell(x['unreadable'])
    yield x['image'], x['unreadable'] < 0


def _training_batches(every, source, images, on_unreadable):
  tell = _Teller(source, images, on_unreadable)
  for x in every:
    tell(x['unreadable'])
    batch = structs.Batch(
      x['image'], x['label'], x['id'], x.get('size'), x.get('mask')
    )
    yield batch, x['truth']


class _Teller:
  """Tells of every image that could not be decoded, once."""

  def __init__(
    self,
    source: sources.Source,
    images: Images,
    on_unreadable: OnUnreadable | None,
  ):
    self._source, self._images = source, images
    # Not `or`: a counter of nothing yet is falsy.
    self._tell = _warn if on_unreadable is None else on_unreadable
    self._told: set[int] = set()

  def __call__(self, unreadable: np.ndarray) -> None:
    """Takes the rows [n] that could not be decoded, -1 for the others."""
    for row in set(unreadable[unreadable >= 0].tolist()) - self._told:
      self._told.add(row)
      reason = 'it could be read now'
      try:
        self._images.array(self._source[row]['image'])
      except images_lib.Unreadable as e:
        reason = str(e)
      self._tell(sources.name(self._source, row), reason)


def _warn(name: str, reason: str) -> None:
  logging.warning('%s cannot be decoded: %s', name, reason)


@dataclasses.dataclass(frozen=True)
class _Shuffled:
  """One host's records of training, in the order of its batches."""

  source: sources.Source
  labels: np.ndarray
  order: order_lib.Order
  start_step: int
  first: int  # place of the host's first image in the global batch
  per_host: int
  images: Images

  def __call__(self, place: int) -> dict[str, Any]:
    step, offset = divmod(place, self.per_host)
    wanted = self.order.row(self.start_step + step, self.first + offset)
    row = wanted
    for _ in range(_MOST_STAND_INS):
      try:
        record = self.source[row]
        image = self.images.array(record['image'])
      except images_lib.Unreadable as e:
        _stop_if_asked(self.images, self.source, row, e)
        row = self.order.stand_in(row)
        continue
      return {
        'image': image,
        'mask': _mask(self.images.masks, record['id'], image),
        'label': self.labels[row],
        'id': np.int32(record['id']),
        'truth': np.int32(record['label']),
        'unreadable': np.int32(-1 if row == wanted else wanted),
      }
    raise UserError(
      f'{_MOST_STAND_INS} images in a row cannot be decoded, the first '
      f'{sources.name(self.source, wanted)}.'
    )


@dataclasses.dataclass(frozen=True)
class _InOrder:
  """All records as they come."""

  source: sources.Source
  images: Images

  def __call__(self, row: int) -> dict[str, Any]:
    try:
      image, unreadable = self.images.array(self.source[row]['image']), -1
    except images_lib.Unreadable as e:
      _stop_if_asked(self.images, self.source, row, e)
      size, _ = self.images.crop
      image, unreadable = np.zeros((size, size, 3), np.float32), row
    return {'image': image, 'mask': None, 'unreadable': np.int32(unreadable)}


def _stop_if_asked(
  images: Images,
  source: sources.Source,
  row: int,
  error: images_lib.Unreadable,
) -> None:
  if images.on_corrupt == 'error':
    raise UserError(
      f'{sources.name(source, row)} cannot be decoded: {error} '
      '(dataset.on_corrupt=replace goes on without it).'
    ) from error


def _mask(
  masks: masks_lib.Masks | None, image_id: int, image: np.ndarray
) -> np.ndarray | None:
  """The foreground of an image, [h, w] bool; all of it, where none is known."""
  if masks is None:
    return None
  found = masks.read(image_id)
  if found is None:
    return np.ones(image.shape[:2], bool)
  return masks_lib.fit(found, *image.shape[:2])


@dataclasses.dataclass(frozen=True)
class _Pieces:
  """Parts of batches, in their order: what a thread or a worker makes at once.

  Not single images: each hand-over between threads costs as much as a tenth of
  a JPEG. Not whole batches: as many as there are threads are in memory.
  """

  record: Callable[[int], dict[str, Any]]
  count: int  # of records
  per_batch: int
  images: Images

  @property
  def per_piece(self) -> int:
    """A batch's records over as few pieces as their size allows."""
    return -(-self.per_batch // self.in_a_batch)

  @property
  def in_a_batch(self) -> int:
    """Pieces of a batch that is not the last one."""
    return -(-self.per_batch // _MOST_IN_A_PIECE)

  def __len__(self) -> int:
    whole, rest = divmod(self.count, self.per_batch)
    return whole * self.in_a_batch + -(-rest // self.per_piece)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    batch, piece = divmod(i, self.in_a_batch)
    start = batch * self.per_batch + piece * self.per_piece
    end = min(start + self.per_piece, (batch + 1) * self.per_batch, self.count)
    records = [self.record(place) for place in range(start, end)]
    return _put_together(records, self.images)


def _read(
  pieces: _Pieces, encoded: bool, workers: int, threads: int | None
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of records, made by threads in this process or in workers."""
  if not pieces.count:
    return
  if threads is None:  # in memory, threads cost more than they bring
    threads = min(_MOST_THREADS, os.cpu_count() or 1) if encoded else 0
  threads = 0 if workers else threads  # a worker's own thread is enough
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  data = grain.MapDataset.source(pieces).to_iter_dataset(options)
  if workers:
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    data = data.mp_prefetch(options, _ignore_interrupt)
  data = data.batch(pieces.in_a_batch, drop_remainder=False, batch_fn=_join)
  if workers or threads:
    # The next batch is put together while the device works on this one.
    data = experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=2)
  iterator = iter(data)
  try:
    yield from iterator
  finally:
    iterator.close()
    if workers:  # else Python warns at exit of shared memory that grain keeps
      del iterator, data
      gc.collect()


def _join(pieces: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  if len(pieces) == 1:
    return pieces[0]
  return {
    key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]
  }


def _put_together(
  records: Sequence[dict[str, Any]], images: Images
) -> dict[str, np.ndarray]:
  """Arrays [n, ...] of n records; those of images lie on the canvas."""
  arrays = lambda key: [record[key] for record in records]
  plain = [k for k in records[0] if k not in ('image', 'mask')]
  batch = {key: np.stack(arrays(key)) for key in plain}
  masked = images.masks is not None
  if images.canvas is None:
    batch['image'] = np.stack(arrays('image'))
    return batch | ({'mask': np.stack(arrays('mask'))} if masked else {})
  batch['image'] = _on_canvas(arrays('image'), images.canvas)
  sizes = [image.shape[:2] for image in arrays('image')]
  batch['size'] = np.array(sizes, np.int32)
  if masked:
    batch['mask'] = _on_canvas(arrays('mask'), images.canvas)
  return batch


def _on_canvas(
  parts: Sequence[np.ndarray], canvas: tuple[int, int]
) -> np.ndarray:
  """[n, H, W, ...], each part [h, w, ...] in the top left corner."""
  whole = np.zeros((len(parts), *canvas, *parts[0].shape[2:]), parts[0].dtype)
  for place, part in zip(whole, parts):
    height, width = part.shape[:2]
    place[:height, :width] = part
  return whole


def _ignore_interrupt(*unused_args: int) -> None:
  """Ctrl-C reaches workers too; the main process still needs their batches."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
