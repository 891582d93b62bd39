"""Values by hand, against plain loops; gradients against differences."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from semppl_jax import errors
from semppl_jax import losses

TAU = 0.3
FORMS = losses.STOP_GRADIENTS


class Case(NamedTuple):
  online: np.ndarray  # [V, B, d]
  targets: np.ndarray  # [V_L, B, d]
  positives: np.ndarray  # [S, V_L, B, d]
  has: np.ndarray  # [B]
  index: np.ndarray  # [B, n]
  mask: np.ndarray  # [B, n]


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_case(seed, large=3, small=2, images=5, size=4, num=3, draws=2):
  random = np.random.RandomState(seed)
  vectors = lambda *shape: unit(random.standard_normal(shape + (size,)))
  others = [np.delete(np.arange(images), m) for m in range(images)]
  index = np.stack([random.permutation(row)[:num] for row in others])
  mask = random.rand(images, num) < 0.7
  mask[0], mask[1] = True, False  # all of the negatives, none of them
  has = random.rand(images) < 0.6
  has[:2], has[2] = True, False
  return Case(
    vectors(large + small, images),
    vectors(large, images),
    vectors(draws, large, images),
    has,
    index,
    mask,
  )


def scores_of(case, positives, online=None, mask='own'):
  return losses.scores(
    jnp.asarray(case.online if online is None else online),
    jnp.asarray(positives),
    jnp.asarray(case.targets[:, case.index]),
    temperature=TAU,
    mask=jnp.asarray(case.mask) if mask == 'own' else mask,
  )


# Values.


def test_scores_by_hand():
  online = jnp.array([[[1.0, 0.0]]])
  positives = jnp.array([[[0.6, 0.8]]])
  negatives = jnp.array([[[[0.0, 1.0], [-1.0, 0.0]]]])
  logits = losses.scores(online, positives, negatives, temperature=0.5)
  np.testing.assert_allclose(logits[0, 0, 0], [1.2, 0.0, -2.0], atol=1e-6)
  by_hand = np.log(np.exp(1.2) + 1 + np.exp(-2.0)) - 1.2
  np.testing.assert_allclose(losses.contrastive(logits), [by_hand], rtol=1e-6)


def test_equal_candidates_give_log_of_their_number():
  logits = jnp.full([5, 3, 2, 11], 4.0)
  np.testing.assert_allclose(losses.contrastive(logits), np.log(11), rtol=1e-6)


@pytest.mark.parametrize('form', FORMS)
def test_invariance_by_hand(form):
  logits = np.zeros([2, 2, 1, 2], np.float32)
  logits[0, 1] = [np.log(3), 0]  # P = (3/4, 1/4); its mirror is (1/2, 1/2)
  logits[0, 0] = [5, -7]  # pairs v = w do not count
  there = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  back = 0.5 * np.log(2 / 3) + 0.5 * np.log(2)
  value = losses.invariance(jnp.asarray(logits), stop_gradient=form)
  np.testing.assert_allclose(value, [(there + back) / 2], rtol=1e-5)


def test_classification_by_hand():
  logits = jnp.array([[0.0, np.log(3)], [1000.0, 0.0], [1.0, 2.0]])
  labels = jnp.array([1, 1, -1])
  views = jnp.stack([logits, -logits])  # [2, 3, 2]
  value = losses.classification(views, labels)
  expected = [[np.log(4 / 3), 1000, 0], [np.log(4), 0, 0]]
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  total = lambda x: losses.classification(x, labels).sum()
  grads = jax.grad(total)(logits)
  expected = [[0.25, -0.25], [1, -1], [0, 0]]  # softmax - one-hot, or nothing
  np.testing.assert_allclose(grads, expected, atol=1e-6)


@pytest.mark.parametrize('seed', range(3))
def test_terms_equal_plain_loops(seed):
  case = make_case(seed)
  large = len(case.targets)
  has_negative = case.mask.any(axis=1)
  mean = lambda values, counts: np.asarray(values)[..., counts].mean()
  kl = functools.partial(losses.invariance, stop_gradient='entropy')

  logits = scores_of(case, case.targets)
  batch = (case.online, case.targets)
  draw = (case.index, case.mask, TAU)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5)
  close(
    mean(losses.contrastive(logits), has_negative),
    reference.loss_augm(*batch, *draw),
  )
  close(
    mean(kl(logits[:large]), has_negative), reference.inv_augm(*batch, *draw)
  )
  for m in np.flatnonzero(has_negative):
    args = (m, case.online, case.targets, case.targets, *draw)
    close(losses.contrastive(logits)[m], reference.image_nll(*args))
    close(kl(logits[:large])[m], reference.image_kl(*args))

  logits = jax.vmap(lambda z: scores_of(case, z))(case.positives)
  counted = has_negative & case.has
  close(
    mean(jax.vmap(losses.contrastive)(logits), counted),
    reference.loss_sempos(*batch, case.positives, case.has, *draw),
  )
  close(
    mean(jax.vmap(kl)(logits[:, :large]), counted),
    reference.inv_sempos(*batch, case.positives, case.has, *draw),
  )


@pytest.mark.parametrize('form', FORMS)
def test_one_large_view_has_no_invariance(form):
  case = make_case(0, large=1)
  value = lambda online: losses.invariance(
    scores_of(case, case.targets, online)[:1], stop_gradient=form
  ).sum()
  assert value(case.online) == 0
  np.testing.assert_array_equal(jax.grad(value)(case.online), 0)


def test_images_do_not_mix():
  case = make_case(0)
  total = lambda online: losses.contrastive(
    scores_of(case, case.targets, online, mask=None)
  )[3]
  grads = np.abs(jax.grad(total)(case.online)).sum(axis=(0, 2))  # [B]
  np.testing.assert_array_equal(grads > 0, np.arange(5) == 3)


# Masked candidates.


def per_image(form):
  """Sum of all terms for every image, as a function of the logits."""

  def value(logits):
    kl = losses.invariance(logits[: logits.shape[1]], stop_gradient=form)
    return losses.contrastive(logits) + kl

  return value


@pytest.mark.parametrize('form', FORMS)
def test_masked_is_absent(form):
  case = make_case(0)
  mask = np.tile([True, False, True], (len(case.has), 1))
  fewer = case._replace(index=case.index[:, [0, 2]])

  def value_and_grad(case, mask):
    total = lambda online: per_image(form)(
      scores_of(case, case.targets, online, mask)
    ).sum()
    return jax.value_and_grad(total)(case.online)

  value, grads = value_and_grad(case, jnp.asarray(mask))
  expected, expected_grads = value_and_grad(fewer, None)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(grads, expected_grads, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
def test_no_negative_left(form):
  case = make_case(0)
  none = jnp.zeros(case.mask.shape, bool)
  value = lambda online, targets: per_image(form)(
    scores_of(case._replace(targets=targets), targets, online, none)
  )
  with jax.debug_nans(True):
    values = value(case.online, case.targets)
    np.testing.assert_array_equal(values, 0)  # -log 1
    total = lambda *args: value(*args).sum()
    grads = jax.grad(total)(case.online, case.targets)
  np.testing.assert_array_equal(grads, 0)


@pytest.mark.parametrize('form', FORMS)
def test_masked_logits_have_no_nan(form):
  logits = np.random.RandomState(0).standard_normal([4, 3, 6, 5]) * 50
  mask = np.random.RandomState(1).rand(6, 4) < 0.5
  logits[..., 1:] = np.where(mask, logits[..., 1:], -np.inf)
  total = lambda x: per_image(form)(x).sum()
  value, grads = jax.value_and_grad(total)(jnp.asarray(logits, jnp.float32))
  assert np.isfinite(value)
  assert np.isfinite(grads).all()
  masked = np.broadcast_to(~mask, logits[..., 1:].shape)
  np.testing.assert_array_equal(np.asarray(grads)[..., 1:][masked], 0)


# Gradients.


def entropy_surrogate(p, q, p_held):
  """sg[E_P log P] - E_P log P': the first half does not move."""
  return np.sum(np.exp(p_held) * p_held) - np.sum(np.exp(p) * q)


def teacher_surrogate(p, q, p_held):
  """KL(sg[P] || P'): P does not move."""
  del p
  return reference.kl(p_held, q)


SURROGATES = {'entropy': entropy_surrogate, 'teacher': teacher_surrogate}


def held_loss(case, arrays, held, form):
  """Sum over images, `held` being the arrays of the stopped factors."""
  draw = (case.index, case.mask, TAU)
  total = 0.0
  for m in range(len(case.has)):
    fixed = []
    record = lambda p, q, fixed=fixed: fixed.append(p) or 0.0
    reference.image_kl(m, *held, *draw, distance=record)
    in_order = iter(fixed)
    distance = lambda p, q, it=in_order: SURROGATES[form](p, q, next(it))
    total += (1 + m) * reference.image_kl(m, *arrays, *draw, distance=distance)
  return total


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('which', [0, 1, 2])  # online, positives, targets
def test_invariance_gradient(form, which):
  case = make_case(4, large=3, small=0, images=4, size=2, num=2)
  arrays = [case.online, case.positives[0], case.targets]
  weights = 1 + np.arange(4)

  def total(x):
    online, positives, targets = arrays[:which] + [x] + arrays[which + 1 :]
    logits = losses.scores(
      online,
      positives,
      targets[:, case.index],
      temperature=TAU,
      mask=case.mask,
    )
    return (weights * losses.invariance(logits, stop_gradient=form)).sum()

  with jax.enable_x64(True):
    grads = jax.jit(jax.grad(total))(jnp.asarray(arrays[which]))
    assert grads.dtype == jnp.float64
  step, numeric = 1e-5, np.zeros(arrays[which].shape)
  for place in itertools.product(*map(range, numeric.shape)):
    ends = []
    for sign in (1, -1):
      moved = [x.copy() for x in arrays]
      moved[which][place] += sign * step
      ends.append(held_loss(case, moved, arrays, form))
    numeric[place] = (ends[0] - ends[1]) / (2 * step)
  np.testing.assert_allclose(grads, numeric, rtol=1e-6, atol=1e-8)
  assert np.abs(numeric).max() > 0.01


def test_contrastive_gradient():
  case = make_case(5, large=2, small=1, images=4, size=2, num=2)
  total = lambda online: losses.contrastive(
    scores_of(case, case.targets, online)
  ).sum()
  plain = lambda online: sum(
    reference.image_nll(
      m, online, case.targets, case.targets, case.index, case.mask, TAU
    )
    for m in range(4)
  )
  with jax.enable_x64(True):
    grads = jax.jit(jax.grad(total))(jnp.asarray(case.online))
  for place in itertools.product(*map(range, grads.shape)):
    up, down = case.online.copy(), case.online.copy()
    up[place] += 1e-5
    down[place] -= 1e-5
    numeric = (plain(up) - plain(down)) / 2e-5
    np.testing.assert_allclose(grads[place], numeric, rtol=1e-6, atol=1e-8)


# Types, precision, mistakes.


@pytest.mark.parametrize(
  'given, computed',
  [
    (jnp.bfloat16, jnp.float32),
    (jnp.float32, jnp.float32),
    (jnp.float64, jnp.float64),
  ],
)
def test_computes_in_float32_at_least(given, computed):
  case = make_case(0)
  with jax.enable_x64(True):
    low = jax.tree.map(lambda x: jnp.asarray(x).astype(given), case[:2])
    low = case._replace(online=low[0], targets=low[1])
    high = jax.tree.map(lambda x: x.astype(jnp.float64), low[:2])
    high = case._replace(online=high[0], targets=high[1])
    logits, exact = (scores_of(x, x.targets)[:3] for x in (low, high))
    outputs = (
      logits,
      losses.contrastive(logits),
      losses.invariance(logits, stop_gradient='entropy'),
    )
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)
    assert {x.dtype for x in outputs} == {jnp.dtype(computed)}
    one_view = logits[:1, :1]
    value = losses.invariance(one_view, stop_gradient='entropy')
    assert value.dtype == computed
    value = losses.classification(jnp.ones([2, 3], given), jnp.array([1, -1]))
    assert value.dtype == computed


def test_products_ask_for_full_precision():
  case = make_case(0)
  online = case.online.astype(np.float32)
  lowered = jax.jit(lambda x: scores_of(case, case.targets, x)).lower(online)
  products = [x for x in lowered.as_text().splitlines() if 'dot_general' in x]
  assert len(products) == 2
  assert all('precision = [HIGHEST, HIGHEST]' in x for x in products)


def test_unknown_form():
  with pytest.raises(errors.UserError, match="'teachr'.*'entropy', 'teacher'"):
    losses.invariance(jnp.zeros([2, 2, 1, 2]), stop_gradient='teachr')
