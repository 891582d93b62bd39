"""A method that learns with a support, in the engine's hands."""

import functools
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from semppl_jax import config, methods, preflight
from semppl_jax.augment import views as views_lib
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from semppl_jax.train import device_memory, optimizers, pass_time
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train import support as support_lib
from tests.helpers import tiny, toy_support

NAME = toy_support.NAME
PLAIN = {'support__jitter': 0.0}  # compiles faster
ANY = PLAIN | {'support__images': 8, 'support__views': 2}
BY_CLASS = PLAIN | {
  'support__images': 0,
  'support__classes': 2,
  'support__images_per_class': 4,
}
JOINT_HEADS = {'views__heads_joint': True}
APART = {'support__joint': False}


@pytest.fixture(autouse=True, scope='module')
def registered():
  toy_support.register()
  yield
  del methods.METHODS[NAME]


def make_config(**changes):
  return tiny.make_config(NAME, **changes)


def prepare(**changes):
  """A run whose optimiser's state is the gradient."""
  run = run_lib.prepare(make_config(num_devices=1, **changes))
  gradient = optimizers.rate_last(optax.trace(0.0))
  return run._replace(setup=run.setup._replace(optimizer=gradient))


def batches(run, count=2):
  found = itertools.islice(run_lib.input_batches(run, 0), count)
  return [batch for batch, _ in found]


def take(run, number, state=None, given=None):
  """Steps on `number` devices: the state on the host, what was seen."""
  step = functools.partial(step_lib.train_step, setup=run.setup)
  devices = jax.devices()[:number]
  begun = tiny.first_state(run, number)
  if state is not None:
    begun = state_lib.from_host(state, run.setup.method, devices)
  after, seen = tiny.run_steps(
    tiny.map_step(step, number), begun, given or batches(run), number
  )
  after = parallel.put_sharded(after, devices)
  return state_lib.to_host(after, run.setup.method, devices), seen


# -- the number of devices --


@pytest.mark.parametrize(
  'changes, numbers',
  [
    (ANY | JOINT_HEADS, (8,)),
    pytest.param(BY_CLASS, (4,), marks=pytest.mark.long),
    pytest.param(ANY | JOINT_HEADS, (2, 4), marks=pytest.mark.long),
    pytest.param(ANY | APART, (4,), marks=pytest.mark.long),
    pytest.param(BY_CLASS | APART | JOINT_HEADS, (8,), marks=pytest.mark.long),
  ],
)
def test_the_number_of_devices_changes_nothing(changes, numbers):
  run = prepare(**changes)
  first = batches(run, 1)
  one, [(scalars, labels)] = take(run, 1, given=first)
  assert scalars['loss/supervised'] > 0
  norm = optax.tree.norm(one.opt_state)
  for number in numbers:
    many, [(same, its_labels)] = take(run, number, given=first)
    np.testing.assert_array_equal(its_labels, labels)
    for key, value in scalars.items():
      assert np.ptp(same[key]) == 0, f'{key} differs between devices'
      np.testing.assert_allclose(same[key][0], value[0], rtol=1e-4, atol=1e-6)
    apart = optax.tree.norm(optax.tree.sub(many.opt_state, one.opt_state))
    assert apart < 1e-5 * norm
    chex.assert_trees_all_close(
      many.online_state, one.online_state, rtol=1e-4, atol=1e-5
    )


def test_a_run_taken_up_again_goes_on_bit_for_bit():
  run = prepare(**BY_CLASS)
  first, second = batches(run)
  again = next(run_lib.input_batches(run, 1))[0]
  chex.assert_trees_all_equal(again, second)
  whole, seen = take(run, 2, given=[first, second])
  between, _ = take(run, 2, given=[first])
  after, rest = take(run, 2, between, given=[again])
  chex.assert_trees_all_equal(after, whole)
  chex.assert_trees_all_equal(rest, seen[1:])


# -- what the loss sees --


def test_a_step_by_hand():
  """One device's step again, with no line of the engine's passes."""
  run = prepare(**ANY | JOINT_HEADS | {'support__jitter': 0.8})
  method, nets = run.setup.method, run.setup.nets
  (batch,) = batches(run, 1)
  state = tiny.portable(run)
  step_key = jax.random.fold_in(jax.random.key(0), 0)

  def views(section, begins, given):
    keys = [
      jax.random.fold_in(jax.random.fold_in(step_key, begins + i), 0)
      for i in range(len(given.labels))
    ]
    return views_lib.make_views(jnp.stack(keys), given.images, section)

  def loss(params):
    section = ml_collections.ConfigDict(run.cfg.views)
    of_batch = views(section, 0, batch)
    section.update(num_large=2, num_small=0, large_area=(0.08, 1.0))
    section.update(saturation=0.4, grayscale=0.2, jitter=0.8, blur=(0.0, 0.0))
    of_support = views(section, tiny.BATCH, batch.support).large
    # 2 x 8 views of the support go first; then 2 x 16 large, 16 small ones.
    rows = [x.reshape(-1, 8, 8, 3) for x in (of_support, of_batch.large)]
    rows = jnp.concatenate(rows)[None]
    large, bn_state = nets.encode(params, state.online_state, rows, True)
    small, bn_state = nets.encode(params, bn_state, of_batch.small, True)
    rows = jnp.concatenate([large, small], axis=1)
    outputs, _ = nets.online_heads(params, bn_state, rows, True)
    first = lambda x: x[0, :16].reshape(2, 8, -1)
    rest = lambda x: x[0, 16:].reshape(3, 16, -1)
    support = base.Support(
      jax.tree.map(first, outputs), jnp.asarray(batch.support.labels)
    )
    inputs = base.Inputs(
      online=jax.tree.map(rest, outputs), target=None,
      labels=jnp.asarray(batch.labels), ids=batch.ids, batch=None, shared=(),
      keys=None, support=support,
    )  # fmt: skip
    return method.loss(inputs, ()).loss

  by_hand = parallel.map_evaluation(
    lambda params, _: jax.value_and_grad(loss)(params), jax.devices()[:1]
  )
  params = parallel.replicate(state.online_params, 1)
  value, grads = by_hand(params, np.zeros(1))
  after, [(scalars, _)] = take(run, 1, given=[batch])
  np.testing.assert_allclose(scalars['loss'], value, rtol=1e-5)
  (found,) = jax.tree.leaves(
    after.opt_state, is_leaf=lambda x: isinstance(x, dict)
  )
  for name, leaves in parallel.unreplicate(grads).items():
    if name != 'classifier':  # it has a loss of its own
      chex.assert_trees_all_close(found[name], leaves, rtol=1e-3, atol=1e-6)


def test_classes_of_a_step_and_places_among_them():
  cfg = make_config(**BY_CLASS)
  labels = np.repeat([2, 0], 4).astype(np.int32)

  def of_device(_, labels):
    return support_lib.for_loss({}, labels, cfg)

  mapped = parallel.map_evaluation(of_device, jax.devices()[:4])
  found = mapped(np.zeros(4), parallel.shard(labels, 4))
  np.testing.assert_array_equal(found.classes, [[2, 0]] * 4)
  np.testing.assert_array_equal(
    parallel.unshard(found.place), [0] * 4 + [1] * 4
  )
  np.testing.assert_array_equal(parallel.unshard(found.labels), labels)
  of_any = support_lib.for_loss({}, labels, make_config(**ANY))
  assert of_any.place is None and of_any.classes is None


# -- what is refused, in one line, before the start --


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'support__images': 6}, 'support of 6 images .* the 4 devices'),
    (
      BY_CLASS | {'support__images_per_class': 3},
      'support of 6 images .* the 4 devices',
    ),
    ({'support__images': 0}, 'support.images is 0, .* must be above 0'),
    (BY_CLASS | {'support__images': 8}, 'support.images is 8, support.classes'),
    ({'support__classes': 2}, 'support.classes 2 and .*images_per_class 0'),
    ({'support__images': 16}, 'support.images is 16, but only 12 training'),
    (
      BY_CLASS | {'support__images_per_class': 6},
      'images_per_class is 6, but class .* has only 4',
    ),
    (BY_CLASS | {'support__classes': 4}, 'support.classes is 4, .* has 3'),
    ({'accumulate': 2}, f'accumulate is 2, but method {NAME!r}'),
    ({'labels__per_class': 0}, 'no image has a label: set labels.per_class'),
    ({'views__one_pass': False}, 'support.joint is True, .*one_pass=False'),
    ({'support__area': (0.5, 0.1)}, r'support.area is \(0.5, 0.1\)'),
    ({'support__blur': (0.5, 2.0)}, 'support.blur is .* from 0 to 1'),
    ({'support__views': 0}, 'support.views is 0'),
  ],
)
def test_what_cannot_work_is_refused(changes, words):
  cfg = make_config(num_devices=4, **{'support__images': 8} | changes)
  with pytest.raises(UserError, match=words) as caught:
    run_lib.prepare(cfg)
  assert '\n' not in str(caught.value)


def test_the_size_of_a_support():
  assert config.support_size(config.default('byol')) == 0
  assert config.support_size(make_config(**ANY)) == 8
  assert config.support_size(make_config(**BY_CLASS)) == 8


# -- what it costs --


def test_a_step_has_its_passes(monkeypatch):
  clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
  monkeypatch.setattr(pass_time, 'time', clock)
  run = run_lib.prepare(make_config(num_devices=1, **ANY))
  found = pass_time.seconds_of_passes(run.cfg, run.facts, 4, run.devices[0])
  # Two large views, a small one, and two views of half as many images.
  assert found == pytest.approx(2 + (6 / 8) ** 2 + 2 * 8 / 16)


def test_a_check_counts_it(monkeypatch):
  run = run_lib.prepare(make_config(num_devices=2, **ANY))
  batch = next(run_lib.input_batches(run, 0))[0]
  without = preflight._bytes(batch._replace(support=None))
  assert preflight._bytes(batch) > without
  monkeypatch.setattr(pass_time, 'seconds_of_passes', lambda *_: 0.1)
  lines = preflight.check_run(make_config(num_devices=2, **ANY), None)
  assert 'a first batch of 16 and 8 of its support was there' in lines[1]
  # 4 images of it on each device, two views of each: as the large ones are.
  large = run_lib.prepare(
    make_config(num_devices=2, **ANY | {'views__num_small': 0})
  )
  assert preflight.support_floor(run) == 4 * preflight.floor(large)
  kept = int(4 * preflight.floor(large) * preflight._KEPT[False])
  assert f', {preflight._size(kept)} the support' in '\n'.join(lines)


def test_too_little_memory_counts_it(monkeypatch):
  cfg = make_config(num_devices=1, **ANY)
  run = run_lib.prepare(cfg)
  batch = next(run_lib.input_batches(run, 0))[0]
  state = preflight._bytes(preflight._state(run)) + 2 * preflight._bytes(batch)
  kept = preflight._KEPT[False]
  need = state + kept * preflight.support_floor(run)
  there = int((need + 4.5 * kept * preflight.floor(run)) / 0.92)
  monkeypatch.setattr(device_memory, 'capacity', lambda device: there)
  with pytest.raises(UserError, match='about 4 images would fit'):
    preflight.check_run(cfg, None)
