"""LARS against the releases' numbers; AdamW and SGD against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semppl_jax import errors
from semppl_jax.train import optimizers
from tests.helpers import golden

RELEASE = {
  'weight_decay': 1e-6,
  'momentum': 0.9,
  'trust_coefficient': 1e-3,
}
TREE = {
  'net/~/conv': {'w': (3, 3, 4, 8)},
  'net/~/batch_norm': {'scale': (1, 1, 1, 8), 'offset': (1, 1, 1, 8)},
  'net/linear': {'w': (8, 16), 'b': (16,)},
  'net/zero_linear': {'w': (16, 4)},
}


def by_name(tree):
  return {
    f'{m}/{n}': x for m, leaves in tree.items() for n, x in leaves.items()
  }


def golden_grads(step):
  return {
    module: {
      name: golden.fill(f'grad/{step}/{module}/{name}', shape, 0.01)
      for name, shape in leaves.items()
    }
    for module, leaves in TREE.items()
  }


def golden_tree(file, kind, step):
  return {
    key.split('|')[1]: value
    for key, value in file.items()
    if key.startswith(f'{kind}@{step}|')
  }


def momentum_of(opt_state):
  return optax.tree_utils.tree_get(opt_state, 'trace')


def test_lars_equals_the_release():
  file = golden.load('lars.npz')
  params = golden.params(TREE)
  params['net/zero_linear']['w'] = np.zeros((16, 4), np.float32)
  optimizer = optimizers.lars(**RELEASE)
  opt_state = optimizer.init(params)

  @jax.jit
  def update(params, opt_state, grads, rate):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    return optax.apply_updates(params, updates), opt_state

  checked = 0
  for step in range(30):
    rate = file['learning_rates'][step]
    params, opt_state = update(params, opt_state, golden_grads(step), rate)
    expected = golden_tree(file, 'params', step + 1)
    moments = golden_tree(file, 'momentum', step + 1)
    for name in expected:
      close = {'rtol': 1e-6, 'atol': 1e-6}
      np.testing.assert_allclose(by_name(params)[name], expected[name], **close)
      trace = by_name(momentum_of(opt_state))
      np.testing.assert_allclose(trace[name], moments[name], **close)
      checked += 1
  assert checked == 5 * len(by_name(params))  # after 1, 2, 5, 10, 30 updates


# google-research/simclr's variables in simclr_lars.npz, under Haiku's names.
_SIMCLR = {
  'conv/kernel': ('net/conv', 'w'),
  'dense/bias': ('net/dense', 'b'),
  'batch_normalization/gamma': ('net/batch_norm', 'scale'),
  'head_supervised/kernel': ('classifier', 'w'),
  'zero/kernel': ('net/zero', 'w'),
}


def simclr_tree(file, prefix):
  tree = {}
  for theirs, (module, name) in _SIMCLR.items():
    tree.setdefault(module, {})[name] = file[f'{prefix}/{theirs}']
  return tree


def test_lars_with_the_rate_in_the_momentum_equals_simclrs():
  file = golden.load('simclr_lars.npz')
  params = simclr_tree(file, 0)
  settings = RELEASE | {'weight_decay': 1e-2}
  optimizer = optimizers.build('lars', rate_in_momentum=True, **settings)
  opt_state = optimizer.init(params)
  for step, rate in enumerate(file['rates']):
    updates, opt_state = optimizer.update(
      simclr_tree(file, f'grad{step}'), opt_state, params, learning_rate=rate
    )
    params = optax.apply_updates(params, updates)
    wanted = by_name(simclr_tree(file, step + 1))
    for name, value in by_name(params).items():
      np.testing.assert_allclose(
        value, wanted[name], atol=2e-6, rtol=2e-6, err_msg=name
      )
  assert step == 3 and len(set(file['rates'])) > 1


def dino_tree(file, prefix):
  weights = {'w': file[f'{prefix}_a'], 'b': file[f'{prefix}_b']}
  zeros = np.zeros((2, 2), np.float32)
  return {'net': weights, 'zero': {'w': file.get(f'{prefix}_z', zeros)}}


def test_lars_equals_dinos():
  file = golden.load('dino_optim.npz')
  params = dino_tree(file, 'lars_before')
  optimizer = optimizers.build(
    'lars', weight_decay=0.1, momentum=0.9, trust_coefficient=0.01
  )
  opt_state = optimizer.init(params)
  every, wanted = (dino_tree(file, f'lars_{x}') for x in ('grads', 'after'))
  for step, rate in enumerate(file['lars_lr']):
    grads = jax.tree.map(lambda x, i=step: x[i], every)
    updates, opt_state = optimizer.update(
      grads, opt_state, params, learning_rate=jnp.float32(rate)
    )
    params = optax.apply_updates(params, updates)
    for name, value in by_name(params).items():
      np.testing.assert_allclose(
        value, by_name(wanted)[name][step], rtol=1e-6, atol=1e-6, err_msg=name
      )
  assert step == 2


def test_clipping_equals_dinos():
  file = golden.load('dino_optim.npz')
  found = optimizers.clip_each(dino_tree(file, 'clip_in'), 1.5)
  for name, wanted in by_name(dino_tree(file, 'clip_out')).items():
    np.testing.assert_allclose(by_name(found)[name], wanted, rtol=1e-6)
  # One of the three is short enough and stays as it is.
  short = [key for key, x in by_name(found).items() if np.sum(x**2) < 1.5]
  assert short == ['zero/w']


def test_larc_by_hand():
  params = {'a': {'w': jnp.array([3.0, 4.0]), 'b': jnp.array([2.0])}}
  params |= {'batch_norm': {'scale': jnp.ones(4), 'offset': jnp.zeros(4)}}
  grads = {'a': {'w': jnp.array([0.0, 2.0]), 'b': jnp.array([0.0])}}
  grads |= {'batch_norm': {'scale': jnp.ones(4), 'offset': jnp.ones(4)}}
  optimizer = optimizers.larc(
    weight_decay=0.4, momentum=0.5, trust_coefficient=0.1
  )
  first, opt_state = optimizer.update(grads, optimizer.init(params), params)
  second, _ = optimizer.update(grads, opt_state, params)
  # 0.1 x 5 / (2 + 0.4 x 5) of (0, 2) + 0.4 (3, 4).
  np.testing.assert_allclose(first['a']['w'], [0.15, 0.45], rtol=1e-6)
  np.testing.assert_allclose(second['a']['w'], [0.225, 0.675], rtol=1e-6)
  # Without a gradient there is no decay, either.
  np.testing.assert_array_equal(first['a']['b'], [0.0])
  # 0.1 x 2 / (2 + 0.4 x 2) of 1 + 0.4: BatchNorm's take part.
  norm = first['batch_norm']
  np.testing.assert_allclose(norm['scale'], np.full(4, 0.1), rtol=1e-6)
  # What is 0 moves by the gradient itself.
  np.testing.assert_array_equal(norm['offset'], np.ones(4))


def test_where_the_rate_stands_matters_once_it_moves():
  params = {'a': {'w': jnp.array([3.0, 4.0])}}
  grads = {'a': {'w': jnp.array([0.0, 2.0])}}
  moved = {}
  for inside in (False, True):
    optimizer = optimizers.build(
      'lars', rate_in_momentum=inside, weight_decay=0.0, momentum=0.5,
      trust_coefficient=0.1,
    )  # fmt: skip
    opt_state = optimizer.init(params)
    for rate in (2.0, 4.0):
      updates, opt_state = optimizer.update(
        grads, opt_state, params, learning_rate=rate
      )
    moved[inside] = updates['a']['w'][1]
  # u = 0.1 x 5: 4 (0.5 u + u) with the rate last, 0.5 (2 u) + 4 u inside.
  np.testing.assert_allclose([*moved.values()], [-3.0, -2.5], rtol=1e-6)


def test_a_rate_that_comes_last_leaves_the_state_as_it_was():
  params = golden.params(TREE)
  for name, settings in (
    ('lars', RELEASE),
    ('adamw', {'weight_decay': 0.1, 'b1': 0.9, 'b2': 0.99}),
    ('sgd', {'momentum': 0.9}),
  ):
    before = optimizers.OPTIMIZERS[name](**settings)
    now = optimizers.build(name, **settings)
    paths = [
      [jax.tree_util.keystr(path) for path, _ in leaves]
      for leaves in (
        jax.tree_util.tree_flatten_with_path(x.init(params))[0]
        for x in (before, now)
      )
    ]
    assert paths[0] == paths[1]  # what a checkpoint calls them


def test_lars_by_hand():
  params = {'a': {'w': jnp.array([3.0, 4.0]), 'b': jnp.array([2.0])}}
  grads = {'a': {'w': jnp.array([0.0, 2.0]), 'b': jnp.array([1.0])}}
  optimizer = optimizers.lars(
    weight_decay=0.0, momentum=0.5, trust_coefficient=0.1
  )
  opt_state = optimizer.init(params)
  first, opt_state = optimizer.update(grads, opt_state, params)
  second, _ = optimizer.update(grads, opt_state, params)
  # Length 0.1 x 5 in the gradient's direction; biases as they are.
  np.testing.assert_allclose(first['a']['w'], [0, 0.5], rtol=1e-6)
  np.testing.assert_allclose(first['a']['b'], [1.0])
  np.testing.assert_allclose(second['a']['w'], [0, 0.75], rtol=1e-6)


def test_lars_decays_weights_before_the_trust_ratio():
  params = {'a': {'w': jnp.array([3.0, 4.0]), 'b': jnp.array([2.0])}}
  grads = jax.tree.map(jnp.zeros_like, params)
  optimizer = optimizers.lars(
    weight_decay=0.01, momentum=0.0, trust_coefficient=0.1
  )
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  # Only the decay is left, scaled to 0.1 x 5; the bias does not decay.
  np.testing.assert_allclose(updates['a']['w'], [0.3, 0.4], rtol=1e-6)
  np.testing.assert_array_equal(updates['a']['b'], [0.0])


def test_sgd_with_decay_of_all_parameters_by_hand():
  """As torch.optim.SGD: m = mu m + (g + wd w), w -= rate m."""
  params = {'a': {'w': jnp.array([2.0])}, 'batch_norm': {'scale': jnp.ones(1)}}
  grads = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
  optimizer = optimizers.build('sgd_l2', weight_decay=0.1, momentum=0.5)
  opt_state = optimizer.init(params)
  for rate in (1.0, 2.0):
    updates, opt_state = optimizer.update(
      grads, opt_state, params, learning_rate=rate
    )
    params = optax.apply_updates(params, updates)
  # w: 2 - 0.7 = 1.3; then m = 0.35 + 0.63 = 0.98, and w = 1.3 - 1.96.
  np.testing.assert_allclose(params['a']['w'], [-0.66], rtol=1e-5)
  # 1 - 0.6 = 0.4; then m = 0.3 + 0.54 = 0.84.
  np.testing.assert_allclose(params['batch_norm']['scale'], [-1.28], rtol=1e-5)


def test_adamw_against_numpy():
  rng = np.random.default_rng(0)
  params = {'a': {'w': rng.normal(size=3), 'b': rng.normal(size=3)}}
  params = jax.tree.map(np.float32, params)
  optimizer = optimizers.adamw(weight_decay=0.1, b1=0.8, b2=0.9)
  opt_state = optimizer.init(params)
  mean, square = np.zeros(3), np.zeros(3)
  for step in range(1, 4):
    grad = rng.normal(size=3).astype(np.float32)
    grads = {'a': {'w': grad, 'b': grad}}
    updates, opt_state = optimizer.update(grads, opt_state, params)
    mean = 0.8 * mean + 0.2 * grad
    square = 0.9 * square + 0.1 * grad**2
    adam = mean / (1 - 0.8**step)
    adam = adam / (np.sqrt(square / (1 - 0.9**step)) + 1e-8)
    np.testing.assert_allclose(updates['a']['b'], adam, rtol=1e-5)
    decayed = adam + 0.1 * params['a']['w']
    np.testing.assert_allclose(updates['a']['w'], decayed, rtol=1e-5)


@pytest.mark.parametrize('nesterov, second', ((False, 1.5), (True, 1.75)))
def test_sgd(nesterov, second):
  params = {'a': {'w': jnp.ones(1)}}
  optimizer = optimizers.sgd(momentum=0.5, nesterov=nesterov)
  _, opt_state = optimizer.update(params, optimizer.init(params), params)
  updates, _ = optimizer.update(params, opt_state, params)
  # Trace 1, then 1.5; Nesterov looks one step ahead: 1 + 0.5 x 1.5.
  np.testing.assert_allclose(updates['a']['w'], [second])


def test_is_weight():
  leaf = np.zeros(1)
  mask = optimizers.is_weight(
    {
      'res_net50/~/initial_conv': {'w': leaf},
      'res_net50/~/initial_batchnorm': {'scale': leaf, 'offset': leaf},
      'projector/batch_norm': {'scale': leaf, 'offset': leaf},
      'projector/linear': {'w': leaf, 'b': leaf},
      'normal_net/linear': {'w': leaf},
    }
  )
  weights = {name for name, yes in by_name(mask).items() if yes}
  assert weights == {
    'res_net50/~/initial_conv/w',
    'projector/linear/w',
    'normal_net/linear/w',
  }


def test_build_passes_settings_on():
  params = {'a': {'w': jnp.ones(1)}}
  optimizer = optimizers.build('sgd', momentum=0.5)
  rate = {'learning_rate': 2.0}
  opt_state = optimizer.init(params)
  _, opt_state = optimizer.update(params, opt_state, params, **rate)
  updates, _ = optimizer.update(params, opt_state, params, **rate)
  np.testing.assert_allclose(updates['a']['w'], [-3.0])


def test_build_refuses_an_unknown_name():
  with pytest.raises(errors.UserError, match="'lasr'.*adamw.*mean 'lars'"):
    optimizers.build('lasr', weight_decay=0.0)
