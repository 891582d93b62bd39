"""SimCLR's loss: the release's numbers, values by hand, and what is refused.

golden_data/simclr_nt_xent.npz: add_contrastive_loss of google-research/simclr
(tf2/objective.py) for `z`, views 1 and 2 of 8 images, on one device and on two.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import config, methods
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import contrastive, false_negatives
from semppl_jax.methods import base, simclr
from tests.helpers import golden, tiny

_CLOSE = {'rtol': 1e-5, 'atol': 2e-6}
_SETTINGS = [
  f'{kind}/T{t}' for kind in ('norm', 'raw') for t in (0.1, 0.5, 1.0)
]


@functools.cache
def _golden():
  return golden.load('simclr_nt_xent.npz')


def _both(z):
  """[2 B, d], view 1 before view 2 -> [2, B, d]."""
  return jnp.reshape(z, (2, -1, z.shape[-1]))


def _loss(z, number, *, temperature=1.0, hidden_norm=True, cut=False,
          negatives=None):  # fmt: skip
  """Loss and metrics of SimCLR on some devices, and the gradient.

  Args:
    z: [2, B, d] projections.
    number: of devices.
    temperature: tau.
    hidden_norm: whether they become unit vectors.
    cut: each device sees its own images only, as if they were all there are.
    negatives: settings of that section.

  Returns:
    ({metric: [number]}, the gradient [2, B, d] of the mean over devices).
  """
  cfg = tiny.make_config('simclr')
  cfg.loss.update(temperature=temperature, hidden_norm=hidden_norm)
  cfg.negatives.update(negatives or {})
  method = simclr.build(cfg, None)
  total = z.shape[1] // number if cut else z.shape[1]

  def step(z, labels):
    index = parallel.global_indices(z.shape[1])
    if cut:
      index = jnp.arange(z.shape[1])

    def loss(z):
      batch = base.BatchWide(None, jnp.zeros(total, int), None, None)
      inputs = base.Inputs(
        {'projection': z}, None, labels, None, batch, (),
        base.Keys(index, None, None),
      )  # fmt: skip
      result = method.loss(inputs, ())
      return result.loss, result.metrics | {'loss': result.loss}

    grads, metrics = jax.grad(loss, has_aux=True)(z)
    return grads / number, metrics

  mapped = jax.pmap(
    step, axis_name=parallel.AXIS, in_axes=(1, 0), out_axes=(1, 0),
    devices=jax.devices()[:number],
  )  # fmt: skip
  parts = z.reshape(2, number, -1, z.shape[-1])
  labels = jnp.zeros((number, z.shape[1] // number), int)
  grads, metrics = mapped(parts, labels)
  return metrics, grads.reshape(z.shape)


@pytest.mark.parametrize('number', [1, 2, 4])
@pytest.mark.parametrize('setting', _SETTINGS)
def test_loss_and_gradient_are_the_releases(setting, number):
  file = _golden()
  kind, temperature = setting.split('/T')
  metrics, grads = _loss(
    _both(file['z']), number,
    temperature=float(temperature), hidden_norm=kind == 'norm',
  )  # fmt: skip
  mean = {key: np.mean(value) for key, value in metrics.items()}
  for key, name in (
    ('loss', 'loss'),
    ('loss/contrastive', 'loss'),
    ('contrastive_accuracy', 'accuracy_ab'),
    ('contrastive_entropy', 'entropy_ab'),
  ):
    wanted = file[f'{setting}/{name}']
    np.testing.assert_allclose(mean[key], wanted, **_CLOSE, err_msg=key)
  wanted = _both(file[f'{setting}/grad_z'])
  np.testing.assert_allclose(grads, wanted, **_CLOSE)
  if number == 2 and f'{setting}/D2/loss_per_replica' in file:
    wanted = file[f'{setting}/D2/loss_per_replica']
    np.testing.assert_allclose(metrics['loss'], wanted, **_CLOSE)


@pytest.mark.parametrize('setting', _SETTINGS)
def test_logits_are_the_releases(setting):
  file = _golden()
  kind, temperature = setting.split('/T')
  z = _both(file['z'])
  if kind == 'norm':
    z /= jnp.linalg.norm(z, axis=-1, keepdims=True)
  _, logits = contrastive.nt_xent(
    z, z, jnp.arange(8), temperature=float(temperature)
  )
  np.testing.assert_allclose(logits[0], file[f'{setting}/logits_ab'], **_CLOSE)
  np.testing.assert_allclose(logits[1], logits[0].T, **_CLOSE)


@pytest.mark.parametrize('setting', ['norm/T0.1', 'norm/T0.5', 'raw/T0.5'])
def test_a_gather_that_is_cut_gives_an_easier_task(setting, monkeypatch):
  """The specification's trap: a loss that looks better, and is another one."""
  monkeypatch.setattr(simclr.parallel, 'all_gather', lambda x, axis: x)
  file = _golden()
  kind, temperature = setting.split('/T')
  metrics, _ = _loss(
    _both(file['z']), 2, cut=True,
    temperature=float(temperature), hidden_norm=kind == 'norm',
  )  # fmt: skip
  found, wanted = np.mean(metrics['loss']), file[f'{setting}/D2/not_gathered']
  np.testing.assert_allclose(found, wanted, **_CLOSE)
  assert found < 0.9 * file[f'{setting}/loss']


def test_two_images_by_hand():
  z = jnp.stack([jnp.eye(2)] * 2)  # both views (1, 0), (0, 1)
  metrics, _ = _loss(z, 1)
  wanted = 2 * math.log(1 + 2 / math.e)  # of each view 0.5514447
  np.testing.assert_allclose(metrics['loss'], wanted, rtol=1e-6)
  np.testing.assert_array_equal(metrics['contrastive_accuracy'], 1)
  # Logits 1 and 0 against the other view alone.
  p = math.e / (math.e + 1)
  entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
  np.testing.assert_allclose(metrics['contrastive_entropy'], entropy, 1e-5)


def test_all_alike_is_chance():
  cfg = tiny.make_config('simclr')
  z = jnp.ones((2, cfg.batch_size, 3))
  metrics, _ = _loss(z, 2)
  ((name, chance),) = simclr.build(cfg, None).chance.items()
  assert chance == pytest.approx(2 * math.log(2 * cfg.batch_size - 1))
  np.testing.assert_allclose(metrics[name], chance, rtol=1e-6)


def test_what_changes_nothing():
  z = _both(_golden()['z'])
  value = lambda z: float(np.mean(_loss(z, 1, temperature=0.5)[0]['loss']))
  random = np.random.RandomState(0)
  rotation, _ = np.linalg.qr(random.randn(6, 6))
  for same in (
    z[::-1],  # views
    z[:, random.permutation(8)],  # images
    z * random.uniform(0.5, 2, (2, 8, 1)),  # lengths
    z @ rotation,
  ):
    assert value(same) == pytest.approx(value(z), rel=1e-5)
  other = jnp.asarray(z).at[0, 0].set(z[0, 1])
  assert value(other) != pytest.approx(value(z), rel=1e-3)


def test_gradients_are_orthogonal_to_what_is_normalised():
  z = _both(_golden()['z'])
  _, grads = _loss(z, 4, temperature=0.1)
  products = jnp.sum(grads * z, axis=-1)
  np.testing.assert_allclose(products, 0, atol=1e-5)
  assert np.linalg.norm(grads, axis=-1).min() > 1e-3


def test_computes_in_float32_and_asks_for_full_precision():
  z = _both(_golden()['z']).astype(jnp.bfloat16)
  run = jax.jit(
    lambda z: contrastive.nt_xent(z, z, jnp.arange(8), temperature=0.1)
  )
  for value in run(z):
    assert value.dtype == jnp.float32
  exact = contrastive.nt_xent(
    *[z.astype(jnp.float32)] * 2, jnp.arange(8), temperature=0.1
  )
  np.testing.assert_allclose(run(z)[0], exact[0], rtol=1e-5)
  lines = run.lower(z).as_text().splitlines()
  products = [line for line in lines if 'dot_general' in line]
  assert len(products) == 1
  assert 'precision = [HIGHEST, HIGHEST]' in products[0]


def test_there_is_no_target_network():
  run = tiny.prepare('simclr')
  state = tiny.first_state(run, 1)
  assert not state.target_params and not state.target_state
  heads = {name.split('/')[0] for name in state.online_params}
  assert 'projector' in heads and 'predictor' not in heads
  assert 'ema' not in run.cfg


@pytest.mark.parametrize('attract', [False, True])
def test_false_negatives_are_those_of_all_devices(attract):
  z = _both(_golden()['z'])
  changes = {'cancel': 'similarity', 'top_k': 3, 'attract': attract}
  changes['threshold'] = 0.55
  unit = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  own = jnp.tile(jnp.eye(8, dtype=bool), 2)
  scores = false_negatives.similarity(unit, unit.reshape(16, -1))
  found = false_negatives.find(scores, own, top_k=3, threshold=0.55)
  assert 0 < found.mask.sum() < found.mask.size

  def total(z):
    z /= jnp.linalg.norm(z, axis=-1, keepdims=True)
    losses, _ = false_negatives.nt_xent(
      z, z, jnp.arange(8), found, temperature=0.5, attract=attract
    )
    return losses.mean(axis=1).sum()

  wanted, wanted_grads = jax.value_and_grad(total)(z)
  plain, _ = _loss(z, 1, temperature=0.5)
  for number in (1, 4):
    metrics, grads = _loss(z, number, temperature=0.5, negatives=changes)
    np.testing.assert_allclose(np.mean(metrics['loss']), wanted, rtol=1e-5)
    np.testing.assert_allclose(grads, wanted_grads, **_CLOSE)
    mean = found.mask.sum(axis=1).mean()
    np.testing.assert_allclose(np.mean(metrics['false_negatives']), mean)
    for name in ('contrastive_accuracy', 'contrastive_entropy'):
      np.testing.assert_allclose(
        np.mean(metrics[name]), np.mean(plain[name]), rtol=1e-5
      )
  assert abs(wanted - np.mean(plain['loss'])) > 1e-2


def test_the_quantile_is_the_batchs():
  z = _both(_golden()['z'])
  changes = {'cancel': 'similarity', 'top_k': 14, 'quantile': 0.75}
  unit = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  scores = false_negatives.similarity(unit, unit.reshape(16, -1))
  others = scores[~jnp.tile(jnp.eye(8, dtype=bool), 2)].reshape(8, -1)
  threshold = np.quantile(others, 0.75, axis=1).mean()
  for number in (1, 4):
    metrics, _ = _loss(z, number, negatives=changes)
    wanted = (others > threshold).sum(axis=1).mean()
    np.testing.assert_allclose(np.mean(metrics['false_negatives']), wanted)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'batch_size': 1}, 'batch_size is 1; it must be at least 2'),
    ({'loss__temperature': 0.0}, 'loss.temperature is 0.0; .* above 0'),
    ({'views__num_large': 3}, 'views.num_large is 3, .* set it to 2'),
    ({'views__num_small': 1}, 'views.num_small is 1, .* set it to 0'),
    ({'negatives__cancel': 'label'}, "is 'label'; known: none, similarity"),
    ({'negatives__attract': True}, "attract is True, but .* is 'none'"),
    ({'projector__layers': 0}, 'projector.layers is 0; .* at least 1'),
    ({'optimizer__scaling': 'root'}, "optimizer.scaling is 'root'; known: "),
    ({'views__brightness_mode': 'mul'}, "brightness_mode is 'mul'; known: "),
  ],
)
def test_refuses_in_a_line_what_cannot_work(changes, words):
  with pytest.raises(UserError, match=words) as caught:
    config.validate(tiny.make_config('simclr', **changes), 1)
  assert '\n' not in str(caught.value)


def test_accumulate_is_refused():
  with pytest.raises(UserError, match="accumulate is 2, .* 'simclr' needs the"):
    tiny.prepare('simclr', accumulate=2)


def test_default_is_the_releases():
  cfg = methods.default('simclr')
  config.validate(cfg, 128)
  peak = cfg.optimizer.learning_rate * math.sqrt(cfg.batch_size)
  assert peak == pytest.approx(6.4)
  assert cfg.optimizer.rate_in_momentum and cfg.views.one_pass
  strengths = ('brightness', 'contrast', 'saturation', 'hue')
  assert [cfg.views[name] for name in strengths] == [0.8, 0.8, 0.8, 0.2]
  assert cfg.projector.to_dict() == {'layers': 3, 'hidden': 0, 'size': 128}
