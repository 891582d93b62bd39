"""The input: what `order` says, read and decoded by threads and processes.

Host h of H gets the h-th of the H contiguous slices of every global batch.
Neither the number of hosts nor that of worker processes changes a batch, and
the saved position of a run is its step. An image that cannot be decoded is
replaced by another of its kind, the same one wherever the run was started.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from semppl_jax import types
from semppl_jax.data import images as images_lib
from semppl_jax.data import masks as masks_lib
from semppl_jax.data import sampler as order_lib
from semppl_jax.data import sources
from semppl_jax.data import support as support_lib
from semppl_jax.data import workers as workers_lib
from semppl_jax.data.collate import Images
from semppl_jax.errors import UserError

# So many unreadable images in a row are no accident: the disk is gone, say.
_MOST_STAND_INS = 100

OnUnreadable = Callable[[str, str], None]  # (image's name, reason)


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
  parts: int = 1,
  labelled_share: float = 0.0,
  support: support_lib.Support | None = None,
  workers: int = 0,
  threads: int | None = None,
  images: Images = Images(),  # noqa: B008, it is frozen
  on_unreadable: OnUnreadable | None = None,
) -> Iterator[tuple[types.Batch, np.ndarray]]:
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
    parts: m, of a batch that is taken in parts: each part is shared by all
      hosts, and this one gets its slice of each, part after part.
    labelled_share: see `sampler.make_sampler`.
    support: labelled images that come with every batch, S over all hosts, of
      which this one gets the h-th slice; None: there are none.
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
    metrics on the host; the batch, and its support [S/H, ...], have the labels
    of `labels` only. Close the iterator (or drop it) to stop its threads and
    processes.

  Raises:
    UserError: an empty source, a share that the labels cannot fill, or an image
      that cannot be decoded.
    ValueError: hosts and parts that do not divide the batch, or hosts that do
      not divide the support.
  """
  if batch_size % (host_count * parts):
    raise ValueError(
      f'{host_count} hosts and {parts} parts do not divide {batch_size} images.'
    )
  if support is not None and support.size % host_count:
    raise ValueError(
      f'{host_count} hosts do not divide {support.size} images of the support.'
    )
  if not len(source):
    raise UserError('The data set has no training image.')
  if len(labels) != len(source):
    raise ValueError(f'{len(labels)} labels for {len(source)} images.')
  plan = order_lib.make_sampler(
    labels, seed=seed, batch_size=batch_size, labelled_share=labelled_share
  )
  per_host = batch_size // host_count
  record = _Shuffled(
    source=source,
    labels=np.asarray(labels, np.int32),
    order=plan,
    start_step=start_step,
    host=(host_index, host_count),
    per_host=per_host,
    parts=parts,
    images=images,
    support=support,
  )
  each = record.per_step
  pieces = workers_lib.Pieces(
    record, num_steps * each, each, images, sources.is_remote(source)
  )
  every = workers_lib.batches(pieces, source.encoded, workers, threads)
  return _training_batches(every, record, on_unreadable)


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
  pieces = workers_lib.Pieces(
    _InOrder(source, images),
    len(source),
    batch_size,
    images,
    sources.is_remote(source),
  )
  every = workers_lib.batches(pieces, source.encoded, workers, threads)
  tell = _Teller(source, images, on_unreadable)
  for x in every:
    tell(x['unreadable'])
    yield x['image'], x['unreadable'] < 0


def _training_batches(every, record, on_unreadable):
  tell = _Teller(record.source, record.images, on_unreadable)
  for x in every:
    tell(x['unreadable'])
    batch, support = (
      types.Batch(
        part['image'], part['label'], part['id'], part.get('size'),
        part.get('mask'),
      )
      for part in _split(x, record.per_host)
    )  # fmt: skip
    if record.support is not None:
      batch = batch._replace(support=support)
    yield batch, x['truth'][: record.per_host]


def _split(arrays, place):
  """Arrays before and from a place on."""
  return (
    {key: array[part] for key, array in arrays.items()}
    for part in (slice(place), slice(place, None))
  )


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
      number = sources.number(self._source, row)
      self._tell(sources.name(self._source, row), f'{reason} (id {number})')


def _warn(name: str, reason: str) -> None:
  logging.warning('%s cannot be decoded: %s', name, reason)


@dataclasses.dataclass(frozen=True)
class _Shuffled:
  """One host's records of training, in the order of its batches.

  Of each step the batch's come first, then those of its support.
  """

  source: sources.Source
  labels: np.ndarray
  order: order_lib.Order
  start_step: int
  host: tuple[int, int]  # this one, and how many there are
  per_host: int
  parts: int
  images: Images
  support: support_lib.Support | None = None

  @property
  def per_step(self) -> int:
    """Images of a batch and of its support."""
    support = 0 if self.support is None else self.support.size // self.host[1]
    return self.per_host + support

  def __call__(self, place: int) -> dict[str, Any]:
    step, offset = divmod(place, self.per_step)
    order, wanted = self._wanted(self.start_step + step, offset)
    row = wanted
    for attempt in range(_MOST_STAND_INS):
      try:
        record = self.source[row]
        image = self.images.array(record['image'])
      except images_lib.Unreadable as e:
        _stop_if_asked(self.images, self.source, row, e)
        row = order.stand_in(wanted, attempt)
        continue
      return {
        'image': image,
        'mask': self.images.mask(record['id'], image),
        'label': self.labels[row],
        'id': np.int32(record['id']),
        'truth': np.int32(record['label']),
        'unreadable': np.int32(-1 if row == wanted else wanted),
      }
    raise UserError(
      f'{_MOST_STAND_INS} images in a row cannot be decoded, the first '
      f'{sources.name(self.source, wanted)}.'
    )

  def _wanted(
    self, step: int, offset: int
  ) -> tuple[order_lib.Order | support_lib.Support, int]:
    """A stream, and which of its rows stands at `offset` on this host."""
    this, hosts = self.host
    if offset >= self.per_host:
      begins = this * (self.support.size // hosts)
      in_support = begins + offset - self.per_host
      return self.support, self.support.row(step, in_support)
    part, offset = divmod(offset, self.per_host // self.parts)
    # Slices of the global batch: part after part, in each host after host.
    slice_of_batch = part * hosts + this
    in_batch = slice_of_batch * (self.per_host // self.parts) + offset
    return self.order, self.order.row(step, in_batch)


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
