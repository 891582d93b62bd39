"""Suave's updates against its release's; what labels do; what it refuses.

pietroastolfi/suave-daino at 9adf13d. golden_data/suave_steps_plain.npz: six
updates by main_suave.train without mixing, of a spatial mean, one matrix and
prototypes, B 4, 3 labelled images, 2 large and 2 small views, a queue of 8.
suave_steps_mixup.npz: likewise with mixing, of which the loss's formula alone
is of use here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import eval_classifier
from semppl_jax import methods, pretraining, tasks, types
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import clustering
from semppl_jax.methods import base, swav
from semppl_jax.models import heads, networks
from semppl_jax.models.multicrop import l2_normalize
from semppl_jax.train import initial_weights, passes
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train import support as support_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics
from tests.helpers import golden, tiny

_STEPS, _B, _N, _K, _D = 6, 4, 3, 6, 5


def _facts(num_classes):
  shares = np.full(num_classes, 1 / num_classes, np.float32)
  return base.RunFacts(num_classes, _B, shares, 3, _STEPS, int)


def _setup():
  """The release's settings, and its network in place of ours."""
  cfg = tiny.make_config('suave', views__num_small=2)
  cfg.batch_size = _B
  cfg.support.images = _N
  cfg.projector.size = _D
  cfg.prototypes.number = 0
  cfg.queue.capacity = 8
  # From 0.2 to 0.7 in 6 steps; settings are for 256 images.
  cfg.optimizer.update(
    name='larc', learning_rate=51.2, start_learning_rate=12.8,
    warmup_kind='byol', weight_decay=0.01, momentum=0.9, trust_coefficient=0.05,
  )  # fmt: skip
  cfg = tiny.frozen(cfg)
  method = methods.build(cfg, _facts(_K))

  def encode(params, state, images, is_training):
    del params, is_training
    return images.mean(axis=(-3, -2)), state  # [v, b, 3]

  def project(params, state, x, is_training):
    del is_training
    z = l2_normalize(x @ params['linear']['w'].T + params['linear']['b'])
    scores = heads.prototype_scores(z, params['prototypes'])
    return {'projection': z, 'scores': scores}, state

  unused = dict.fromkeys(networks.Networks._fields)
  return step_lib.StepSetup(
    cfg=cfg,
    method=method,
    nets=networks.Networks(
      **unused | {'encode': encode, 'online_heads': project}
    ),
    optimizer=run_lib.build_optimizer(cfg),
    total_steps=_STEPS,
    warmup_steps=_STEPS,
  )


def _first_state(setup, file):
  read = lambda name: file[f'init_{name}']
  params = {
    'linear': {
      'w': read('projection_head.weight'), 'b': read('projection_head.bias'),
    },
    'prototypes': {'w': np.asarray(l2_normalize(read('prototypes.weight')))},
  }  # fmt: skip
  state = state_lib.TrainState(
    step=np.int32(0),
    online_params=params,
    online_state={},
    target_params={},
    target_state={},
    opt_state=setup.optimizer.init(params),
    memory=setup.method.init(),
  )
  return state_lib.from_host(state, setup.method, jax.devices()[:1])


def _batch(file, step):
  """In place of images the pixels of their views."""
  views = [
    np.moveaxis(file[name][step], (1, 2), (0, 4)).reshape(_B, -1)
    for name in ('large', 'small')
  ]
  labelled = np.moveaxis(file['labelled'][step], 1, 3)  # [3, 4, 4, 3]
  labels = file['labels'][step].astype(np.int32)
  nobody = np.full(_B, -1, np.int32)
  support = types.Batch(labelled, labels, np.arange(_N, dtype=np.int32))
  return types.Batch(
    np.concatenate(views, axis=1), nobody, np.arange(_B), support=support
  )


def _given_views(batch, keys, setup):
  del keys, setup
  large, small = jnp.split(batch.images, [2 * 4 * 4 * 3], axis=1)
  of = lambda x, side: jnp.moveaxis(x.reshape(-1, 2, side, side, 3), 0, 1)
  return types.Views(of(large, 4), of(small, 2))


def test_six_updates_are_the_releases(monkeypatch):
  monkeypatch.setattr(passes, 'make_views', _given_views)
  monkeypatch.setattr(
    support_lib, 'make_views', lambda key, step, batch, *_: batch.images[None]
  )
  file, setup = golden.load('suave_steps_plain.npz'), _setup()
  step = tiny.map_step(functools.partial(step_lib.train_step, setup=setup), 1)
  state = _first_state(setup, file)
  for i in range(_STEPS):
    before = state.online_params['prototypes']['w'][0]
    _close(before, file['prototypes_used'][i])
    state, [(scalars, labels)] = tiny.run_steps(
      step, state, [_batch(file, i)], 1
    )
    unlabelled, labelled = file['loss_unlabelled'][i], file['loss_labelled'][i]
    _close(scalars['loss/swapped'][0], unlabelled)
    _close(scalars['loss/labelled'][0], labelled)
    # Theirs has the monitoring classifiers' loss, too, 3 / 19 of it.
    own = file['loss'][i] - 3 / 19 * file['loss_heads'][i]
    _close(scalars['loss'][0], own)
    _close(scalars['learning_rate'][0], file['lr'][i])
    entropy = jax.scipy.special.entr(file['q'][i]).sum(axis=-1).mean()
    _close(scalars['assignment_entropy'][0], entropy)
    np.testing.assert_array_equal(labels, file['q'][i].mean(0).argmax(axis=-1))
    grads = [
      file[f'grad_{name}'][i]
      for name in (
        'projection_head.weight', 'projection_head.bias', 'prototypes.weight',
      )
    ]  # fmt: skip
    _close(scalars['grad_norm'][0], optax.tree.norm(grads))
    found = jax.tree.map(lambda x: x[0], state.online_params)
    _close(found['linear']['w'], file['after_projection_head.weight'][i])
    _close(found['linear']['b'], file['after_projection_head.bias'][i])
    # Theirs have length 1 from the next step on.
    after = l2_normalize(file['after_prototypes.weight'][i])
    _close(found['prototypes']['w'], after)
    assert scalars['queue_fill'][0] == (0, 0.5, 1)[min(i, 2)]


def _close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


# The loss of both methods. ---------------------------------------------------


def test_losses_of_a_step_by_itself_are_the_releases():
  """From the release's scores and assignments."""
  file = golden.load('suave_steps_plain.npz')
  for i in range(_STEPS):
    of_labels, scores = np.split(file['scores'][i], [_N])
    value, metrics = clustering.semi_supervised(
      file['q'][i], scores.reshape(4, _B, _K), of_labels[None],
      file['labels'][i], temperature=0.1, smoothing=0.01,
    )  # fmt: skip
    _close(metrics['loss/swapped'], file['loss_unlabelled'][i])
    _close(metrics['loss/labelled'], file['loss_labelled'][i])
    _close(value + 3 / 19 * file['loss_heads'][i], file['loss'][i])


def test_the_mean_over_rows_is_the_releases_with_mixed_images_too():
  """Where there are as many labelled ones again, and one row of mixed views."""
  file = golden.load('suave_steps_mixup.npz')
  for i in range(_STEPS):
    of_labels, scores = np.split(file['scores'][i], [2 * _N])
    views = scores.reshape(5, _B, _K)[np.array([0, 1, 3, 4])]  # 2 is mixed
    swapped = clustering.swapped_prediction(file['q'][i], views, 0.1)
    known = 0.99 * file['labels'][i] + 0.01 / _K
    of_labels = clustering.cross_entropy(known, of_labels, 0.1)
    mixed = jnp.asarray(file['loss_mixed'][i])
    value = clustering.mean_over_rows((swapped, 4), (of_labels, 1), (mixed, 1))
    _close(value + 3 / 23 * file['loss_heads'][i], file['loss'][i])


def _scores(*shape, seed=0):
  random = np.random.RandomState(seed)
  return random.uniform(-1, 1, shape).astype(np.float32)


def _semi_supervised(q, scores, labelled, labels, smoothing=0.01):
  return clustering.semi_supervised(
    *map(jnp.asarray, (q, scores, labelled)), jnp.array(labels, jnp.int32),
    temperature=0.1, smoothing=smoothing,
  )  # fmt: skip


@pytest.mark.parametrize('smoothing', [0.0, 0.01, 0.5])
def test_equal_scores_give_log_k(smoothing):
  q, zeros = jax.nn.softmax(_scores(2, 4, 7)), np.zeros((4, 4, 7))
  value, metrics = _semi_supervised(
    q, zeros, np.zeros((1, 3, 7)), [0, 1, 6], smoothing
  )
  for each in (value, metrics['loss/swapped'], metrics['loss/labelled']):
    np.testing.assert_allclose(each, np.log(7), rtol=1e-6)


def test_rows_are_the_only_weights():
  """B 4, V 4, n 3: 16/19 and 3/19."""
  q, scores = jax.nn.softmax(_scores(2, 4, 7)), _scores(4, 4, 7, seed=1)
  value, metrics = _semi_supervised(q, scores, _scores(1, 3, 7), [0, 1, 6])
  wanted = 16 * metrics['loss/swapped'] + 3 * metrics['loss/labelled']
  np.testing.assert_allclose(value, wanted / 19, rtol=1e-6)
  # Two views of each labelled image are twice the rows.
  value, metrics = _semi_supervised(q, scores, _scores(2, 3, 7), [0, 1, 6])
  wanted = 16 * metrics['loss/swapped'] + 6 * metrics['loss/labelled']
  np.testing.assert_allclose(value, wanted / 22, rtol=1e-6)


def test_without_labels_it_is_swavs_and_without_others_the_cross_entropy():
  q, scores = jax.nn.softmax(_scores(2, 4, 7)), _scores(4, 4, 7, seed=1)
  value, _ = _semi_supervised(q, scores, np.zeros((1, 0, 7)), [])
  wanted = clustering.swapped_prediction(q, scores, 0.1).mean()
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  value, metrics = _semi_supervised(
    np.zeros((2, 0, 2)), np.zeros((4, 0, 2)), 0.1 * np.log([[[3.0, 1.0]]]), [0]
  )
  # 1 - 0.01 + 0.01 / 2 of the label, p = 3/4.
  by_hand = -0.995 * np.log(0.75) - 0.005 * np.log(0.25)
  np.testing.assert_allclose(value, by_hand, rtol=1e-5)
  assert metrics['labelled_accuracy'] == 1


def test_labels_are_guessed_among_the_classes():
  q = np.array([[[0.1, 0.3, 0.6]], [[0.5, 0.1, 0.4]]])  # means 0.3, 0.2, 0.5
  np.testing.assert_array_equal(clustering.largest_class(q, 3), [2])
  np.testing.assert_array_equal(clustering.largest_class(q, 2), [0])
  method = _method(num_classes=2, prototypes__number=3)
  found = method.predict({'scores': q[:1]}, ())
  np.testing.assert_array_equal(found, [1])
  assert found.dtype == np.int32


# The method on scores that are given. ----------------------------------------


def _method(num_classes=_K, **changes):
  settings = {'prototypes__number': 0, 'queue__capacity': 0} | changes
  cfg = tiny.make_config('suave', **settings)
  return methods.build(tiny.frozen(cfg), _facts(num_classes))


def _look(method, scores, labelled, labels, number=1, queue=None):
  """Losses, metrics, labels and gradients of D devices' parts.

  Args:
    method: Suave.
    scores: [V, B, K] of the batch.
    labelled: [1, S, K] of the support.
    labels: [S] of the support.
    number: D.
    queue: of all devices together, its prototypes are rows of a unit matrix.
  """
  images = scores.shape[1]
  split = lambda x, axis: np.stack(np.split(np.asarray(x), number, axis))

  def value(both, labels, memory):
    online, of_support = both
    nobody = jnp.full(online.shape[1], -1, jnp.int32)
    batch = base.BatchWide(
      None, jnp.full(images, -1), jnp.arange(images), jnp.zeros((), jnp.int32),
      params={'prototypes': {'w': jnp.eye(_K)}},
    )  # fmt: skip
    inputs = base.Inputs(
      online={'scores': online, 'projection': online}, target=None,
      labels=nobody, ids=batch.ids, batch=batch, shared=(), keys=None,
      support=base.Support({'scores': of_support}, labels),
    )  # fmt: skip
    result = method.loss(inputs, memory)
    return result.loss, (result.metrics, result.labels)

  def one(*args):
    return jax.value_and_grad(value, has_aux=True)(*args)

  memory = () if queue is None else _parts_of(queue, number)
  (losses, (metrics, guesses)), grads = jax.vmap(one, axis_name=parallel.AXIS)(
    (split(scores, 1), split(labelled, 1)), split(labels, 0), memory
  )
  join = lambda x: np.concatenate(list(x), axis=1) / number
  guesses = None if guesses is None else guesses.reshape(-1)
  return losses.mean(), metrics, guesses, tuple(map(join, grads))


def _parts_of(queue, number):
  """The parts of D devices, with a leading axis of them."""
  repeat = lambda x: np.stack([x] * number)
  rows = np.stack(np.split(np.asarray(queue.embeddings), number, axis=1))
  return queue._replace(
    embeddings=rows, labels=repeat(queue.labels), ids=repeat(queue.ids),
    count=repeat(queue.count),
  )  # fmt: skip


_LABELS = np.array([0, 1, 2, 3, 4, 5, 0, 1], np.int32)


@pytest.mark.parametrize(
  'number', [*(pytest.param(n, marks=pytest.mark.long) for n in (2, 4)), 8]
)
@pytest.mark.parametrize('capacity', [0, 16])
def test_the_number_of_devices_changes_nothing(number, capacity):
  method, queue = _method(queue__capacity=capacity), None
  if capacity:
    rows = l2_normalize(_scores(2, capacity, _K, seed=3))
    queue = method.init()._replace(
      embeddings=rows, labels=np.zeros(capacity, np.int32)
    )
  given = _scores(3, 8, _K), _scores(1, 8, _K, seed=1), _LABELS
  loss, metrics, guesses, grads = _look(method, *given, queue=queue)
  many = _look(method, *given, number, queue)
  np.testing.assert_allclose(many[0], loss, rtol=1e-6)
  np.testing.assert_array_equal(many[2], guesses)
  for key, value in metrics.items():
    np.testing.assert_allclose(many[1][key].mean(), value[0], rtol=1e-5)
  for found, wanted in zip(many[3], grads, strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_labelled_image_may_stand_on_any_device():
  method, scores = _method(), _scores(3, 8, _K)
  labelled, order = (
    _scores(1, 8, _K, seed=1),
    np.array([5, 2, 7, 0, 4, 1, 6, 3]),
  )
  loss, _, guesses, (grad, _) = _look(method, scores, labelled, _LABELS, 4)
  moved = _look(method, scores, labelled[:, order], _LABELS[order], 4)
  np.testing.assert_allclose(moved[0], loss, rtol=1e-6)
  np.testing.assert_array_equal(moved[2], guesses)
  np.testing.assert_allclose(moved[3][0], grad, atol=1e-7)


def test_labelled_images_have_no_part_in_the_assignments():
  """And so neither in what the others learn."""
  method, scores = _method(), _scores(3, 8, _K)
  found = [
    _look(method, scores, _scores(1, 8, _K, seed=seed), _LABELS)
    for seed in (1, 2)
  ]
  (_, one, guesses, (grad, of_labels)), (_, other, same, (equal, _)) = found
  assert one['loss/swapped'] == other['loss/swapped']
  assert one['loss/labelled'] != other['loss/labelled']
  np.testing.assert_array_equal(guesses, same)
  np.testing.assert_array_equal(grad, equal)
  # That of the cross-entropy alone, of 8 rows among 32.
  p = jax.nn.softmax(_scores(1, 8, _K, seed=1) / 0.1)
  by_hand = (p - clustering.smoothed(_LABELS, _K, 0.01)) / 0.1 / 32
  np.testing.assert_allclose(of_labels, by_hand, atol=1e-6)


def test_classes_in_another_order_are_the_same_classes():
  method = _method()
  order = np.array([3, 0, 5, 1, 4, 2])  # the new class k was order[k]
  scores, labelled = _scores(3, 8, _K), _scores(1, 8, _K, seed=1)
  loss, _, guesses, grads = _look(method, scores, labelled, _LABELS)
  renamed = np.argsort(order)
  found = _look(
    method, scores[..., order], labelled[..., order],
    renamed[_LABELS].astype(np.int32),
  )  # fmt: skip
  np.testing.assert_allclose(found[0], loss, rtol=1e-6)
  np.testing.assert_array_equal(found[2], renamed[guesses])
  for ours, theirs in zip(found[3], grads, strict=True):
    np.testing.assert_allclose(ours, theirs[..., order], atol=1e-6)


def test_what_the_batch_learns_is_swavs():
  """The same assignments and predictions, scaled by the share of rows."""
  scores = _scores(3, 8, _K)
  _, metrics, _, (grad, _) = _look(
    _method(), scores, _scores(1, 8, _K, seed=1), _LABELS
  )
  cfg = tiny.make_config('swav', queue__capacity=0, prototypes__number=_K)
  loss, of_swav, _, (plain, _) = _look(
    swav.build(tiny.frozen(cfg), _facts(_K)), scores, np.zeros((1, 0, _K)),
    _LABELS[:0],
  )  # fmt: skip
  np.testing.assert_allclose(metrics['loss/swapped'][0], loss, rtol=1e-6)
  np.testing.assert_allclose(grad, plain * 24 / 32, atol=1e-7)
  for key in ('assignment_entropy', 'marginal_entropy', 'prototypes_used'):
    np.testing.assert_array_equal(metrics[key], of_swav[key])


# Whole runs. -----------------------------------------------------------------


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  """Folders of a SwAV's and of a DINO's run of a step."""
  folders = {}
  for name in ('swav', 'dino'):
    folders[name] = str(tmp_path_factory.mktemp(name) / 'run')
    cfg = tiny.make_config(name, num_devices=1, num_epochs=0.4)
    pretraining.pretrain(cfg, folders[name])
  return folders


@pytest.mark.long
@pytest.mark.parametrize('name, before', [('suave', 'swav'), ('daino', 'dino')])
def test_it_begins_with_an_encoder_and_anew_otherwise(name, before, begun):
  cfg = tiny.make_config(name, num_devices=1, init=begun[before])
  run = run_lib.prepare(cfg)
  start = initial_weights.load(run, None)
  assert 'takes encoder; random: projector (init_modules does' in start.line
  state = run_lib.initial_state(run, start)
  theirs = initial_weights.read(begun[before], target=name == 'daino')
  params = parallel.unreplicate(state).online_params
  pairs = [(params, theirs.params)]
  if name == 'daino':  # each network has its own
    pairs.append((parallel.unreplicate(state).target_params, theirs.target[0]))
  for ours, wanted in pairs:
    modules = [m for m in ours if m.startswith('one_block_res_net')]
    for module in modules:
      for leaf, x in ours[module].items():
        np.testing.assert_array_equal(x, wanted[module][leaf])
    assert modules
  if name == 'suave':
    lengths = np.linalg.norm(params['prototypes']['w'], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


@pytest.mark.long
def test_an_encoder_that_does_not_fit_is_refused_in_a_line(begun):
  cfg = tiny.make_config('suave', init=begun['swav'], encoder__width=2)
  with pytest.raises(UserError, match='set --config.encoder.width=1') as caught:
    initial_weights.load(run_lib.prepare(cfg), None)
  assert '\n' not in str(caught.value)


@pytest.mark.long  # two runs each; PAWS's and SimCLR's are among the short
@pytest.mark.parametrize('name, before', [('suave', 'swav'), ('daino', 'dino')])
def test_a_run_ends_with_what_its_prototypes_say(name, before, begun, tmp_path):
  workdir = str(tmp_path / 'run')
  cfg = tiny.make_config(name, num_devices=2, init=begun[before])
  results = pretraining.pretrain(cfg, workdir)
  held = load_lib.load_checkpoint(workdir)
  network = 'target' if name == 'daino' else 'online'
  assert results['network'] == held.weights_of == network
  run = run_lib.prepare(cfg)
  hits = []
  for record in run.data.test:
    image = np.asarray(record['image'], np.float32)[None] / 255
    outputs, _ = held.network().online(held.params, held.state, image, False)
    guess = outputs['scores'][0, : tiny.NUM_CLASSES].argmax()
    hits.append(guess == record['label'])
  assert results['prediction_top1'] == pytest.approx(np.mean(hits))
  own = eval_classifier.get_config('run')
  own.checkpoint, own.progress, own.num_devices = workdir, False, 2
  found = tasks.evaluate(own, str(tmp_path / 'own'))
  assert found['classifier'] == 'prototypes' and found['network'] == network
  assert found['top1'] == pytest.approx(results['prediction_top1'])
  assert 0 <= results['pseudo_label_accuracy'] <= 1
  rows = metrics.read(workdir)
  for key in ('loss/swapped', 'loss/labelled', 'top_label_share'):
    assert all(0 < row[key] < 20 for row in rows), key
  assert all(0 <= row['labelled_accuracy'] <= 1 for row in rows)


# Settings. -------------------------------------------------------------------


@pytest.mark.parametrize('name', ['suave', 'daino'])
@pytest.mark.parametrize(
  'changes, line',
  [
    (
      {'prototypes__number': 2},
      'prototypes.number is 2, but the data set has 3 classes',
    ),
    ({'support__images': 13}, 'support.images is 13, but only 12 training'),
    ({'accumulate': 2}, 'accumulate is 2, '),
    ({'labels__per_class': 0}, 'learns from labelled images, but no image has'),
    ({'loss__temperature': 0.0}, 'loss.temperature is 0.0; it must be above 0'),
    ({'loss__smoothing': 1.5}, 'loss.smoothing is 1.5'),
    (
      {'views__num_large': 1, 'views__num_small': 0},
      'views.num_large is 1',
    ),
  ],
)
def test_what_cannot_work_is_refused(name, changes, line):
  with pytest.raises(UserError, match=line) as caught:
    tiny.prepare(name, **changes)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['suave', 'daino'])
def test_a_support_that_devices_do_not_share_is_refused(name):
  cfg = tiny.make_config(name, support__images=6)
  with pytest.raises(UserError, match='support of 6 images .* the 4 devices'):
    methods.validate(cfg, 4)


@pytest.mark.parametrize('name', ['suave', 'daino'])
def test_every_class_needs_a_labelled_image(name, monkeypatch):
  labels = tiny.prepare(name).labels
  labels = np.where(labels == 1, -1, labels)
  monkeypatch.setattr(
    run_lib.labels_lib, 'visible_labels', lambda *settings: labels
  )
  with pytest.raises(
    UserError, match="1 of the 3 classes, '1' the first, have"
  ):
    tiny.prepare(name)


@pytest.mark.parametrize(
  'changes, line',
  [
    ({'sinkhorn__epsilon': 0.0}, 'sinkhorn.epsilon is 0.0; it must be above 0'),
    (
      {'queue__capacity': 40},
      'queue.capacity is 40, no multiple of batch_size 16',
    ),
  ],
)
def test_what_suave_alone_refuses(changes, line):
  with pytest.raises(UserError, match=line):
    methods.validate(tiny.make_config('suave', **changes), 1)


def test_fewer_images_than_prototypes_are_doubted():
  say = lambda **changes: list(
    methods.doubts(tiny.make_config('suave', **changes), _facts(33))
  )
  assert not say(prototypes__number=0, queue__capacity=32)
  (few,) = say(prototypes__number=0)
  assert 'are fewer images than the 33 prototypes' in few


@pytest.mark.parametrize('name', ['suave', 'daino'])
def test_there_are_as_many_prototypes_as_classes(name):
  run = tiny.prepare(name, prototypes__number=0)
  assert run.setup.method.heads.num_prototypes == tiny.NUM_CLASSES
  np.testing.assert_allclose(
    run.setup.method.chance['loss/swapped'], np.log(tiny.NUM_CLASSES)
  )
