"""What every objective must hold to, checked for each that is registered.

A cheap network stands in for the encoder: what is tested is the objective in
the engine's hands. That an objective's file imports neither the engine nor
another objective is in test_architecture.
"""

import functools

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semppl_jax import methods, pretraining
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.models import networks
from semppl_jax.train import optimizers, watchdog
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from tests.helpers import tiny

_LABELS = [-1, 0, -1, 2, 1, -1, -1, 0, -1, -1, 2, -1, -1, -1, 1, -1]
# Layers with a BatchNorm behind them.
_BEFORE_BATCHNORM = (
  'projector/linear',
  'projector/linear_1',
  'projector/linear_2',
  'predictor/linear',
)
# What these make of a batch all devices make together: assignments, soft labels
# by a support, neighbours of a memory.
_ON_EIGHT = ('swav', 'dino', 'mira', 'suave', 'daino', 'paws', 'mean_shift')
_OWN_TEST = ('suave', 'daino', 'paws')  # in the file of each, on 2 to 8
# Of a gradient, between one device and more: PAWS's is the small difference of
# two terms that oppose each other. In 64 bits test_paws finds none.
_ROUNDING = {'paws': 3e-4}
_TEACHER = ({'linear': {'w': np.sin(np.arange(48 * 8.0) ** 2)}}, {})
_BN = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}


def _networks(method, monitored, bn_in_training):
  """An encoder of one matrix, with the objective's heads."""

  def encode(images, is_training):
    del is_training
    lead = images.shape[:-3]
    small = jax.image.resize(images, (*lead, 4, 4, 3), 'linear')
    flat = small.reshape(*lead, -1) - 0.5
    return jax.nn.relu(hk.Linear(12, name='encoder')(flat))

  def heads(embedding, is_training, is_online, axis=parallel.AXIS):
    lead = embedding.shape[:-1]
    bn = _BN | {'cross_replica_axis': axis, 'views': len(lead) == 2}
    outputs = method.heads(
      embedding, is_training and (bn_in_training or axis is None), is_online, bn
    )
    if is_online:
      outputs = {'embedding': embedding, **outputs}
    if is_online and monitored:
      seen = jax.lax.stop_gradient(embedding)
      outputs['logits'] = hk.Linear(tiny.NUM_CLASSES, name='classifier')(seen)
    return outputs

  def forward(images, is_training, is_online, axis=parallel.AXIS):
    return heads(encode(images, is_training), is_training, is_online, axis)

  def build(function, **settings):
    transformed = hk.transform_with_state(
      functools.partial(function, **settings)
    )
    return lambda params, state, inputs, is_training: transformed.apply(
      params, state, None, inputs, is_training
    )

  def init(key, images):
    forward_online = functools.partial(forward, is_online=True, axis=None)
    params, state = hk.transform_with_state(forward_online).init(
      key, images, True
    )
    return params, state

  def target_tree(tree):
    return {
      name: leaves
      for name, leaves in tree.items()
      if name.split('/')[0] in ('encoder', 'projector', 'prototypes')
    }

  return networks.Networks(
    init=init,
    online=build(forward, is_online=True),
    target=build(forward, is_online=False),
    encode=build(encode),
    target_tree=target_tree,
    features=None,
    features_tree=None,
    online_heads=build(heads, is_online=True),
    target_heads=build(heads, is_online=False),
  )


def _teacher(method):
  """A frozen teacher of one matrix."""

  def apply(params, state, images):
    del state
    small = jax.image.resize(images, (*images.shape[:-3], 4, 4, 3), 'linear')
    flat = small.reshape(*images.shape[:-3], -1) - 0.5
    weights = jnp.asarray(params['linear']['w'], jnp.float32).reshape(48, 8)
    return flat @ weights[:, : method.teacher.size]

  return apply if method.teacher else None


@functools.cache
def _run(name, parts=1, bn_in_training=True):
  """A run whose optimiser's state is the gradient."""
  run = tiny.prepare(name, accumulate=parts)
  setup = run.setup
  nets = _networks(setup.method, 'classifier' in run.cfg, bn_in_training)
  return run._replace(
    setup=setup._replace(
      nets=nets,
      optimizer=optimizers.rate_last(optax.trace(0.0)),
      teacher=_teacher(setup.method),
    )
  )


@functools.cache
def _step(name, number, parts=1, bn_in_training=True):
  """The compiled step, which may be traced once."""
  setup, traces = _run(name, parts, bn_in_training).setup, []

  def step(state, batch, key):
    traces.append(key)
    assert len(traces) == 1, 'the step was traced again'
    return step_lib.train_step(state, batch, key, _TEACHER, setup=setup)

  return tiny.map_step(step, number)


def _batches(name, labels=_LABELS):
  batches = [tiny.make_batch(labels, seed) for seed in range(2)]
  if not _has_support(name):
    return batches
  count = methods.default(name).support.images_per_class
  # So many of each of two classes, or of any.
  of = [2, 2, 2, 2, 0, 0, 0, 0] if count else [0, 1, 2, 0, 1, 2, 0, 1]
  support = tiny.make_batch(of, seed=2)
  return [batch._replace(support=support) for batch in batches]


def _has_support(name):
  return 'support' in methods.default(name)


@functools.cache
def _on_one_device(name):
  """Two steps: states on the host before, between and after; what was seen."""
  run = _run(name)
  state = tiny.first_state(run, 1)
  states, seen = [_to_host(run, state, 1)], []
  for batch in _batches(name):
    state, told = tiny.run_steps(_step(name, 1), state, [batch], 1)
    states.append(_to_host(run, state, 1))
    seen += told
  return states, seen


def _to_host(run, state, number):
  devices = jax.devices()[:number]
  state = parallel.put_sharded(state, devices)
  return state_lib.to_host(state, run.setup.method, devices)


def _from_host(run, state, number):
  devices = jax.devices()[:number]
  return state_lib.from_host(state, run.setup.method, devices)


def _assert_close(found, wanted, rtol, names=None):
  """Each array to rtol of its largest; but not where all is rounding.

  A bias before a BatchNorm has no gradient but rounding.
  """
  chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
  flat = jax.tree_util.tree_flatten_with_path(wanted)[0]
  for (path, leaf), other in zip(flat, jax.tree.leaves(found)):
    name = jax.tree_util.keystr(path)
    if any(f"['{layer}']['b']" in name for layer in _BEFORE_BATCHNORM):
      continue
    leaf, other = (np.asarray(x, np.float64) for x in (leaf, other))
    scale = max(np.abs(leaf).max(initial=0), 1e-3)
    assert np.abs(leaf - other).max(initial=0) <= rtol * scale, name


@pytest.mark.parametrize(
  'number, name',
  [
    *((4, name) for name in methods.METHODS if name not in _ON_EIGHT),
    *(pytest.param(4, name, marks=pytest.mark.long) for name in _ON_EIGHT),
    *(pytest.param(8, name, marks=pytest.mark.long) for name in _OWN_TEST),
    *((8, name) for name in _ON_EIGHT if name not in _OWN_TEST),
  ],
)
def test_the_number_of_devices_changes_nothing(number, name):
  run = _run(name)
  states, seen = _on_one_device(name)
  several = _from_host(run, states[0], number)
  several, [(scalars, labels)] = tiny.run_steps(
    _step(name, number), several, _batches(name)[:1], number
  )
  np.testing.assert_array_equal(labels, seen[0][1])
  for key, value in seen[0][0].items():
    assert np.ptp(scalars[key]) == 0, f'{key} differs between devices'
    np.testing.assert_allclose(scalars[key][0], value[0], rtol=1e-4, atol=1e-6)
  found = _to_host(run, several, number)
  rtol = _ROUNDING.get(name, 1e-5)
  _assert_close(found.opt_state, states[1].opt_state, rtol)  # gradient
  integers = lambda tree: [
    x for x in jax.tree.leaves(tree) if np.issubdtype(x.dtype, np.integer)
  ]
  chex.assert_trees_all_equal(integers(found), integers(states[1]))
  # It goes on, from what one device had saved, to what one device makes of it.
  after, [(_, labels)] = tiny.run_steps(
    _step(name, number), _from_host(run, states[1], number),
    _batches(name)[1:], number,
  )  # fmt: skip
  np.testing.assert_array_equal(labels, seen[1][1])
  _assert_close(_to_host(run, after, number), states[2], rtol=1e-4)


@pytest.mark.parametrize('name', methods.METHODS)
def test_a_run_taken_up_again_goes_on_bit_for_bit(name):
  run = _run(name)
  states, seen = _on_one_device(name)
  fresh = tiny.first_state(run, 1)
  kinds = state_lib.abstract_state(fresh, run.setup.method, 1)
  chex.assert_trees_all_equal_shapes_and_dtypes(kinds, states[1])
  after, [(scalars, labels)] = tiny.run_steps(
    _step(name, 1), _from_host(run, states[1], 1), _batches(name)[1:], 1
  )
  chex.assert_trees_all_equal(_to_host(run, after, 1), states[2])
  np.testing.assert_array_equal(labels, seen[1][1])
  chex.assert_trees_all_equal(scalars, seen[1][0])


@pytest.mark.parametrize('name', methods.METHODS)
def test_an_empty_memory_and_no_label_give_numbers(name):
  run = _run(name)
  nobody = [-1] * tiny.BATCH
  state, seen = tiny.run_steps(
    _step(name, 1), tiny.first_state(run, 1), _batches(name, nobody), 1
  )
  for scalars, labels in seen:
    chex.assert_tree_all_finite(scalars)
    # Teachers know some, and images of a support have some.
    if run.setup.method.teacher is None and not _has_support(name):
      np.testing.assert_array_equal(labels, -1)
  chex.assert_tree_all_finite(_to_host(run, state, 1))


@pytest.mark.parametrize('name', methods.METHODS)
def test_true_labels_overrule(name):
  _, seen = _on_one_device(name)
  known = np.array(_LABELS) >= 0
  for _, labels in seen:
    np.testing.assert_array_equal(labels[known], np.array(_LABELS)[known])


@pytest.mark.parametrize('name', methods.METHODS)
def test_a_hidden_label_reaches_nobody(name):
  run = tiny.prepare(name)
  train = run.data.train
  hidden = np.where(run.labels < 0, (train.labels + 1) % 3, train.labels)
  changed = run._replace(
    data=run.data._replace(train=_Relabelled(train, hidden))
  )
  pairs = zip(run_lib.input_batches(run, 0), run_lib.input_batches(changed, 0))
  different = False
  for (batch, truth), (same, other_truth) in pairs:
    chex.assert_trees_all_equal(batch, same)
    different |= bool(np.any(truth != other_truth))
  assert different or name == 'supervised'  # which sees labelled images only


class _Relabelled:
  """A source with other labels."""

  def __init__(self, source, labels):
    self._source, self.labels = source, labels

  def __len__(self):
    return len(self._source)

  def __getitem__(self, row):
    return self._source[row] | {'label': self.labels[row]}

  def __getattr__(self, name):
    return getattr(self._source, name)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.long)
    if name in ('byol', 'mean_shift')
    else name
    for name in methods.METHODS
  ],
)
def test_microbatches_are_the_whole_batch(name):
  """In evaluation mode of BatchNorm, whose statistics would differ."""
  whole_run = _run(name, 1, False)
  if not whole_run.setup.method.accumulates:
    with pytest.raises(UserError, match=f'accumulate is 2, .* {name!r}'):
      tiny.prepare(name, accumulate=2)
    return
  begun = _to_host(whole_run, tiny.first_state(whole_run, 2), 2)
  found = []
  for parts in (1, 2):
    run = _run(name, parts, False)
    state, [(scalars, labels)] = tiny.run_steps(
      _step(name, 2, parts, False), _from_host(run, begun, 2),
      _batches(name)[:1], 2, parts=parts,
    )  # fmt: skip
    found.append((_to_host(run, state, 2), scalars, labels))
  (whole, scalars, labels), (parts, same, in_parts) = found
  np.testing.assert_array_equal(labels, in_parts)
  _assert_close(parts.opt_state, whole.opt_state, rtol=1e-5)
  chex.assert_trees_all_close(parts.memory, whole.memory, atol=1e-6)
  chex.assert_trees_all_close(scalars, same, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', methods.METHODS)
def test_what_is_watched_is_told(name):
  method = _run(name).setup.method
  _, seen = _on_one_device(name)
  scalars = seen[0][0]
  assert ('embedding_std' in scalars) == (method.embedding is not None)
  assert set(method.chance) <= set(scalars)
  if method.prototypes is not None:
    most = np.log(method.prototypes.number)
    assert scalars['assignment_entropy'] <= most + 1e-5
    assert scalars['marginal_entropy'] <= most + 1e-5
  assert ('assignment_entropy' in scalars) == (method.prototypes is not None)
  assert not method.labels_train or 'top_label_share' in scalars
  assert set(scalars) >= {'loss', 'grad_norm', 'learning_rate'}
  assert np.all(np.isfinite(list(scalars.values())))


@pytest.mark.parametrize('name', methods.METHODS)
def test_one_prototype_for_all_alarms(name):
  run = _run(name)
  healthy = {key: 1e-3 for key in run.setup.method.chance}
  healthy |= {'loss': 1.0, 'grad_norm': 1.0, 'embedding_std': 1.0}
  healthy |= {'top_label_share': 0.0, 'pseudo_label_share': 0.0}
  bad = {'assignment_entropy': 0.0, 'marginal_entropy': 0.0}
  dog = pretraining.watching(run)
  found = ''
  try:
    for step in range(1, 500):
      dog.check(step, healthy | bad)
  except watchdog.AlarmError as error:
    found = str(error)
  has_prototypes = run.setup.method.prototypes is not None
  assert has_prototypes == ('one prototype' in found)


@pytest.mark.parametrize('name', methods.METHODS)
def test_settings_have_bounds_that_exist(name):
  module, cfg = methods.METHODS[name], methods.default(name)
  known = {key for key, _ in methods.checks.flat(cfg)}
  assert set(module.RANGES) <= known
  assert set(getattr(module, 'CHOICES', {})) <= known
  assert cfg.method == name


@pytest.mark.long  # operation by operation
@pytest.mark.parametrize('name', methods.METHODS)
def test_uncompiled_and_unmapped_it_gives_the_same(name):
  run = _run(name)
  states, seen = _on_one_device(name)
  step = functools.partial(
    step_lib.train_step, teacher=_TEACHER, setup=run.setup
  )
  with chex.fake_pmap_and_jit():
    mapped = parallel.map_step(step, jax.devices()[:1], donate=False)
    batch = jax.tree.map(jnp.asarray, parallel.shard(_batches(name)[0], 1))
    state = jax.tree.map(lambda x: jnp.asarray(x)[None], states[0])
    _, scalars, labels, *_ = mapped(state, batch, jax.random.key(0))
  np.testing.assert_array_equal(labels[0], seen[0][1])
  for key, value in seen[0][0].items():
    np.testing.assert_allclose(scalars[key][0], value[0], rtol=1e-4, atol=1e-5)
