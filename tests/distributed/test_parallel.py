"""Global means and gathers, whatever the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.distributed import parallel

_VALUES = np.arange(8, dtype=np.float32) ** 2
_MASKS = (
  [True] * 8,
  [False, True, False, False, True, True, False, True],
  [True, True] + [False] * 6,  # all on one device of four
  [False] * 8,
)


def _mapped(function, num_devices):
  devices = jax.devices()[:num_devices]
  return parallel.map_evaluation(function, devices)


@pytest.mark.parametrize('num_devices', [1, 2, 4])
@pytest.mark.parametrize('mask', _MASKS)
def test_masked_mean_and_its_gradient_are_global(num_devices, mask):
  mask = np.array(mask)

  def loss(scale, values, mask):
    return parallel.masked_mean(scale * values, mask)

  def part(values, mask):
    value, slope = jax.value_and_grad(loss)(2.0, values, mask)
    return parallel.pmean((value, slope))

  value, slope = _mapped(part, num_devices)(
    *parallel.shard((_VALUES, mask), num_devices)
  )
  mean = _VALUES[mask].mean() if mask.any() else 0.0
  np.testing.assert_allclose(value, np.full(num_devices, 2 * mean), rtol=1e-6)
  np.testing.assert_allclose(slope, np.full(num_devices, mean), rtol=1e-6)


def test_masked_mean_ignores_what_is_masked_even_nan():
  values = jnp.array([1.0, jnp.nan, 3.0, 5.0])
  mask = jnp.array([True, False, True, True])
  part = lambda v, m: parallel.masked_mean(v, m)
  value = _mapped(part, 2)(values.reshape(2, 2), mask.reshape(2, 2))
  np.testing.assert_allclose(np.mean(value), 3.0)


@pytest.mark.parametrize('num_devices', [1, 2, 4])
def test_logsumexp_is_that_of_all_devices(num_devices):
  x = np.array([[800, -800], [799, -801], [0, -800], [1, -799]], np.float32)
  x = x[:num_devices]
  part = lambda x, unused: parallel.logsumexp(x)
  found = np.asarray(_mapped(part, num_devices)(x, x))
  wanted = np.logaddexp.reduce(x.astype(np.float64), axis=0)
  np.testing.assert_allclose(found, [wanted] * num_devices, rtol=1e-6)
  if num_devices == 1:
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize('num_devices', [1, 4])
def test_gather_restores_the_batch_in_order(num_devices):
  whole = np.arange(24).reshape(3, 8)
  shards = np.stack(np.split(whole, num_devices, axis=1))
  part = lambda x, i: (
    parallel.all_gather(x, axis=1),
    parallel.axis_index() + 0 * i,
  )
  gathered, index = _mapped(part, num_devices)(shards, np.arange(num_devices))
  for device in range(num_devices):
    np.testing.assert_array_equal(gathered[device], whole)
  np.testing.assert_array_equal(index, np.arange(num_devices))


def test_place_is_where_a_mapped_step_puts_its_outputs():
  devices = jax.devices()[:4]
  tree = parallel.put_sharded(parallel.replicate({'a': np.ones(3)}, 4), devices)
  step = parallel.map_step(lambda s, b, k: s, devices, donate=False)
  out = step(tree, np.zeros(4), jax.random.key(0))
  assert out['a'].sharding.is_equivalent_to(tree['a'].sharding, 2)
  np.testing.assert_array_equal(parallel.unreplicate(out)['a'], np.ones(3))


def test_parts_of_a_batch_are_shared_by_all_devices():
  batch = np.arange(24)
  shards = parallel.shard(batch, 3, parts=2)  # [D, m, b/m]
  np.testing.assert_array_equal(
    shards[1], [[4, 5, 6, 7], [16, 17, 18, 19]]
  )  # fmt: skip
  np.testing.assert_array_equal(parallel.unshard(shards, 2), batch)
  np.testing.assert_array_equal(
    parallel.unshard(parallel.shard(batch, 3)), batch
  )


def test_joined_parts_lie_in_order_and_are_a_copy():
  devices = jax.devices()[:4]
  parts = np.arange(24.0).reshape(4, 3, 2)  # [D, 3, 2]
  on_devices = parallel.put_sharded(parts, devices)
  whole = parallel.global_array(on_devices, devices, axis=1)
  on_devices.delete()
  np.testing.assert_array_equal(whole, np.concatenate(list(parts), axis=1))


def test_batches_are_sent_ahead():
  sent, taken = [], []

  def put(batch):
    sent.append(batch)
    return -batch

  for on_devices, batch, truth in parallel.prefetch([(1, 'a'), (2, 'b')], put):
    taken.append((on_devices, batch, truth, len(sent)))
  assert taken == [(-1, 1, 'a', 2), (-2, 2, 'b', 2)]
  assert list(parallel.prefetch([], put)) == []
