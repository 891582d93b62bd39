"""FNC against its release, and by hand.

golden_data/fnc.npz: three views of five images; loss and gradient of attraction
are google-research/fnc's (objective.py, add_contrastive_loss), masks and the
loss of elimination were derived apart, in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.losses import contrastive, false_negatives
from tests.helpers import golden

# Top k and threshold.
_SETTINGS = {
  'default': (10, 0.7),
  'top2': (2, 0.7),
  'off': (1, 2.0),
  'all_top3': (3, -2.0),
}


@functools.cache
def _golden():
  return golden.load('fnc.npz')


def _unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _find(z, top_k, threshold):
  """False negatives of unit z [V, B, d] among its V B views."""
  views, images, size = z.shape
  own = jnp.tile(jnp.eye(images, dtype=bool), (1, views))
  scores = false_negatives.similarity(z, z.reshape(-1, size))
  return false_negatives.find(scores, own, top_k=top_k, threshold=threshold)


def _loss(hidden, setting, attract):
  """The release's total: images' mean, anchors' sum, times 2 / V."""
  file = _golden()
  views = int(file['views'])
  z = _unit(hidden.reshape(views, -1, hidden.shape[-1]))
  losses, _ = false_negatives.nt_xent(
    z, z, jnp.arange(z.shape[1]), _find(z, *_SETTINGS[setting]),
    temperature=float(file['temperature']), attract=attract,
  )  # fmt: skip
  return losses.mean(axis=1).sum() * 2 / views


@pytest.mark.parametrize('setting', _SETTINGS)
def test_they_are_those_of_an_independent_derivation(setting):
  file = _golden()
  z = _unit(file['hidden'].reshape(3, 5, 6))
  found = _find(z, *_SETTINGS[setting])
  np.testing.assert_array_equal(
    found.table(15), file[f'batch_{setting}_mask']
  )  # fmt: skip


@pytest.mark.parametrize('setting', _SETTINGS)
def test_attraction_is_the_releases(setting):
  file = _golden()
  value, grad = jax.value_and_grad(_loss)(file['hidden'], setting, True)
  close = {'rtol': 2e-5, 'atol': 2e-6}
  np.testing.assert_allclose(value, file[f'batch_{setting}_loss'], **close)
  np.testing.assert_allclose(grad, file[f'batch_{setting}_grad'], **close)


@pytest.mark.parametrize('setting', _SETTINGS)
def test_elimination_is_that_of_an_independent_derivation(setting):
  wanted = _golden()[f'batch_{setting}_elimination_loss']
  value = _loss(_golden()['hidden'], setting, False)
  np.testing.assert_allclose(value, wanted, rtol=2e-5)


@pytest.mark.parametrize('attract', [False, True])
def test_without_any_it_is_nt_xent(attract):
  z = _unit(_golden()['hidden'][:10].reshape(2, 5, 6))
  here = jnp.array([3, 1])  # of two of the images
  scores = jnp.ones((2, 10))
  own = jnp.zeros((2, 10), bool)
  nobody = false_negatives.find(scores, own, top_k=2, threshold=1.5)
  value, logits = false_negatives.nt_xent(
    z[:, here], z, here, nobody, temperature=0.3, attract=attract
  )
  wanted, others = contrastive.nt_xent(z[:, here], z, here, temperature=0.3)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  np.testing.assert_allclose(logits[[0, 1], [1, 0]], others, rtol=1e-6)


def test_scores_are_those_of_the_most_similar_view():
  views = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # of one image
  candidates = _unit(jnp.array([[3.0, 4.0], [4.0, 3.0], [-1.0, -1.0]]))
  score = lambda x: false_negatives.similarity(x, candidates)
  np.testing.assert_allclose(score(views), [[0.8, 0.8, -(0.5**0.5)]], 1e-6)
  np.testing.assert_array_equal(jax.jacrev(score)(views), 0)


def test_most_similar_above_the_threshold_and_not_oneself():
  scores = jnp.array([[1.0, 0.5, 0.9, 0.7, 0.8], [0.2, 1.0, 0.1, 0.8, 0.1]])
  own = jnp.eye(2, 5, dtype=bool)
  found = false_negatives.find(scores, own, top_k=2, threshold=0.75)
  np.testing.assert_array_equal(found.index[0], [2, 4])
  np.testing.assert_array_equal(found.mask, [[True, True], [True, False]])
  assert found.index.dtype == jnp.int32 and found.index[1, 0] == 3
  table = [[0, 0, 1, 0, 1], [0, 0, 0, 1, 0]]
  np.testing.assert_array_equal(found.table(5), np.array(table, bool))
  # More places than candidates; a threshold is not reached but passed.
  found = false_negatives.find(scores, own, top_k=9, threshold=0.8)
  np.testing.assert_array_equal(found.table(5).sum(axis=1), [1, 0])
  everyone = false_negatives.find(scores, own, top_k=9, threshold=-np.inf)
  np.testing.assert_array_equal(everyone.table(5), ~own)


def test_a_quantile_leaves_oneself_out():
  scores = jnp.array([[9.0, 0.1, 0.2, 0.3], [0.4, 9.0, 0.0, 0.2]])
  own = jnp.eye(2, 4, dtype=bool)
  found = false_negatives.quantile(scores, own, 0.5)
  np.testing.assert_allclose(found, [0.2, 0.2], rtol=1e-6)
  found = false_negatives.quantile(scores, own, 0.75)
  np.testing.assert_allclose(found, [0.25, 0.3], rtol=1e-6)


def test_elimination_by_hand():
  """Both views of an image alike; its neighbour at 60 degrees is left out."""
  z = jnp.array([[[1.0, 0.0], [0.5, 3**0.5 / 2], [0.0, -1.0]]] * 2)
  found = _find(z, top_k=4, threshold=0.4)
  take = functools.partial(
    false_negatives.nt_xent, z, z, jnp.arange(3), found, temperature=1.0
  )
  out, _ = take(attract=False)
  # Of the first image: the other view at 1, two views of the third at 0.
  np.testing.assert_allclose(out[:, 0], np.log(np.e + 2) - 1, rtol=1e-6)
  pulled, _ = take(attract=True)
  wanted = np.log(np.e + 2 + 2 * np.exp(0.5)) - (1 + 0.5 + 0.5) / 3
  np.testing.assert_allclose(pulled[:, 0], wanted, rtol=1e-6)


def test_computes_in_float32_and_asks_for_full_precision():
  z = _unit(_golden()['hidden'].reshape(3, 5, 6)).astype(jnp.bfloat16)
  found = _find(z, 2, 0.7)
  run = jax.jit(
    lambda z: false_negatives.nt_xent(
      z, z, jnp.arange(5), found, temperature=0.1, attract=True
    )
  )
  assert all(x.dtype == jnp.float32 for x in run(z))
  lines = run.lower(z).as_text().splitlines()
  (product,) = (line for line in lines if 'dot_general' in line)
  assert 'precision = [HIGHEST, HIGHEST]' in product
