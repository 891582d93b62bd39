"""Whether the watchdog leaves good starts alone, and stops what must stop.

  python -m benchmarks.seeds   # 30 seeds, 40 minutes of one core
  python -m benchmarks.seeds --seeds=3

The first steps of the digits experiment, for many seeds that nobody tuned on:
none may alarm. Then runs that can come to nothing, each of which must. Prints a
line for each and ends with status 1 if one is not as it must be.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import digits
from semppl_jax import methods, pretraining
from semppl_jax.data import labels as labels_lib
from semppl_jax.distributed import parallel
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train.watchdog import AlarmError

STEPS = 150  # beyond the step from which a bad start is no start any more
FIRST_SEED = 101


def config(seed: int = FIRST_SEED, **changes: Any) -> Any:
  """The digits experiment on one device; changes by `ema__base=0.0`."""
  cfg = digits.get_config()
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices = 1
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


def mapped(run: run_lib.TrainRun) -> Callable[..., Any]:
  """The step of a run; runs that differ in their seed may share it."""
  step = functools.partial(step_lib.train_step, setup=run.setup)
  return parallel.map_step(step, run.devices)


def alarm(run: run_lib.TrainRun, step: Callable[..., Any], steps: int) -> str:
  """The watchdog's words in a run's first steps, '' if it has none."""
  state = run_lib.initial_state(run)
  key, dog = jax.random.key(run.cfg.seed), pretraining.watching(run)
  batches = itertools.islice(run_lib.input_batches(run, 0), steps)
  for number, (batch, _) in enumerate(batches, start=1):
    state, scalars, _ = step(state, parallel.shard(batch, 1), key)
    try:
      dog.check(number, {name: float(x[0]) for name, x in scalars.items()})
    except AlarmError as error:
      return str(error)
  return ''


def broken() -> dict[str, run_lib.TrainRun]:
  """Runs that the watchdog must stop."""
  rate = config().optimizer.learning_rate
  # By the invariance alone: with negatives nothing collapses even so.
  trivial = run_lib.prepare(
    config(ema__base=0.0, ema__constant=True, loss__contrastive_weight=0.0)
  )
  return {
    'no predictor, the online network as target': _without_predictor(trivial),
    '100 times the rate': run_lib.prepare(
      config(optimizer__learning_rate=100 * rate)
    ),
    'labels of one class only': _of_one_class(run_lib.prepare(config())),
  }


def _of_one_class(run: run_lib.TrainRun) -> run_lib.TrainRun:
  labels = np.where(run.labels >= 0, 0, -1).astype(np.int32)
  share = labels_lib.class_share(labels, run.data.num_classes)
  facts = run.facts._replace(class_share=share)
  method = methods.build(run.cfg, facts)
  return run._replace(
    labels=labels, facts=facts, setup=run.setup._replace(method=method)
  )


def _without_predictor(run: run_lib.TrainRun) -> run_lib.TrainRun:
  nets = run.setup.nets

  def online(*arguments):
    outputs, state = nets.online(*arguments)
    return outputs | {'prediction': outputs['projection']}, state

  return run._replace(
    setup=run.setup._replace(nets=nets._replace(online=online))
  )


def main() -> None:
  """Prints a line for each run."""
  parser = argparse.ArgumentParser(prog='python -m benchmarks.seeds')
  parser.add_argument('--seeds', type=int, default=30)
  seeds = range(FIRST_SEED, FIRST_SEED + parser.parse_args().seeds)
  wrong, step = 0, mapped(run_lib.prepare(config()))
  for seed in seeds:
    said = alarm(run_lib.prepare(config(seed)), step, STEPS)
    wrong += bool(said)
    print(f'seed {seed}: {said or "no alarm"}', flush=True)
  for name, run in broken().items():
    said = alarm(run, mapped(run), STEPS)
    wrong += not said
    print(f'{name}: {said or "no alarm"}', flush=True)
  sys.exit(wrong > 0)


if __name__ == '__main__':
  main()
