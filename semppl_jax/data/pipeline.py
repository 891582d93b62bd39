"""The training input: what `order` says, read by threads and processes.

Host h of H gets the h-th of the H contiguous slices of every global batch.
Neither the number of hosts nor that of worker processes changes a batch, and
the saved position of a run is its step.
"""

import dataclasses
import gc
import signal
from collections.abc import Iterator

import grain
import numpy as np
from grain import experimental

from semppl_jax import structs
from semppl_jax.data import order as order_lib
from semppl_jax.data.sources import Source
from semppl_jax.errors import UserError


def batches(
  source: Source,
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
) -> Iterator[tuple[structs.Batch, np.ndarray]]:
  """This host's part of batches start_step .. start_step + num_steps - 1.

  Args:
    source: N images of one size.
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
    threads: readers in each process; 0: none; None: as suits the source.

  Returns:
    An iterator over (batch, truth): a Batch of NumPy arrays, [B/H, ...], and
    the labels that the source knows, [B/H] int32, -1: unknown. Truth is for
    metrics on the host; the batch has the labels of `labels` only. Close the
    iterator (or drop it) to stop its threads and processes.

  Raises:
    UserError: hosts that do not divide the batch, an empty source, or a share
      that the labels cannot fill.
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
  if threads is None:  # in memory, threads cost more than they bring
    threads = 8 if source.reads_files else 0
  workers = min(workers, num_steps)
  per_host = batch_size // host_count
  records = _HostRecords(
    source=source,
    labels=np.asarray(labels, np.int32),
    order=plan,
    start_step=start_step,
    num_steps=num_steps,
    first=host_index * per_host,
    per_host=per_host,
    lanes=max(workers, 1),
  )
  return _iterate(records, workers, threads)


@dataclasses.dataclass(frozen=True)
class _HostRecords:
  """One host's images in the order in which grain asks for them.

  Grain deals records out to W worker processes like cards: worker w gets
  w, w + W, .. and makes its batches from them. The records are laid out so that
  what it gets are the whole batches w, w + W, .. of the run.
  """

  source: Source
  labels: np.ndarray
  order: order_lib.Order
  start_step: int
  num_steps: int
  first: int  # place of the host's first image in the global batch
  per_host: int
  lanes: int  # W

  def __len__(self) -> int:
    # A whole last round, with a batch for every worker; see below.
    rounds = -(-self.num_steps // self.lanes)
    return rounds * self.lanes * self.per_host

  def __getitem__(self, i: int) -> dict[str, np.ndarray] | None:
    turn, lane = divmod(i, self.lanes)
    batch, offset = divmod(turn, self.per_host)
    step = batch * self.lanes + lane
    if step >= self.num_steps:
      return None  # grain skips it
    index = self.order.row(self.start_step + step, self.first + offset)
    record = self.source[index]
    return {
      'image': record['image'],
      'label': self.labels[index],
      'id': np.int32(record['id']),
      'truth': np.int32(record['label']),
    }


def _iterate(
  records: _HostRecords, workers: int, threads: int
) -> Iterator[tuple[structs.Batch, np.ndarray]]:
  if not records.num_steps:
    return
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=16 * threads
  )
  data = grain.MapDataset.source(records).to_iter_dataset(options)
  data = data.batch(records.per_host, drop_remainder=True)
  if workers:
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    data = data.mp_prefetch(options, _ignore_interrupt)
  elif threads:
    # The next batch is put together while the device works on this one.
    data = experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=2)
  iterator = iter(data)
  try:
    for x in iterator:
      yield structs.Batch(x['image'], x['label'], x['id']), x['truth']
  finally:
    iterator.close()
    if workers:  # else Python warns at exit of shared memory that grain keeps
      del iterator, data
      gc.collect()


def _ignore_interrupt(*unused_args: int) -> None:
  """Ctrl-C reaches workers too; the main process still needs their batches."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
