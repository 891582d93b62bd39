"""Mean shift against its releases, by hand, and what it refuses.

golden_data/msf.npz, cmsf_sup.npz, cmsf_semi.npz: loss and its gradient, and the
memory after the batch has entered it, by the releases' own forward passes.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import methods
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.memory import label_queue, pseudo_labels, queue_classifier
from semppl_jax.methods import base, mean_shift
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib
from tests.helpers import golden, tiny

_FACTS = base.RunFacts(
  3, 40, np.array([0.5, 0.5, 0.0], np.float32), 12, 20, int
)


def _config(**changes):
  plain = {'loss__same_label': False, 'loss__pseudo_labels': 'none'}
  return tiny.make_config('mean_shift', **(plain | changes))


def _queue(rows, labels, count, first_id=1000):
  """A queue on the host; rows [C, d]; -1 in the labels: none."""
  return label_queue.LabelQueue(
    np.asarray(rows, np.float32)[None],
    np.asarray(labels, np.int32),
    first_id + np.arange(len(rows), dtype=np.int32),
    np.int32(count),
  )


def _take(*arguments):
  """As `_look`, but for whose entries the neighbours are."""
  return _look(*arguments)[:-1]


def _look(cfg, memory, query, target, labels, number=1):
  """One step's memory and loss on `number` devices, whole again.

  Args:
    cfg: of the method.
    memory: of all devices.
    query: [V, B, d] predictions, of any length; likewise target [B, d].
    target: projections.
    labels: [B].
    number: D.

  Returns:
    The memory after it, loss, gradient [V, B, d], metrics, (pseudo-)labels [B],
    {purity: ids of neighbours [B, k]}.
  """
  return _compiled(cfg, number, *np.shape(query)[1:])(
    memory, query, target, labels
  )


def _compiled(cfg, number, images, size):
  """`_look` at step after step of one method."""
  cfg.projector.size, cfg.batch_size = size, images
  method = mean_shift.build(tiny.frozen(cfg), _FACTS)

  def one(memory, query, batch):
    memory, shared = method.prepare(memory, batch)
    here = parallel.global_indices(query.shape[1])

    def loss(query):
      result = method.loss(
        base.Inputs(
          online={'prediction': query, 'projection': query},
          target={'projection': batch.target['projection'][:, here]},
          labels=batch.labels[here],
          ids=batch.ids,
          batch=batch,
          shared=shared,
          keys=base.Keys(here, None, None),
        ),
        memory,
      )
      return result.loss, result

    grad, result = jax.grad(loss, has_aux=True)(query)
    return memory, parallel.pmean(result.loss), grad / number, result

  devices = jax.devices()[:number]
  mapped = jax.pmap(one, parallel.AXIS, in_axes=(0, 0, None), devices=devices)
  split = lambda x, axis: np.stack(np.split(np.asarray(x), number, axis))

  def look(memory, query, target, labels, step=0):
    batch = base.BatchWide(
      {'projection': jnp.asarray(target, jnp.float32)[None]},
      jnp.asarray(labels, jnp.int32),
      jnp.arange(len(labels), dtype=jnp.int32),
      jnp.asarray(step, jnp.int32),
      key=jax.random.fold_in(jax.random.key(0), step),
    )
    given = jax.tree.map(
      lambda x, axis: split(x, axis) if axis >= 0 else np.stack([x] * number),
      memory,
      method.shards,
    )
    query = split(np.asarray(query, np.float32), 1)
    told = jax.tree.map(np.asarray, mapped(given, query, batch))
    memory, loss, grad, result = told
    whole = jax.tree.map(
      lambda x, axis: np.concatenate(x, axis) if axis >= 0 else x[0],
      memory,
      method.shards,
    )
    assert np.ptp(loss) == 0
    shown = None if result.labels is None else result.labels.ravel()
    metrics = {key: value.mean() for key, value in result.metrics.items()}
    alike = {key: np.concatenate(list(x)) for key, x in result.alike.items()}
    return whole, loss[0], np.concatenate(list(grad), 1), metrics, shown, alike

  return look


def _golden(name, memory_of=None, **changes):
  file = golden.load(f'{name}.npz')
  before = golden.load('msf.npz') if name == 'cmsf_sup' else file
  k = int(file['topk'])
  labels = file['labels']
  if 'unlabelled' in file:  # by the release's head and threshold
    sure = file['head_prob'].max(axis=1) >= file['threshold']
    guess = np.where(sure, file['head_prob'].argmax(axis=1), -1)
    labels = np.where(file['unlabelled'] == 0, labels, guess)
  memory = mean_shift.Memory(
    _queue(
      before['queue_before'],
      before['queue_labels_before'],
      before['pointer'],
    ),
    (),
  )
  cfg = _config(
    memory__capacity=len(before['queue_before']), memory__k=k, **changes
  )
  take = functools.partial(
    _take, cfg, memory, file['query'][None], file['target'], labels
  )
  return file, take


_CASES = [
  ('msf', {}, 'loss', 'grad_query'),
  ('cmsf_sup', {'loss__same_label': True}, 'loss', 'grad_query'),
  ('cmsf_semi', {'loss__same_label': True}, 'loss', 'grad_query'),
  ('cmsf_semi', {}, 'loss_msf', None),
]


@pytest.mark.parametrize('number', [1, 2, 4])
@pytest.mark.parametrize(
  'name, changes, loss, gradient', _CASES, ids=lambda x: str(x)
)
def test_loss_and_gradient_are_the_releases(
  name, changes, loss, gradient, number
):
  file, take = _golden(name, **changes)
  memory, value, grad, metrics, _ = take(number)
  np.testing.assert_allclose(value, file[loss], rtol=1e-5, atol=1e-6)
  assert metrics['memory_fill'] == 1
  if gradient:
    np.testing.assert_allclose(grad[0], file[gradient], rtol=1e-5, atol=1e-6)
  after = golden.load('msf.npz') if name == 'cmsf_sup' else file
  np.testing.assert_allclose(
    memory.images.embeddings[0], after['queue_after'], atol=1e-6
  )
  if changes:
    np.testing.assert_array_equal(
      memory.images.labels, after['queue_labels_after']
    )


@pytest.mark.parametrize('number', [1, 8])
def test_eight_devices_find_what_one_does(number):
  file, take = _golden('cmsf_semi', loss__same_label=True)
  _, value, _, _, _ = take(number)
  np.testing.assert_allclose(value, file['loss'], rtol=1e-5)


# By hand: rows of the memory are (1, 0) label 0, (0, 1) label 1, (-1, 0) none.
_ROWS = [[1, 0], [0, 1], [-1, 0]]


@pytest.mark.parametrize(
  'changes, label, wanted',
  [
    # The own target (0.6, 0.8), then (0, 1): cosines with o = (1, 0) 0.6, 0.
    ({'memory__k': 2}, 0, (0.8 + 2.0) / 2),
    # Of its label: the own target, then (1, 0).
    ({'memory__k': 2, 'loss__same_label': True}, 0, (0.8 + 0.0) / 2),
    # Of its label there are two: the third place is empty and does not count.
    ({'memory__k': 3, 'loss__same_label': True}, 1, (0.8 + 2.0) / 2),
    # Without a label it sees all, that without a label, too.
    (
      {'memory__k': 4, 'loss__same_label': True},
      -1,
      (0.8 + 2.0 + 0.0 + 4.0) / 4,
    ),
    # Nobody else has its label.
    ({'memory__k': 2, 'loss__same_label': True}, 2, 0.8),
    # One neighbour: BYOL's distance.
    ({'memory__k': 1}, 0, 0.8),
  ],
)
def test_neighbours_by_hand(changes, label, wanted):
  cfg = _config(memory__capacity=4, **changes)
  queue = label_queue.LabelQueue(
    np.array([_ROWS + [[0, 0]]], np.float32),
    np.array([0, 1, -1, -1], np.int32),
    np.array([7, 8, 9, -1], np.int32),
    np.int32(3),
  )
  memory, loss, grad, metrics, _ = _take(
    cfg, mean_shift.Memory(queue, ()), [[[2.0, 0.0]]], [[3.0, 4.0]], [label]
  )
  np.testing.assert_allclose(loss, wanted, rtol=1e-6)
  np.testing.assert_allclose(metrics['loss/mean_shift'], wanted, rtol=1e-6)
  np.testing.assert_allclose(memory.images.embeddings[0, 3], [0.6, 0.8])
  assert memory.images.labels[3] == (label if cfg.loss.same_label else -1)
  assert memory.images.ids[3] == 0 and memory.images.count == 4
  assert abs(grad[0, 0, 0]) < 1e-6  # along the prediction there is none


def test_views_of_the_online_network_share_the_neighbours():
  cfg = _config(memory__capacity=4, memory__k=1)
  memory = mean_shift.Memory(_queue(np.eye(4)[:, :2], [-1] * 4, 4), ())
  query = [[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]]
  _, loss, _, _, _ = _take(cfg, memory, query, [[1.0, 0.0]], [-1])
  np.testing.assert_allclose(loss, (0 + 2 + 4) / 3, rtol=1e-6)


def _votes(number=1, labels=(-1, -1, 1, -1), **changes):
  """Two labelled images in the queue, (1, 0) of class 0, (0, 1) of class 1."""
  cfg = _config(
    loss__same_label=True, loss__pseudo_labels='vote', memory__capacity=8,
    memory__k=2, queue__capacity=4, **changes,
  )  # fmt: skip
  empty = label_queue.init(1, 8, 2)
  labelled = label_queue.LabelQueue(
    np.array([[[1, 0], [0, 1], [0, 0], [0, 0]]], np.float32),
    np.array([0, 1, -1, -1], np.int32),
    np.array([50, 51, -1, -1], np.int32),
    np.int32(2),
  )
  memory = mean_shift.Memory(jax.tree.map(np.asarray, empty), labelled)
  target = [[4.0, 3.0], [3.0, 4.0], [5.0, -0.5], [0.9, 0.1]]
  query = np.random.RandomState(0).randn(2, 4, 2)
  return _take(cfg, memory, query, target, labels, number)


@pytest.mark.parametrize('number', [1, 2, 4])
def test_votes_are_of_labelled_images_alone(number):
  memory, _, _, metrics, labels = _votes(number)
  # Image 2, of class 1, lies at (1, -0.1); it entered before the vote.
  wanted = [0, 1, 1, 0]
  np.testing.assert_array_equal(labels, wanted)
  np.testing.assert_array_equal(memory.images.labels[:4], wanted)
  np.testing.assert_array_equal(memory.labelled.labels, [0, 1, 1, -1])
  np.testing.assert_allclose(metrics['queue_fill'], 3 / 4)
  np.testing.assert_allclose(metrics['memory_fill'], 4 / 8)
  assert metrics['vote_share'] == 1
  # Blind to itself, image 2 is nearest to (1, 0) of class 0.
  assert metrics['labelled_vote_accuracy'] == 0


def test_an_unsure_vote_gives_no_label():
  *_, labels = _votes(queue__k=2, queue__min_share=0.9)
  np.testing.assert_array_equal(labels, [-1, -1, 1, -1])
  *_, labels = _votes(queue__k=2, queue__min_share=0.5)
  assert (labels >= 0).all()


def test_balanced_votes_give_every_class_its_share():
  nobody = (-1, -1, -1, -1)
  *_, labels = _votes(labels=nobody)
  np.testing.assert_array_equal(labels, [0, 1, 0, 0])
  seen = []

  def balance(votes, counted, class_share, *, strength):
    seen.append((votes.shape, counted.shape, strength))
    right = jnp.all(class_share == jnp.array(_FACTS.class_share))
    return jnp.where(right, jnp.array([0, 1, 1, 0]), -1), jnp.ones(4)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pseudo_labels, 'balance', balance)
    *_, labels = _votes(2, labels=nobody, queue__balance=0.5)
  # Of the whole batch, on every device.
  assert seen == [((4, 1), (4,), 0.5)]
  np.testing.assert_array_equal(labels, [0, 1, 1, 0])


# The head. Images of two classes lie about (1, 0) and (0, 1).

_NEAR = [[1, 0.1], [0.1, 1], [1, -0.1], [-0.1, 1], [1, 0.2], [0.2, 1]]


def _head(labels, number=1, steps=1, state=None, first=0, **changes):
  """Steps with a head: a list of what `_look` gives of each."""
  cfg = _config(
    loss__same_label=True, loss__pseudo_labels='head', memory__capacity=16,
    memory__k=2, queue__capacity=8, head__batch_size=6,
    **({'head__learning_rate': 0.1} | changes),
  )  # fmt: skip
  cfg.projector.size = 2
  count = len(labels)
  if state is None:
    init = mean_shift.build(tiny.frozen(cfg), _FACTS).init
    state = jax.tree.map(np.asarray, init())
  query = np.random.RandomState(0).randn(2, count, 2)
  look, told = _compiled(cfg, number, count, 2), []
  for step in range(first, first + steps):
    rows = np.roll(_NEAR, 2 * step, axis=0)[:count]
    told.append(look(state, query, rows, labels, step))
    state = told[-1][0]
  return told


def test_a_head_learns_and_gives_labels():
  # Of class 0 and 1; the others are unlabelled.
  labels = [0, 1, -1, -1]
  told = _head(labels, steps=12)
  losses = [metrics['loss/head'] for _, _, _, metrics, _, _ in told]
  assert losses[0] > 0.5 and losses[-1] < 0.1
  memory, _, _, metrics, found, _ = told[-1]
  np.testing.assert_array_equal(found, [0, 1, 0, 1])
  np.testing.assert_array_equal(told[0][4], [0, 1, -1, -1])  # not sure yet
  np.testing.assert_array_equal(memory.images.labels[-4:], [0, 1, 0, 1])
  assert (memory.labelled.labels < 2).all() and metrics['queue_fill'] == 1
  *_, last = _head(labels, steps=12, loss__min_confidence=1.0)
  np.testing.assert_array_equal(last[4], labels)


@pytest.mark.parametrize('number', [2, 4])
def test_the_head_is_the_same_on_any_number_of_devices(number):
  one, many = (
    _head([0, 1, -1, -1], n, steps=3, loss__min_confidence=0.5)
    for n in (1, number)
  )
  for wanted, found in zip(one, many, strict=True):
    np.testing.assert_array_equal(found[4], wanted[4])
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
    chex.assert_trees_all_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
  assert (one[-1][4] >= 0).all()


def test_steps_with_a_head_go_on_bit_for_bit():
  *_, begun, wanted = _head([0, 1, -1, -1], steps=3)
  (found,) = _head([0, 1, -1, -1], state=begun[0], first=2)
  chex.assert_trees_all_equal(found, wanted)
  # Another step draws other rows.
  (other,) = _head([0, 1, -1, -1], state=begun[0], first=5)
  assert found[3]['loss/head'] != other[3]['loss/head']


def test_without_a_label_a_head_says_nothing():
  (told,) = _head([-1, -1, -1, -1], loss__min_confidence=0.0)
  np.testing.assert_array_equal(told[4], -1)
  assert told[3]['loss/head'] == 0
  cfg = tiny.make_config('mean_shift', loss__pseudo_labels='head')
  fresh = mean_shift.build(tiny.frozen(cfg), _FACTS).init().head
  assert jax.tree.leaves(fresh)


@pytest.mark.parametrize('number', [1, 2, 4])
def test_with_the_releases_head_all_is_the_releases(number, monkeypatch):
  """Its head is linear: a perceptron that takes x and -x apart."""
  file = golden.load('cmsf_semi.npz')
  plus = np.eye(6, dtype=np.float32)
  given = {
    'linear': {'w': np.hstack([plus, -plus]), 'b': np.zeros(12, np.float32)},
    'batch_norm': {
      'scale': np.full((1, 12), np.sqrt(1 + 1e-5), np.float32),
      'offset': np.zeros((1, 12), np.float32),
    },
    'linear_1': {
      'w': np.vstack([file['head_w'].T, -file['head_w'].T]),
      'b': file['head_b'],
    },
  }
  monkeypatch.setattr(
    queue_classifier, 'train', lambda head, *_, **__: (head, jnp.zeros(()))
  )
  cfg = _config(
    loss__same_label=True, loss__pseudo_labels='head', memory__capacity=40,
    memory__k=int(file['topk']), queue__capacity=16, projector__size=6,
    loss__min_confidence=float(file['threshold']),
  )  # fmt: skip
  facts = _FACTS._replace(num_classes=6)
  monkeypatch.setitem(globals(), '_FACTS', facts)
  fresh = mean_shift.build(tiny.frozen(cfg), facts).init()
  identity = jax.tree_util.tree_map_with_path(
    lambda path, x: np.full(x.shape, 'var_ema' in str(path), x.dtype),
    fresh.head.state,
  )
  images = _queue(
    file['queue_before'], file['queue_labels_before'], file['pointer']
  )
  chex.assert_trees_all_equal_shapes(given, fresh.head.params)
  memory = mean_shift.Memory(
    images,
    jax.tree.map(np.asarray, fresh.labelled),
    fresh.head._replace(params=given, state=identity),
  )
  memory = jax.tree.map(np.asarray, memory)
  visible = np.where(file['unlabelled'] == 0, file['labels'], -1)
  after, value, grad, *_ = _take(
    cfg, memory, file['query'][None], file['target'], visible, number
  )
  np.testing.assert_allclose(value, file['loss'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(grad[0], file['grad_query'], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(after.images.labels, file['queue_labels_after'])
  known = np.flatnonzero(visible >= 0)
  np.testing.assert_array_equal(
    after.labelled.labels[: len(known)], visible[known]
  )


def test_whose_entries_the_neighbours_are():
  """Of the label, and nearest whatever their label; ids are those of entries.

  Two look-ups where a label chooses, one where none does.
  """
  rows, labels = [[1, 0], [0.9, 0.1], [0, 1], [0, 0]], [1, 0, 0, -1]
  queue = _queue(rows, labels, 3)
  queue.ids[3] = -1
  given = (
    mean_shift.Memory(queue, ()), [[[1.0, 0.0]]], [[1.0, 0.0]], [0],
  )  # fmt: skip
  cfg = _config(memory__capacity=4, memory__k=3, loss__same_label=True)
  alike = _look(cfg, *given)[-1]
  assert {key: x.tolist() for key, x in alike.items()} == {
    'neighbour_purity': [[0, 1001, 1002]],
    'free_neighbour_purity': [[0, 1000, 1001]],
  }
  cfg = _config(memory__capacity=4, memory__k=3)
  alike = _look(cfg, *given)[-1]
  assert {key: x.tolist() for key, x in alike.items()} == {
    'neighbour_purity': [[0, 1000, 1001]]
  }
  # Of a label that few have.
  cfg = _config(memory__capacity=4, memory__k=3, loss__same_label=True)
  alike = _look(cfg, *given[:-1], [2])[-1]
  assert alike['neighbour_purity'].tolist() == [[0, -1, -1]]


def test_without_labels_cmsf_is_msf():
  file, take_free = _golden('msf')
  cfg = _config(loss__same_label=True, memory__capacity=24, memory__k=5)
  memory = mean_shift.Memory(
    _queue(file['queue_before'], file['queue_labels_before'], 8), ()
  )
  nobody = [-1] * 4
  found = _take(cfg, memory, file['query'][None], file['target'], nobody)
  wanted = take_free()
  np.testing.assert_array_equal(found[1], wanted[1])
  np.testing.assert_array_equal(found[2], wanted[2])


# In the engine.


@pytest.mark.long  # the contract has the same with votes
@pytest.mark.parametrize('kind', ['none', 'head'])
def test_it_takes_steps_on_any_number_of_devices(kind):
  """MSF, and with a head; resumed on another number of devices."""
  guesses = kind == 'head'
  run = tiny.prepare(
    'mean_shift', loss__same_label=guesses, loss__pseudo_labels=kind,
    memory__capacity=24, head__batch_size=8, head__learning_rate=0.1,
    loss__min_confidence=0.5,
  )  # fmt: skip
  step = functools.partial(step_lib.train_step, setup=run.setup)
  labels = [0, 1, 2, 0] if guesses else [-1] * 4
  labels += [-1] * (tiny.BATCH - 4)
  batches = [tiny.make_batch(labels, seed) for seed in range(2)]
  state = tiny.first_state(run, 1)
  method = run.setup.method
  whole, seen = tiny.run_steps(tiny.map_step(step, 1), state, batches, 1)
  half, _ = tiny.run_steps(tiny.map_step(step, 1), state, batches[:1], 1)
  on_host = lambda state, number: state_lib.to_host(
    parallel.put_sharded(state, jax.devices()[:number]),
    method,
    jax.devices()[:number],
  )
  saved = on_host(half, 1)
  assert saved.memory.images.embeddings.shape == (1, 24, 8)
  again = state_lib.from_host(saved, method, jax.devices()[:4])
  again, [(scalars, _)] = tiny.run_steps(
    tiny.map_step(step, 4), again, batches[1:], 4
  )
  np.testing.assert_allclose(
    scalars['loss'][0], seen[1][0]['loss'][0], rtol=1e-4
  )
  found, wanted = on_host(again, 4).memory, on_host(whole, 1).memory
  chex.assert_trees_all_close(found, wanted, atol=1e-4)
  assert ('queue_fill' in scalars) == guesses
  assert scalars['memory_fill'][0] == 1


def test_the_target_network_has_a_view_of_its_own():
  method = mean_shift.build(tiny.frozen(_config()), _FACTS)
  large = np.arange(3.0)[:, None]
  views = base.Views(large, 10 + large)
  ((target,), online) = method.target_views(views), method.online_views(views)
  assert target.ravel().tolist() == [0]
  assert [x.ravel().tolist() for x in online] == [[1, 2], [10, 11, 12]]


# Settings.


@pytest.mark.parametrize(
  'changes, devices, line',
  [
    (
      {'loss__same_label': False},
      1,
      "loss.pseudo_labels is 'vote', but with loss.same_label=False",
    ),
    (
      {'labels__per_class': 0},
      1,
      'loss.same_label is True, but no image has a label: set labels.per_class',
    ),
    (
      {'loss__pseudo_labels': 'nobody'},
      1,
      "loss.pseudo_labels is 'nobody'",
    ),
    (
      {'loss__pseudo_labels': 'head', 'loss__same_label': False},
      1,
      "loss.pseudo_labels is 'head', but with loss.same_label=False",
    ),
    ({'loss__min_confidence': 1.5}, 1, 'loss.min_confidence is 1.5'),
    ({'head__steps': 0}, 1, 'head.steps is 0'),
    ({'memory__capacity': 25}, 2, 'memory.capacity 25 is not a multiple of'),
    (
      {'queue__capacity': 15},
      2,
      'queue.capacity 15 is not a multiple of the 2',
    ),
    (
      {'memory__capacity': 8},
      1,
      'memory.capacity is 8, but a batch of 16 images enters it whole',
    ),
    ({'memory__k': 0}, 1, 'memory.k is 0'),
    ({'queue__min_share': 2.0}, 1, 'queue.min_share is 2.0'),
    ({'views__num_large': 1}, 1, 'views.num_large is 1'),
  ],
)
def test_what_cannot_work_is_refused(changes, devices, line):
  cfg = tiny.make_config('mean_shift')
  methods.validate(cfg, 2)
  with pytest.raises(UserError, match=line) as error:
    methods.validate(tiny.make_config('mean_shift', **changes), devices)
  assert '\n' not in str(error.value)


def test_a_queue_that_nobody_asks_may_have_any_size():
  cfg = _config(queue__capacity=15, labels__per_class=0)
  methods.validate(cfg, 2)


def test_what_can_hardly_be_meant_is_said():
  say = lambda facts=_FACTS, **changes: list(
    methods.doubts(tiny.make_config('mean_shift', **changes), facts)
  )
  assert say() == []
  (line,) = say(memory__capacity=48)
  assert line.startswith('memory.capacity 48 is more than the 40 training')
  assert say(memory__capacity=48, memory__k=1) == []
  (line,) = say(queue__capacity=200)
  assert line.startswith('queue.capacity 200 can never fill: about 96')
  (line,) = say(queue__capacity=200, loss__pseudo_labels='head')
  assert line.startswith('queue.capacity 200 can never fill')
  votes = {'queue__k': 5, 'queue__min_share': 0.5, 'queue__balance': 1.0}
  assert say(**votes) == []
  lines = say(**votes, loss__pseudo_labels='head')
  assert [line.partition(', but')[0] for line in lines] == [
    'queue.k is 5', 'queue.min_share is 0.5', 'queue.balance is 1',
  ]  # fmt: skip
  assert all('it changes nothing' in line for line in lines)
  plain = {'loss__pseudo_labels': 'none'}
  assert say(queue__capacity=200, **plain) == []
  one = _FACTS._replace(class_share=np.array([1, 0, 0], np.float32))
  assert say(one) == ['all labelled images are of one class']


def test_advice_is_what_is_off():
  found = mean_shift.advice(tiny.make_config('mean_shift'))
  assert found[0] == 'queue.balance=1' and len(found) == 5
  cfg = tiny.make_config(
    'mean_shift', queue__balance=1.0, queue__k=5, queue__min_share=0.1,
    labels__share=0.5,
  )  # fmt: skip
  assert mean_shift.advice(cfg) == ('loss.pseudo_labels=none',)
  cfg = tiny.make_config('mean_shift', loss__pseudo_labels='head')
  assert mean_shift.advice(cfg) == (
    'labels.share=0.25',
    'loss.min_confidence=0.95',
    'loss.pseudo_labels=none',
  )
  assert mean_shift.build(tiny.frozen(_config()), _FACTS).advice == ()
