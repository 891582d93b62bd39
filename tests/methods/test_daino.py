"""Daino's updates against its release's; its loss on any number of devices.

pietroastolfi/suave-daino at 9adf13d. golden_data/daino_steps.npz:
main_daino.train_one_epoch over two epochs of two steps without mixing, networks
in training mode, of a spatial mean, Linear without bias - BatchNorm - ReLU, a
head without BatchNorm, prototypes of length 1, B 4, 3 labelled images, 2 large
and 2 small views; AdamW with a weight decay that rises.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semppl_jax import methods, types
from semppl_jax.distributed import parallel
from semppl_jax.losses import clustering
from semppl_jax.memory import center
from semppl_jax.methods import base
from semppl_jax.models import networks
from semppl_jax.models.batch_norm import BatchNorm
from semppl_jax.train import optimizers, passes
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train import support as support_lib
from tests.helpers import golden, tiny

_STEPS, _B, _N, _K = 4, 4, 3, 6


def _facts(steps):
  shares = np.full(_K, 1 / _K, np.float32)
  return base.RunFacts(_K, _B, shares, _N, _STEPS, steps)


def _networks(method):
  settings = {
    'create_scale': True, 'create_offset': True, 'decay_rate': 0.9, 'eps': 1e-5,
  }  # fmt: skip
  synced = settings | {'cross_replica_axis': parallel.AXIS, 'views': True}

  def encode(images, is_training, bn=synced):
    x = hk.Linear(6, False, name='lin')(images.mean(axis=(-3, -2)))
    return jax.nn.relu(BatchNorm(**bn)(x, is_training))

  def heads(embedding, is_training, is_online, bn=synced):
    return method.heads(embedding, is_training, is_online, bn)

  def transformed(function, **more):
    apply = hk.transform_with_state(functools.partial(function, **more)).apply
    return lambda params, state, *args: apply(params, state, None, *args)

  unused = dict.fromkeys(networks.Networks._fields)
  used = {
    'init': hk.transform_with_state(
      lambda images: heads(encode(images, True, settings), True, True, settings)
    ).init,
    'encode': transformed(encode),
    'target_tree': lambda tree: tree,
    'online_heads': transformed(heads, is_online=True),
    'target_heads': transformed(heads, is_online=False),
  }
  return networks.Networks(**unused | used)


def _setup(weight_decay):
  cfg = tiny.make_config(
    'daino', prototypes__number=0, projector__batch_norm=False, ema__base=0.99,
    loss__target_temperature_epochs=2, views__num_small=2, support__images=_N,
  )  # fmt: skip
  cfg.batch_size = _B
  cfg.projector.update(hidden=8, size=4)
  cfg.prototypes.scale_trained = False
  # Their rates are 0.01, 0.02, ..: a warm-up of four steps that goes on.
  cfg.optimizer.update(
    start_learning_rate=0.01 * 64, learning_rate=0.05 * 64, warmup_kind='byol'
  )
  cfg = tiny.frozen(cfg)
  method = methods.build(cfg, _facts(lambda epochs: int(2 * epochs)))
  return step_lib.StepSetup(
    cfg=cfg,
    method=method,
    nets=_networks(method),
    optimizer=optimizers.build(
      'adamw', weight_decay=weight_decay, b1=0.9, b2=0.999
    ),
    total_steps=_STEPS,
    warmup_steps=_STEPS,
  )


_LINEARS = {
  'projector/linear': 'head.mlp.0',
  'projector/linear_1': 'head.mlp.2',
  'projector/linear_2': 'head.mlp.4',
}


def _params(read):
  """Our tree of what `read` gives for their names."""
  tree = {
    ours: {'w': read(f'{name}.weight').T, 'b': read(f'{name}.bias')}
    for ours, name in _LINEARS.items()
  }
  return tree | {
    'lin': {'w': read('backbone.lin.weight').T},
    'batch_norm': {
      'scale': read('backbone.bn.weight')[None],
      'offset': read('backbone.bn.bias')[None],
    },
    'prototypes': {'v': read('head.last_layer.weight_v')},
  }


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


def _first_state(setup, file):
  params = _params(lambda name: file[f'init_{name}'])
  made, bn_state = setup.nets.init(jax.random.key(0), jnp.zeros((2, 4, 4, 3)))
  shapes = functools.partial(jax.tree.map, np.shape)
  assert shapes(dict(made)) == shapes(params)
  bn_state = jax.tree.map(np.zeros_like, bn_state)
  state = state_lib.TrainState(
    step=np.int32(0),
    online_params=params,
    online_state=bn_state,
    target_params=params,
    target_state=bn_state,
    opt_state=setup.optimizer.init(params),
    memory=setup.method.init(),
  )
  return state_lib.from_host(state, setup.method, jax.devices()[:1])


def test_four_updates_are_the_releases(monkeypatch):
  monkeypatch.setattr(passes, 'make_views', _given_views)
  monkeypatch.setattr(
    support_lib, 'make_views', lambda key, step, batch, *_: batch.images[None]
  )
  file, state = golden.load('daino_steps.npz'), None
  close = {'rtol': 1e-5, 'atol': 1e-5}
  for i in range(_STEPS):
    setup = _setup(float(file['wd'][i]))
    state = state or _first_state(setup, file)
    step = functools.partial(step_lib.train_step, setup=setup)
    state, [(scalars, labels)] = tiny.run_steps(
      tiny.map_step(step, 1), state, [_batch(file, i)], 1
    )
    for name, key in (
      ('loss', 'loss'), ('loss/swapped', 'unlab_loss'),
      ('loss/labelled', 'lab_loss'), ('learning_rate', 'lr'),
      ('ema_rate', 'momentum'),
    ):  # fmt: skip
      np.testing.assert_allclose(scalars[name][0], file[key][i], **close)
    grads = [file[key][i] for key in file if key.startswith('grad_')]
    np.testing.assert_allclose(
      scalars['grad_norm'][0], optax.tree.norm(grads), **close
    )
    before = file['center'][i - 1] if i else np.zeros(_K)
    temperature = 0.04 if i < 2 else 0.07
    scores = file['teacher_out'][i].reshape(2, _B, _K)
    q = jax.nn.softmax((scores - before) / temperature)
    np.testing.assert_array_equal(labels, q.mean(axis=0).argmax(axis=-1))
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
      # Theirs begin at 0, too: labelled images share the large views' pass.
      state_of = getattr(found, f'{ours}_state')
      mean = state_of['batch_norm/~/mean_ema']['hidden']
      theirs = file[f'{network}_backbone.bn.running_mean'][i]
      np.testing.assert_allclose(mean[0], theirs, **close)


# The method on scores that are given. ----------------------------------------


def _scores(*shape, seed=0):
  random = np.random.RandomState(seed)
  return random.uniform(-1, 1, shape).astype(np.float32)


def _look(method, scores, target, labelled, labels, number=1):
  """Loss, metrics, labels and next centre of D devices' parts."""
  split = lambda x, axis: np.stack(np.split(np.asarray(x), number, axis))
  images = scores.shape[1]

  def one(scores, target, labelled, labels):
    memory = center.Center(jnp.linspace(-0.1, 0.1, _K))
    outputs = lambda x: {'scores': x, 'projection': x}
    nobody = jnp.full(scores.shape[1], -1, jnp.int32)
    batch = base.BatchWide(
      None, jnp.full(images, -1), jnp.arange(images), jnp.zeros((), jnp.int32),
      local_target=outputs(target),
    )  # fmt: skip
    memory, shared = method.prepare(memory, batch)
    inputs = base.Inputs(
      online=outputs(scores), target=outputs(target), labels=nobody,
      ids=batch.ids, batch=batch, shared=shared, keys=None,
      support=base.Support({'scores': labelled}, labels),
    )  # fmt: skip
    result = method.loss(inputs, memory)
    after = method.update(memory, batch, shared, {})
    return result.loss, result.metrics, result.labels, after.center

  loss, metrics, guesses, after = jax.vmap(one, axis_name=parallel.AXIS)(
    split(scores, 1), split(target, 1), split(labelled, 1), split(labels, 0)
  )
  metrics = {key: value.mean() for key, value in metrics.items()}
  assert np.ptp(np.asarray(after), axis=0).max() == 0
  return loss.mean(), metrics, guesses.reshape(-1), after[0]


_LABELS = np.array([0, 1, 2, 3, 4, 5, 0, 1], np.int32)


def _method(name='daino', **changes):
  cfg = tiny.make_config(name, prototypes__number=_K, **changes)
  return methods.build(tiny.frozen(cfg), _facts(int))


@pytest.mark.parametrize(
  'number', [*(pytest.param(n, marks=pytest.mark.long) for n in (2, 4)), 8]
)
def test_the_number_of_devices_changes_nothing(number):
  given = (
    _scores(3, 8, _K), _scores(2, 8, _K, seed=1), _scores(1, 8, _K, seed=2),
    _LABELS,
  )  # fmt: skip
  loss, metrics, guesses, after = _look(_method(), *given)
  many = _look(_method(), *given, number)
  np.testing.assert_allclose(many[0], loss, rtol=1e-6)
  np.testing.assert_array_equal(many[2], guesses)
  np.testing.assert_allclose(many[3], after, atol=1e-7)
  for key, value in metrics.items():
    np.testing.assert_allclose(many[1][key], value, rtol=1e-5)


def test_what_the_batch_learns_is_dinos():
  """Labelled images move neither the assignments nor the centre."""
  given = _scores(3, 8, _K), _scores(2, 8, _K, seed=1)
  labelled = _scores(1, 8, _K, seed=2)
  loss, metrics, _, after = _look(_method(), *given, labelled, _LABELS)
  other = _look(_method(), *given, -labelled, _LABELS)
  assert other[1]['loss/swapped'] == metrics['loss/swapped']
  assert other[1]['loss/labelled'] != metrics['loss/labelled']
  np.testing.assert_array_equal(other[3], after)
  same = {'loss__target_temperature': (0.04, 0.07)}
  none = np.zeros((1, 0, _K), np.float32), _LABELS[:0]
  of_dino, said, _, moved = _look_at_dino(_method('dino', **same), *given, none)
  np.testing.assert_allclose(metrics['loss/swapped'], of_dino, rtol=1e-6)
  np.testing.assert_array_equal(moved, after)
  for key in ('assignment_entropy', 'marginal_entropy'):
    np.testing.assert_allclose(said[key], metrics[key], rtol=1e-6)
  wanted = 24 * of_dino + 8 * metrics['loss/labelled']
  np.testing.assert_allclose(loss, wanted / 32, rtol=1e-6)


def _look_at_dino(method, scores, target, none):
  plain = method._replace(
    loss=lambda *args: method.loss(*args)._replace(
      labels=jnp.full(scores.shape[1], -1)
    )
  )
  return _look(plain, scores, target, *none)


def test_it_predicts_the_classes():
  q = _scores(1, 5, _K)
  found = _method().predict({'scores': q}, ())
  np.testing.assert_array_equal(found, clustering.largest_class(q, _K))
