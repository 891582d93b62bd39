"""BYOL's whole updates against its release's.

golden_data/byol.npz, train/: three updates by ByolExperiment of DeepMind's byol
on one device, TinyResNet, 8 images a batch whose views are given. What a test
of the loss alone would not see: the order of target and online update, their
clocks, BatchNorm's passes, LARS.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import methods, types
from semppl_jax.distributed import parallel
from semppl_jax.methods import base
from semppl_jax.train import passes
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from tests.helpers import golden, tiny

_FACTS = base.RunFacts(6, 8, np.zeros(6, np.float32), 8, 10, int)


def _config():
  cfg = tiny.make_config('byol', labels__fraction=1.0, labels__per_class=0)
  cfg.batch_size = 8
  cfg.encoder.update(name='tiny', stem='imagenet')
  cfg.views.num_small = 0
  cfg.optimizer.update(name='lars', learning_rate=1.6, weight_decay=1e-2)
  cfg.ema.base = 0.9
  return tiny.frozen(cfg)


def _setup():
  cfg = _config()
  method = methods.build(cfg, _FACTS)
  return step_lib.StepSetup(
    cfg=cfg,
    method=method,
    nets=run_lib.build_networks(cfg, method, 6),
    optimizer=run_lib.build_optimizer(cfg),
    total_steps=10,
    warmup_steps=2,
  )


def _first_state(setup):
  """Weights by the fill rule; all of BatchNorm's state is zero."""
  images = jnp.zeros((2, 16, 16, 3))
  trees = jax.eval_shape(setup.nets.init, jax.random.key(0), images)
  shapes, bn_shapes = jax.tree.map(lambda x: x.shape, trees)
  target_of = setup.nets.target_tree
  named = {f'target/{k}': leaves for k, leaves in target_of(shapes).items()}
  params = golden.params(shapes)
  bn_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), trees[1])
  return state_lib.TrainState(
    step=np.int32(0),
    online_params=params,
    online_state=bn_state,
    target_params={
      name.removeprefix('target/'): leaves
      for name, leaves in golden.params(named).items()
    },
    target_state=target_of(bn_state),
    opt_state=setup.optimizer.init(params),
    memory=(),
  )


def _batch(step):
  """In place of images their two views, [8, 2, 16, 16, 3]."""
  views = [
    jax.nn.sigmoid(golden.fill(f'byol/step{step}/view{v}', (8, 16, 16, 3), 1))
    for v in (1, 2)
  ]
  labels = np.arange(8, dtype=np.int32) % 6
  return types.Batch(np.stack(views, 1), labels, np.arange(8, dtype=np.int32))


def _updates(number):
  """States on the host after each of three updates, and metrics before."""
  setup = _setup()
  devices = jax.devices()[:number]
  step = tiny.map_step(
    functools.partial(step_lib.train_step, setup=setup), number
  )
  state = state_lib.from_host(_first_state(setup), setup.method, devices)
  states, metrics = [], []
  for i in range(3):
    state, [(scalars, _)] = tiny.run_steps(step, state, [_batch(i)], number)
    states.append(parallel.unreplicate(state))
    metrics.append({key: value[0] for key, value in scalars.items()})
  return states, metrics


def _given_views(batch, keys, setup):
  del keys, setup
  small = jnp.zeros((0, len(batch.labels), 8, 8, 3))
  return types.Views(jnp.moveaxis(batch.images, 1, 0), small)


@pytest.mark.parametrize('number', [pytest.param(1, marks=pytest.mark.long), 2])
def test_three_updates_are_the_releases(number, monkeypatch):
  monkeypatch.setattr(passes, 'make_views', _given_views)
  file = golden.load('byol.npz')
  states, metrics = _updates(number)
  for ours, theirs in (
    ('loss/regression', 'repr_loss'),
    ('learning_rate', 'learning_rate'),
    ('ema_rate', 'tau'),
  ):
    found = [scalars[ours] for scalars in metrics]
    wanted = file[f'train/logs/{theirs}']
    np.testing.assert_allclose(found, wanted, 1e-4, err_msg=ours)
  checked = 0
  for step, tolerance in ((2, 1e-5), (3, 1e-4)):
    close = {'rtol': tolerance, 'atol': tolerance}
    for key, wanted in file.items():
      if not key.startswith(f'train/step{step}/'):
        continue
      _, _, tree, *path = key.split('/')
      kind = path[-1].partition('#')[2]
      path[-1] = path[-1].partition('#')[0]
      if (
        'classifier' in path
        or tree.startswith('target')
        and (path[0] == 'predictor')
      ):
        continue  # theirs learns from view 1 alone; of no use in the target
      found = _leaf(states[step - 1], tree, '/'.join(path))
      if kind == 'norm':
        found = np.linalg.norm(found)
      elif kind == 'first':
        found = found.ravel()[: len(wanted)]
      np.testing.assert_allclose(found, wanted, **close, err_msg=key)
      checked += 1
  assert checked > 200


def _leaf(state, tree, path):
  if tree.endswith('_state'):
    return getattr(state, tree)[path]['average']
  module, _, name = path.rpartition('/')
  return getattr(state, f'{tree}_params')[module][name]
