"""The step against slow references, and for every number of devices."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semppl_jax import methods, types
from semppl_jax.augment import views
from semppl_jax.distributed import parallel
from semppl_jax.losses import negatives
from semppl_jax.memory import label_queue
from semppl_jax.methods import base
from semppl_jax.models import networks
from semppl_jax.train import optimizers, passes
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train.state import TrainState
from tests.helpers import reference, tiny

_LABELS = [-1, 0, -1, 2, 1, -1, -1, 0, -1, -1, 2, -1, -1, -1, 1, -1]


def _linear_networks(num_features=48, size=8):
  """Networks that are one matrix, and count the views as their state."""

  def features(images):
    lead = images.shape[:-3]
    small = jax.image.resize(images, (*lead, 4, 4, 3), 'linear')
    return small.reshape(*lead, num_features)

  def apply(params, state, images, is_training, predictor):
    assert is_training
    embedding = features(images)
    out = embedding @ params['projector']['w']
    seen = state['projector/~/bn']['views'] + len(images)
    state = {'projector/~/bn': {'views': seen}}
    outputs = {'projection': out}
    if predictor:
      outputs |= {'prediction': out @ params['predictor']['w']}
    return outputs, state

  random = np.random.RandomState(1)
  params = {
    'projector': {'w': random.randn(num_features, size).astype(np.float32)},
    'predictor': {'w': random.randn(size, size).astype(np.float32)},
  }
  nets = networks.Networks(
    init=None,
    online=functools.partial(apply, predictor=True),
    target=functools.partial(apply, predictor=False),
    encode=None,
    target_tree=lambda tree: {'projector': tree['projector']},
    features=None,
    features_tree=None,
    online_heads=None,
    target_heads=None,
  )
  return nets, params, features


def _map(setup, num_devices=1):
  step = functools.partial(step_lib.train_step, setup=setup)
  return tiny.map_step(step, num_devices)


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


# One step an epoch, of ten: durations of the config are steps.
_FACTS = base.RunFacts(
  num_classes=tiny.NUM_CLASSES,
  num_images=tiny.BATCH,
  class_share=np.full(tiny.NUM_CLASSES, 1 / tiny.NUM_CLASSES, np.float32),
  num_labels=7,
  total_steps=10,
  steps=int,
)


def _setup(cfg, nets, optimizer, facts=_FACTS):
  return step_lib.StepSetup(
    cfg=cfg,
    method=methods.build(cfg, facts),
    nets=nets,
    optimizer=optimizers.rate_last(optimizer),
    total_steps=10,
    warmup_steps=2,
  )


def _linear_setup(cfg, optimizer, facts=_FACTS):
  nets, params, features = _linear_networks()
  setup = _setup(tiny.frozen(cfg), nets, optimizer, facts)
  seen = {'projector/~/bn': {'views': np.zeros((), np.int32)}}
  other = {'projector': {'w': params['projector']['w'][:, ::-1].copy()}}
  state = TrainState(
    step=np.asarray(3, np.int32),
    online_params=params,
    online_state=seen,
    target_params=other,
    target_state=seen,
    opt_state=optimizer.init(params),
    memory=label_queue.init(2, 16, 8),
  )
  return setup, parallel.replicate(state, 1), features


class _Expected:
  """What one step over `batch` must compute, in NumPy, from an empty queue."""

  def __init__(self, cfg, state, batch, features, early=False):
    step_key = jax.random.fold_in(jax.random.key(0), 3)
    every = [jax.random.fold_in(step_key, i) for i in range(tiny.BATCH)]
    draw = lambda purpose: jnp.stack(
      [jax.random.fold_in(key, purpose) for key in every]
    )
    seen = views.make_views(draw(0), jnp.asarray(batch.images), cfg.views)
    matrix = parallel.unreplicate(state.online_params)
    project = lambda x: features(x) @ matrix['projector']['w']
    predict = lambda x: project(x) @ matrix['predictor']['w']
    aim = parallel.unreplicate(state.target_params)['projector']['w']
    self.online = _unit(np.stack([predict(x) for group in seen for x in group]))
    self.targets = _unit(np.stack([features(x) @ aim for x in seen.large]))
    self.labels = self.vote(batch.labels, self.online)
    self.index, self.mask = map(
      np.asarray,
      negatives.sample(
        draw(1), jnp.arange(tiny.BATCH),
        jnp.asarray(batch.labels if early else self.labels),
        num_negatives=4, exclude_same_label=cfg.negatives.cancel == 'label',
      ),
    )  # fmt: skip
    self.positives, self.has = self._draw(cfg, batch, draw(2))

  def vote(self, labels, queries):
    """Nearest labelled image of the batch, for every view in every queue."""
    voted, _ = self.votes(labels, queries)
    return np.where(labels >= 0, labels, voted)

  def votes(self, labels, queries, blind=False):
    """Labels voted for, all images', and the winner's share of the votes."""
    voted, share = [], []
    for m in range(len(labels)):
      entered = [i for i in np.flatnonzero(labels >= 0) if not blind or i != m]
      votes = {}
      for v in range(2):
        for w in range(2):
          similarity = self.targets[w][entered] @ queries[v][m]
          best = int(np.argmax(similarity))
          label = labels[entered[best]]
          number, total = votes.get(label, (0, 0.0))
          votes[label] = number + 1, total + similarity[best]
      voted.append(max(votes, key=lambda y: (votes[y], -y)))
      share.append(votes[voted[-1]][0] / 4)
    return np.array(voted), np.array(share)

  def metrics(self, labels):
    """What is told of the votes; all but the labelled images get a label."""
    known = labels >= 0
    _, share = self.votes(labels, self.online)
    blind, _ = self.votes(labels, self.online, blind=True)
    spread = np.std(self.targets, axis=1).mean() * np.sqrt(8)
    return {
      'vote_share': share[~known].mean(),
      'labelled_vote_accuracy': np.mean(blind[known] == labels[known]),
      'pseudo_label_share': 1.0,
      'positive_share': 1.0,
      'top_label_share': np.bincount(self.labels[~known]).max() / sum(~known),
      'queue_fill': sum(known) / 16,
      'embedding_std': spread,
      'loss/classifier': 0.0,
    }

  def _draw(self, cfg, batch, keys):
    """Semantic positives [S, V_L, B, d], through the queue's own sampler."""
    entered = np.flatnonzero(batch.labels >= 0)
    queue = label_queue.init(2, 16, 8)
    queue = queue._replace(
      labels=queue.labels.at[: len(entered)].set(batch.labels[entered])
    )
    slots, has = label_queue.sample_positives(
      queue, keys, jnp.asarray(self.labels),
      num_draws=cfg.loss.num_semantic_positives,
    )  # fmt: skip
    image = entered[np.maximum(np.asarray(slots), 0)]  # [B, S]
    return np.moveaxis(self.targets[:, image], (0, 2), (1, 0)), np.asarray(has)

  def terms(self, tau):
    own = self.online, self.targets
    rest = self.index, self.mask, tau
    semantic = self.positives, self.has
    return {
      'loss/augmentation': reference.loss_augm(*own, *rest),
      'loss/semantic': reference.loss_sempos(*own, *semantic, *rest),
      'invariance/augmentation': reference.inv_augm(*own, *rest),
      'invariance/semantic': reference.inv_sempos(*own, *semantic, *rest),
    }


@pytest.mark.parametrize(
  'exclude, early',
  [
    (False, False),
    pytest.param(True, False, marks=pytest.mark.long),
    # True labels alone exclude, up to step 4.
    pytest.param(True, True, marks=pytest.mark.long),
  ],
)
def test_step_equals_a_slow_reference(exclude, early):
  cfg = tiny.make_config(
    negatives__cancel='label' if exclude else 'none',
    loss__semantic_invariance_weight=3.0,
    negatives__cancel_after_epochs=4.0 if early else 0.0,
    queue__capacity=16,
  )
  batch = tiny.make_batch(_LABELS)
  optimizer = optax.trace(0.0)  # its state is the gradient
  setup, state, features = _linear_setup(cfg, optimizer)
  step = _map(setup)
  new, [(scalars, labels)] = tiny.run_steps(step, state, [batch], 1)  # step 3
  expected = _Expected(cfg, state, batch, features, early)

  np.testing.assert_array_equal(labels, expected.labels)
  assert len(set(labels)) == tiny.NUM_CLASSES  # the vote is not constant
  terms = expected.terms(cfg.loss.temperature)
  for name, value in terms.items():
    np.testing.assert_allclose(scalars[name][0], value, rtol=2e-5)
  for name, value in expected.metrics(batch.labels).items():
    np.testing.assert_allclose(scalars[name][0], value, 2e-5, err_msg=name)
  total = (
    0.3 * (terms['loss/augmentation'] + 0.2 * terms['loss/semantic'])
    + 5.0 * terms['invariance/augmentation']
    + 3.0 * terms['invariance/semantic']
  )
  np.testing.assert_allclose(scalars['loss'][0], total, rtol=2e-5)

  # The online network sees 3 views, the target network the 2 large ones.
  assert new.online_state['projector/~/bn']['views'][0] == 3
  assert new.target_state['projector/~/bn']['views'][0] == 2
  # Labelled images, and only they, entered the queue in the batch's order.
  entered = np.flatnonzero(batch.labels >= 0)
  queue = parallel.unreplicate(new.memory)
  assert queue.count == len(entered)
  np.testing.assert_array_equal(queue.ids[: len(entered)], 100 + entered)
  np.testing.assert_allclose(
    queue.embeddings[:, : len(entered)], expected.targets[:, entered], atol=1e-6
  )
  # Update and moving average, at step 3 of 10 with 2 of warm-up.
  grads = parallel.unreplicate(new.opt_state.trace)
  rate = 0.02 * 16 / 256 * 0.5 * (1 + np.cos(np.pi * 1 / 8))
  keep = 1 - (1 - 0.996) * 0.5 * (1 + np.cos(np.pi * 3 / 10))
  before, after = map(
    parallel.unreplicate, (state.online_params, new.online_params)
  )
  for module in before:
    np.testing.assert_allclose(
      after[module]['w'],
      before[module]['w'] - rate * grads[module]['w'],
      atol=1e-6,
    )
  assert np.abs(grads['predictor']['w']).max() > 1e-3
  np.testing.assert_allclose(
    parallel.unreplicate(new.target_params)['projector']['w'],
    keep * parallel.unreplicate(state.target_params)['projector']['w']
    + (1 - keep) * after['projector']['w'],
    rtol=1e-5,
    atol=1e-6,
  )
  assert new.step[0] == 4


def test_balanced_votes_are_those_of_the_whole_batch():
  batch, found = tiny.make_batch(_LABELS), {}
  for strength, number in ((0.0, 1), (1.0, 1), (1.0, 4)):
    cfg = tiny.make_config(queue__balance=strength)
    share = np.array([0.1, 0.1, 0.8], np.float32)
    setup, state, _ = _linear_setup(
      cfg, optax.trace(0.0), _FACTS._replace(class_share=share)
    )
    state = state_lib.from_host(
      parallel.unreplicate(state), setup.method, jax.devices()[:number]
    )
    _, [(scalars, labels)] = tiny.run_steps(
      _map(setup, number), state, [batch], number
    )
    found[strength, number] = labels, scalars['vote_share'][0]
  unlabelled = batch.labels < 0
  plain, one, four = (x[0][unlabelled] for x in found.values())
  assert np.mean(one == 2) > np.mean(plain == 2)
  np.testing.assert_array_equal(one, four)
  np.testing.assert_allclose(found[1.0, 1][1], found[1.0, 4][1], rtol=1e-5)
  known = found[1.0, 1][0][~unlabelled]
  np.testing.assert_array_equal(known, batch.labels[~unlabelled])


def test_target_projections_vote_in_the_first_steps():
  cfg, batch = tiny.make_config(), tiny.make_batch(_LABELS)
  _, state, features = _linear_setup(cfg, optax.trace(0.0))
  expected = _Expected(cfg, state, batch, features)
  by_target = expected.vote(batch.labels, expected.targets)
  assert np.any(by_target != expected.labels)
  for steps, wanted in ((4, by_target), (3, expected.labels)):
    cfg.queue.target_query_epochs = float(steps)
    setup, _, _ = _linear_setup(cfg, optax.trace(0.0))
    _, [(_, labels)] = tiny.run_steps(_map(setup), state, [batch], 1)  # step 3
    np.testing.assert_array_equal(labels, wanted)


def test_the_target_follows_the_new_online_weights():
  # With rate 0 it is them, and not those of before the update.
  cfg = tiny.make_config(ema__base=0.0, ema__constant=True)
  cfg.optimizer.learning_rate = 10.0
  setup, state, _ = _linear_setup(cfg, optax.trace(0.0))
  new, _ = tiny.run_steps(_map(setup), state, [tiny.make_batch(_LABELS)], 1)
  online, target = (
    parallel.unreplicate(tree)['projector']['w']
    for tree in (new.online_params, new.target_params)
  )
  before = parallel.unreplicate(state.online_params)['projector']['w']
  assert np.abs(online - before).max() > 1e-2
  np.testing.assert_allclose(target, online, rtol=1e-6)


def test_weights_that_decay_are_those_of_the_online_network():
  cfg, batch = tiny.make_config(), tiny.make_batch(_LABELS)
  cfg.optimizer.learning_rate = 10.0
  after = []
  for decay in (0.0, 0.5):
    setup, state, _ = _linear_setup(cfg, optax.add_decayed_weights(decay))
    new, [(scalars, _)] = tiny.run_steps(_map(setup), state, [batch], 1)
    after.append(parallel.unreplicate(new.online_params))
  rate = scalars['learning_rate'][0]
  before = parallel.unreplicate(state.online_params)
  for module, leaves in before.items():
    decayed = after[0][module]['w'] - after[1][module]['w']
    np.testing.assert_allclose(decayed, 0.5 * rate * leaves['w'], atol=1e-5)


def test_optimiser_sees_the_gradient_of_the_config_loss():
  """Central differences in the directions of the parameters themselves."""
  cfg = tiny.make_config(loss__invariance_weight=0.0)
  setup, state, _ = _linear_setup(cfg, optax.trace(0.0))
  step = _map(setup)
  batch = tiny.make_batch(_LABELS)
  new, _ = tiny.run_steps(step, state, [batch], 1)
  grads = parallel.unreplicate(new.opt_state.trace)
  size = 1e-2
  moved = []
  for sign in (1, -1):
    params = jax.tree.map(
      lambda p, g, s=sign: p + s * size * g[None] / optax.tree.norm(grads),
      state.online_params,
      grads,
    )
    shifted = state._replace(online_params=params)
    _, [(scalars, _)] = tiny.run_steps(step, shifted, [batch], 1)
    moved.append(scalars['loss'][0])
  slope = (moved[0] - moved[1]) / (2 * size)
  np.testing.assert_allclose(slope, optax.tree.norm(grads), rtol=1e-2)


_TRACES = collections.Counter()


@functools.cache
def _gradient_step(num_devices):
  """The real networks' step; the gradients stand in its opt_state."""
  run = tiny.prepare()
  run = run._replace(
    setup=run.setup._replace(optimizer=optimizers.rate_last(optax.trace(0.0)))
  )

  def step(*arguments):
    _TRACES[num_devices] += 1
    return step_lib.train_step(*arguments, setup=run.setup)

  return run, tiny.map_step(step, num_devices)


@functools.cache
def _begin():
  return tiny.portable(_gradient_step(1)[0])


def _trained(num_devices, labels):
  """Two steps from one beginning."""
  run, step = _gradient_step(num_devices)
  devices = jax.devices()[:num_devices]
  state = state_lib.from_host(_begin(), run.setup.method, devices)
  batches = [tiny.make_batch(labels, seed) for seed in range(2)]
  return tiny.run_steps(step, state, batches, num_devices)


_FIRST_DEVICES_ONLY = [0, 1, 2, 0] + [-1] * 12  # one of four, two of eight


@functools.cache
def _on_one_device(labels):
  return _trained(1, labels)


@pytest.mark.parametrize(
  'num_devices, labels',
  [
    pytest.param(2, _LABELS, marks=pytest.mark.long),
    pytest.param(4, _LABELS, marks=pytest.mark.long),
    pytest.param(8, _LABELS, marks=pytest.mark.long),
    pytest.param(4, _FIRST_DEVICES_ONLY, marks=pytest.mark.long),
    (8, _FIRST_DEVICES_ONLY),
  ],
)
def test_the_number_of_devices_changes_nothing(num_devices, labels):
  one, seen_one = _on_one_device(tuple(labels))
  many, seen_many = _trained(num_devices, labels)
  assert _TRACES[num_devices] == 1
  for (scalars_1, labels_1), (scalars_d, labels_d) in zip(seen_one, seen_many):
    np.testing.assert_array_equal(labels_1, labels_d)
    assert scalars_1.keys() == scalars_d.keys()
    for name, value in scalars_1.items():
      assert np.ptp(scalars_d[name]) == 0, f'{name} differs between devices'
      np.testing.assert_allclose(
        scalars_d[name][0], value[0], rtol=1e-4, atol=1e-6, err_msg=name
      )
  for name in (
    'online_params', 'online_state', 'target_params', 'target_state',
    'opt_state',
  ):  # fmt: skip
    on_each = [parallel.unreplicate(getattr(s, name)) for s in (one, many)]
    _assert_close(*on_each)
  whole = np.concatenate(list(np.asarray(many.memory.embeddings)), axis=1)
  _assert_close(parallel.unreplicate(one.memory.embeddings), whole)
  for name in ('labels', 'ids', 'count'):
    for device in range(num_devices):
      np.testing.assert_array_equal(
        getattr(many.memory, name)[device], getattr(one.memory, name)[0]
      )


def _assert_close(one, many):
  """Every leaf at rtol 1e-4, as a vector: its small entries are differences
  of large ones. What should be 0 is noise of the whole tree's size."""
  one, many = (jax.tree.map(lambda x: np.asarray(x), t) for t in (one, many))
  whole = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(one)))

  def check(a, b):
    error = np.linalg.norm(np.ravel(b - a))
    assert error <= 1e-4 * np.linalg.norm(np.ravel(a)) + 1e-6 * whole

  jax.tree.map(check, one, many)


def test_the_classifier_learns_from_true_labels_alone():
  run, step = _gradient_step(1)
  state = state_lib.from_host(_begin(), run.setup.method, jax.devices()[:1])
  # Without weights it gives every class a third.
  blank = jax.tree.map(jnp.zeros_like, state.online_params['classifier'])
  params = state.online_params | {'classifier': blank}
  batch = tiny.make_batch([0, 0, 0, 1] + [-1] * 12)
  new, [(scalars, labels)] = tiny.run_steps(
    step, state._replace(online_params=params), [batch], 1
  )
  assert np.all(labels >= 0)  # all others have a pseudo-label
  grad = parallel.unreplicate(new.opt_state.trace['classifier']['b'])
  expected = np.full(3, 1 / 3) - np.array([3, 1, 0]) / 4
  np.testing.assert_allclose(grad, expected, atol=1e-6)
  np.testing.assert_allclose(scalars['loss/classifier'][0], np.log(3), 1e-5)


def test_the_step_is_traced_once():
  _trained(1, _LABELS)
  assert _TRACES[1] == 1


@pytest.mark.long
def test_lars_trains_too():
  run = tiny.prepare(optimizer__name='lars', optimizer__learning_rate=1.0)
  assert run.setup.optimizer is not None
  step = _map(run.setup)
  state = tiny.first_state(run, 1)
  batches = [tiny.make_batch(_LABELS, seed) for seed in range(3)]
  after, seen = tiny.run_steps(step, state, batches, 1)
  assert all(np.isfinite(s['loss'][0]) for s, _ in seen)
  weights = lambda s: s.online_params['one_block_res_net/~/initial_conv']['w']
  length = np.linalg.norm(weights(state))
  moved = np.linalg.norm(weights(after) - weights(state))
  # The trust ratio bounds a step: coefficient x rate x the weight's length.
  rate = 1.0 * tiny.BATCH / 256
  assert 0 < moved < 3 * 3 * 1e-3 * rate * length


@pytest.mark.parametrize('parts', [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_batch_in_parts_gives_the_whole_ones_update(parts):
  """Without BatchNorm m parts are the batch: negatives, queue, vote, all."""
  batch = tiny.make_batch(_LABELS)
  outcomes = []
  for number in (1, parts):
    cfg = tiny.make_config(accumulate=number)
    setup, state, _ = _linear_setup(cfg, optax.trace(0.0))
    new, seen = tiny.run_steps(_map(setup), state, [batch], 1, parts=number)
    outcomes.append((new, *seen[0]))
  (whole, metrics, labels), (new, metrics_in_parts, labels_in_parts) = outcomes
  np.testing.assert_array_equal(labels_in_parts, labels)
  assert metrics_in_parts.keys() == metrics.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(
      metrics_in_parts[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )
  for name in ('opt_state', 'online_params', 'target_params', 'memory'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      getattr(new, name),
      getattr(whole, name),
    )
  # Every part is a pass of its own.
  assert new.online_state['projector/~/bn']['views'][0] == 3 * parts


@pytest.mark.long
def test_parts_with_batchnorm_do_not_know_the_devices():
  few = {'views__num_small': 0, 'views__one_pass': True}  # to compile
  run = tiny.prepare(accumulate=2, **few)
  run = run._replace(
    setup=run.setup._replace(optimizer=optimizers.rate_last(optax.trace(0.0)))
  )
  begin = tiny.portable(run)
  found = []
  for number in (1, 2):
    devices = jax.devices()[:number]
    state = state_lib.from_host(begin, run.setup.method, devices)
    mapped = _map(run.setup, number)
    batches = [tiny.make_batch(_LABELS)]
    new, seen = tiny.run_steps(mapped, state, batches, number, parts=2)
    found.append((new, *seen[0]))
  (one, metrics, labels), (two, metrics_of_two, labels_of_two) = found
  np.testing.assert_array_equal(labels_of_two, labels)
  for name, value in metrics.items():
    np.testing.assert_allclose(
      metrics_of_two[name][0], value[0], rtol=1e-4, atol=1e-6, err_msg=name
    )
  for name in ('online_params', 'online_state', 'target_state'):
    _assert_close(
      parallel.unreplicate(getattr(two, name)),
      parallel.unreplicate(getattr(one, name)),
    )


def _compiled(cfg, batch_size):
  """The step on linear networks, for images that are larger than all else."""
  setup, state, _ = _linear_setup(cfg, optax.trace(0.0))
  batch = types.Batch(
    images=np.zeros((batch_size, 24, 24, 3), np.uint8),
    labels=np.full(batch_size, -1, np.int32),
    ids=np.arange(batch_size, dtype=np.int32),
  )
  batch = parallel.shard(batch, 1, cfg.accumulate)
  return _map(setup).lower(state, batch, jax.random.key(0)).compile()


def _in_parts(parts, **changes):
  cfg = tiny.make_config(
    batch_size=tiny.BATCH * parts, accumulate=parts, views__large_size=24,
    **changes,
  )  # fmt: skip
  return _compiled(cfg, cfg.batch_size)


@pytest.mark.long
def test_views_are_there_for_one_part_at_a_time():
  one, eight = (
    _in_parts(parts).memory_analysis().temp_size_in_bytes for parts in (1, 8)
  )
  views_of_a_part = 2 * tiny.BATCH * 24 * 24 * 3 * 4  # V_L, float32
  assert one > views_of_a_part
  assert eight - one < views_of_a_part


def test_a_batch_in_one_part_makes_its_views_once(monkeypatch):
  flops = lambda: _in_parts(1).cost_analysis()['flops']
  both_passes_make_them = flops()
  made = []

  def make_views(*arguments):
    made.append(original(*arguments) if not made else made[0])
    return made[0]

  original = passes.make_views
  monkeypatch.setattr(passes, 'make_views', make_views)
  assert both_passes_make_them == pytest.approx(flops(), rel=0.01)
  assert len(made) == 2


def _collective_sizes(step, *arguments):
  """Dimensions of what the collectives of a compiled step bring."""
  text = step.lower(*arguments).compile().as_text()
  kinds = 'all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute'
  sizes = []
  for line in text.splitlines():
    found = re.search(rf' (?:{kinds})(?:-start)?\(', line)
    if found:
      sizes += re.findall(r'[a-z]\d+\[([\d,]*)\]', line[: found.start()])
  assert sizes
  return sorted(tuple(map(int, s.split(','))) if s else () for s in sizes)


def _traffic(capacity, gathers_queue=False):
  setup, state, _ = _linear_setup(tiny.make_config(), optax.trace(0.0))
  devices = jax.devices()[:4]
  queue = label_queue.init(2, capacity, 8)
  whole = parallel.unreplicate(state)._replace(memory=queue)
  state = state_lib.from_host(whole, setup.method, devices)
  inner = functools.partial(step_lib.train_step, setup=setup)

  def step(state, batch, key):
    new, metrics, labels = inner(state, batch, key)
    if gathers_queue:
      whole = parallel.all_gather(new.memory.embeddings, axis=1)
      metrics['sum'] = jnp.sum(whole)
    return new, metrics, labels

  batch = parallel.shard(tiny.make_batch(_LABELS), 4)
  mapped = parallel.map_step(step, devices, donate=False)
  return _collective_sizes(mapped, state, batch, jax.random.key(0))


@pytest.mark.long
def test_traffic_does_not_know_the_queue():
  """No collective has a dimension C or C/D; a gathered queue would show."""
  small, large = _traffic(44), _traffic(4 * 1009)
  assert small == large
  dimensions = {n for shape in _traffic(4 * 1009, True) for n in shape}
  assert dimensions & {1009, 4 * 1009}
