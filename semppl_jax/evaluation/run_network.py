"""A run taken up to look at: its data and its network. Writes nothing."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from semppl_jax import checkpoint, config
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.utils.text import first_line
from semppl_jax.workdir import stop_file


class Network(NamedTuple):
  """A run whose data set is at hand, with the newest checkpoint's network."""

  run: run_lib.TrainRun
  state: state_lib.TrainState
  step: int


def prepare(settings: Mapping[str, Any]) -> run_lib.TrainRun:
  """Data, labels and networks of a run's settings, on one device.

  Raises:
    UserError: settings of another version, or a data set that is gone.
  """
  cfg = config.default(settings.get('method', 'semppl')).lock()
  try:
    cfg.update(settings)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    # Of an unknown key, without the config that it goes on to print.
    reason = first_line(error).strip('\'"').partition(' Other fields')[0]
    raise UserError(
      f'config.json has settings of another version: {reason}'
    ) from error
  # The run may have had devices that are not here; nothing depends on them.
  cfg.num_devices = cfg.accumulate = 1
  cfg.dataset.workers = 0
  return run_lib.prepare(cfg)


def restore(
  run: run_lib.TrainRun, folder: pathlib.Path, step: int | None = None
) -> Network:
  """The newest good checkpoint that can be read; nothing is set aside.

  Of a run that an alarm stopped, one of before; if there is none, the newest.

  Args:
    run: see `prepare`.
    folder: of the run.
    step: of the checkpoint that it must be.

  Raises:
    CheckpointError: none can, or there is none of this step.
  """
  steps = checkpoint.steps(str(folder))
  if not steps:
    raise CheckpointError('There is no checkpoint yet.')
  if step is not None:
    if step not in steps:
      raise CheckpointError(
        f'There is no checkpoint of step {step}; there are those of '
        f'{", ".join(map(str, steps))}.'
      )
    steps = [step]
  elif stop := stop_file.read(folder):
    steps = [n for n in steps if n <= stop.good] or steps
  fresh = run_lib.initial_state(run)
  reason: CheckpointError | None = None
  for step in reversed(steps):
    try:
      return Network(run, _state(run, fresh, folder, step), step)
    except CheckpointError as error:
      reason = reason or error
  raise reason


def _state(run, fresh, folder, step):
  """With what evaluation needs; the rest is as before the first step."""
  method = run.setup.method
  like = state_lib.abstract_state(fresh, method, len(run.devices))
  wanted = ('state.step', 'state.online_', 'state.memory')
  if run.cfg.evaluation.network == 'target':
    wanted += ('state.target_',)
  found = checkpoint.read(str(folder), step, wanted)

  def leaf(path, kind):
    name = 'state' + jax.tree_util.keystr(path)
    if not name.startswith(wanted):
      return np.zeros(kind.shape, kind.dtype)
    if name not in found or found[name].shape != kind.shape:
      raise CheckpointError(
        f'The checkpoint of step {step} does not fit config.json: {name}.'
      )
    return found[name]

  state = jax.tree_util.tree_map_with_path(leaf, like)
  return state_lib.from_host(state, method, run.devices)
