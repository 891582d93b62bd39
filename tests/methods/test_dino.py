"""DINO against its release: the loss, the centre, and whole updates.

facebookresearch/dino at 7c446df. golden_data/dino_loss.npz: DINOLoss(7, 5,
0.04, 0.07, 3, 6) at epochs 0, 1, 3. dino_steps.npz: main_dino.train_one_epoch
over two epochs of three steps, B 4, 2 large and 3 small views of a spatial
mean, Linear - BatchNorm - ReLU for an encoder, K 7, clipping at 0.5, one epoch
of frozen prototypes, LARS. The head by itself is in test_prototype_head.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hlo
from semppl_jax import methods, types
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.memory import center as center_lib
from semppl_jax.methods import base
from semppl_jax.models import networks
from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.train import passes
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from tests.helpers import golden, tiny


def _facts(steps, total=6):
  return base.RunFacts(3, 12, np.zeros(3, np.float32), 0, total, steps)


def _method(number, steps=int, **changes):
  cfg = tiny.make_config('dino', prototypes__number=number, **changes)
  return methods.build(tiny.frozen(cfg), _facts(steps))


def _look(method, online, target, center, step):
  """Loss and next centre of [V, b, K] and [W, b, K] on each of D devices.

  Arguments have a leading axis of devices, but for the centre and the step.
  """
  memory = center_lib.Center(jnp.asarray(center))

  def one(online, target):
    projection = jnp.zeros((*online.shape[:2], 3))
    outputs = {'projection': projection, 'scores': online}
    targets = {'projection': projection[: len(target)], 'scores': target}
    images = online.shape[1] * parallel.axis_size()
    batch = base.BatchWide(
      target=None, labels=jnp.full(images, -1), ids=jnp.arange(images),
      step=jnp.int32(step), local_target=targets,
    )  # fmt: skip
    prepared, shared = method.prepare(memory, batch)
    inputs = base.Inputs(
      online=outputs, target=targets, labels=batch.labels, ids=batch.ids,
      batch=batch, shared=shared, keys=None,
    )  # fmt: skip
    loss = method.loss(inputs, prepared).loss
    return loss, method.update(prepared, batch, shared, {}).center

  loss, center = jax.vmap(one, axis_name=parallel.AXIS)(online, target)
  assert np.ptp(np.asarray(center), axis=0).max() == 0
  return loss, center[0]


def _split(rows, views, number):
  """[views B, K] -> [D, views, B/D, K]."""
  images = rows.reshape(views, number, -1, rows.shape[-1])
  return jnp.moveaxis(images, 1, 0)


def test_loss_gradient_and_centre_are_the_releases():
  file = golden.load('dino_loss.npz')
  method = _method(
    7, loss__target_temperature=(0.04, 0.07), loss__target_temperature_epochs=3
  )
  for number in (1, 2):
    center = np.zeros(7, np.float32)
    for i, epoch in enumerate(file['epoch']):
      student = _split(file['student'][i], 5, number)
      teacher = _split(file['teacher'][i], 2, number)
      loss, center_after = _look(method, student, teacher, center, epoch)
      if number == 2:
        apart = file['two_processes_loss'][:, i]
        np.testing.assert_allclose(loss, apart, rtol=1e-6)
      else:
        gradient = jax.grad(
          lambda s, t, c, e: _look(method, s, t, c, e)[0].mean()
        )(student, teacher, center, epoch)
        np.testing.assert_allclose(
          gradient.reshape(20, 7), file['grad_student'][i], atol=1e-6
        )
      np.testing.assert_allclose(loss.mean(), file['loss'][i], rtol=1e-6)
      center = np.asarray(center_after)
      np.testing.assert_allclose(center, file['center'][i], atol=1e-6)


def test_a_loss_by_hand():
  """(H(3/4, 1/4) + log 2) / 2; the centre moves by a tenth of the mean."""
  method = _method(2, loss__target_temperature=(0.1, 0.1))
  log3 = 0.1 * np.log(3)
  online = jnp.array([[[0.0, 0.0]], [[log3, 0.0]]])
  target = jnp.array([[[log3, 0.0]], [[0.0, 0.0]]])
  loss, center = _look(method, online[None], target[None], np.zeros(2), 0)
  wanted = (-0.75 * np.log(0.75) - 0.25 * np.log(0.25) + np.log(2)) / 2
  np.testing.assert_allclose(loss, [wanted], rtol=1e-6)
  np.testing.assert_allclose(wanted, golden.load('dino_loss.npz')['hand_loss'])
  np.testing.assert_allclose(center, [0.1 * log3 / 2, 0], atol=1e-7)


def test_what_is_added_to_target_and_centre_changes_nothing():
  method = _method(7)
  random = np.random.RandomState(0)
  online, target = random.uniform(-1, 1, (2, 1, 2, 4, 7)).astype(np.float32)
  more = random.uniform(-1, 1, 7).astype(np.float32)
  one, _ = _look(method, online, target, np.zeros(7, np.float32), 0)
  moved, _ = _look(method, online, target + more, more, 0)
  np.testing.assert_allclose(moved, one, rtol=1e-5)


# Whole updates. --------------------------------------------------------------


def _networks(method):
  """The release's stand-in for a ResNet, with DINO's head."""
  settings = {
    'create_scale': True, 'create_offset': True, 'decay_rate': 0.9, 'eps': 1e-5,
  }  # fmt: skip
  synced = settings | {'cross_replica_axis': parallel.AXIS, 'views': True}

  def encode(images, is_training, bn=synced):
    x = hk.Linear(6, name='lin')(images.mean(axis=(-3, -2)))
    return jax.nn.relu(BatchNorm(**bn)(x, is_training))

  def heads(embedding, is_training, is_online, bn=synced):
    outputs = method.heads(embedding, is_training, is_online, bn)
    return {'embedding': embedding, **outputs} if is_online else outputs

  def transformed(function, **more):
    apply = hk.transform_with_state(functools.partial(function, **more)).apply
    return lambda params, state, *args: apply(params, state, None, *args)

  return networks.Networks(
    init=hk.transform_with_state(
      lambda images: heads(encode(images, True, settings), True, True, settings)
    ).init,
    online=None,
    target=None,
    encode=transformed(encode),
    target_tree=lambda tree: tree,
    features=None,
    features_tree=None,
    online_heads=transformed(heads, is_online=True),
    target_heads=transformed(heads, is_online=False),
  )


def _setup():
  cfg = tiny.make_config(
    'dino', prototypes__number=7, prototypes__freeze_epochs=1.0,
    loss__target_temperature_epochs=2, ema__base=0.9, views__num_small=3,
  )  # fmt: skip
  cfg.batch_size = 4
  cfg.projector.update(hidden=8, size=4)
  # Their rates are 0.1, 0.2, .., 0.6: a warm-up of six steps that goes on.
  cfg.optimizer.update(
    name='lars', start_learning_rate=0.1 * 64, learning_rate=0.7 * 64,
    warmup_kind='byol', weight_decay=0.01, trust_coefficient=0.02, clip=0.5,
  )  # fmt: skip
  cfg = tiny.frozen(cfg)
  method = methods.build(cfg, _facts(lambda epochs: int(3 * epochs)))
  return step_lib.StepSetup(
    cfg=cfg,
    method=method,
    nets=_networks(method),
    optimizer=run_lib.build_optimizer(cfg),
    total_steps=6,
    warmup_steps=6,
  )


_LINEARS = {
  'lin': 'backbone.lin',
  'projector/linear': 'head.mlp.0',
  'projector/linear_1': 'head.mlp.3',
  'projector/linear_2': 'head.mlp.6',
}
_NORMS = {
  'batch_norm': 'backbone.bn',
  'projector/batch_norm': 'head.mlp.1',
  'projector/batch_norm_1': 'head.mlp.4',
}


def _params(read):
  """Our tree of what `read` gives for their names."""
  tree = {
    ours: {'w': read(f'{name}.weight').T, 'b': read(f'{name}.bias')}
    for ours, name in _LINEARS.items()
  }
  tree |= {
    ours: {
      'scale': read(f'{name}.weight')[None],
      'offset': read(f'{name}.bias')[None],
    }
    for ours, name in _NORMS.items()
  }
  return tree | {'prototypes': {'v': read('head.last_layer.weight_v')}}


def _batch(file, step):
  """In place of images, the pixels of all their views."""
  views = [
    np.moveaxis(file[name][step], (1, 2), (0, 4)).reshape(4, -1)
    for name in ('large', 'small')
  ]
  return types.Batch(
    np.concatenate(views, axis=1), np.full(4, -1, np.int32),
    np.arange(4, dtype=np.int32),
  )  # fmt: skip


def _given_views(batch, keys, setup):
  del keys, setup
  count = len(batch.labels)
  large, small = jnp.split(batch.images, [2 * 4 * 4 * 3], axis=1)
  of = lambda x, views, side: jnp.moveaxis(
    x.reshape(count, views, side, side, 3), 0, 1
  )
  return types.Views(of(large, 2, 4), of(small, 3, 2))


def _first_state(setup, file):
  images = jnp.zeros((2, 4, 4, 3))
  params = _params(lambda name: file[f'init_{name}'])
  made, bn_state = setup.nets.init(jax.random.key(0), images)
  shapes = functools.partial(jax.tree.map, np.shape)
  assert shapes(dict(made)) == shapes(params)
  bn_state = jax.tree.map(np.zeros_like, bn_state)
  return state_lib.TrainState(
    step=np.int32(0),
    online_params=params,
    online_state=bn_state,
    target_params=params,
    target_state=bn_state,
    opt_state=setup.optimizer.init(params),
    memory=setup.method.init(),
  )


def _mapped(setup, number):
  step = functools.partial(step_lib.train_step, setup=setup)
  return tiny.map_step(step, number)


@pytest.mark.parametrize('number', [pytest.param(1, marks=pytest.mark.long), 2])
def test_six_updates_are_the_releases(number, monkeypatch):
  monkeypatch.setattr(passes, 'make_views', _given_views)
  file, setup = golden.load('dino_steps.npz'), _setup()
  devices, step = jax.devices()[:number], _mapped(setup, number)
  state = state_lib.from_host(_first_state(setup, file), setup.method, devices)
  close = {'rtol': 2e-5, 'atol': 2e-5}
  for i in range(6):
    batch = _batch(file, i)
    state, [(scalars, _)] = tiny.run_steps(step, state, [batch], number)
    for name, key in (
      ('loss', 'loss'), ('learning_rate', 'lr'), ('ema_rate', 'momentum'),
    ):  # fmt: skip
      np.testing.assert_allclose(scalars[name][0], file[key][i], **close)
    found = parallel.unreplicate(state)
    np.testing.assert_allclose(found.memory.center, file['center'][i], **close)
    for network, ours in (('student', 'online'), ('teacher', 'target')):
      params = getattr(found, f'{ours}_params')
      wanted = _params(lambda name: file[f'{network}_{name}'][i])  # noqa: B023
      for module, leaves in wanted.items():
        for name, leaf in leaves.items():
          np.testing.assert_allclose(
            params[module][name], leaf, **close, err_msg=f'{network} {module}'
          )
      # Theirs begin at 0, too: which passes there were, and of what.
      for module, name in _NORMS.items():
        mean = getattr(found, f'{ours}_state')[f'{module}/~/mean_ema']['hidden']
        theirs = file[f'{network}_{name}.running_mean'][i]
        np.testing.assert_allclose(mean[0], theirs, **close)


def test_nothing_of_the_size_of_the_scores_travels(monkeypatch):
  """K is 7, as nothing else there: sums over all images alone have it."""
  monkeypatch.setattr(passes, 'make_views', _given_views)
  file, setup = golden.load('dino_steps.npz'), _setup()
  devices = jax.devices()[:2]
  state = state_lib.from_host(_first_state(setup, file), setup.method, devices)
  batch = parallel.shard(_batch(file, 0), 2)
  lowered = _mapped(setup, 2).lower(state, batch, jax.random.key(0))
  found = hlo.collectives(lowered.compile())
  assert any(each.kind == 'all-gather' for each in found)
  for each in found:
    assert each.kind == 'all-reduce' or 7 not in each.dimensions
  assert any(7 in each.dimensions for each in found)


# Settings. -------------------------------------------------------------------


@pytest.mark.parametrize(
  'key, value, words',
  [
    ('loss.temperature', 0.0, 'loss.temperature is 0.0'),
    ('loss.target_temperature', (0.0, 0.07), 'must be two numbers above 0'),
    ('loss.center_momentum', 1.5, 'loss.center_momentum'),
    ('prototypes.number', 1, 'prototypes.number'),
    ('views.num_large', 1, 'views.num_large'),
    ('watchdog.min_marginal_entropy', 1.5, 'min_marginal_entropy'),
    ('watchdog.max_assignment_entropy', -0.1, 'max_assignment_entropy'),
  ],
)
def test_what_cannot_work_is_refused(key, value, words):
  cfg = tiny.make_config('dino')
  cfg.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=words):
    methods.validate(cfg, 1)


def test_prototypes_stay_for_an_epoch():
  method = _method(7, steps=lambda epochs: int(5 * epochs))
  assert method.frozen == {'prototypes': 2}  # of tiny's half epoch
  np.testing.assert_allclose(method.chance['loss/swapped'], np.log(7))
