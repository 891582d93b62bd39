"""The data that a run was begun with: WORKDIR/data.json.

Settings name a folder; what is in it may change while they stay the same.
"""

import hashlib
import os
from typing import Any

import numpy as np

from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.workdir import metrics, run_log

FILE = 'data.json'


def check(workdir: str, run: Any, finished: bool) -> None:
  """Writes the file, or compares it with the data that are there now.

  Args:
    workdir: of the run.
    run: a `run.TrainRun` or an `EvalRun`.
    finished: whether it has results; then other data are told, not refused.

  Raises:
    UserError: a run that was begun with other training images.
  """
  here = describe(run)
  path = os.path.join(workdir, FILE)
  there = processes.broadcast_from_first(
    processes.run_on_all(lambda: metrics.read_json(path))
  )
  needed = here.keys() - {'labels_fingerprint'}  # which came later
  if not isinstance(there, dict) or not needed <= there.keys():
    # A new run, or one of a version that had no such file.
    if processes.is_first():
      metrics.write_json(path, here)
    return
  if there['fingerprint'] != here['fingerprint']:
    then = f'{there["images"]:,} training images then, {here["images"]:,} now'
    if not finished:
      raise UserError(
        f'--workdir {workdir}: its run was begun with other training images '
        f'({then}): bring them back, or choose another --workdir.'
      )
    run_log.info(
      f'Warning: {run.cfg.dataset.path} has changed since this run ({then}): '
      'its results are those of then; with another --workdir it trains on what '
      'is there now.'
    )


def describe(run: Any) -> dict[str, Any]:
  """What the file holds."""
  data = run.data
  return {
    'fingerprint': data.fingerprint,
    'images': len(data.train),
    'labels': int(np.sum(run.labels >= 0)),
    'labels_fingerprint': _of_labels(run),
    'test_images': 0 if data.test is None else len(data.test),
    'num_classes': data.num_classes,
    'class_names': list(data.class_names),
  }


def _of_labels(run: Any) -> str:
  """A number of which images have which label, and which are kept back."""
  kept_back = getattr(run, 'calibration', None)
  every = [run.labels] if kept_back is None else [run.labels, kept_back]
  digest = hashlib.sha256(np.asarray(every, '<i4').tobytes())
  digest.update('\n'.join(run.data.class_names).encode())
  return digest.hexdigest()
