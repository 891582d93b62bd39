"""Networks: their heads, and BatchNorm over a mapped axis."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import errors
from semppl_jax.distributed import parallel
from semppl_jax.models import encoders, networks
from tests.helpers import golden

SMALL = {
  'encoder': 'digits',
  'stem': 'small',
  'projector_hidden': 12,
  'embedding_size': 6,
  'num_classes': 3,
}


def shapes(tree):
  return {
    module: {name: list(x.shape) for name, x in leaves.items()}
    for module, leaves in tree.items()
  }


def digits(count):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.uniform(size=(count, 8, 8, 3)), jnp.float32)


def jitted(apply):
  return jax.jit(apply, static_argnums=3)


@functools.cache
def small_trees():
  """Params and state by the fill rule: compiling `init` takes far longer."""
  nets = networks.build(**SMALL)
  trees = jax.eval_shape(nets.init, jax.random.key(0), digits(2))
  params, state = (shapes(tree) for tree in trees)
  return golden.params(params), golden.state(state)


@functools.cache
def small_online(cross_replica):
  """Compiled once for all tests that use it."""
  return jitted(networks.build(**SMALL, cross_replica=cross_replica).online)


def assert_trees_close(actual, expected, **tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerance), actual, expected
  )


def test_heads_equal_the_releases():
  # Those of BYOL's tiny checkpoint: 8 -> 64 -> 32, 32 -> 64 -> 32, 8 -> 10.
  nets = networks.build(
    encoder='tiny', projector_hidden=64, embedding_size=32, num_classes=10
  )
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  params, state = jax.eval_shape(nets.init, jax.random.key(0), images)
  # BatchNorm keeps the rank of what it normalises.
  norm = {'scale': [1, 64], 'offset': [1, 64]}
  average = {'average': [1, 64], 'hidden': [1, 64], 'counter': []}
  heads = lambda tree: {
    module: leaves
    for module, leaves in shapes(tree).items()
    if not module.startswith('tiny_res_net/')
  }
  assert heads(params) == {
    'projector/linear': {'w': [8, 64], 'b': [64]},
    'projector/batch_norm': norm,
    'projector/linear_1': {'w': [64, 32]},
    'predictor/linear': {'w': [32, 64], 'b': [64]},
    'predictor/batch_norm': norm,
    'predictor/linear_1': {'w': [64, 32]},
    'classifier': {'w': [8, 10], 'b': [10]},
  }
  assert heads(state) == {
    f'{head}/batch_norm/~/{moment}_ema': average
    for head in ('projector', 'predictor')
    for moment in ('mean', 'var')
  }


def test_init_needs_no_axis_and_bears_one():
  nets = networks.build(**SMALL)  # cross_replica
  key = jax.random.key(0)
  plain = jax.eval_shape(nets.init, key, digits(2))
  mapped = jax.vmap(nets.init, in_axes=(None, 0), axis_name=parallel.AXIS)
  inside = jax.eval_shape(mapped, key, digits(2)[None])
  assert jax.tree.structure(inside) == jax.tree.structure(plain)
  for x, y in zip(jax.tree.leaves(inside), jax.tree.leaves(plain)):
    assert x.shape == (1,) + y.shape


def test_init_is_forgotten_by_the_first_training_pass():
  nets = networks.build(**SMALL, cross_replica=False)
  init = jax.jit(nets.init)
  params, state = init(jax.random.key(0), digits(8))
  same, _ = init(jax.random.key(0), 1 - digits(8))
  assert_trees_close(params, same, rtol=0)  # weights depend on the key only
  assert {float(x['counter']) for x in state.values()} == {0}
  for module, leaves in state.items():
    begins = float('var_ema' in module)  # mean 0, variance 1
    np.testing.assert_array_equal(leaves['average'], begins)
  other = jax.tree.map(lambda x: x, state)
  for leaves in other.values():
    leaves['average'] = leaves['average'] + 1
  online = small_online(False)
  passes = [online(params, s, digits(8), True) for s in (state, other)]
  assert_trees_close(*passes, atol=1e-6)
  counters = [x['counter'] for x in passes[0][1].values()]
  np.testing.assert_array_equal(counters, 1)


@pytest.mark.parametrize('is_training', (True, False))
def test_views_together_are_the_passes_of_each(is_training):
  params, state = small_trees()
  online = small_online(False)
  views = digits(12).reshape(3, 4, 8, 8, 3)
  outputs, moved = online(params, state, views, is_training)
  expected = []
  for view in views:
    one, state = online(params, state, view, is_training)
    expected.append(one)
  expected = jax.tree.map(lambda *x: jnp.stack(x), *expected)
  assert_trees_close(outputs, expected, atol=1e-4)
  assert_trees_close(moved, state, atol=1e-5)


def test_synchronised_batch_norm_equals_one_device():
  devices = jax.devices()[:4]
  params, state = small_trees()
  expected, new_state = small_online(False)(params, state, digits(8), True)
  mapped = jax.pmap(
    functools.partial(networks.build(**SMALL).online, is_training=True),
    axis_name=parallel.AXIS,
    in_axes=(None, None, 0),
    devices=devices,
  )
  outputs, states = mapped(params, state, parallel.shard(digits(8), 4))
  joined = jax.tree.map(lambda x: x.reshape((8,) + x.shape[2:]), outputs)
  assert_trees_close(joined, expected, atol=1e-5)
  for device in range(4):
    one = jax.tree.map(lambda x, d=device: x[d], states)
    assert_trees_close(one, new_state, atol=1e-6)


def test_training_without_the_axis_fails():
  params, state = small_trees()
  with pytest.raises(NameError, match=parallel.AXIS):
    jax.eval_shape(
      lambda *args: small_online(True)(*args, True), params, state, digits(2)
    )


def test_evaluation_sees_one_image_at_a_time():
  params, state = small_trees()
  online = small_online(True)
  outputs, new_state = online(params, state, digits(8), False)
  among_others = digits(8).at[1:].set(0.5)
  again, _ = online(params, state, among_others, False)
  first = lambda tree: jax.tree.map(lambda x: x[:1], tree)
  assert_trees_close(first(again), first(outputs), atol=1e-5)
  assert_trees_close(new_state, state, rtol=0)


def test_target_is_the_online_network_without_its_last_parts():
  params, state = small_trees()
  nets = networks.build(**SMALL, cross_replica=False)
  trees = nets.target_tree(params), nets.target_tree(state)
  for tree in trees:
    parts = {module.split('/')[0] for module in tree}
    assert parts == {'digits_res_net', 'projector'}
  outputs, new_state = jitted(nets.target)(*trees, digits(8), True)
  online, online_state = small_online(False)(params, state, digits(8), True)
  assert set(outputs) == {'projection'}
  np.testing.assert_allclose(
    outputs['projection'], online['projection'], atol=1e-5
  )
  assert outputs['projection'].shape == online['prediction'].shape == (8, 6)
  assert_trees_close(new_state, nets.target_tree(online_state), atol=1e-5)


@pytest.mark.parametrize('detached', (True, False))
def test_classifier_trains_the_encoder_only_if_asked(detached):
  params, state = small_trees()
  nets = networks.build(**SMALL, classifier_detached=detached)

  @jax.jit
  @jax.grad
  def gradient(params):
    outputs, _ = nets.online(params, state, digits(8), False)
    return jnp.sum(outputs['logits'][:, 0])

  grads = gradient(params)
  moved = {
    module.split('/')[0]
    for module, leaves in grads.items()
    if any(jnp.any(x != 0) for x in leaves.values())
  }
  assert moved == {'classifier'} | (set() if detached else {'digits_res_net'})


def test_no_classes_no_classifier():
  nets = networks.build(**SMALL | {'num_classes': 0})
  params, _ = jax.eval_shape(nets.init, jax.random.key(0), digits(2))
  assert 'classifier' not in params
  state = small_trees()[1]
  images = digits(2)
  call = functools.partial(nets.online, is_training=False)
  outputs, _ = jax.eval_shape(call, small_trees()[0], state, images)
  assert 'logits' not in outputs
  assert outputs['prediction'].shape == (2, 6)


def test_integer_images_are_refused():
  nets = networks.build(**SMALL)
  images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
  with pytest.raises(errors.UserError, match='uint8'):
    jax.eval_shape(nets.init, jax.random.key(0), images)


def _gradient(rounded=False, **options):
  """Of a loss of the predictions, as one vector; and what the network gives."""
  images = jnp.asarray(np.random.RandomState(0).rand(64, 16, 16, 3), 'float32')
  nets = networks.build(
    encoder='digits', stem='small', projector_hidden=16, embedding_size=8,
    cross_replica=False, num_classes=3, **options,
  )  # fmt: skip
  params, state = jax.jit(nets.init)(jax.random.key(0), images)
  if rounded:
    params = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16).astype('float32'), params
    )

  def loss(params):
    outputs, new = nets.online(params, state, images, True)
    return jnp.mean(outputs['prediction'][:, 0] * jnp.arange(64.0)), (
      outputs,
      new,
    )

  grads, outcome = jax.jit(jax.grad(loss, has_aux=True))(params)
  leaves = jax.tree.leaves((grads, outcome))
  assert all(x.dtype in (jnp.float32, jnp.int32) for x in leaves)
  return np.concatenate([x.ravel() for x in jax.tree.leaves(grads)]), outcome[0]


def _distance(one, other):
  return np.linalg.norm(one - other) / np.linalg.norm(one)


def test_remat_gives_the_gradient():
  assert _distance(_gradient()[0], _gradient(remat=True)[0]) < 1e-5


def test_bfloat16_is_as_near_as_its_digits_are():
  grads, outputs = _gradient()
  low, low_outputs = _gradient(precision='bfloat16')
  # An activation is rounded by 2^-9 at most.
  assert _distance(outputs['embedding'], low_outputs['embedding']) < 2**-8
  # Rounding the weights alone moves predictions by 0.7%, this gradient by 7.7%;
  # bfloat16 2.9 and 2.2 times as far, with BatchNorm in it 16 and 9 times.
  rounded, rounded_outputs = _gradient(rounded=True)
  own = _distance(outputs['prediction'], rounded_outputs['prediction'])
  assert (
    0 < _distance(outputs['prediction'], low_outputs['prediction']) < 4 * own
  )
  assert 0 < _distance(grads, low) < 4 * _distance(grads, rounded)


def test_bfloat16_products_take_bfloat16():
  nets = networks.build(
    encoder='digits', stem='small', cross_replica=False, precision='bfloat16'
  )
  images = jnp.zeros((2, 8, 8, 3))
  params, state = jax.eval_shape(nets.init, jax.random.key(0), images)
  text = str(jax.make_jaxpr(nets.online, static_argnums=3)(
    params, state, images, True
  ))  # fmt: skip
  products = [x for x in text.splitlines() if 'conv_general_dilated[' in x]
  assert products and all('bf16[' in x.split('=')[0] for x in products)


@pytest.mark.parametrize('remat', [False, True])
def test_remat_is_of_every_block(remat):
  nets = networks.build(
    encoder='digits', stem='small', cross_replica=False, remat=remat
  )
  images = jnp.zeros((2, 8, 8, 3))
  params, state = jax.eval_shape(nets.init, jax.random.key(0), images)
  text = str(jax.make_jaxpr(nets.online, static_argnums=3)(
    params, state, images, True
  ))  # fmt: skip
  assert len(re.findall(r'remat2?\[', text)) == (2 if remat else 0)


@pytest.mark.parametrize('zero, wanted', [(True, [0]), (False, [1])])
def test_with_what_scale_residual_blocks_begin(zero, wanted, monkeypatch):
  small = encoders.Encoder('small_res_net', (2,), (16,), True, (1,), 8)
  monkeypatch.setitem(encoders.ENCODERS, 'small', small)
  nets = networks.build(
    encoder='small', cross_replica=False, zero_init_residual=zero
  )
  images = jnp.zeros((2, 32, 32, 3))
  params, _ = jax.jit(nets.init)(jax.random.key(0), images)
  last = [k for k in params if k.endswith('/batchnorm_2')]
  assert len(last) == 2
  found = np.unique([params[k]['scale'] for k in last])
  np.testing.assert_array_equal(found, wanted)
  others = [
    x['scale'] for k, x in params.items() if 'scale' in x and k not in last
  ]
  assert all(np.all(scale == 1) for scale in others)


def test_heads_by_themselves_are_those_of_the_whole():
  params, state = small_trees()
  nets = networks.build(**SMALL, cross_replica=False)
  images = digits(12).reshape(3, 4, 8, 8, 3)
  whole = {'online': jitted(nets.online), 'target': jitted(nets.target)}
  heads = {'online': nets.online_heads, 'target': nets.target_heads}
  for name in whole:
    trees = params, state
    if name == 'target':
      trees = tuple(map(nets.target_tree, trees))
    expected = whole[name](*trees, images, True)
    embedding, moved = jitted(nets.encode)(*trees, images, True)
    found = jitted(heads[name])(trees[0], moved, embedding, True)
    assert_trees_close(found, expected, atol=1e-4)
