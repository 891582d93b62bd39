"""Any number of devices gives what one unsharded queue in plain Python gives.

Embeddings are small integers over a power of two: products and sums are exact,
and equal similarities are common.
"""

import collections
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from semppl_jax.distributed import parallel
from semppl_jax.memory import label_queue, pseudo_labels
from tests.helpers import queue_model

VIEWS, BATCH, SIZE, CAPACITY, DRAWS = 2, 8, 3, 16, 3
DEVICES = (1, 2, 4, 8)
# More neighbours than a shard has slots (8 devices: 2), and blocks that divide
# neither a shard nor the capacity; then the case of one neighbour.
SEARCHES = ({'k': 3, 'block_size': 3}, {'k': 1, 'block_size': 5})

TRACES = collections.Counter()


def push_and_look_up(queue, embeddings, labels, ids, queries, **search):
  """As a step does; all arguments but the queue are global."""
  TRACES[parallel.axis_size(), search['k']] += 1
  queue = label_queue.push(queue, embeddings, labels, ids)
  exclude = jnp.stack([jnp.full_like(ids, -2), ids])
  return queue, label_queue.nearest(queue, queries, exclude, **search)


@functools.cache
def mapped(function, num_devices, num_arguments, **options):
  return jax.pmap(
    functools.partial(function, **options),
    axis_name=parallel.AXIS,
    in_axes=(0,) + (None,) * (num_arguments - 1),
    devices=jax.devices()[:num_devices],
  )


def look_up(num_devices, search):
  return mapped(push_and_look_up, num_devices, 5, **search)


# Neither has a collective: one compilation serves any number of devices.
vote = jax.jit(pseudo_labels.vote)
sample = jax.jit(
  functools.partial(label_queue.sample_positives, num_draws=DRAWS)
)


def shard(num_devices, capacity=CAPACITY):
  """One device's part of an empty queue."""
  whole = label_queue.init(VIEWS, capacity, SIZE)
  here = capacity // num_devices
  return whole._replace(embeddings=whole.embeddings[:, :here])


def empty(num_devices, capacity=CAPACITY):
  """An empty queue, placed as the mapped functions return it."""
  one = shard(num_devices, capacity)
  every = jax.tree.map(lambda x: np.stack([x] * num_devices), one)
  mesh = jax.sharding.Mesh(jax.devices()[:num_devices], (parallel.AXIS,))
  spec = jax.sharding.PartitionSpec(parallel.AXIS)
  return jax.device_put(every, jax.sharding.NamedSharding(mesh, spec))


def exact(rng, *shape):
  return (rng.integers(-2, 3, shape) / 4).astype(np.float32)


def batch_of(rng, labels, start):
  """embeddings, labels, ids, queries of a global batch."""
  embeddings = exact(rng, VIEWS, BATCH, SIZE)
  # Few images, so that many have older entries of their own in the queue.
  ids = (start + rng.permutation(BATCH)).astype(np.int32) % 20
  queries = exact(rng, VIEWS, BATCH, SIZE)
  return embeddings, np.array(labels, np.int32), ids, queries


def labels_of_all_kinds(rng):
  """Fourteen batches: 50 pushes, three times around a queue of 16."""
  none, all_of_them = [-1] * BATCH, rng.integers(0, 3, BATCH)
  on_one_device = [2] + [-1] * (BATCH - 1)  # the first of 8; the last of 8:
  last = [-1] * (BATCH - 1) + [0]
  some = lambda: np.where(
    rng.random(BATCH) < 0.4, rng.integers(0, 3, BATCH), -1
  )
  kinds = [none, last, some(), all_of_them, none, on_one_device, some()]
  return (
    kinds
    + [some(), rng.integers(0, 2, BATCH), [1, 1] + [-1] * 6]
    + [some() for _ in range(4)]
  )


def joined(per_device, axis):
  """The devices' parts along the image axis: [D, .., b, ..] -> [.., B, ..]."""
  return np.concatenate(list(np.asarray(per_device)), axis=axis)


def on_host(queue):
  """The first device's part as NumPy arrays; its embeddings are not used."""
  host = jax.tree.map(np.asarray, queue)
  return parallel.unreplicate(host)._replace(embeddings=None)


def everywhere(per_device):
  """What must be equal on all devices."""
  per_device = np.asarray(per_device)
  assert (per_device == per_device[:1]).all()
  return per_device[0]


def check_contents(queue, model):
  labels, ids, rows = model.table()
  np.testing.assert_array_equal(everywhere(queue.labels), labels)
  np.testing.assert_array_equal(everywhere(queue.ids), ids)
  assert everywhere(queue.count) == model.count
  stored = joined(queue.embeddings, axis=1)  # [V_L, C, d]
  for slot, row in rows.items():
    np.testing.assert_array_equal(stored[:, slot], row)


def check_found(found, model, batch, k):
  """The look-up's results against the model's; returns the votes [M, B]."""
  _, _, ids, queries = batch
  expected = model.neighbours(queries, [np.full_like(ids, -2), ids], k, VIEWS)
  parts = found.similarity, found.labels, found.slots
  parts = [joined(part, axis=1) for part in parts]
  for part, wanted in zip(parts, expected):
    np.testing.assert_array_equal(part, wanted)

  votes, share = map(np.asarray, vote(parts[1], parts[0]))
  for at in np.ndindex(votes.shape):
    wanted = queue_model.vote(expected[1][at], expected[0][at])
    assert (votes[at], share[at]) == pytest.approx(wanted)
  return votes


def check_positives(queue, model, labels, seed):
  """Slots of the image's label, and their embeddings at the right device."""
  num_devices = len(queue.labels)
  keys = jax.random.split(jax.random.key(seed), BATCH)
  slots, exists = map(np.asarray, sample(on_host(queue), keys, labels))
  got = mapped(label_queue.fetch, num_devices, 2)(queue, slots)
  assert got.shape == (num_devices, DRAWS, VIEWS, BATCH // num_devices, SIZE)
  got = joined(got, axis=2)  # [S, V_L, B, d]
  rows = model.table()[2]
  for i, label in enumerate(labels):
    candidates = model.slots_of(label)
    assert exists[i] == bool(candidates)
    for draw, slot in enumerate(slots[i]):
      assert slot in (candidates or [-1])
      np.testing.assert_array_equal(
        got[draw, :, i], rows.get(slot, 0 * got[0, :, i])
      )


CASES = [(d, SEARCHES[0]) for d in DEVICES] + [(d, SEARCHES[1]) for d in (1, 4)]


@pytest.mark.parametrize(
  'num_devices, search',
  CASES,
  ids=lambda x: x if x in DEVICES else f'k{x["k"]}',
)
def test_equals_one_unsharded_queue(num_devices, search):
  rng = np.random.default_rng(0)
  queue, model = empty(num_devices), queue_model.Queue(CAPACITY)
  step = look_up(num_devices, search)
  for start, labels in enumerate(labels_of_all_kinds(rng)):
    batch = batch_of(rng, labels, start)
    model.push(*batch[:3])
    queue, found = step(queue, *batch)
    check_contents(queue, model)
    votes = check_found(found, model, batch, search['k'])
    assigned = np.where(batch[1] < 0, votes[0], batch[1])
    check_positives(queue, model, assigned, start)
  assert model.count > 2 * CAPACITY
  # Shapes are the same whatever the number of labelled images.
  assert TRACES[num_devices, search['k']] == 1


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(
  pushes=st.lists(
    st.lists(st.integers(-1, 2), min_size=BATCH, max_size=BATCH), max_size=6
  ),
  seed=st.integers(0, 99),
  num_devices=st.sampled_from(DEVICES),
)
def test_any_history(pushes, seed, num_devices):
  rng = np.random.default_rng(seed)
  queue, model = empty(num_devices), queue_model.Queue(CAPACITY)
  for start, labels in enumerate([[-1] * BATCH] + pushes):
    batch = batch_of(rng, labels, start)
    model.push(*batch[:3])
    queue, found = look_up(num_devices, SEARCHES[0])(queue, *batch)
  check_contents(queue, model)
  check_found(found, model, batch, SEARCHES[0]['k'])


def keep_and_look_up(queue, embeddings, labels, ids, queries, keep, wanted):
  """All images that are to be kept enter; two look-ups, one by label."""
  queue = label_queue.push(queue, embeddings, labels, ids, keep=keep)
  return queue, label_queue.nearest(
    queue,
    queries,
    jnp.full_like(wanted, -2),
    wanted=wanted,
    **SEARCHES[0],
  )


@pytest.mark.parametrize('num_devices', DEVICES)
def test_images_without_a_label_are_kept_and_found_by_label(num_devices):
  rng = np.random.default_rng(3)
  queue, model = empty(num_devices), queue_model.Queue(CAPACITY)
  step = mapped(keep_and_look_up, num_devices, 7)
  for start in range(6):
    labels = np.where(rng.random(BATCH) < 0.5, rng.integers(0, 3, BATCH), -1)
    batch = batch_of(rng, labels, start)
    keep = rng.random(BATCH) < (1 if start % 2 else 0.6)
    wanted = np.stack([np.full(BATCH, -1), rng.integers(-1, 4, BATCH)])
    wanted = wanted.astype(np.int32)
    model.push(*batch[:3], keep)
    queue, found = step(queue, *batch, keep, wanted)
    check_contents(queue, model)
    filled = min(model.count, CAPACITY) / CAPACITY
    assert label_queue.fill(on_host(queue)) == filled
    expected = model.neighbours(
      batch[3], np.full((2, BATCH), -2), 3, VIEWS, wanted
    )
    parts = found.similarity, found.labels, found.slots
    for part, answer in zip(parts, expected):
      np.testing.assert_array_equal(joined(part, axis=1), answer)
  assert label_queue.is_full(on_host(queue))


def whole_round(queue, embeddings, labels, ids, queries, keys):
  """All that a step does with the queue, on the device."""
  search = SEARCHES[0]
  queue, found = push_and_look_up(
    queue, embeddings, labels, ids, queries, **search
  )
  votes, share = pseudo_labels.vote(found.labels[0], found.similarity[0])
  assigned = pseudo_labels.assign(
    parallel.all_gather(votes), parallel.all_gather(share), labels, 0.0
  )
  slots, _ = label_queue.sample_positives(
    queue, keys, assigned, num_draws=DRAWS
  )
  return queue, found, votes, slots, label_queue.fetch(queue, slots)


def test_step_by_step_equals_one_program_under_vmap():
  batch = batch_of(np.random.default_rng(2), range(-3, 5), 0)
  keys = jax.random.split(jax.random.key(0), BATCH)
  by_vmap = jax.vmap(
    whole_round, axis_name=parallel.AXIS, in_axes=(0,) + (None,) * 5
  )
  got = jax.jit(by_vmap)(empty(2), *batch, keys)
  queue, found = look_up(2, SEARCHES[0])(empty(2), *batch)
  both = found.labels, found.similarity
  votes, _ = vote(*(np.asarray(x)[:, 0] for x in both))  # [D, b]
  assigned = np.where(batch[1] < 0, np.ravel(votes), batch[1])
  slots, _ = sample(on_host(queue), keys, assigned)
  positives = mapped(label_queue.fetch, 2, 2)(queue, slots)
  wanted = queue, found, votes, np.stack([slots, slots]), positives
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize('num_devices', [1, 4])
@pytest.mark.parametrize('labelled', [4, 5, 7, 8])
def test_more_labelled_images_than_slots(num_devices, labelled):
  queue, model = empty(num_devices, capacity=4), queue_model.Queue(4)
  rng = np.random.default_rng(labelled)
  step = mapped(label_queue.push, num_devices, 4)
  for start in range(3):
    labels = np.full(BATCH, -1)
    labels[rng.permutation(BATCH)[:labelled]] = np.arange(labelled)
    batch = batch_of(rng, labels, start)[:3]
    model.push(*batch)
    queue = step(queue, *batch)
    check_contents(queue, model)


@pytest.mark.parametrize('num_devices', DEVICES)
def test_empty_queue(num_devices):
  batch = batch_of(np.random.default_rng(0), [-1] * BATCH, 0)
  queue, found = look_up(num_devices, SEARCHES[0])(empty(num_devices), *batch)
  found = jax.tree.map(np.asarray, found)
  assert (found.similarity == -np.inf).all()
  assert (found.labels == -1).all() and (found.slots == -1).all()
  votes, share = map(
    np.asarray, vote(joined(found.labels, 1), joined(found.similarity, 1))
  )
  assert (votes == -1).all() and (share == 0).all()
  check_positives(queue, queue_model.Queue(CAPACITY), np.arange(BATCH), 0)
  assert label_queue.fill(on_host(queue)) == 0


def test_fill():
  queue = empty(2)
  step = mapped(label_queue.push, 2, 4)
  batch = batch_of(np.random.default_rng(0), [0] * 7 + [-1], 0)[:3]
  for wanted in (7 / 16, 14 / 16, 1, 1):
    queue = step(queue, *batch)
    assert label_queue.fill(on_host(queue)) == wanted


@pytest.mark.parametrize('num_devices', DEVICES)
def test_newest_of_equals_around_the_end(num_devices):
  # All entries alike: 8 + 8 + 3 pushes, so the newest are in slots 2, 1, 0 and
  # the next in slot 15, on another device.
  queue = empty(num_devices)
  same = np.ones((VIEWS, BATCH, SIZE), np.float32)
  ids = np.arange(BATCH, dtype=np.int32)
  for labels in ([0] * 8, [0] * 8, [-1] * 5 + [0] * 3, [-1] * 8):
    queue, found = look_up(num_devices, SEARCHES[0])(
      queue, same, np.array(labels, np.int32), ids, same
    )
  slots = joined(found.slots, axis=1).reshape(2, BATCH, -1, 3)
  assert (slots[0] == [2, 1, 0]).all()
  # Slots 2, 1, 0 hold ids 7, 6, 5, and slots 15, 14, 13 the same ids before.
  assert (slots[1, 7] == [1, 0, 14]).all()
  assert (slots[1, 5] == [2, 1, 15]).all()
  assert (slots[1, 4] == [2, 1, 0]).all()


def test_zero_and_minus_zero_are_equal():
  # With d = 1 a similarity is one product, -0.0 for the newest two entries.
  embeddings = np.array([[0, 0, -0.0, -0.0]], np.float32)[..., None]
  queue = label_queue.LabelQueue(
    embeddings, *np.zeros((2, 4), np.int32), np.int32(4)
  )
  search = functools.partial(label_queue.nearest, k=3, block_size=4)
  arguments = queue, np.ones((1, 1, 1), np.float32), np.full((1, 1), -2)
  found = jax.jit(jax.vmap(search, axis_name=parallel.AXIS))(
    *parallel.replicate(arguments, 1)
  )
  assert found.slots.ravel().tolist() == [3, 2, 1]


def test_look_up_leaves_out_the_own_image_only():
  # Image 3 is its own nearest entry; blind to itself it finds image 5.
  labels = np.array([-1, -1, -1, 1, -1, 0, -1, -1], np.int32)
  embeddings = np.zeros((VIEWS, BATCH, SIZE), np.float32)
  embeddings[:, 3], embeddings[:, 5] = [1, 0, 0], [0.5, 0.5, 0]
  ids = np.arange(100, 100 + BATCH, dtype=np.int32)
  _, found = look_up(4, SEARCHES[1])(
    empty(4), embeddings, labels, ids, embeddings
  )
  found = joined(found.labels, axis=1)  # [2, B, V_q * V_L]
  assert (found[0, 3] == 1).all() and (found[1, 3] == 0).all()
  # A tie at similarity 0 goes to the newer entry, image 5.
  assert (found[:, 0] == 0).all()


def test_positives_are_uniform_over_their_class():
  labels = np.full(CAPACITY, -1, np.int32)
  labels[[0, 3, 4, 9, 15]], labels[[2, 8, 10]], labels[5] = 2, 0, 5
  empty_queue = shard(1)
  queue = on_host(parallel.replicate(empty_queue._replace(labels=labels), 1))
  wanted = np.array([2, 0, 1, -1, 7, 2, 2, 0], np.int32)
  keys = lambda seed: jax.random.split(jax.random.key(seed), BATCH)
  drawn = [sample(queue, keys(seed), wanted) for seed in range(500)]
  slots, exists = map(np.array, zip(*drawn))  # [500, B, S], [500, B]
  np.testing.assert_array_equal(exists, np.tile(wanted % 2 == 0, (500, 1)))
  assert (slots[~exists] == -1).all()

  for label in (0, 2):
    drawn = slots[:, wanted == label].reshape(-1, DRAWS)
    places = np.flatnonzero(labels == label)
    assert set(drawn.ravel()) == set(places)
    counts = (drawn[..., None] == places).sum(axis=0)  # [S, places]
    assert (scipy.stats.chisquare(counts, axis=1).pvalue > 1e-3).all()
    # Draws of an image are independent: pairs are uniform as well.
    first, second = (drawn[:, i, None] == places for i in (0, 1))
    pairs = first.T.astype(int) @ second
    assert scipy.stats.chisquare(pairs.ravel()).pvalue > 1e-3


def collectives(jaxpr):
  """(name, sizes of operands and results) of every collective, at any depth."""
  for equation in jaxpr.eqns:
    axes = [equation.params.get(name) for name in ('axis_name', 'axes')]
    if any(a == parallel.AXIS or a == (parallel.AXIS,) for a in axes):
      arrays = equation.invars + equation.outvars
      yield equation.primitive.name, {n for x in arrays for n in x.aval.shape}
    for inner in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(inner, 'jaxpr', inner)  # a closed jaxpr has it inside
      if hasattr(inner, 'eqns'):
        yield from collectives(inner)


def traced(function, num_devices, capacity):
  batch = batch_of(np.random.default_rng(0), [-1] * BATCH, 0)
  keys = jax.random.split(jax.random.key(0), BATCH)
  queue = shard(num_devices, capacity)
  trace = jax.make_jaxpr(function, axis_env=[(parallel.AXIS, num_devices)])
  return list(collectives(trace(queue, *batch, keys).jaxpr))


def test_no_collective_carries_the_queue():
  capacity = 2 * 37  # sizes unlike all others
  forbidden = {capacity, capacity // 2}
  found = traced(whole_round, 2, capacity)
  names = {name for name, _ in found}
  assert {'all_to_all', 'reduce_scatter', 'all_gather'} <= names
  assert not any(sizes & forbidden for _, sizes in found)

  gathers_keys = lambda queue, *_: parallel.all_gather(queue.embeddings, axis=1)
  (one,) = traced(jax.jit(gathers_keys), 2, capacity)  # it would be seen
  assert one[1] >= forbidden


def test_traffic_is_the_same_for_any_capacity():
  sizes = lambda capacity: traced(whole_round, 2, capacity)
  assert sizes(2 * 37) == sizes(2 * 1001)


def test_temporary_memory_of_a_look_up_does_not_grow():
  def temporary(capacity):
    queue = empty(1, capacity)
    queries, nobody = (
      np.ones((1, BATCH, SIZE), np.float32),
      np.zeros((1, BATCH)),
    )
    search = mapped(label_queue.nearest, 1, 3, k=1, block_size=8)
    compiled = search.lower(queue, queries, nobody).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(6400) <= temporary(64) + 64  # the queue has 150 kB more


def test_the_best_slots_of_all_pairs_are_told_once():
  similarity = np.array([[0.5, 0.9, 0.7, 0.9, 0.2, -np.inf]], np.float32)
  slots = np.array([[4, 2, 4, 7, 1, -1]], np.int32)
  found = label_queue.Neighbours(similarity, None, slots)
  best = lambda number: label_queue.best_slots(found, number).tolist()
  assert best(1) == [[2]]  # the first of equals
  assert best(3) == [[2, 7, 4]]
  assert best(6) == [[2, 7, 4, 1, -1, -1]]
