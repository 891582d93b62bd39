"""The evaluation worker: each new checkpoint of a running job, to its end."""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import ml_collections

from semppl_jax import checkpoint, storage
from semppl_jax.config import eval_config
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.evaluation import protocols
from semppl_jax.weights import releases
from semppl_jax.workdir import lock, metrics, run_log, stop_file
from semppl_jax.workdir.names import RESULTS


def follow(
  cfg: ml_collections.ConfigDict,
  workdir: str,
  sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
  """Waits for checkpoints of the run in `cfg.checkpoint`; evaluates each.

  Every evaluation has a folder of its own, WORKDIR/step_N; WORKDIR has
  metrics.jsonl with a line for each. Ends when the job has written its results,
  or was stopped by an alarm, and its last good checkpoint is evaluated. Started
  again, it goes on: what is evaluated is checked to be of the same weights, and
  not computed again.

  Args:
    cfg: the config of the evaluation.
    workdir: a folder of this worker's own.
    sleep: between two looks.

  Returns:
    The results of the last checkpoint.

  Raises:
    UserError: a setting that cannot work, or a checkpoint that is a file.
  """
  processes.require_single('Evaluation')
  devices = parallel.some_devices(cfg.num_devices)
  eval_config.validate(cfg, len(devices))
  job = _folder(cfg)
  with lock.claimed(workdir, cfg.to_dict(), ignore=eval_config.COSMETIC):
    return _follow(cfg, workdir, job, sleep)


def _follow(
  cfg: ml_collections.ConfigDict,
  workdir: str,
  job: pathlib.Path,
  sleep: Callable[[float], None],
) -> dict[str, Any]:
  seen: dict[int, dict[str, Any] | None] = {}  # results by step; None: deleted
  while True:
    # Looked at first: what the job saved before its results is seen below.
    finished = (job / RESULTS).exists()
    stop = stop_file.read(job)
    new = [
      n
      for n in checkpoint.steps(str(job))
      if n not in seen and (stop is None or n <= stop.good)
    ]
    for step in new:
      seen[step] = _evaluate(cfg, workdir, job, step)
    if not new and (finished or stop):
      good = [
        found
        for step, found in sorted(seen.items())
        if found and (stop is None or step <= stop.good)
      ]
      if not good:
        end = f'the job was {stop}' if stop else 'the job has ended'
        raise UserError(f'{job} has no good checkpoint: {end}.')
      if stop:
        run_log.info(f'{job}: the job was {stop}: {stop.what}.')
      return good[-1]
    if not new:
      there = '' if job.exists() else ' (there is no such folder yet)'
      run_log.info(f'{job}: waiting for a checkpoint{there}.')
      sleep(cfg.follow_seconds)


def _folder(cfg: ml_collections.ConfigDict) -> pathlib.Path:
  """The job's folder, which need not be there yet."""
  with contextlib.suppress(CheckpointError):
    found = releases.find(cfg.checkpoint)
    if found.is_file():
      raise UserError(
        f'follow is on, but checkpoint {cfg.checkpoint} is a file: give the '
        '--workdir of a run.'
      )
    return found
  return storage.path(cfg.checkpoint)


def _evaluate(
  cfg: ml_collections.ConfigDict, workdir: str, job: pathlib.Path, step: int
) -> dict[str, Any] | None:
  """One checkpoint's results; None: the job has deleted it meanwhile."""
  try:
    results = protocols.run_task(
      cfg, os.path.join(workdir, f'step_{step}'), step
    )
  except UserError:
    if step in checkpoint.steps(str(job)):
      raise
    return None
  writer = metrics.MetricsWriter(workdir, step=step - 1)
  writer.write(step, {k: results[k] for k in ('top1', 'top5', 'loss')})
  writer.close()
  return results
