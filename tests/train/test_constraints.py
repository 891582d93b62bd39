"""Frozen modules, rows of unit length and clipping, in the engine's update."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.methods import base
from semppl_jax.train import constraints, initial_weights, optimizers, schedules
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train.state import TrainState
from tests.helpers import golden, tiny

_LAYER = 'projector/linear_1'
_LABELS = [-1, 0, 2, 1] * 4
_FREE = base.Method(None, None)


def _setup(optimizer, frozen=None, unit_rows=(), **settings):
  """Of an objective without target network."""
  cfg = tiny.frozen(tiny.make_config('byol', **settings))
  if optimizer is None:
    optimizer = run_lib.build_optimizer(cfg)
  return step_lib.StepSetup(
    cfg=cfg,
    method=base.Method(None, None, frozen=frozen or {}, unit_rows=unit_rows),
    nets=None,
    optimizer=optimizer,
    total_steps=10,
    warmup_steps=0,
  )


def _state(params, setup):
  params = jax.tree.map(jnp.asarray, params)
  opt_state = setup.optimizer.init(params)
  return TrainState(jnp.zeros((), int), params, {}, {}, {}, opt_state, ())


def _advance(state, grads, setup):
  update = jax.jit(lambda s, g: step_lib.apply_gradients(s, g, setup))
  state, metrics = update(state, grads)
  return state._replace(step=state.step + 1), metrics


def test_larc_frozen_prototypes_and_unit_rows_are_swavs(monkeypatch):
  """main_swav.train with apex's LARC, from its gradients."""
  file = golden.load('swav_steps_noqueue.npz')
  monkeypatch.setattr(
    schedules, 'learning_rate', lambda s, **_: jnp.asarray(file['lr'])[s]
  )
  setup = _setup(
    None, {'prototypes': 2}, ('prototypes',), optimizer__name='larc',
    optimizer__weight_decay=0.01, optimizer__momentum=0.9,
    optimizer__trust_coefficient=0.05,
  )  # fmt: skip

  def tree(prefix, w, b, c):
    leaf = lambda name: np.float32(file[prefix + name])
    return {'net': {'w': leaf(w), 'b': leaf(b)}, 'prototypes': {'w': leaf(c)}}

  params = tree('', 'w0', 'b0', 'c0')
  params = constraints.unit_rows(params, setup.method.unit_rows)
  state = _state(params, setup)
  every = tree('g', 'w', 'b', 'c')
  wanted = tree('', 'w', 'b', 'c')
  close = {'rtol': 1e-5, 'atol': 1e-5}
  for step, used in enumerate(file['prototypes_used']):
    rows = state.online_params['prototypes']['w']
    np.testing.assert_allclose(rows, used, **close)
    grads = jax.tree.map(lambda x, i=step: x[i], every)
    # The reference dropped it; the engine gets one, and must not use it.
    if step < 2:
      grads['prototypes']['w'] = np.ones_like(grads['prototypes']['w'])
    state, _ = _advance(state, grads, setup)
    for name, value in state.online_params['net'].items():
      np.testing.assert_allclose(value, wanted['net'][name][step], **close)
    if step < 2:
      np.testing.assert_array_equal(
        state.online_params['prototypes']['w'], rows
      )
  c = wanted['prototypes']['w'][-1]
  lengths = np.linalg.norm(c, axis=1, keepdims=True)
  assert step == 7 and np.abs(lengths - 1).max() > 0.01
  rows = state.online_params['prototypes']['w']
  np.testing.assert_allclose(rows, c / lengths, **close)


_ADAM = {'weight_decay': 0.5, 'b1': 0.5, 'b2': 0.5}


@pytest.mark.parametrize(
  'name, settings, moving',
  [
    ('sgd', {'momentum': 0.5}, 1),
    ('sgd_l2', {'momentum': 0.5, 'weight_decay': 0.5}, 1),
    ('adamw', _ADAM, 2),
  ],
)
def test_a_frozen_module_keeps_its_optimisers_state(name, settings, moving):
  """A gradient of 0 would let momentum, moments and decay go on."""
  params = {'a': {'w': np.ones(2)}, 'b': {'w': np.ones(2)}}
  params = jax.tree.map(np.float32, params)
  setup = _setup(
    optimizers.build(name, **settings), {'a': 3}, optimizer__learning_rate=1.0
  )
  # One step has given it momentum; it is frozen now, and until step 3.
  free = setup._replace(method=_FREE)
  state, _ = _advance(_state(params, setup), params, free)
  before = state
  for _ in range(2):  # steps 1 and 2
    state, _ = _advance(state, params, setup)
  kept = lambda state, module: [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      (state.online_params, state.opt_state)
    )
    if f"['{module}']" in jax.tree_util.keystr(path)
  ]
  assert len(kept(state, 'a')) == len(kept(state, 'b')) == 1 + moving
  for old, new in zip(kept(before, 'a'), kept(state, 'a')):
    np.testing.assert_array_equal(old, new, strict=True)
    assert np.all(old)  # momentum is not 0
  for old, new in zip(kept(before, 'b'), kept(state, 'b')):
    assert np.all(old != new)
  # Then it goes on from there.
  after, _ = _advance(state, params, setup)
  for old, new in zip(kept(state, 'a'), kept(after, 'a')):
    assert np.all(old != new)
  # A gradient of 0 instead does something else.
  zero = params | {'a': {'w': np.zeros(2, np.float32)}}
  other, _ = _advance(before, zero, free)
  assert np.all(kept(other, 'a')[0] != kept(before, 'a')[0])


def test_gradients_are_clipped_before_the_optimiser_each_by_itself():
  params = {'a': {'w': np.zeros((1, 2)), 'b': np.zeros(1)}}
  grads = {'a': {'w': np.array([[3.0, 4.0]]), 'b': np.array([0.5])}}
  params, grads = (jax.tree.map(np.float32, x) for x in (params, grads))
  found = {}
  for clip in (0.0, 1.0):
    setup = _setup(
      optimizers.build('sgd', momentum=0.5), optimizer__clip=clip,
      optimizer__learning_rate=256 / tiny.BATCH,
    )  # fmt: skip
    state, metrics = _advance(_state(params, setup), grads, setup)
    # The metric is that of the gradient itself.
    np.testing.assert_allclose(metrics['grad_norm'], np.sqrt(25.25), rtol=1e-6)
    trace = optax.tree_utils.tree_get(state.opt_state, 'trace')
    np.testing.assert_array_equal(trace['a']['b'], [0.5])  # 1 is allowed
    np.testing.assert_allclose(state.online_params['a']['b'], [-0.5])
    found[clip] = trace['a']['w']
  np.testing.assert_array_equal(found[0.0], [[3, 4]])
  np.testing.assert_allclose(found[1.0], [[0.6, 0.8]], rtol=1e-6)


def _constrained_run():
  run = tiny.prepare('byol', optimizer__warmup_epochs=0.0)
  method = run.setup.method._replace(
    frozen={_LAYER: 2, 'predictor/linear': 1}, unit_rows=(_LAYER,)
  )
  return run._replace(setup=run.setup._replace(method=method))


def test_training_keeps_them_and_goes_on_bit_for_bit():
  """Stopped in the middle of the frozen steps, on the host, and taken up."""
  run = _constrained_run()
  method, devices = run.setup.method, jax.devices()[:1]
  step = functools.partial(step_lib.train_step, setup=run.setup)
  mapped = tiny.map_step(step, 1)
  batches = [tiny.make_batch(_LABELS, seed) for seed in range(3)]

  def advance(states, batches):
    state = state_lib.from_host(states[-1], method, devices)
    for batch in batches:
      state, _ = tiny.run_steps(mapped, state, [batch], 1)
      there = parallel.put_sharded(state, devices)
      states = [*states, state_lib.to_host(there, method, devices)]
    return states

  states = advance([tiny.portable(run)], batches)

  def leaves(state, module):
    mu = optax.tree_utils.tree_get(state.opt_state, 'mu')
    return state.online_params[module]['w'], mu[module]['w']

  for module, frozen in (
    (_LAYER, 2), ('predictor/linear', 1), ('classifier', 0)
  ):  # fmt: skip
    for step, pair in enumerate(itertools.pairwise(states)):
      for old, new in zip(*(leaves(state, module) for state in pair)):
        assert np.array_equal(old, new) == (step < frozen), (module, step)
  for state in states:
    lengths = np.linalg.norm(leaves(state, _LAYER)[0], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)

  resumed = advance(states[1:2], batches[1:])
  chex.assert_trees_all_equal(resumed[-1], states[-1])


def test_rows_have_length_1_from_the_beginning():
  plain = tiny.portable(tiny.prepare('byol'))
  state = tiny.portable(_constrained_run())
  for tree in (state.online_params, state.target_params):
    rows = tree[_LAYER]['w']
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    before = plain.online_params[_LAYER]['w']
    lengths = np.linalg.norm(before, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, before / lengths, rtol=1e-5)
    other = 'projector/linear'
    np.testing.assert_array_equal(
      tree[other]['w'], plain.online_params[other]['w']
    )


def test_rows_of_a_checkpoint_get_length_1():
  run = _constrained_run()
  taken = {_LAYER: {'w': np.full((16, 8), 3.0, np.float32)}}
  start = initial_weights.Start((taken, {}), None, '', '')
  run = run._replace(devices=jax.devices()[:1])
  state = run_lib.initial_state(run, start)
  for tree in (state.online_params, state.target_params):
    np.testing.assert_allclose(tree[_LAYER]['w'][0], 8**-0.5, rtol=1e-6)


def test_only_matrices_have_rows():
  params = {'a': {'w': 2 * jnp.ones((2, 4)), 'g': 2 * jnp.ones(4)}}
  params |= {'b': {'w': 3 * jnp.ones((1, 1))}}
  found = constraints.unit_rows(params, ('a', 'not there'))
  np.testing.assert_allclose(found['a']['w'], np.full((2, 4), 0.5))
  np.testing.assert_array_equal(found['a']['g'], params['a']['g'])
  np.testing.assert_array_equal(found['b']['w'], params['b']['w'])


@pytest.mark.parametrize(
  'wrong', [{'frozen': {'prototype': 1}}, {'unit_rows': ('prototype',)}]
)
def test_modules_that_are_not_there_are_named(wrong):
  run = tiny.prepare('byol')
  method = run.setup.method._replace(**wrong)
  run = run._replace(setup=run.setup._replace(method=method))
  words = r"\['prototype'\].*'predictor/linear'"
  with pytest.raises(ValueError, match=words):
    tiny.first_state(run, 1)
