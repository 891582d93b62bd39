"""Negative controls: what keeps BYOL from collapsing, each taken away."""

import functools
import itertools

import jax
import pytest

from experiments import digits
from semppl_jax.distributed import parallel
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib

_STEPS = 100


def _run():
  cfg = digits.get_config('byol')
  cfg.num_devices = 1
  return run_lib.prepare(cfg)


def _as_it_is(setup):
  return setup


def _online_network_as_target(setup):
  """With its gradient: both sides of the regression move."""
  loss = setup.method.loss

  def with_gradient(inputs, memory):
    target = {'projection': inputs.online['projection']}
    return loss(inputs._replace(target=target), memory)

  return setup._replace(method=setup.method._replace(loss=with_gradient))


def _without_predictor(setup):
  """The moving average as target, but the projection itself regresses it."""
  whole = setup.nets.online

  def online(*arguments):
    outputs, state = whole(*arguments)
    return outputs | {'prediction': outputs['projection']}, state

  return setup._replace(nets=setup.nets._replace(online=online))


def _both(setup):
  return _without_predictor(_online_network_as_target(setup))


@pytest.mark.long  # four programs are compiled, four hundred steps taken
@pytest.mark.parametrize(
  'change, low, high',
  [
    (_as_it_is, 0.8, 1.1),
    (_online_network_as_target, 0.0, 0.15),
    (_without_predictor, 0.0, 0.15),
    (_both, 0.0, 0.15),
  ],
)
def test_the_spread_of_embeddings(change, low, high):
  run = _run()
  setup = change(run.setup)
  step = functools.partial(step_lib.train_step, setup=setup)
  step = parallel.map_step(step, run.devices)
  state, key = run_lib.initial_state(run), jax.random.key(0)
  batches = itertools.islice(run_lib.input_batches(run, 0), _STEPS)
  for i, (batch, _) in enumerate(batches):
    state, metrics, _ = step(state, parallel.shard(batch, 1), key)
    if i == 0:
      assert metrics['embedding_std'][0] > 0.7  # all begin alike
  # The target's, of which the first control has one that nothing regresses.
  assert low <= metrics['embedding_std'][0] <= high
  # Which the loss does not show: it is smaller in a collapse.
  loss = metrics['loss/regression'][0]
  assert loss > 0.3 if change is _as_it_is else loss < 0.1
