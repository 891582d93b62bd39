"""SwAV's updates against its release's; its queue; what it refuses.

golden_data/swav_steps_*.npz: eight updates by main_swav.train with LARC, of a
network of two matrices, whose views are given as vectors.
"""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semppl_jax import methods, types
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import clustering
from semppl_jax.methods import base, swav
from semppl_jax.models import heads, networks
from semppl_jax.models.multicrop import l2_normalize
from semppl_jax.train import passes
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from tests.helpers import golden, tiny

_STEPS, _B, _K, _D = 8, 4, 6, 5
_FACTS = base.RunFacts(3, _B, np.zeros(3, np.float32), 0, _STEPS, int)


def _setup(capacity, **changes):
  """The release's settings, and its network in place of ours."""
  cfg = tiny.make_config('swav', labels__per_class=0)
  cfg.batch_size = _B
  cfg.views.update(one_pass=False, heads_joint=False)
  cfg.projector.size = _D
  cfg.prototypes.update(number=_K, freeze_epochs=2.0)  # steps, here
  cfg.queue.update(capacity=capacity, start_epoch=0.0)
  # From 0.2 to 1 in 8 steps; settings are for 256 images.
  cfg.optimizer.update(
    name='larc', learning_rate=64.0, start_learning_rate=12.8,
    weight_decay=0.01, momentum=0.9, trust_coefficient=0.05,
    warmup_kind='swav',
  )  # fmt: skip
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  cfg = tiny.frozen(cfg)
  method = methods.build(cfg, _FACTS)

  def online(params, state, images, is_training):
    del is_training
    x = images.reshape(*images.shape[:2], -1)  # [v, b, 7]
    z = l2_normalize(x @ params['linear']['w'].T + params['linear']['b'])
    scores = heads.prototype_scores(z, params['prototypes'])
    return {'projection': z, 'scores': scores}, state

  unused = dict.fromkeys(networks.Networks._fields)
  return step_lib.StepSetup(
    cfg=cfg,
    method=method,
    nets=networks.Networks(**unused | {'online': online}),
    optimizer=run_lib.build_optimizer(cfg),
    total_steps=_STEPS,
    warmup_steps=_STEPS,
  )


def _first_state(setup, file, number):
  params = {
    'linear': {'w': file['w0'], 'b': file['b0']},
    'prototypes': {'w': np.asarray(l2_normalize(file['c0']))},
  }
  state = state_lib.TrainState(
    step=np.int32(0),
    online_params=params,
    online_state={},
    target_params={},
    target_state={},
    opt_state=setup.optimizer.init(params),
    memory=setup.method.init(),
  )
  return state_lib.from_host(state, setup.method, jax.devices()[:number])


def _given_views(batch, keys, setup):
  del keys, setup
  views = jnp.moveaxis(batch.images, 1, 0)[..., None, None]  # [4, b, 7, 1, 1]
  return types.Views(views[:2], views[2:])


def _updates(file, capacity, number, monkeypatch):
  """Weights, queue and metrics after each of the file's eight updates."""
  monkeypatch.setattr(passes, 'make_views', _given_views)
  setup = _setup(capacity)
  step = tiny.map_step(
    functools.partial(step_lib.train_step, setup=setup), number
  )
  state = _first_state(setup, file, number)
  for views in file['views']:
    state, [(scalars, _)] = tiny.run_steps(step, state, [_batch(views)], number)
    whole = _to_host(state, setup, number)
    yield whole, {key: value[0] for key, value in scalars.items()}


def _batch(views):
  """In place of images their four views, [4, 4, 7]."""
  nobody = np.full(_B, -1, np.int32)
  return types.Batch(np.moveaxis(views, 0, 1), nobody, np.arange(_B))


def _to_host(state, setup, number):
  devices = jax.devices()[:number]
  state = parallel.put_sharded(state, devices)
  return state_lib.to_host(state, setup.method, devices)


@pytest.mark.parametrize('number', [1, 2, 4])
@pytest.mark.parametrize('kind, capacity', [('noqueue', 0), ('queue', 8)])
def test_eight_updates_are_the_releases(kind, capacity, number, monkeypatch):
  file = golden.load(f'swav_steps_{kind}.npz')
  assert set(file['sk_rows'][-1]) == {_B + capacity}
  updates = _updates(file, capacity, number, monkeypatch)
  for i, (state, scalars) in enumerate(updates):
    _close(scalars['loss/swapped'], file['loss'][i])
    _close(scalars['learning_rate'], file['lr'][i])
    linear, prototypes = (
      state.online_params[name] for name in ('linear', 'prototypes')
    )
    _close(linear['w'], file['w'][i])
    _close(linear['b'], file['b'][i])
    # Theirs have length 1 from the next step on.
    _close(prototypes['w'], l2_normalize(file['c'][i]))
    if i >= 2:  # before, their prototypes have no gradient
      grads = [file[f'g{leaf}'][i] for leaf in 'wbc']
      _close(scalars['grad_norm'], optax.tree.norm(grads))
    entropy = jax.scipy.special.entr(file['q'][i]).sum(axis=-1).mean()
    _close(scalars['assignment_entropy'], entropy)
    if capacity:  # theirs begins with the newest block
      blocks = state.memory.embeddings.reshape(2, 2, _B, _D)
      newest_first = blocks[:, [i % 2, 1 - i % 2]].reshape(2, -1, _D)
      _close(newest_first, file['queue'][i])
      assert scalars['queue_fill'] == min(i * _B / capacity, 1)


def _close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['noqueue', 'queue'])
def test_assignments_are_the_releases(kind):
  """Of each step by itself, from the release's features and prototypes."""
  file = golden.load(f'swav_steps_{kind}.npz')
  for i in range(_STEPS):
    rows = file['prototypes_used'][i].T  # [d, K]
    features = file['z'][i].reshape(4, _B, _D)
    older, counts = None, False
    if kind == 'queue' and i:
      older, counts = file['queue'][i - 1] @ rows, i >= 2
    q = clustering.sinkhorn(
      features[:2] @ rows, older, counts, epsilon=0.05, iterations=3
    )
    np.testing.assert_allclose(q, file['q'][i], rtol=1e-5, atol=1e-5)


def test_the_smallest_loss_by_hand():
  """Two images, two prototypes, one iteration, the same in both views."""
  scores = 0.05 * np.log(np.array([[3.0, 1.0], [1.0, 1.0]], np.float32))
  q = np.array([[3 / 5, 2 / 5], [1 / 3, 2 / 3]])
  # At twice the temperature the odds are the roots: sqrt(3) to 1, and 1 to 1.
  p = np.array([[3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)], [0.5, 0.5]])
  wanted = -np.sum(q * np.log(p), axis=1).mean()
  value, gradient = _loss_and_gradient(scores, large=2)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  # Of the prediction alone: none flows through the assignments.
  by_hand = (p - q) / (0.1 * 2 * 2)
  np.testing.assert_allclose(gradient, [by_hand, by_hand], atol=1e-6)


def test_small_views_predict_and_are_not_predicted():
  scores = 0.05 * np.log(np.array([[3.0, 1.0], [1.0, 1.0]], np.float32))
  _, gradient = _loss_and_gradient(scores, large=1, small=1)
  assert not gradient[0].any()
  assert gradient[1].any()


def _loss_and_gradient(scores, large, small=0):
  """Of the same scores [b, K] in every view; the gradient is [V, b, K]."""
  cfg = tiny.make_config(
    'swav', sinkhorn__iterations=1, queue__capacity=0,
    views__num_large=large, views__num_small=small,
  )  # fmt: skip
  images, cfg.prototypes.number = scores.shape
  method = swav.build(tiny.frozen(cfg), _FACTS)

  def value(scores):
    z = jnp.zeros(scores.shape[:2] + (1,))
    outputs = {'projection': z, 'scores': scores}
    return method.loss(_inputs(outputs, images), ()).loss

  mapped = jax.pmap(
    jax.value_and_grad(value), parallel.AXIS, devices=jax.devices()[:1]
  )
  views = np.stack([scores] * (large + small))
  return jax.tree.map(lambda x: np.asarray(x)[0], mapped(views[None]))


def _inputs(online, images):
  nobody = jnp.full(images, -1, jnp.int32)
  ids = jnp.arange(images)
  batch = base.BatchWide(None, nobody, ids, jnp.zeros((), jnp.int32))
  return base.Inputs(
    online=online, target=None, labels=nobody, ids=ids, batch=batch,
    shared=(), keys=None,
  )  # fmt: skip


# The queue.


def _run_of_three(number=1, **changes):
  """Three steps of the golden network's engine: states on the host, metrics."""
  setup = _setup(**changes)
  file = golden.load('swav_steps_queue.npz')
  step = tiny.map_step(
    functools.partial(step_lib.train_step, setup=setup), number
  )
  state = _first_state(setup, file, number)
  return setup, step, state, [_batch(views) for views in file['views'][:3]]


def test_a_queue_that_is_not_full_changes_no_bit(monkeypatch):
  monkeypatch.setattr(passes, 'make_views', _given_views)
  found = []
  for capacity in (0, 12):  # full after three steps
    _, step, state, batches = _run_of_three(capacity=capacity)
    state, seen = tiny.run_steps(step, state, batches, 1)
    found.append((state.online_params, state.opt_state, seen[-1][0]['loss']))
  chex.assert_trees_all_equal(*found)


def test_the_queue_begins_at_its_epoch(monkeypatch):
  monkeypatch.setattr(passes, 'make_views', _given_views)
  _, step, state, batches = _run_of_three(
    capacity=4,
    queue__start_epoch=1.0,  # steps, here
  )
  _, seen = tiny.run_steps(step, state, batches, 1)
  fill = [scalars['queue_fill'][0] for scalars, _ in seen]
  np.testing.assert_array_equal(fill, [0, 0, 1])


@pytest.mark.parametrize('devices', [(1, 1), (2, 4)])
def test_a_run_goes_on_while_the_queue_fills(devices, monkeypatch):
  monkeypatch.setattr(passes, 'make_views', _given_views)
  before, after = devices
  setup, step, state, batches = _run_of_three(before, capacity=8)
  whole, _ = tiny.run_steps(step, state, batches, before)
  state, _ = tiny.run_steps(step, state, batches[:1], before)
  saved = _to_host(state, setup, before)
  assert saved.memory.embeddings.shape == (2, 8, _D)
  state = state_lib.from_host(saved, setup.method, jax.devices()[:after])
  if after != before:
    step = _run_of_three(after, capacity=8)[1]
  state, _ = tiny.run_steps(step, state, batches[1:], after)
  found, wanted = _to_host(state, setup, after), _to_host(whole, setup, before)
  if after == before:
    chex.assert_trees_all_equal(found, wanted)
  chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_traffic_knows_neither_the_queue_nor_the_scores(monkeypatch):
  """No collective has a dimension Q or Q/D, nor carries B x K numbers."""
  monkeypatch.setattr(passes, 'make_views', _given_views)
  small, large = _traffic(4), _traffic(4 * 1009)
  assert small == large
  assert not any(_B in shape and _K in shape for shape in large)
  gather = lambda x: parallel.all_gather(x, axis=1).mean()
  original = swav.clustering.assignment_metrics
  monkeypatch.setattr(
    swav.clustering, 'assignment_metrics',
    lambda q, mean: original(q, mean) | {'all': gather(q)},
  )  # fmt: skip
  assert (2, _B, _K) in _traffic(4)  # it would be seen


def _traffic(capacity):
  """Shapes of what the collectives of a compiled step bring, on 4 devices."""
  _, step, state, batches = _run_of_three(4, capacity=capacity)
  lowered = step.lower(state, parallel.shard(batches[0], 4), jax.random.key(0))
  text = lowered.compile().as_text()
  kinds = 'all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute'
  shapes = []
  for line in text.splitlines():
    if found := re.search(rf' (?:{kinds})(?:-start)?\(', line):
      shapes += re.findall(r'[a-z]\d+\[([\d,]*)\]', line[: found.start()])
  assert shapes
  return sorted(tuple(map(int, s.split(','))) if s else () for s in shapes)


# Settings.


@pytest.mark.parametrize(
  'changes, line',
  [
    ({'loss__temperature': 0.0}, 'loss.temperature is 0.0; it must be above 0'),
    ({'sinkhorn__epsilon': 0.0}, 'sinkhorn.epsilon is 0.0; it must be above 0'),
    (
      {'queue__capacity': 40},
      'queue.capacity is 40, no multiple of batch_size 16: set it to 32 or 48',
    ),
    (
      {'views__num_large': 1, 'views__num_small': 0},
      'views.num_large is 1 and views.num_small 0, .* set views.num_large to 2',
    ),
    ({'sinkhorn__iterations': 0}, 'sinkhorn.iterations is 0'),
    ({'prototypes__number': 1}, 'prototypes.number is 1'),
  ],
)
def test_what_cannot_work_is_refused(changes, line):
  with pytest.raises(UserError, match=line):
    methods.validate(tiny.make_config('swav', **changes), 1)


def test_what_can_hardly_be_meant_is_said():
  say = lambda **changes: list(
    methods.doubts(tiny.make_config('swav', **changes), _FACTS)
  )
  assert not say()
  (few,) = say(prototypes__number=33)
  assert 'fewer images than prototypes.number 33' in few
  (late,) = say(queue__start_epoch=7.0)
  assert 'is full after step 8, but the run ends with step 8' in late
  assert not say(queue__capacity=0, queue__start_epoch=7.0)


def test_it_is_watched_for_a_loss_that_stays_at_chance():
  cfg = tiny.make_config('swav', prototypes__number=20)
  method = swav.build(tiny.frozen(cfg), _FACTS)
  assert method.chance == {'loss/swapped': math.log(20)}
  assert method.advice[0] == 'sinkhorn.epsilon=0.03'
  assert 'a later queue.start_epoch' in method.advice
  cfg.queue.capacity, cfg.sinkhorn.epsilon = 0, 0.02
  assert swav.advice(cfg)[0] == 'a longer prototypes.freeze_epochs'
  assert 'a later queue.start_epoch' not in swav.advice(cfg)
