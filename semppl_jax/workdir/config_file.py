"""WORKDIR/config.json, the settings of a run."""

import os
from typing import Any

from semppl_jax.config.upgrade import upgrade
from semppl_jax.workdir import metrics

NAME = 'config.json'


def read(workdir: str | os.PathLike) -> Any:
  """A run's settings in today's names, nested dicts; None: there is no file.

  Raises:
    UserError: the file is not JSON.
  """
  return upgrade(metrics.read_json(os.path.join(workdir, NAME)))
