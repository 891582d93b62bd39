"""All others as negatives: what `contrastive` gives for all of them drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.losses import contrastive, dense
from tests.helpers import tiny

# V, W, b, B, d; more views than large ones, part of the batch.
_V, _W, _B, _D = 3, 2, 9, 5
_HERE = np.array([4, 5, 6, 7])


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def _inputs(dtype):
  random = np.random.RandomState(0)
  draw = lambda *shape: _unit(random.randn(*shape)).astype(dtype)
  online, all_targets = draw(_V, len(_HERE), _D), draw(_W, _B, _D)
  positives = draw(2, _W, len(_HERE), _D)
  mask = np.arange(_B) != _HERE[:, None]
  mask[0, [0, 8]] = mask[2, 1] = False
  return online, all_targets, positives, mask


def _sampled(online, all_targets, positives, mask, tau, form):
  """[b] of own views, [S, b] of positives: NCE and invariance of each."""
  others = np.stack([np.delete(np.arange(_B), m) for m in _HERE])  # [b, B - 1]
  present = np.take_along_axis(mask, others, axis=1)

  def terms(chosen):
    logits = contrastive.similarity_logits(
      online, chosen, all_targets[:, others], temperature=tau, mask=present
    )
    invariance = contrastive.invariance(logits[:_W], stop_gradient=form)
    return contrastive.info_nce(logits), invariance

  return terms(all_targets[:, _HERE]), jax.vmap(terms)(positives)


def _dense(online, all_targets, positives, mask, tau, form, block):
  against = dense.negatives(
    online, all_targets, jnp.asarray(mask),
    temperature=tau, stop_gradient=form, block_size=block,
  )  # fmt: skip

  def terms(chosen):
    logits = dense.positive_logits(online, chosen, temperature=tau)
    invariance = dense.invariance(logits[:_W], against, stop_gradient=form)
    return dense.info_nce(logits, against), invariance

  return terms(all_targets[:, _HERE]), jax.vmap(terms)(positives)


def _total(terms):
  """A sum in which each image and term has a weight of its own."""
  weights = np.random.RandomState(1).rand(100)
  values = jnp.concatenate([x.ravel() for x in jax.tree.leaves(terms)])
  return jnp.sum(values * weights[: len(values)])


@pytest.mark.parametrize(
  'form, block',
  [('entropy', 1), ('entropy', 3), ('entropy', 64), ('teacher', 3)],
)
def test_terms_and_gradients_are_the_sampled_ones(form, block):
  with tiny.enable_x64(True):
    online, *rest = _inputs(np.float64)

    @jax.jit
    def differences(online):
      sampled = lambda x: _sampled(x, *rest, 0.2, form)
      ours = lambda x: _dense(x, *rest, 0.2, form, block)
      pairs = [(ours(online), sampled(online))]
      pairs += [tuple(jax.grad(lambda x, f=f: _total(f(x)))(online)
                      for f in (ours, sampled))]  # fmt: skip
      return pairs

    for found, wanted in differences(online):
      for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_so_they_are_in_float32():
  inputs = _inputs(np.float32)
  found = jax.jit(lambda: _dense(*inputs, 0.1, 'entropy', 2))()
  wanted = jax.jit(lambda: _sampled(*inputs, 0.1, 'entropy'))()
  found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
  for ours, theirs in zip(found, wanted):
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_an_image_without_negatives_gives_numbers():
  online, all_targets, positives, mask = _inputs(np.float32)
  mask = mask.copy()
  mask[1] = False

  def total(x):
    (nce, invariance), _ = _dense(
      x, all_targets, positives, mask, 0.1, 'entropy', 4
    )
    return jnp.sum((nce + invariance)[np.array([0, 2, 3])])

  value, grad = jax.jit(jax.value_and_grad(total))(online)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
  # Left out, it has no gradient, and the others have.
  assert not np.any(grad[:, 1]) and np.all(np.any(grad[:, [0, 2, 3]], axis=-1))


def test_one_large_view_has_no_invariance():
  online, all_targets, _, mask = _inputs(np.float32)
  against = dense.negatives(
    online, all_targets[:1], jnp.asarray(mask),
    temperature=0.1, stop_gradient='entropy', block_size=4,
  )  # fmt: skip
  logits = dense.positive_logits(
    online, all_targets[:1, _HERE], temperature=0.1
  )
  value = dense.invariance(logits[:1], against, stop_gradient='entropy')
  np.testing.assert_array_equal(value, np.zeros(4))


def test_by_hand():
  """One view, one other image at 90 degrees, itself at 0: log(1 + 1 / e)."""
  online = jnp.array([[[1.0, 0.0]]])
  targets = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
  against = dense.negatives(
    online, targets, jnp.array([[False, True]]),
    temperature=1.0, stop_gradient='teacher', block_size=1,
  )  # fmt: skip
  np.testing.assert_allclose(against.log_sum, 0, atol=1e-7)
  logits = dense.positive_logits(online, targets[:, :1], temperature=1.0)
  value = dense.info_nce(logits, against)
  np.testing.assert_allclose(value, [np.log(1 + np.exp(-1))], rtol=1e-6)


def test_logits_are_there_block_by_block():
  """Forth and back, nothing is as large as the logits of all images."""
  images, total = 32, 64
  random = np.random.RandomState(0)
  online = _unit(random.randn(2, images, 4)).astype(np.float32)
  targets = _unit(random.randn(2, total, 4)).astype(np.float32)
  mask = jnp.ones((images, total), bool)

  def loss(online, block):
    against = dense.negatives(
      online, targets, mask,
      temperature=0.1, stop_gradient='entropy', block_size=block,
    )  # fmt: skip
    return sum(x.sum() for x in against)

  def need(block):
    compiled = jax.jit(jax.grad(lambda x: loss(x, block))).lower(online)
    return compiled.compile().memory_analysis().temp_size_in_bytes

  whole = 2 * 2 * images * total * 4  # of one array of logits
  assert need(2) < whole < need(images)
