"""SemPPL's options: who is a negative, and who a semantic positive.

Against slow loops in NumPy, on any number of devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import config, methods, preflight
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.memory import label_queue
from semppl_jax.methods import base, semppl
from semppl_jax.train import device_memory
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from tests.helpers import reference, tiny

_V, _W, _B, _D = 3, 2, tiny.BATCH, 8
_FACTS = base.RunFacts(3, 40, np.full(3, 1 / 3, np.float32), 40, 20, int)
_TRUTH = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, -1, -1], np.int32)
_GIVEN = np.where(np.arange(_B) < 10, _TRUTH, -1)  # labels that are seen
_OLD = np.array([0, 1, 2, 0, 1, 2, 1, 1], np.int32)  # of the queue's entries


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def _outputs():
  """Predictions, targets and rows of the queue, about three centres."""
  random = np.random.RandomState(5)
  centres = 1.3 * _unit(random.randn(4, _D))
  draw = lambda views, kinds: _unit(
    centres[kinds] + random.randn(views, len(kinds), _D)
  ).astype(np.float32)
  return draw(_V, _TRUTH), draw(_W, _TRUTH), draw(_W, _OLD)


def _queue():
  """Eight entries, those of images 0 and 1 among them; 16 places are left."""
  rows = np.zeros((_W, 24, _D), np.float32)
  rows[:, :8] = _outputs()[2]
  ids = np.full(24, -1, np.int32)
  ids[:8] = [100, 101, 50, 51, 52, 53, 54, 55]
  labels = np.concatenate([_OLD, np.full(16, -1, np.int32)])
  return label_queue.LabelQueue(rows, labels, ids, np.int32(8))


def _assign(queries, inputs, queue, cfg, facts):
  """The truth in place of the vote, as a benchmark puts it."""
  assert queries.shape[0] == _W and facts.num_classes == 3 and cfg.queue.k == 1
  truth = jnp.asarray(_TRUTH)[parallel.local_slice(inputs.ids) - 100]
  return truth, {'asked': queue.count.astype(jnp.float32)}


def _config(**changes):
  plain = {'queue__capacity': 24, 'loss__semantic_invariance_weight': 3.0}
  cfg = tiny.make_config(**(plain | changes))
  cfg.views.num_small = _V - _W
  return cfg


def _take(number=1, parts=1, step=5, facts=_FACTS, **changes):
  """One step's loss, metrics and gradient [V, B, d] on some devices."""
  cfg = _config(**changes)
  method = semppl.build(tiny.frozen(cfg), facts, assign=_assign)
  online, targets, _ = _outputs()
  ids = 100 + jnp.arange(_B, dtype=jnp.int32)
  batch = base.BatchWide(
    {'projection': jnp.asarray(targets)},
    jnp.asarray(_GIVEN),
    ids,
    jnp.asarray(step, jnp.int32),
  )
  keys = jax.random.split(jax.random.key(0), _B)

  def loss(online, memory, shared, part):
    per_device = online.shape[1]
    here = part * _B // parts + parallel.global_indices(per_device)
    every = part * _B // parts + jnp.arange(_B // parts)
    result = method.loss(
      base.Inputs(
        online={'prediction': online, 'projection': online},
        target={'projection': batch.target['projection'][:, here]},
        labels=batch.labels[here],
        ids=ids[every],
        batch=batch,
        shared=shared,
        keys=base.Keys(here, keys[here], keys[every]),
      ),
      memory,
    )
    return result.loss, result.metrics | {'loss': result.loss}

  def step_fn(memory, online):  # online [parts, V, b, d]
    memory, shared = method.prepare(memory, batch)
    found = [
      jax.grad(loss, has_aux=True)(x, memory, shared, part)
      for part, x in enumerate(online)
    ]
    grads = jnp.stack([grad for grad, _ in found]) / number / parts
    mean = jax.tree.map(
      lambda *x: sum(x) / parts, *[metrics for _, metrics in found]
    )
    return grads, mean

  # [D, parts, V, b, d]
  split = online.reshape(_V, parts, number, -1, _D).transpose(2, 1, 0, 3, 4)
  queue = _queue()
  queue = label_queue.LabelQueue(
    np.stack(np.split(queue.embeddings, number, axis=1)),
    *[np.stack([x] * number) for x in queue[1:]],
  )
  mapped = jax.pmap(
    step_fn, axis_name=parallel.AXIS, devices=jax.devices()[:number]
  )
  grads, metrics = mapped(queue, split)
  grads = np.asarray(grads).transpose(2, 1, 0, 3, 4).reshape(_V, _B, _D)
  return {k: np.mean(x) for k, x in metrics.items()}, grads


def _scores():
  """[B, B]: the largest cosine of a view with a view."""
  targets = _outputs()[1]
  return np.einsum('vid,wjd->vwij', targets, targets).max((0, 1))


def _similar(top_k, threshold):
  """False negatives, a list for each image."""
  scores = _scores()
  found = []
  for i, row in enumerate(scores):
    others = sorted(set(range(_B)) - {i}, key=lambda j: -row[j])
    found.append([j for j in others[:top_k] if row[j] > threshold])
  return found


def _expected(left_out, positives, tau=0.2):
  """The four terms with all others but some as negatives.

  Args:
    left_out: for each image, others that are no negatives.
    positives: for each image, a list of [V_L, d].
    tau: temperature.
  """
  online, targets, _ = (x.astype(np.float64) for x in _outputs())
  index = np.stack([np.delete(np.arange(_B), i) for i in range(_B)])
  mask = np.stack([[j not in left_out[i] for j in index[i]] for i in range(_B)])
  own = online, targets, index, mask, tau
  rest = targets, index, mask, tau

  def semantic(value):
    means = [
      np.mean([value(i, online, _at(i, z), *rest) for z in positives[i]])
      for i in range(_B)
      if positives[i]
    ]
    return np.mean(means) if means else 0.0

  return {
    'loss/augmentation': reference.loss_augm(*own),
    'loss/semantic': semantic(reference.image_nll),
    'invariance/augmentation': reference.inv_augm(*own),
    'invariance/semantic': semantic(reference.image_kl),
  }


def _at(i, row):
  """[V_L, B, d] whose image i is the positive [V_L, d]."""
  out = np.zeros((_W, _B, _D))
  out[:, i] = row
  return out


def _same_label(given):
  return [
    [j for j in range(_B) if j != i and given[i] >= 0 and given[j] == given[i]]
    for i in range(_B)
  ]


def _nearest(number):
  """For each image, the nearest of its label in the queue, not its own."""
  targets = _outputs()[1].astype(np.float64)
  rows = [(100 + i, _GIVEN[i], targets[:, i]) for i in range(10)]
  old, ids = _outputs()[2].astype(np.float64), _queue().ids
  rows += [(ids[c], _OLD[c], old[:, c]) for c in range(8)]
  found = []
  for i in range(_B):
    score = lambda row, i=i: np.max(targets[:, i] @ row[2].T)
    fit = [r for r in rows if r[1] == _TRUTH[i] >= 0 and r[0] != 100 + i]
    fit.sort(key=score, reverse=True)
    found.append([row for _, _, row in fit[:number]])
  return found


def _check(metrics, wanted):
  for name, value in wanted.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name
    )
  total = (
    0.3 * (wanted['loss/augmentation'] + 0.2 * wanted['loss/semantic'])
    + 5.0 * wanted['invariance/augmentation']
    + 3.0 * wanted['invariance/semantic']
  )
  np.testing.assert_allclose(metrics['loss'], total, rtol=2e-5)


_SIMILARITY = {
  'negatives__cancel': 'similarity',
  'negatives__top_k': 3,
  'negatives__threshold': 0.6,
  'negatives__block_size': 3,
}
_ATTRACT = _SIMILARITY | {'negatives__attract': True}
_NEAREST = {
  'loss__semantic_positives': 'nearest', 'negatives__cancel': 'label',
  'loss__num_semantic_positives': 3,
}  # fmt: skip


@pytest.mark.parametrize(
  'negatives, number', [(0, 1), (0, 2), (0, 4), (0, 8), (15, 1), (15, 4)]
)
def test_similar_images_are_positives_and_no_negatives(negatives, number):
  metrics, _ = _take(number, loss__num_negatives=negatives, **_ATTRACT)
  similar, targets = _similar(3, 0.6), _outputs()[1]
  numbers = [len(found) for found in similar]
  assert 0 in numbers and 3 in numbers  # some have none, some are cut
  wanted = _expected(
    similar, [[targets[:, j] for j in found] for found in similar]
  )
  _check(metrics, wanted)
  assert metrics['false_negatives'] == pytest.approx(np.mean(numbers))
  assert metrics['positive_share'] == pytest.approx(np.mean(np.sign(numbers)))
  pairs = [
    _GIVEN[i] == _GIVEN[j]
    for i in range(_B)
    for j in similar[i]
    if _GIVEN[i] >= 0 and _GIVEN[j] >= 0
  ]
  assert 0 < np.mean(pairs) < 1
  found = metrics['false_negative_precision']
  np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-6)


def test_gradients_are_those_of_one_device_and_of_drawing_all():
  _, wanted = _take(1, loss__num_negatives=15, **_ATTRACT)
  assert np.abs(wanted).max() > 1e-3
  for negatives, number in ((0, 1), (0, 4)):
    _, grads = _take(number, loss__num_negatives=negatives, **_ATTRACT)
    np.testing.assert_allclose(grads, wanted, atol=2e-6)


@pytest.mark.parametrize('negatives', [0, 15])
def test_similar_images_are_left_out(negatives):
  changes = {'loss__num_negatives': negatives, 'loss__alpha': 0.0}
  metrics, _ = _take(2, **(changes | _SIMILARITY))
  wanted = _expected(_similar(3, 0.6), [[]] * _B)
  for name in ('loss/augmentation', 'invariance/augmentation'):
    np.testing.assert_allclose(metrics[name], wanted[name], rtol=2e-5)


def test_a_threshold_that_none_passes_changes_nothing():
  plain, grads = _take(loss__num_negatives=0)
  same, others = _take(
    **(_SIMILARITY | {'negatives__threshold': 1.5}), loss__num_negatives=0
  )
  assert same.pop('false_negatives') == 0
  del same['false_negative_precision']
  assert same == plain
  np.testing.assert_allclose(others, grads, atol=1e-6)


def test_at_first_nothing_is_cancelled():
  late = {'negatives__cancel_after_epochs': 5.0, 'loss__num_negatives': 0}
  few = _FACTS._replace(num_labels=12)
  metrics, _ = _take(step=4, facts=few, **_ATTRACT, **late)
  assert 'false_negative_precision' not in metrics
  assert metrics['false_negatives'] == metrics['positive_share'] == 0
  wanted = _expected([[]] * _B, [[]] * _B)
  _check(metrics, wanted)
  metrics, _ = _take(step=5, **_ATTRACT, **late)
  assert metrics['false_negatives'] > 0


def test_a_quantile_is_the_batchs():
  changes = _SIMILARITY | {
    'negatives__quantile': 0.9, 'negatives__top_k': 14,
    'loss__num_negatives': 0,
  }  # fmt: skip
  others = _scores()[~np.eye(_B, dtype=bool)].reshape(_B, -1)
  threshold = np.quantile(others, 0.9, axis=1).mean()
  similar = _similar(14, threshold)
  for number in (1, 4):
    metrics, _ = _take(number, **changes)
    wanted = np.mean([len(found) for found in similar])
    assert metrics['false_negatives'] == pytest.approx(wanted)


@pytest.mark.parametrize('negatives, number', [(0, 1), (0, 4), (15, 2)])
def test_the_nearest_of_the_label_are_positives(negatives, number):
  metrics, _ = _take(number, loss__num_negatives=negatives, **_NEAREST)
  nearest = _nearest(3)
  assert {len(found) for found in nearest} == {0, 3}
  _check(metrics, _expected(_same_label(_TRUTH), nearest))
  assert metrics['positive_share'] == 14 / 16
  assert metrics['asked'] == 18  # the batch's ten have entered


def test_fewer_of_the_label_than_asked_for():
  metrics, _ = _take(**(_NEAREST | {'loss__num_semantic_positives': 6}))
  assert {len(found) for found in _nearest(6)} == {0, 4, 5, 6}
  changes = _NEAREST | {'loss__num_semantic_positives': 6}
  metrics, _ = _take(loss__num_negatives=15, **changes)
  _check(metrics, _expected(_same_label(_TRUTH), _nearest(6)))


def test_parts_of_a_batch_see_all_of_it():
  changes = _SIMILARITY | {
    'loss__num_negatives': 0, 'loss__alpha': 0.0,
    'loss__semantic_invariance_weight': 0.0,
  }  # fmt: skip
  whole, grads = _take(2, **changes)
  parts, in_parts = _take(2, parts=2, accumulate=2, **changes)
  np.testing.assert_allclose(in_parts, grads, atol=1e-6)
  for name in ('loss', 'loss/augmentation', 'false_negatives'):
    np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)
  assert 'false_negative_precision' not in parts


@pytest.mark.long  # the contract has the same with the defaults
@pytest.mark.parametrize(
  'changes', [_ATTRACT | {'loss__num_negatives': 0}, _NEAREST]
)
def test_the_engine_goes_on_with_another_number_of_devices(changes):
  """What one device saved after a step, four take up."""
  run = tiny.prepare(**changes)
  step = functools.partial(step_lib.train_step, setup=run.setup)
  labels = np.where(_TRUTH % 2, _TRUTH, -1)
  batches = [tiny.make_batch(labels, seed) for seed in range(2)]
  devices, method = jax.devices()[:4], run.setup.method
  one = tiny.map_step(step, 1)
  half, _ = tiny.run_steps(one, tiny.first_state(run, 1), batches[:1], 1)
  _, [(wanted, _)] = tiny.run_steps(one, half, batches[1:], 1)
  saved = state_lib.to_host(
    parallel.put_sharded(half, devices[:1]), method, devices[:1]
  )
  again = state_lib.from_host(saved, method, devices)
  _, [(found, _)] = tiny.run_steps(
    tiny.map_step(step, 4), again, batches[1:], 4
  )
  assert wanted['positive_share'][0] > 0
  for key, value in wanted.items():
    np.testing.assert_allclose(found[key][0], value[0], 1e-3, 1e-5, err_msg=key)


# Settings.


@pytest.mark.parametrize(
  'changes, line',
  [
    ({'negatives__cancel': 'labels'}, "is 'labels'; known: none, label, simil"),
    ({'negatives__attract': True}, "attract is True, but .* is 'none': set it"),
    ({'negatives__top_k': 0}, 'negatives.top_k is 0'),
    (
      {'negatives__cancel': 'similarity', 'negatives__top_k': 15},
      'top_k is 15, but of batch_size 16 a negative must be left: set it to 14',
    ),
    ({'negatives__quantile': 1.5}, 'negatives.quantile is 1.5'),
    ({'negatives__block_size': 0}, 'negatives.block_size is 0'),
    ({'loss__num_negatives': -1}, 'loss.num_negatives is -1; it must be at le'),
    ({'loss__semantic_positives': 'next'}, "is 'next'; known: uniform, near"),
    (
      _ATTRACT | {'loss__semantic_positives': 'nearest'},
      "loss.semantic_positives is 'nearest', but with negatives.attract=True",
    ),
    (_ATTRACT | {'accumulate': 2}, 'negatives.attract needs the number of im'),
    (
      {'loss__semantic_positives': 'nearest', 'accumulate': 2},
      'loss.semantic_positives=nearest needs the number of images',
    ),
    (
      _SIMILARITY | {'negatives__quantile': 0.9, 'accumulate': 2},
      'negatives.quantile needs the similarities of the whole',
    ),
  ],
)
def test_what_cannot_work_is_refused(changes, line):
  config.validate(_config(), 1)
  with pytest.raises(UserError, match=line) as caught:
    config.validate(_config(**changes), 1)
  assert '\n' not in str(caught.value)


def test_attraction_needs_no_labels():
  nobody = {'labels__per_class': 0}
  with pytest.raises(UserError, match='semantic term is on'):
    config.validate(_config(**_SIMILARITY, **nobody), 1)
  cfg = _config(**_ATTRACT, **nobody)
  config.validate(cfg, 1)
  method = methods.build(tiny.frozen(cfg), _FACTS)
  assert not method.labels_train
  assert methods.build(tiny.frozen(_config()), _FACTS).labels_train


def test_chance_is_that_of_all_others():
  cfg = tiny.frozen(_config(loss__num_negatives=0))
  chance = methods.build(cfg, _FACTS).chance['loss/augmentation']
  assert chance == pytest.approx(np.log(_B))


def test_too_many_logits_at_once_are_refused_before_the_start(monkeypatch):
  cfg = tiny.make_config(num_devices=1, loss__num_negatives=0)
  need = run_lib.prepare(cfg).setup.method.scratch.size
  # 3 x 2 pairs of views, 16 images; float32, four arrays.
  assert need == 4 * 4 * 3 * 2 * 16 * 16
  sampled = tiny.make_config(num_devices=1)
  assert run_lib.prepare(sampled).setup.method.scratch is None
  (memory,) = (x for x in preflight.check_run(cfg, None) if 'memory' in x)
  assert 'MB the loss of 16 images' in memory
  monkeypatch.setattr(device_memory, 'capacity', lambda device: need)
  line = 'negatives.block_size is 64, but the loss of 16 .* to 14 or less'
  with pytest.raises(UserError, match=line):
    run_lib.prepare(cfg)
  cfg.negatives.block_size = 14
  run_lib.prepare(cfg)
