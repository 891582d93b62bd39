"""What a run tells while it goes on: progress bar and metrics."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tqdm

from semppl_jax import storage
from semppl_jax.distributed import processes
from semppl_jax.storage import parts

STOP = 'stop'  # the metric that tells all hosts of one host's signal

# What the bar shows of the state's quality: metric -> title, format.
_MEASURED = {
  'validation_knn_top1': ('kNN', '{:.1%}'),
  'leave_one_out_knn_top1': ('kNN', '{:.1%}'),
  'rankme': ('RankMe', '{:.1f}'),
}

Scalars = dict[str, float]
MetricsFormatter = Callable[[Scalars], tuple[dict[str, Any], dict[str, str]]]


def info(line: str, everywhere: bool = False) -> None:
  """Tells the user, around a progress bar.

  Args:
    line: what.
    everywhere: in a job of several hosts every one tells it, not host 0 only.
  """
  if processes.is_first() or everywhere:
    tqdm.tqdm.write(line, file=sys.stderr)


def identity(scalars: Scalars) -> tuple[dict[str, Any], dict[str, str]]:
  """Writes the metrics as they are and shows no more than the loss."""
  return scalars, {}


def pretraining(
  scalars: Scalars, *, labels: Any, given: np.ndarray, truth: np.ndarray
) -> tuple[dict[str, Any], dict[str, str]]:
  """Adds the accuracy of pseudo-labels, which the device does not know.

  Args:
    scalars: the step's metrics.
    labels: (pseudo-)labels of this host's images, any shape of b x D.
    given: [n] the labels that training sees, -1: none.
    truth: [n] the true labels, -1: unknown.
  """
  images = labels_of_all(np.asarray(labels), given, truth)
  accuracy = pseudo_label_accuracy(*images)
  shown = {}
  if 'queue_fill' in scalars:
    shown['queue'] = f'{scalars["queue_fill"]:.0%}'
  if accuracy is not None:
    shown['pseudo-labels'] = f'{accuracy:.1%}'
  row = without_empty_means(scalars, images[1])
  return row | {'pseudo_label_accuracy': accuracy}, shown


def labels_of_all(
  labels: np.ndarray, given: np.ndarray, truth: np.ndarray
) -> np.ndarray:
  """[3, B]: the same of all hosts' images, as of this one's, any shapes."""
  flat = [np.asarray(x, np.int32).reshape(-1) for x in (labels, given, truth)]
  return np.concatenate(list(processes.allgather(np.stack(flat))), axis=1)


def purity(
  alike: Mapping[str, np.ndarray], ids: np.ndarray, truth: np.ndarray
) -> dict[str, float | None]:
  """Share of images taken for alike that have the same true label.

  Of all pairs of two images whose labels are both known; of all hosts.

  Args:
    alike: {metric: [n, k] int32, ids of those taken for like an image, itself
      perhaps among them, -1: none}, of this host's n images.
    ids: [n] int32, of the images themselves.
    truth: [N] the true labels by id, -1: unknown. They never reach a device.

  Returns:
    {metric: None if there is no such pair}.
  """
  counts, label = [], truth[ids][:, None]
  for others in alike.values():
    theirs = np.where(others >= 0, truth[others], -1)
    known = (others != ids[:, None]) & (theirs >= 0) & (label >= 0)
    counts.append([np.sum(known & (theirs == label)), np.sum(known)])
  of_all = sum(processes.allgather(np.asarray(counts, np.int32)))
  return {
    name: int(right) / int(all_known) if all_known else None
    for name, (right, all_known) in zip(alike, of_all, strict=True)
  }


class Unreadable:
  """Counts and tells of images that cannot be decoded.

  Args:
    path: of a file that gets a JSON line for each, also from earlier processes
      of the run; None: no file. Hosts beside the first have a file each.
  """

  def __init__(self, path: str | os.PathLike | None = None):
    self._path = path and storage.path(path)
    if self._path and not processes.is_first():
      own = f'{self._path.stem}-{processes.index()}{self._path.suffix}'
      self._path = self._path.with_name(own)
    self._names: set[str] = set()
    self._lines: parts.Lines | None = None  # in a bucket, from the first on
    for line in self._standing().splitlines():
      with contextlib.suppress(ValueError, KeyError, TypeError):
        self._names.add(str(json.loads(line)['name']))

  def _standing(self) -> str:
    """What earlier processes wrote; '': nothing."""
    if not self._path:
      return ''
    if storage.is_remote(self._path):
      try:
        return parts.read(self._path)
      except FileNotFoundError:
        return ''
    if not self._path.exists():
      return ''
    text = self._path.read_text(encoding='utf-8', errors='replace')
    if text and not text.endswith('\n'):  # cut off by a kill
      with self._path.open('a', encoding='utf-8') as file:
        file.write('\n')
    return text

  def __len__(self) -> int:
    return len(self._names)

  def on_all_hosts(self) -> int:
    """How many images on all hosts; all of them call it, at the end."""
    self.flush()
    return len(
      {
        n
        for some in processes.allgather_json(sorted(self._names))
        for n in some
      }
    )

  def __call__(self, name: str, reason: str) -> None:
    """Tells of one image, the first time."""
    if name in self._names:
      return
    self._names.add(name)
    line = f'{name} cannot be decoded: {reason} ({len(self)} so far)'
    info(line, everywhere=True)
    if self._path:
      self._add(json.dumps({'name': name, 'reason': reason}) + '\n')

  def _add(self, line: str) -> None:
    if storage.is_remote(self._path):
      is_first = not self._lines
      self._lines = self._lines or parts.Lines(self._path)
      self._lines.add(line)
      if is_first:  # there may be no other for hours
        self._lines.flush()
      return
    with self._path.open('a', encoding='utf-8') as file:
      file.write(line)

  def flush(self) -> None:
    """Writes what a bucket does not have yet."""
    if self._lines:
      self._lines.flush()


class Log:
  """Looks at every step's metrics, writes every n-th, shows the progress.

  The look lags one step behind, so that the device need not wait for the
  host. Of several hosts, the first alone has a writer and shows anything.
  A context manager: its files are closed at the end, whatever ends it.

  Args:
    writer: a metrics.MetricsWriter, or None.
    cfg: batch_size, log_every_steps, progress.
    total_steps: of the run.
    start: the number of steps done before.
    clock: seconds of training.
    look: takes a step and its metrics, and raises where they are bad.
  """

  def __init__(self, writer, cfg, total_steps, start, clock, look):
    self._writer, self._cfg, self._look = writer, cfg, look
    self.stop = 0  # a signal's number that all hosts know of; see `loop`
    self._total, self._step, self._start = total_steps, start, start
    self._clock, self._since = clock, clock()
    self._pending: tuple | None = None
    self._measured: dict[str, Any] | None = None  # of the pending step
    self._shown: dict[str, str] = {}  # of the last one that was measured
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=start,
      unit='step',
      disable=not (cfg.progress and writer),
      dynamic_ncols=True,
      # In a log file every refresh is a line.
      mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )

  def add(self, scalars: Any, describe: MetricsFormatter = identity) -> int:
    """Takes one step's outputs; returns the number of steps taken so far.

    Args:
      scalars: metrics of all devices, leaves [D]; 'loss', 'grad_norm', ..
      describe: makes of them what is written and what the bar shows; called
        for the steps that are logged only.
    """
    self.flush()
    self._step += 1
    self._pending = (self._step, scalars, describe)
    return self._step

  def attach(self, measured: Mapping[str, float | None]) -> None:
    """Adds to the line of the newest step, which is logged in any case.

    Args:
      measured: metrics of the state after this step; the bar goes on to show
        them.
    """
    self._measured = dict(measured)
    self._shown = {
      title: form.format(measured[key])
      for key, (title, form) in _MEASURED.items()
      if measured.get(key) is not None
    }

  def flush(self) -> None:
    """Looks at the newest step; raises what `look` raises."""
    if self._pending is None:
      return
    step, scalars, describe = self._pending
    measured, self._pending, self._measured = self._measured, None, None
    host = {k: float(v[0]) for k, v in scalars.items()}
    self._look(step, {k: v for k, v in host.items() if k != STOP})
    self.stop = max(self.stop, int(host.pop(STOP, 0)))
    self._bar.update()
    is_due = step % self._cfg.log_every_steps == 0 or step == self._total
    if not is_due and measured is None:
      return
    row, shown = describe(host)
    rate = (step - self._start) / max(self._clock() - self._since, 1e-9)
    extra = {
      'images_per_second': rate * self._cfg.batch_size,
      'seconds': self._clock(),
    }
    if self._writer:
      self._writer.write(step, row | extra | (measured or {}))
    shown = {'loss': f'{host["loss"]:.3f}'} | shown | self._shown
    self._bar.set_postfix(shown, refresh=False)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._bar.close()
    if self._writer:
      self._writer.close()


def without_empty_means(
  scalars: dict[str, float], given: np.ndarray
) -> dict[str, float | None]:
  """None for means over labelled or unlabelled images of a batch without any.

  The step gives 0 for them, which as an accuracy would mislead.

  Args:
    scalars: the step's metrics.
    given: [n] the labels that training sees, -1: none.
  """
  empty = set()
  if not (given >= 0).any():
    empty |= {
      'labelled_vote_accuracy',
      'classifier_accuracy',
      'loss/classifier',
    }
  if not (given < 0).any():
    empty |= {'vote_share', 'pseudo_label_share', 'top_label_share'}
  return {k: None if k in empty else v for k, v in scalars.items()}


def pseudo_label_accuracy(
  labels: np.ndarray, given: np.ndarray, truth: np.ndarray
) -> float | None:
  """Share of right pseudo-labels among unlabelled images that have one.

  Args:
    labels: (pseudo-)labels of n images, any shape.
    given: [n] the labels that training sees, -1: none.
    truth: [n] the true labels, -1: unknown. They never reach a device.

  Returns:
    None if there is no such image.
  """
  labels = labels.reshape(-1)
  judged = (given < 0) & (labels >= 0) & (truth >= 0)
  if not judged.any():
    return None
  return float(np.mean(labels[judged] == truth[judged]))
