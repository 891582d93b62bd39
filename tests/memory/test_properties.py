"""What must hold for all inputs: queue, votes, negatives, order, subsets."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from semppl_jax.data import labels as labels_lib
from semppl_jax.data import pipeline, sampler, sources
from semppl_jax.errors import UserError
from semppl_jax.losses import negatives
from semppl_jax.memory import pseudo_labels
from tests.helpers import queue_model
from tests.memory import test_label_queue as queues

_SEEDS = st.integers(-(2**63), 2**63 - 1)


def for_all(examples, **given):
  """Runs a test for that many inputs, the same ones every time."""

  def wrap(test):
    limits = hypothesis.settings(
      max_examples=examples, deadline=None, derandomize=True
    )
    return limits(hypothesis.given(**given)(test))

  return wrap


# -- The queue --

_BATCH = st.lists(
  st.integers(-1, 2), min_size=queues.BATCH, max_size=queues.BATCH
)
# Devices, capacity, search: fewer slots than a batch has labels or a look-up
# asks for, shards of one slot, and no powers of two.
_QUEUE = (2, 6, {'k': 9, 'block_size': 2})
_MORE_QUEUES = (
  (4, 12, {'k': 5, 'block_size': 7}),
  (1, 1, {'k': 2, 'block_size': 1}),
  (1, 7, {'k': 8, 'block_size': 64}),
  (8, 8, {'k': 2, 'block_size': 3}),
  (8, 40, {'k': 5, 'block_size': 2}),
)


def check_history(num_devices, capacity, search, pushes, seed):
  rng = np.random.default_rng(seed)
  queue = queues.empty(num_devices, capacity)
  model = queue_model.Queue(capacity)
  for start, labels in enumerate(pushes):
    batch = queues.batch_of(rng, labels, start)
    model.push(*batch[:3])
    queue, found = queues.look_up(num_devices, search)(queue, *batch)
    queues.check_contents(queue, model)
    queues.check_found(found, model, batch, search['k'])
  queues.check_positives(queue, model, np.array(labels), seed)


@for_all(
  6, pushes=st.lists(_BATCH, min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_any_history_of_a_small_queue(pushes, seed):
  check_history(*_QUEUE, pushes, seed)


@pytest.mark.long
@pytest.mark.parametrize('case', _MORE_QUEUES, ids=str)
@for_all(
  40, pushes=st.lists(_BATCH, min_size=1, max_size=9), seed=st.integers(0, 99)
)
def test_many_histories_of_queues_of_any_size(case, pushes, seed):
  check_history(*case, pushes, seed)


# -- Votes --

_VOTERS = 8
_LABEL = st.integers(-1, 3)
_EXACT = st.sampled_from((-1.0, -0.5, -0.25, -0.0, 0.0, 0.25, 0.5, 1.0))
_ANY = st.floats(-1, 1, width=32)


def voters(similarity):
  """(label, similarity) of each; -inf where there is none."""
  one = st.tuples(_LABEL, similarity).map(
    lambda x: x if x[0] >= 0 else (-1, -np.inf)
  )
  return st.lists(one, min_size=_VOTERS, max_size=_VOTERS)


def vote(votes):
  labels, similarity = (np.array(x) for x in zip(*votes))
  winner, share = queues.vote(
    labels.astype(np.int32), similarity.astype(np.float32)
  )
  return int(winner), float(share)


@for_all(60, votes=voters(_EXACT))
def test_votes_are_the_plain_models(votes):
  assert vote(votes) == pytest.approx(queue_model.vote(*zip(*votes)))


@for_all(
  40, votes=voters(_ANY).flatmap(
    lambda x: st.tuples(st.just(x), st.permutations(x))
  ),
)  # fmt: skip
def test_the_order_of_voters_changes_nothing(votes):
  first, other = votes
  assert vote(first) == vote(other)


@for_all(
  30, votes=voters(_EXACT), label=_LABEL,
  least=st.sampled_from((0.0, 1 / 8, 0.25, 1 / 3, 0.5, 1.0)),
)  # fmt: skip
def test_a_pseudo_label_has_its_share_of_the_votes(votes, label, least):
  winner, share = vote(votes)
  got = pseudo_labels.assign(
    *(jnp.asarray([x]) for x in (winner, np.float32(share), label)), least
  )
  enough = np.float32(share) >= np.float32(least)
  wanted = label if label >= 0 else winner if enough else -1
  assert int(got[0]) == wanted


# -- Negatives --

_IMAGES = 8
_sample = functools.partial(
  jax.jit, static_argnames=('num_negatives', 'exclude_same_label')
)(negatives.sample)


@for_all(
  25,
  labels=st.lists(st.integers(-1, 2), min_size=_IMAGES, max_size=_IMAGES),
  num=st.just(5),
  exclude=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
  places=st.permutations(range(_IMAGES)),
)
def test_negatives_are_others_each_once(labels, num, exclude, seed, places):
  keys = jax.random.split(jax.random.key(seed), _IMAGES)
  sample = functools.partial(
    _sample, labels=np.array(labels, np.int32), num_negatives=num,
    exclude_same_label=exclude,
  )  # fmt: skip
  index, mask = sample(keys, np.arange(_IMAGES, dtype=np.int32))
  for image, (row, there) in enumerate(zip(index.tolist(), np.array(mask))):
    own = labels[image] if exclude and labels[image] >= 0 else None
    others = {
      i for i, label in enumerate(labels) if i != image and label != own
    }
    chosen = np.array(row)[there].tolist()
    assert len(chosen) == len(set(chosen)) == min(num, len(others))
    assert set(chosen) <= others
  # An image's negatives depend on its key and its place, not on the company.
  places = np.array(places, np.int32)
  moved = sample(keys[places], places)
  np.testing.assert_array_equal(moved[0], np.array(index)[places])
  np.testing.assert_array_equal(moved[1], np.array(mask)[places])


# -- Order --

_SOME = st.lists(st.booleans(), min_size=1, max_size=40)
_SHARES = st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.99, 1.0))


def laid_out(known, seed, size, share):
  labels = np.where(known, 0, -1)
  try:
    return sampler.make_sampler(
      labels, seed=seed, batch_size=size, labelled_share=share
    )
  except UserError as error:
    assert 'labels.share' in str(error) and '\n' not in str(error)
    few = share and not round(share * size)
    empty = not any(known) or (all(known) and round(share * size) < size)
    assert few or empty
    hypothesis.reject()


@for_all(30, known=_SOME, seed=_SEEDS, size=st.integers(1, 12), share=_SHARES)
def test_every_epoch_of_every_stream_has_each_image_once(
  known, seed, size, share
):
  laid = laid_out(known, seed, size, share)
  steps = -(-3 * len(known) // size)
  batches = [[laid.row(s, i) for i in range(size)] for s in range(steps)]
  rows = np.array(batches).reshape(-1)
  streams = (laid.others, rows), (laid.labelled, rows[:0])
  if share:
    labelled = np.array(known)[rows]
    assert (labelled.reshape(steps, size).sum(1) == round(share * size)).all()
    streams = (laid.labelled, rows[labelled]), (laid.others, rows[~labelled])
  for members, drawn in streams:
    if not len(members):
      assert not len(drawn)
      continue
    whole = len(drawn) // len(members) * len(members)
    # Within a batch the streams are mixed, so an epoch that ends in the middle
    # of one is looked at with its batch.
    counts = np.bincount(drawn[:whole], minlength=len(known))[members]
    slack = bool(share)
    assert counts.max() - counts.min() <= 2 * slack
    assert set(drawn) <= set(members.tolist())


@for_all(20, known=_SOME, seed=_SEEDS, share=_SHARES, attempt=st.integers(0, 9))
def test_a_stand_in_is_of_its_images_stream(known, seed, share, attempt):
  laid = laid_out(known, seed, 10, share)
  for row in range(len(known)):
    other = laid.stand_in(row, attempt)
    assert 0 <= other < len(known)
    assert not share or known[other] == known[row]
    assert other == laid.stand_in(row, attempt)


@for_all(
  10, known=_SOME, seed=_SEEDS, share=_SHARES, start=st.integers(0, 4),
  hosts=st.sampled_from((1, 2, 3, 6)),
)  # fmt: skip
def test_hosts_and_starts_change_no_batch(known, seed, share, start, hosts):
  laid = laid_out(known, seed, 6, share)
  labels = np.where(known, 0, -1)
  read = lambda index: np.full((1, 1, 3), index, np.uint8)
  source = sources.Records(labels, read)
  found = []
  for host in range(hosts):
    batches = pipeline.batches(
      source, labels, seed=seed, batch_size=6, start_step=start,
      num_steps=5 - start, host_index=host, host_count=hosts, threads=0,
      labelled_share=share,
    )  # fmt: skip
    found.append([np.array(batch.ids) for batch, _ in batches])
  for step, parts in enumerate(zip(*found), start):
    wanted = [laid.row(step, i) for i in range(6)]
    assert np.concatenate(parts).tolist() == wanted


# -- Subsets --

_LABELS = st.lists(st.integers(-1, 4), min_size=1, max_size=60)
_SIZES = st.one_of(
  st.integers(1, 30).map(lambda n: {'per_class': n}),
  st.floats(0, 1, exclude_min=True).map(lambda share: {'fraction': share}),
)


def wanted_of(count, size):
  share = max(1, round(size.get('fraction', 0) * count))
  return min(count, size.get('per_class') or share)


@for_all(40, labels=_LABELS, size=_SIZES, other=_SIZES, seed=_SEEDS)
def test_subsets_are_stratified_and_nested(labels, size, other, seed):
  labels = np.array(labels)
  chosen, larger = (
    labels_lib.select_labels(labels, seed=seed, **own) for own in (size, other)
  )
  assert (chosen[chosen >= 0] == labels[chosen >= 0]).all()
  for label in range(5):
    count = int((labels == label).sum())
    few, many = (set(np.flatnonzero(x == label)) for x in (chosen, larger))
    assert len(few) == wanted_of(count, size)  # at least one where there is one
    assert len(many) == wanted_of(count, other)
    assert few <= many or many <= few
  # Other classes decide nothing; where images stand decides no number.
  alone = np.where(labels == 1, 1, -1)
  again = labels_lib.select_labels(alone, seed=seed, **size)
  np.testing.assert_array_equal(again == 1, chosen == 1)
  back = labels_lib.select_labels(labels[::-1], seed=seed, **size)
  count = lambda x: np.bincount(x[x >= 0], minlength=5).tolist()
  assert count(back) == count(chosen)
