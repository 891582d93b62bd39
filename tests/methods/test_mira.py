"""MIRA against its authors' code, and what its assignments are.

golden_data/mira.npz: train.mira and train.loss_func of movinghoon/MIRA
(2a62538), tau 0.225.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import methods
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import clustering
from semppl_jax.methods import base
from tests.helpers import golden, tiny

_BETAS = {'0': 0.0, '05': 0.5, '23': 2 / 3, '34': 3 / 4}
_TAU = 0.225


def _mira(scores, beta, iterations=30, number=1, temperature=_TAU):
  """Assignments of [B, K] or [A, B, K], on so many devices."""
  scores = jnp.asarray(scores)
  views = scores.reshape(-1, *scores.shape[-2:])
  parts = jnp.stack(jnp.split(views, number, axis=1))
  q = jax.vmap(
    functools.partial(
      clustering.mira, temperature=temperature, beta=beta,
      iterations=iterations, over_devices=parallel.logsumexp,
    ),
    axis_name=parallel.AXIS,
  )(parts)  # fmt: skip
  return jnp.concatenate(list(q), axis=1).reshape(scores.shape)


@pytest.mark.parametrize('name', _BETAS)
def test_assignments_are_the_authors(name):
  file = golden.load('mira.npz')
  for iterations in (0, 1, 30):
    found = _mira(file['scores'], _BETAS[name], iterations)
    wanted = file[f'targets_beta{name}_it{iterations}']
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
  limit = file[f'targets_beta{name}_it2000_float64']
  np.testing.assert_allclose(found, limit, rtol=1e-5, atol=1e-6)


def test_two_devices_are_two_processes():
  file = golden.load('mira.npz')
  found = _mira(file['scores'], 0.75, number=2)
  np.testing.assert_allclose(found, file['two_processes'], rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(
    found, _mira(file['scores'], 0.75), rtol=1e-6, atol=1e-7
  )


def test_known_solutions():
  file = golden.load('mira.npz')
  softmax = lambda x, temperature: jax.nn.softmax(x / temperature)
  scores = file['scores']
  np.testing.assert_allclose(
    _mira(scores, 0.0), softmax(scores, _TAU), rtol=1e-6
  )
  same = file['scores_same_rows']  # nothing tells images apart
  found = _mira(same, 0.75)
  np.testing.assert_allclose(found, softmax(same, _TAU), rtol=1e-5)
  np.testing.assert_allclose(found, file['targets_same_rows'], atol=1e-6)
  eye = file['scores_eye']  # u is uniform, by symmetry
  for beta in (0.5, 0.75):
    np.testing.assert_allclose(
      _mira(eye, beta), softmax(eye, _TAU * (1 - beta)), rtol=1e-5
    )
  np.testing.assert_allclose(
    _mira(file['scores_unit'], 0.75), file['targets_unit'], atol=1e-6
  )


def _objective(q, scores, beta):
  """beta I(q) - mean KL(q || p), in float64."""
  q, scores = np.asarray(q, np.float64), np.asarray(scores, np.float64) / _TAU
  log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  u = q.mean(axis=0)
  information = (q * np.log(q / u)).sum(-1).mean()
  return beta * information - (q * (np.log(q) - log_p)).sum(-1).mean()


def test_they_are_the_maximum():
  scores, beta = golden.load('mira.npz')['scores'], 0.75
  with tiny.enable_x64(True):
    q = np.asarray(_mira(scores.astype(np.float64), beta, 300))
  assert q.dtype == np.float64
  # First-order conditions.
  log_p = np.log(np.asarray(jax.nn.softmax(scores / _TAU), np.float64))
  u = q.mean(axis=0)
  slope = (1 - beta) * np.log(q) - log_p + beta * np.log(u)
  assert np.ptp(slope, axis=1).max() < 1e-5
  best, random = _objective(q, scores, beta), np.random.RandomState(0)
  for _ in range(20):
    other = q * np.exp(0.1 * random.standard_normal(q.shape))
    other /= other.sum(axis=1, keepdims=True)
    assert _objective(other, scores, beta) < best


def test_what_changes_nothing():
  scores = golden.load('mira.npz')['scores']
  found = _mira(scores, 0.75)
  moved = scores.copy()
  moved[2] += 1.0  # unlike Sinkhorn's
  np.testing.assert_allclose(_mira(moved, 0.75), found, atol=1e-5)
  order = np.random.RandomState(0).permutation(8)
  np.testing.assert_allclose(_mira(scores[order], 0.75), found[order], 1e-5)
  # Each view is by itself.
  both = _mira(np.stack([scores, -scores]), 0.75)
  np.testing.assert_allclose(both[0], found, rtol=1e-6)
  np.testing.assert_allclose(both[1], _mira(-scores, 0.75), rtol=1e-6)


def test_low_temperatures_give_numbers():
  scores = np.random.RandomState(0).uniform(-1, 1, (8, 5)).astype(np.float32)
  q = _mira(scores, 0.99, temperature=0.01)
  np.testing.assert_allclose(q.sum(axis=-1), 1, rtol=1e-5)


def _build(**changes):
  cfg = tiny.make_config('mira', **changes)
  facts = base.RunFacts(3, 12, np.zeros(3, np.float32), 0, 10, int)
  return methods.build(tiny.frozen(cfg), facts)


def _prepare(method, projection, v, step=0):
  batch = base.BatchWide(
    target=None, labels=None, ids=None, step=jnp.int32(step),
    local_target={'projection': projection, 'scores': jnp.full((), jnp.nan)},
    params={'prototypes': {'v': v}},
  )  # fmt: skip
  one = lambda _: method.prepare((), batch)[1]
  q, metrics = jax.vmap(one, axis_name=parallel.AXIS)(jnp.zeros(1))
  return q[0], metrics


def test_loss_and_gradient_are_the_authors():
  """Their scores, as projections on axes that are prototypes."""
  file = golden.load('mira.npz')
  method = _build(
    prototypes__number=5, loss__beta=(float(file['loss_beta']), 0.5)
  )
  q, metrics = _prepare(method, file['loss_k'], np.eye(5, dtype=np.float32))
  np.testing.assert_allclose(q, file['loss_targets'], atol=1e-6)

  def loss(scores):
    inputs = base.Inputs(
      online={'projection': scores, 'scores': scores},
      target={'projection': file['loss_k']}, labels=None, ids=None,
      batch=base.BatchWide(None, jnp.zeros(4), None, None),
      shared=(q, metrics), keys=None,
    )  # fmt: skip
    return method.loss(inputs, ()).loss

  value, gradient = jax.value_and_grad(loss)(jnp.asarray(file['loss_q']))
  np.testing.assert_allclose(value, file['loss_value'], rtol=1e-6)
  np.testing.assert_allclose(gradient, file['loss_grad_q'], atol=1e-6)


def test_targets_are_compared_with_the_online_prototypes():
  """The scores that the target network made are NaN there: nobody reads them.

  The length of a prototype does not matter.
  """
  method = _build(prototypes__number=5)
  random = np.random.RandomState(0)
  projection = random.standard_normal((2, 6, 4)).astype(np.float32)
  v = random.standard_normal((5, 4)).astype(np.float32)
  q, _ = _prepare(method, projection, v)
  unit = v / np.linalg.norm(v, axis=1, keepdims=True)
  np.testing.assert_allclose(q, _mira(projection @ unit.T, 0.75), atol=1e-5)
  longer, _ = _prepare(method, projection, 7 * v)
  np.testing.assert_allclose(longer, q, atol=1e-5)


def test_beta_follows_a_cosine():
  method = _build(prototypes__number=5)
  random = np.random.RandomState(0)
  projection = random.standard_normal((2, 6, 5)).astype(np.float32)
  for step, beta in ((0, 3 / 4), (5, (3 / 4 + 2 / 3) / 2), (10, 2 / 3)):
    q, _ = _prepare(method, projection, np.eye(5, dtype=np.float32), step)
    np.testing.assert_allclose(q, _mira(projection, beta), atol=1e-5)


@pytest.mark.parametrize(
  'key, value, words',
  [
    ('loss.temperature', 0.0, 'loss.temperature is 0.0'),
    ('loss.target_temperature', 0.0, 'loss.target_temperature is 0.0'),
    ('loss.beta', (0.75, 1.0), '1 excluded'),
    ('loss.iterations', 0, 'loss.iterations'),
    ('views.num_large', 1, 'views.num_large'),
  ],
)
def test_what_cannot_work_is_refused(key, value, words):
  cfg = tiny.make_config('mira')
  cfg.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=words):
    methods.validate(cfg, 1)
