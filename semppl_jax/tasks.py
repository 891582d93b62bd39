"""What a config asks for, done: pre-training, or one of the evaluations."""

from collections.abc import Callable
from typing import Any

import ml_collections

from semppl_jax import pretraining
from semppl_jax.errors import UserError
from semppl_jax.evaluation import follow, protocols, robustness, transfer
from semppl_jax.workdir import run_settings

Task = Callable[[ml_collections.ConfigDict, str], dict[str, Any]]


def pretrain(
  config: ml_collections.ConfigDict, workdir: str = 'runs/pretrain'
) -> dict[str, Any]:
  """Trains SemPPL, evaluates it, and leaves everything in a folder.

  A run that was stopped goes on; one that is finished is not touched.

  Args:
    config: of pre-training, see `semppl_jax.config.default` and experiments/.
    workdir: a folder of this run's own; `load_pretrained` takes it.

  Returns:
    What WORKDIR/results.json holds.

  Raises:
    UserError: settings or input that cannot work, in one line.
    SystemExit: SIGINT or SIGTERM came, and the state is saved.
  """
  if is_evaluation(config):
    raise UserError('The config is one of an evaluation: call evaluate.')
  return pretraining.pretrain(config, workdir)


def evaluate(
  config: ml_collections.ConfigDict, workdir: str = 'runs/evaluate'
) -> dict[str, Any]:
  """Evaluates a checkpoint: linear, semi_supervised, knn, classifier, tables.

  Args:
    config: of evaluation, see `semppl_jax.eval_config.default` and
      experiments/eval_*.py.
    workdir: a folder of this evaluation's own.

  Returns:
    What WORKDIR/results.json holds.

  Raises:
    UserError: settings, checkpoint or input that cannot work, in one line.
    SystemExit: SIGINT or SIGTERM came, and the state is saved.
  """
  if not is_evaluation(config):
    raise UserError('The config is one of pre-training: call pretrain.')
  return of(config)(config, workdir)


def is_evaluation(config: ml_collections.ConfigDict) -> bool:
  """Whether a config is of evaluation; if not, it is of pre-training."""
  return 'checkpoint' in config


def of(config: ml_collections.ConfigDict) -> Task:
  """What a config asks for; the config itself is checked there."""
  if not is_evaluation(config):
    return pretraining.pretrain
  return _evaluate


def _evaluate(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, Any]:
  config = run_settings.complete(config)
  if config.follow:
    return follow.follow(config, workdir)
  tables = {'robustness': robustness.run, 'transfer': transfer.run}
  return tables.get(config.task, protocols.run_task)(config, workdir)
