"""The evaluation worker: each new checkpoint of a running job, to its end."""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import ml_collections

from semppl_jax import checkpoint, eval_config, eval_tasks, metrics, run_log
from semppl_jax.errors import UserError


def follow(
  cfg: ml_collections.ConfigDict,
  workdir: str,
  sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
  """Waits for checkpoints of the run in `cfg.checkpoint`; evaluates each.

  Every evaluation has a folder of its own, WORKDIR/step_N; WORKDIR has
  metrics.jsonl with a line for each. Ends when the job has written its results
  and its last checkpoint is evaluated. Started again, it goes on.

  Args:
    cfg: the config of the evaluation.
    workdir: a folder of this worker's own.
    sleep: between two looks.

  Returns:
    The results of the last checkpoint.

  Raises:
    UserError: a setting that cannot work, or a checkpoint that is a file.
  """
  eval_config.validate(cfg, num_devices=1)
  job = pathlib.Path(cfg.checkpoint).expanduser()
  if job.is_file():
    raise UserError(
      f'follow is on, but checkpoint {cfg.checkpoint} is a file: give the '
      '--workdir of a run.'
    )
  last, results = _evaluated(workdir), {}
  if last is not None:
    results = metrics.read_json(_results(workdir, last))
  while True:
    # Looked at first: what the job saved before its results is seen below.
    finished = (job / eval_tasks.RESULTS).exists()
    new = [n for n in checkpoint.steps(str(job)) if last is None or n > last]
    for step in new:
      found = _evaluate(cfg, workdir, job, step)
      last, results = step, found or results
    if finished and not new:
      return results
    if not new:
      run_log.say(f'{job}: waiting for a checkpoint after step {last or 0}.')
      sleep(cfg.follow_seconds)


def _evaluate(
  cfg: ml_collections.ConfigDict, workdir: str, job: pathlib.Path, step: int
) -> dict[str, Any] | None:
  """One checkpoint's results; None: the job has deleted it meanwhile."""
  try:
    results = eval_tasks.run_task(
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


def _evaluated(workdir: str) -> int | None:
  """The newest step with results here."""
  folders = pathlib.Path(workdir).glob('step_*')
  steps = [int(folder.name.removeprefix('step_')) for folder in folders]
  done = [step for step in steps if _results(workdir, step).exists()]
  return max(done, default=None)


def _results(workdir: str, step: int) -> pathlib.Path:
  return pathlib.Path(workdir, f'step_{step}', eval_tasks.RESULTS)
