"""Values by hand, against plain loops; gradients against differences."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.losses import classification, contrastive, regression
from semppl_jax.models import multicrop
from tests.helpers import golden, reference, tiny

TAU = 0.3
FORMS = contrastive.STOP_GRADIENTS


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
  return contrastive.similarity_logits(
    case.online if online is None else online,
    positives,
    case.targets[:, case.index],
    temperature=TAU,
    mask=case.mask if mask == 'own' else mask,
  )


# Values.


def test_scores_by_hand():
  online = np.array([[[1.0, 0.0]]], np.float32)
  positives = np.array([[[0.6, 0.8]]], np.float32)
  negatives = np.array([[[[0.0, 1.0], [-1.0, 0.0]]]], np.float32)
  logits = contrastive.similarity_logits(
    online, positives, negatives, temperature=0.5
  )
  np.testing.assert_allclose(logits[0, 0, 0], [1.2, 0.0, -2.0], atol=1e-6)
  by_hand = np.log(np.exp(1.2) + 1 + np.exp(-2.0)) - 1.2
  np.testing.assert_allclose(contrastive.info_nce(logits), [by_hand], rtol=1e-6)


def test_masked_scores():
  case = make_case(0)
  logits = scores_of(case, case.targets)
  absent = np.isneginf(logits)  # [V, W, B, 1 + n]
  expected = np.pad(~case.mask, ((0, 0), (1, 0)))  # never the positive
  np.testing.assert_array_equal(absent, np.broadcast_to(expected, absent.shape))


def test_equal_candidates_give_log_of_their_number():
  logits = np.full([5, 3, 2, 11], 4.0, np.float32)
  np.testing.assert_allclose(
    contrastive.info_nce(logits), np.log(11), rtol=1e-6
  )


@pytest.mark.parametrize('form', FORMS)
def test_invariance_by_hand(form):
  logits = np.zeros([2, 2, 1, 2], np.float32)
  logits[0, 1] = [np.log(3), 0]  # P = (3/4, 1/4); its mirror is (1/2, 1/2)
  logits[0, 0] = [5, -7]  # pairs v = w do not count
  there = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  back = 0.5 * np.log(2 / 3) + 0.5 * np.log(2)
  value = contrastive.invariance(logits, stop_gradient=form)
  np.testing.assert_allclose(value, [(there + back) / 2], rtol=1e-5)


def test_classification_by_hand():
  third = [0.0, np.log(3)]
  logits = np.array([third, [1000, 0], [1, 2], third], np.float32)
  labels = np.array([1, 1, -1, 0])

  def total(x):
    views = classification.cross_entropy(jnp.stack([x, -x]), labels)  # [2, b]
    return views[0].sum(), views

  grads, value = jax.jit(jax.grad(total, has_aux=True))(logits)
  expected = [
    [np.log(4 / 3), 1000, 0, np.log(4)],
    [np.log(4), 0, 0, np.log(4 / 3)],
  ]
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  # Softmax - one-hot, or nothing.
  expected = [[0.25, -0.25], [1, -1], [0, 0], [-0.75, 0.75]]
  np.testing.assert_allclose(grads, expected, atol=1e-6)


@jax.jit
def all_terms(case):
  """Per image: augmentation terms [B], semantic terms [S, B]."""
  large = len(case.targets)
  kl = lambda x: contrastive.invariance(x[:large], stop_gradient='entropy')
  augm = scores_of(case, case.targets)
  sempos = jax.vmap(lambda z: scores_of(case, z))(case.positives)
  return (
    contrastive.info_nce(augm),
    kl(augm),
    jax.vmap(contrastive.info_nce)(sempos),
    jax.vmap(kl)(sempos),
  )


@pytest.mark.parametrize('seed', range(3))
def test_terms_equal_plain_loops(seed):
  case = make_case(seed)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5)
  augm, inv_augm, sempos, inv_sempos = map(np.asarray, all_terms(case))
  counted = case.mask.any(axis=1)

  batch = (case.online, case.targets)
  draw = (case.index, case.mask, TAU)
  close(augm[counted].mean(), reference.loss_augm(*batch, *draw))
  close(inv_augm[counted].mean(), reference.inv_augm(*batch, *draw))
  for m in np.flatnonzero(counted):
    args = (m, case.online, case.targets, case.targets, *draw)
    close(augm[m], reference.image_nll(*args))
    close(inv_augm[m], reference.image_kl(*args))

  both = counted & case.has
  semantic = (case.positives, case.has)
  close(sempos[:, both].mean(), reference.loss_sempos(*batch, *semantic, *draw))
  close(
    inv_sempos[:, both].mean(), reference.inv_sempos(*batch, *semantic, *draw)
  )


@pytest.mark.parametrize('form', FORMS)
def test_one_large_view_has_no_invariance(form):
  case = make_case(0, large=1)
  total = lambda online: contrastive.invariance(
    scores_of(case, case.targets, online)[:1], stop_gradient=form
  ).sum()
  value, grads = jax.jit(jax.value_and_grad(total))(case.online)
  assert value == 0
  np.testing.assert_array_equal(grads, 0)


def test_images_do_not_mix():
  case = make_case(0)
  third = lambda online: contrastive.info_nce(
    scores_of(case, case.targets, online, mask=None)
  )[3]
  grads = np.abs(jax.jit(jax.grad(third))(case.online)).sum(axis=(0, 2))  # [B]
  np.testing.assert_array_equal(grads > 0, np.arange(5) == 3)


# Masked candidates.


def per_image(logits):
  """Contrastive and both invariance terms, summed, for every image."""
  large = logits[: logits.shape[1]]
  forms = [contrastive.invariance(large, stop_gradient=form) for form in FORMS]
  return contrastive.info_nce(logits) + sum(forms)


@jax.jit
def value_and_grads(case):
  """Of the sum over images, with respect to online and target vectors."""

  def total(online, targets):
    case_ = case._replace(targets=targets)
    return per_image(scores_of(case_, targets, online)).sum()

  return jax.value_and_grad(total, argnums=(0, 1))(case.online, case.targets)


def test_masked_is_absent():
  case = make_case(0)
  mask = np.tile([True, False, True], (len(case.has), 1))
  fewer = case._replace(index=case.index[:, [0, 2]], mask=mask[:, [0, 2]])
  masked = value_and_grads(case._replace(mask=mask))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    masked,
    value_and_grads(fewer),
  )


def test_no_negative_left():
  case = make_case(0)
  none = case._replace(mask=np.zeros_like(case.mask))
  value, grads = value_and_grads(none)
  # -log 1; fused products leave a rounding error.
  close = functools.partial(np.testing.assert_allclose, desired=0, atol=2e-6)
  jax.tree.map(close, (value, *grads))


def test_masked_logits_have_no_nan():
  logits = np.random.RandomState(0).standard_normal([4, 3, 6, 5]) * 50
  mask = np.random.RandomState(1).rand(6, 4) < 0.5
  logits[..., 1:] = np.where(mask, logits[..., 1:], -np.inf)
  total = lambda x: per_image(x).sum()
  value, grads = jax.jit(jax.value_and_grad(total))(logits.astype(np.float32))
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
    logits = contrastive.similarity_logits(
      online,
      positives,
      targets[:, case.index],
      temperature=TAU,
      mask=case.mask,
    )
    return (weights * contrastive.invariance(logits, stop_gradient=form)).sum()

  with tiny.enable_x64(True):
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
  total = lambda online: contrastive.info_nce(
    scores_of(case, case.targets, online)
  ).sum()
  plain = lambda online: sum(
    reference.image_nll(
      m, online, case.targets, case.targets, case.index, case.mask, TAU
    )
    for m in range(4)
  )
  with tiny.enable_x64(True):
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

  @jax.jit
  def outputs(case):
    logits = scores_of(case, case.targets)[:3]
    kl = functools.partial(contrastive.invariance, stop_gradient='entropy')
    classes = case.online[0]  # [B, 4]
    return (
      logits,
      contrastive.info_nce(logits),
      kl(logits),
      kl(logits[:1, :1]),
      classification.cross_entropy(classes, np.array([1, 3, 0, -1, 2])),
    )

  with tiny.enable_x64(True):
    given_vectors = case._replace(
      online=case.online.astype(given), targets=case.targets.astype(given)
    )
    exact_vectors = case._replace(
      online=given_vectors.online.astype(np.float64),
      targets=given_vectors.targets.astype(np.float64),
    )
    values = outputs(given_vectors)
    exact = outputs(exact_vectors)
  assert {x.dtype for x in values} == {jnp.dtype(computed)}
  for value, expected in zip(values, exact, strict=True):
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_products_ask_for_full_precision():
  case = make_case(0)
  online = case.online.astype(np.float32)
  lowered = jax.jit(lambda x: scores_of(case, case.targets, x)).lower(online)
  products = [x for x in lowered.as_text().splitlines() if 'dot_general' in x]
  assert len(products) == 2
  assert all('precision = [HIGHEST, HIGHEST]' in x for x in products)


def test_unknown_form():
  with pytest.raises(ValueError, match="'teachr'.*'entropy', 'teacher'"):
    contrastive.invariance(jnp.zeros([2, 2, 1, 2]), stop_gradient='teachr')


def test_regression_by_hand():
  x, y = np.eye(4, dtype=np.float32)[:2]
  pair = lambda a, b: jnp.stack([a, b])[:, None]  # [2, 1, d]
  # A view regresses the other view's target, never its own.
  for online, targets, distance in (
    (pair(x, y), pair(y, x), 0.0),
    (pair(x, y), pair(x, y), 2.0),
    (pair(x, x), pair(-x, -x), 4.0),
  ):
    found = regression.squared_distances(online, targets)
    np.testing.assert_allclose(found, [distance], atol=1e-6)
  # A small view, the third, has no target of its own: it learns both.
  three = jnp.concatenate([pair(x, y), x[None, None]])
  found = regression.squared_distances(three, pair(y, x))
  np.testing.assert_allclose(found, [2 / 4], atol=1e-6)


def test_distances_to_neighbours_by_hand():
  x, y = [1.0, 0.0], [0.0, 1.0]
  online = np.array([[x, x], [y, x]], np.float32)  # two views of two images
  neighbours = np.array([[x, y], [y, x], [[-1, 0], x]], np.float32)
  exists = np.array([[True, True, True], [True, False, False]])
  found = regression.neighbour_distances(online, neighbours, exists)
  # Image 0: (0 + 2 + 4) / 3 and (2 + 0 + 2) / 3; image 1: 2 and 2.
  np.testing.assert_allclose(found, [5 / 3, 2], rtol=1e-6)
  none = regression.neighbour_distances(online, neighbours, ~exists & False)
  np.testing.assert_array_equal(none, [0, 0])


def test_regression_is_byols():
  byol = golden.load('byol.npz')
  one, two = (
    {name: byol[f'loss/{kind}{name}'] for name in '12'}
    for kind in ('prediction', 'target')
  )

  def total(predictions):
    online = multicrop.l2_normalize(predictions)
    targets = multicrop.l2_normalize(jnp.stack([two['1'], two['2']]))
    return 2 * regression.squared_distances(online, targets).mean()

  predictions = jnp.stack([one['1'], one['2']])
  np.testing.assert_allclose(total(predictions), byol['loss/total'], rtol=1e-6)
  grads = jax.grad(total)(predictions)
  for i in range(2):
    np.testing.assert_allclose(
      grads[i], byol[f'loss/grad{i + 1}'], rtol=1e-5, atol=1e-6
    )
