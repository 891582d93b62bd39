"""Batches made of records by threads or worker processes, with grain.

The order is that of the records, whatever makes them.
"""

import dataclasses
import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from semppl_jax.data import collate
from semppl_jax.errors import UserError
from semppl_jax.utils import worker

_verbosity = logging.get_verbosity()
logging.set_verbosity(logging.ERROR)  # beside older jaxlibs it warns of itself
import grain  # noqa: E402
from grain import experimental  # noqa: E402

logging.set_verbosity(_verbosity)

_MOST_IN_A_PIECE = 64  # images; a canvas of 512 x 512 is 0.8 MB
_MOST_THREADS = 32  # of a process: Python's own share of the work is serial
# A bucket answers after a while, so that many threads wait at once, each for
# the images of a small piece: all of them are in memory.
_REMOTE_IN_A_PIECE = 8
_REMOTE_THREADS = 32
_REMOTE_THREADS_OF_A_WORKER = 16
_KILLED = (
  'A worker process of the input was killed (for want of memory, maybe): the '
  'same command goes on from the last checkpoint. With fewer dataset.workers, '
  'or 0, it takes less.'
)


@dataclasses.dataclass(frozen=True)
class Pieces:
  """Parts of batches, in their order: what a thread or a worker makes at once.

  Not single images: each hand-over between threads costs as much as a tenth of
  a JPEG. Not whole batches: as many as there are threads are in memory.
  `remote`: whether records wait for a bucket.
  """

  record: Callable[[int], dict[str, Any]]
  count: int  # of records
  per_batch: int
  images: collate.Images
  remote: bool = False

  @property
  def per_piece(self) -> int:
    """A batch's records over as few pieces as their size allows."""
    return -(-self.per_batch // self.in_a_batch)

  @property
  def in_a_batch(self) -> int:
    """Pieces of a batch that is not the last one."""
    most = _REMOTE_IN_A_PIECE if self.remote else _MOST_IN_A_PIECE
    return -(-self.per_batch // most)

  def __len__(self) -> int:
    whole, rest = divmod(self.count, self.per_batch)
    return whole * self.in_a_batch + -(-rest // self.per_piece)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    batch, piece = divmod(i, self.in_a_batch)
    start = batch * self.per_batch + piece * self.per_piece
    end = min(start + self.per_piece, (batch + 1) * self.per_batch, self.count)
    records = (self.record(place) for place in range(start, end))
    return collate.put_together(records, end - start, self.images)


def batches(
  pieces: Pieces, encoded: bool, workers: int, threads: int | None
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of records, made by threads in this process or in workers.

  Args:
    pieces: of all batches.
    encoded: whether records take time to decode.
    workers: processes; 0: this one.
    threads: of this process, where there are no workers; None: as many as it
      has cores for encoded records, else none; more for those of a bucket,
      also in workers.

  Returns:
    An iterator over {key: [n, ...]}; close it to stop threads and processes.

  Raises:
    UserError: a worker process was killed.
  """
  if not pieces.count:
    return
  if pieces.remote and threads is None:
    threads = _REMOTE_THREADS_OF_A_WORKER if workers else _REMOTE_THREADS
  elif workers:
    threads = 0  # a worker's own thread is enough
  elif threads is None:  # in memory, threads cost more than they bring
    threads = min(_MOST_THREADS, _cores()) if encoded else 0
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  data = grain.MapDataset.source(pieces).to_iter_dataset(options)
  if workers:
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    data = data.mp_prefetch(options, _begin)
  data = data.batch(pieces.in_a_batch, drop_remainder=False, batch_fn=_join)
  if workers or threads:
    # The next batch is put together while the device works on this one.
    data = experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=2)
  iterator = iter(data)
  try:
    yield from iterator
  except RuntimeError as error:
    if not workers or 'Worker process' not in str(error):
      raise
    raise UserError(_KILLED) from error  # its words are grain's
  finally:
    iterator.close()
    if workers:  # else Python warns at exit of shared memory that grain keeps
      del iterator, data
      gc.collect()


def _cores() -> int:
  """Processors that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _join(pieces: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  if len(pieces) == 1:
    return pieces[0]
  return {
    key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]
  }


def _begin(*unused_args: int) -> None:
  """In a worker, first."""
  # Ctrl-C reaches workers too; the main process still needs their batches.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  worker.end_with_parent()
