"""Sinkhorn's assignments: SwAV's own, by hand, and what must not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.losses import clustering
from tests.helpers import golden, tiny

GOLDEN = golden.load('swav_sinkhorn.npz')


def sinkhorn(scores, epsilon=0.05, iterations=3, **options):
  """[b, K] of one view."""
  found = clustering.sinkhorn(
    jnp.asarray(scores)[None], epsilon=epsilon, iterations=iterations, **options
  )
  return np.asarray(found)[0]


def random_scores(seed, images=6, prototypes=5):
  random = np.random.RandomState(seed)
  return random.uniform(-1, 1, (images, prototypes)).astype(np.float32)


@pytest.mark.parametrize(
  'key',
  [k for k in GOLDEN if '_it' in k and not k.endswith(('it0', 'float64'))],
)
def test_assignments_are_those_of_the_release(key):
  which, epsilon, iterations = key.split('_')
  found = sinkhorn(
    GOLDEN[f'scores_{which}'],
    epsilon=int(epsilon.removeprefix('eps')) / 100,
    iterations=int(iterations.removeprefix('it')),
  )
  np.testing.assert_allclose(found, GOLDEN[key], rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_assignments_are_those_of_the_release_in_float64():
  with tiny.enable_x64(True):
    found = sinkhorn(GOLDEN['scores_a'].astype(np.float64))
  np.testing.assert_allclose(found, GOLDEN['a_eps005_it3_float64'], rtol=1e-9)


def test_it_begins_as_the_release_does():
  start = sinkhorn(GOLDEN['scores_a'], iterations=0)
  start = start * len(start) / start.sum()  # an iteration takes factors away
  np.testing.assert_allclose(start, GOLDEN['a_eps005_it0'], rtol=1e-5)


@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
def test_devices_assign_as_two_processes_of_the_release_do(num_devices):
  found = on_devices(GOLDEN['scores_a'], num_devices)
  np.testing.assert_allclose(
    found, GOLDEN['a_two_processes'], rtol=1e-6, atol=1e-6
  )


def on_devices(scores, num_devices, queue=None, counts=True):
  """[B, K] of images and, if there is one, a queue that devices share."""
  part = functools.partial(
    clustering.sinkhorn,
    epsilon=0.05,
    iterations=3,
    over_devices=parallel.logsumexp,
  )
  split = lambda x: x.reshape(num_devices, 1, -1, x.shape[-1])
  shares = [split(x) for x in (scores, queue) if x is not None]
  mapped = jax.pmap(
    lambda *x: part(*x, queue_counts=counts),
    parallel.AXIS,
    devices=jax.devices()[:num_devices],
  )
  return np.asarray(mapped(*shares)).reshape(scores.shape)


def test_where_the_release_overflows_numbers_are_finite():
  assert np.isnan(GOLDEN['overflow_reference']).any()
  for epsilon in (0.05, 0.01):
    found = sinkhorn(GOLDEN['scores_overflow'], epsilon=epsilon)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
  # One score outweighs all others.
  image, prototype = np.argwhere(GOLDEN['scores_overflow'] == 6)[0]
  assert found[image].argmax() == prototype


def test_one_iteration_by_hand():
  scores = 0.05 * np.log(np.array([[3.0, 1.0], [1.0, 1.0]]))
  found = sinkhorn(scores.astype(np.float32), iterations=1)
  # Columns of sum 4 and 2: [[3/4, 1/2], [1/4, 1/2]]; rows of 5/4 and 3/4.
  np.testing.assert_allclose(found, [[3 / 5, 2 / 5], [1 / 3, 2 / 3]], rtol=1e-6)


def test_in_the_limit_prototypes_share_the_images_equally():
  found = sinkhorn(random_scores(0), epsilon=0.5, iterations=100)
  np.testing.assert_allclose(found.sum(axis=0), 6 / 5, rtol=1e-5)
  assert np.ptp(sinkhorn(random_scores(0)).sum(axis=0)) > 0.1  # 3 iterations


def test_equal_rows_are_assigned_uniformly():
  found = sinkhorn(np.tile(random_scores(1, images=1), (4, 1)))
  np.testing.assert_allclose(found, 1 / 5, rtol=1e-5)


def test_a_constant_counts_in_one_image_but_not_in_all():
  scores = random_scores(2)
  found = sinkhorn(scores)
  np.testing.assert_allclose(sinkhorn(scores + 0.5), found, atol=2e-5)
  scores[0] += 0.5
  assert np.abs(sinkhorn(scores) - found).max() > 0.05


def test_permuted_images_and_prototypes_are_permuted_assignments():
  scores, random = random_scores(3), np.random.RandomState(0)
  images, prototypes = random.permutation(6), random.permutation(5)
  found = sinkhorn(scores[images][:, prototypes])
  wanted = sinkhorn(scores)[images][:, prototypes]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_views_are_assigned_apart():
  one, other = random_scores(4), random_scores(5)
  found = clustering.sinkhorn(
    jnp.stack([one, other]), epsilon=0.05, iterations=3
  )
  np.testing.assert_allclose(found, [sinkhorn(one), sinkhorn(other)], atol=1e-6)


@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
def test_the_images_of_a_queue_count_as_those_of_the_batch_do(num_devices):
  batch, queue = random_scores(6, images=8), random_scores(7, images=16)
  wanted = sinkhorn(np.concatenate([batch, queue]))[:8]
  found = on_devices(batch, num_devices, queue)
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  assert np.abs(found - sinkhorn(batch)).max() > 0.01


@pytest.mark.parametrize('num_devices', [1, 4])
def test_a_queue_that_does_not_count_changes_no_bit(num_devices):
  batch, queue = random_scores(8, images=8), random_scores(9, images=16)
  without = on_devices(batch, num_devices)
  for rows in (queue, np.zeros_like(queue), np.full_like(queue, 9.0)):
    found = on_devices(batch, num_devices, rows, counts=False)
    np.testing.assert_array_equal(found, without)


def test_half_precision_is_widened():
  scores = jnp.asarray(random_scores(10), jnp.bfloat16)
  found = sinkhorn(scores)
  np.testing.assert_array_equal(found, sinkhorn(scores.astype(jnp.float32)))
  assert found.dtype == np.float32
