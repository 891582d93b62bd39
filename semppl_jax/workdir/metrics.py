"""Numbers of a run: what counts as right, and where the numbers are written.

WORKDIR/metrics.jsonl has one JSON object per logged step, 'step' first, each
step at most once and in rising order; what is not a finite number is null.
WORKDIR/tensorboard has the same numbers as TensorBoard events.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from semppl_jax import storage
from semppl_jax.errors import UserError
from semppl_jax.storage import parts
from semppl_jax.utils import files

_FILE = 'metrics.jsonl'
# What older versions called them -> by prefix, as TensorBoard groups them.
RENAMED = {
  'loss_augm': 'loss/augmentation',
  'loss_sempos': 'loss/semantic',
  'inv_augm': 'invariance/augmentation',
  'inv_sempos': 'invariance/semantic',
  'loss_classifier': 'loss/classifier',
}


def topk_correct(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """Whether the true class is among the k with the largest logits.

  Equal logits: the smaller class id stands first, so that a constant output
  scores chance, not 100%. A NaN in a row makes the row wrong.

  Args:
    logits: [n, K] float.
    labels: [n] int; -1 (unlabelled) is never right.
    k: how many guesses count; above K, all do.

  Returns:
    [n] bool.
  """
  best = jax.lax.top_k(logits, min(k, logits.shape[-1]))[1]  # [n, k]
  hit = jnp.any(best == labels[:, None], axis=-1)
  return hit & ~jnp.any(jnp.isnan(logits), axis=-1)


def classification(
  logits: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
  """top1, top5 and the mean cross-entropy 'loss' (nats) of N images.

  Args:
    logits: [N, K] float.
    labels: [N] int; images with -1 (unknown) do not count.

  Returns:
    The three; None where no image counts.
  """
  known = labels >= 0
  if not known.any():
    return dict.fromkeys(('top1', 'top5', 'loss'))
  logits, labels = logits[known], labels[known]
  log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=-1))
  return {
    'top1': float(np.mean(topk_correct(logits, labels, 1))),
    'top5': float(np.mean(topk_correct(logits, labels, 5))),
    'loss': float(-np.mean(log_p[np.arange(len(labels)), labels])),
  }


def per_class(
  right: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
  """Share of right images of each class, and how many there are.

  Args:
    right: [N] bool.
    labels: [N] int; -1 (unknown) belongs to no class.
    names: of the K classes.
  """
  result = {}
  for label, name in enumerate(names):
    own = right[labels == label]
    share = float(own.mean()) if len(own) else None
    result[name] = {'accuracy': share, 'images': len(own)}
  return result


class MetricsWriter:
  """Appends to the metrics of a work directory.

  Args:
    workdir: made if it is not there.
    step: the number of steps done. What an earlier process wrote of later
      steps is dropped: this one will write it again.

  Raises:
    UserError: here and below, the files cannot be written.
  """

  def __init__(self, workdir: str, *, step: int):
    place = storage.path(workdir) / _FILE
    self._sink = (_InParts if storage.is_remote(place) else _OnDisk)(
      place, step
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one line; values are scalars of any numeric kind.

    On a disk at once, in a bucket when some are there.
    """
    row = {'step': int(step)} | {k: plain(v) for k, v in values.items()}
    self._sink.write(row, json.dumps(row, allow_nan=False) + '\n')

  def flush(self) -> None:
    """From here on a kill loses nothing of what was written."""
    self._sink.flush()

  def close(self) -> None:
    """Closes the files; a second call does nothing."""
    self._sink.close()


class _OnDisk:
  """metrics.jsonl and the events of TensorBoard."""

  def __init__(self, path: pathlib.Path, step: int):
    self._path = path
    with self._guarded():
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if self._path.exists():
        files.write_text(self._path, _text_up_to(self._path, step))
      # Not buffered: what could not be written is not tried again at the end.
      self._file = self._path.open('ab', buffering=0)
      self._events = _events(self._path.with_name('tensorboard'), step + 1)

  def write(self, row: Mapping[str, Any], line: str) -> None:
    numbers = [
      summary_pb2.Summary.Value(tag=name, simple_value=value)
      for name, value in row.items()
      if name != 'step' and value is not None
    ]
    with self._guarded():
      if self._file.write(line.encode()) < len(line.encode()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      self._events.write_event(
        event_pb2.Event(
          wall_time=time.time(),
          step=row['step'],
          summary=summary_pb2.Summary(value=numbers),
        )
      )
      self._events.flush()

  def flush(self) -> None:
    pass  # each line was written at once

  def close(self) -> None:
    if not self._file.closed:
      self._file.close()
      with self._guarded():
        self._events.close()

  @contextlib.contextmanager
  def _guarded(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise UserError(
        f'{self._path} or the events beside it cannot be written: '
        f'{error.strerror}. Make room, and the same command goes on.'
      ) from error


class _InParts:
  """metrics.jsonl and its parts, in a bucket."""

  def __init__(self, place: storage.RemotePath, step: int):
    with contextlib.suppress(FileNotFoundError):
      parts.join(place, _text_up_to(place, step))
    self._lines = parts.Lines(place)

  def write(self, row: Mapping[str, Any], line: str) -> None:
    del row
    self._lines.add(line)

  def flush(self) -> None:
    self._lines.flush()

  close = flush


def _text_up_to(path: 'pathlib.Path | storage.RemotePath', step: int) -> str:
  rows = [row for row in _rows(path) if row['step'] <= step]
  return ''.join(json.dumps(row) + '\n' for row in rows)


def _events(folder: pathlib.Path, first: int) -> event_file_writer.EventsWriter:
  """Of TensorBoard; what it knows of step `first` and later is dropped."""
  # Not its SummaryWriter: it has a thread that dies when the disk is full, and
  # then its queue is waited for.
  folder.mkdir(exist_ok=True)
  writer = event_file_writer.EventsWriter(str(folder / 'events'))
  log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  # A file that this one takes over is cut after `step`, as the lines are.
  for event in (
    event_pb2.Event(step=first, file_version='brain.Event:2'),
    event_pb2.Event(step=first, session_log=log),
  ):
    writer.write_event(event)
  return writer


def read(workdir: str) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl in today's names, but a last one cut off.

  Raises:
    FileNotFoundError: nothing was ever logged here.
  """
  return _rows(storage.path(workdir) / _FILE)


def write_json(path: str | os.PathLike, obj: Any) -> None:
  """Writes a JSON file whole or not at all, in the order of the dicts.

  NumPy and JAX scalars and arrays become numbers and lists; what is not finite
  becomes null.
  """
  text = json.dumps(plain(obj), indent=2, allow_nan=False)
  files.write_text(path, text + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """What `write_json` wrote; None if there is no such file.

  Raises:
    UserError: the file is not JSON.
  """
  try:
    return json.loads(storage.path(path).read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except storage.StorageError:
    raise  # a ValueError, too
  except (ValueError, RecursionError):
    raise UserError(f'{path} is not JSON: mend it or delete it.') from None


def _rows(path: 'pathlib.Path | storage.RemotePath') -> list[dict[str, Any]]:
  """The lines in today's names; of a step that came again, the later one."""
  if storage.is_remote(path):
    text = parts.read(path)
  else:
    text = path.read_text(encoding='utf-8', errors='replace')
  rows: list[dict[str, Any]] = []
  for line in text.splitlines():
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      continue  # a process was stopped in the middle of this line
    if not isinstance(row, dict) or type(row.get('step')) is not int:
      continue
    # A life that was killed may have left parts of what the next one repeats.
    while storage.is_remote(path) and rows and rows[-1]['step'] >= row['step']:
      rows.pop()
    rows.append({RENAMED.get(name, name): x for name, x in row.items()})
  return rows


def plain(value: Any) -> Any:
  """In JSON's own types; what is not finite becomes None."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic, jax.Array)):
    return plain(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
