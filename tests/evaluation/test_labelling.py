"""Labels for all the rest of a run, and that what is kept back stays so."""

import csv
import json

import jax
import numpy as np
import pytest

from semppl_jax.data import labels as labels_lib
from semppl_jax.data import sources
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.evaluation import (
  calibration,
  label_files,
  labelling,
  next_to_label,
  run_network,
)
from semppl_jax.memory import label_queue
from semppl_jax.train import run as run_lib
from tests.helpers import tiny

_KEPT = 60


def _network(run, filled=True):
  """A network of random weights, whose queue holds its labelled images."""
  state = tiny.first_state(run, 1)
  labelled = np.flatnonzero(run.labels >= 0)
  ids = np.resize(labelled, state.memory.ids.shape)
  noise = np.random.RandomState(0).normal(size=state.memory.embeddings.shape)
  if filled:
    queue = state.memory._replace(
      embeddings=np.float32(noise / np.linalg.norm(noise, axis=-1)[..., None]),
      labels=run.labels[ids],
      ids=ids.astype(np.int32),
      count=np.full_like(state.memory.count, ids.size),
    )
    state = state._replace(memory=queue)
  state = parallel.put_sharded(state, run.devices)
  return run_network.Network(run, state, 0)


@pytest.fixture(scope='module')
def run():
  return tiny.prepare(
    dataset__num_examples=120, labels__per_class=30, labels__calibration=_KEPT,
    queue__capacity=32, views__flip=0.5,
  )  # fmt: skip


@pytest.fixture(scope='module')
def job(run):
  return labelling.of_run(_network(run))


@pytest.fixture(scope='module')
def found(job):
  return labelling.label(job)


def test_every_image_without_a_visible_label_once(run, found):
  np.testing.assert_array_equal(
    np.sort(found.rows), np.flatnonzero(run.labels < 0)
  )
  assert (np.diff(found.votes.share) >= 0).all()
  assert found.summary['images'] == 90
  assert found.summary['labelled_images'] == 30
  assert found.summary['chosen_by'] == 'queue'


def test_the_queue_chooses_and_the_encoder_says_how_sure(job, found):
  """In a queue of one class every label is that one, and most are doubtful."""
  of_one = job.queue._replace(labels=np.full_like(job.queue.labels, 2))
  again = labelling.label(job._replace(queue=of_one))
  assert (again.votes.labels == 2).all()
  alone = labelling.label(job._replace(queue=None))
  at = {row: i for i, row in enumerate(alone.rows)}
  other = [i for i, row in enumerate(again.rows)
           if alone.votes.labels[at[row]] != 2]  # fmt: skip
  assert other
  for i in other:
    best = at[again.rows[i]]
    assert again.votes.runner_up[i] == alone.votes.labels[best]
    assert again.votes.runner_up_share[i] == alone.votes.share[best]
    assert again.votes.share[i] <= alone.votes.share[best]
  assert alone.summary['chosen_by'] == 'encoder'


def test_parts_and_a_choice_of_rows_change_nothing(job, found, monkeypatch):
  monkeypatch.setattr(labelling, '_AT_ONCE', 7)
  chosen = np.flatnonzero(job.labels < 0)[:5]
  some = labelling.label(job._replace(calibration=job.labels * 0 - 1), chosen)
  np.testing.assert_array_equal(np.sort(some.rows), chosen)
  at = [int(np.flatnonzero(found.rows == row)[0]) for row in some.rows]
  np.testing.assert_array_equal(some.votes.labels, found.votes.labels[at])
  np.testing.assert_allclose(some.votes.share, found.votes.share[at], atol=1e-5)


def test_probabilities_come_of_the_labels_kept_back(job, found):
  kept = job.calibration[found.rows]
  assert (kept >= 0).sum() == _KEPT
  right = (found.votes.labels == kept)[kept >= 0]
  platt = calibration.fit(found.votes.share[kept >= 0], right)
  np.testing.assert_array_equal(found.probability, platt(found.votes.share))
  assert found.summary['platt'] == platt._asdict()
  assert 0 <= found.summary['ece_of_probability'] <= 1
  text = ' '.join(label_files.lines(found.summary))
  assert 'By 60 calibration images' in text


def test_of_fewer_than_50_no_probability_is_told(job, found):
  few = job.calibration.copy()
  few[np.flatnonzero(few >= 0)[49:]] = -1
  again = labelling.label(job._replace(calibration=few))
  assert again.probability is None and 'platt' not in again.summary
  text = ' '.join(label_files.lines(again.summary))
  assert 'no probabilities' in text and 'here 49' in text
  assert 'probability' not in label_files.heads(job, again)


def test_the_file_is_a_list_of_labels(job, found, tmp_path):
  """What was given goes back in; a pseudo-label only where a user wrote it."""
  job = job._replace(
    source=sources.Records(
      job.source.labels, job.source.__getitem__,
      names=[f'u/{i}.png' for i in range(len(job.source))],
    )
  )  # fmt: skip
  path = tmp_path / 'labels.csv'
  label_files.write(path, job, found)
  rows = list(csv.DictReader(path.open()))
  assert [row['name'] for row in rows[:90]] == [
    f'u/{i}.png' for i in found.rows
  ]
  assert rows[0]['share'] == f'{found.votes.share[0]:.4f}'
  assert rows[0]['nearest_1'] == f'u/{found.votes.neighbours[0, 0]}.png'
  summary = json.loads(path.with_suffix('.json').read_text())
  assert summary['images'] == 90 and summary['images_of_shared_names'] == 0
  cfg = tiny.make_config().labels
  cfg.file = str(path)
  data = sources.Dataset(
    sources.Relabelled(job.source, np.full(120, -1)), None, 3,
    tuple(job.class_names), (8, 8, 3), '',
  )  # fmt: skip
  again = labels_lib.known(cfg, data)
  np.testing.assert_array_equal(
    again.labels, np.maximum(job.labels, job.calibration)
  )


def test_what_to_label_next_is_doubtful_and_has_no_label(job, found):
  chosen = next_to_label.choose(job, found, 2)
  doubtful = [row for row in found.rows if job.calibration[row] < 0][:20]
  assert len(set(chosen)) == 2 and set(chosen) <= set(doubtful)
  np.testing.assert_array_equal(chosen, next_to_label.choose(job, found, 2))
  everything = next_to_label.choose(job, found, 30)
  assert len(set(everything)) == 30
  assert (job.calibration[everything] < 0).all()


def test_the_centre_of_a_cluster_lies_where_doubt_is(job, found, monkeypatch):
  line = lambda job, rows: np.arange(len(rows), dtype=np.float32)[:, None]
  monkeypatch.setattr(labelling, 'embeddings', line)
  share = np.ones_like(found.votes.share)
  doubtful = [i for i, row in enumerate(found.rows) if job.calibration[row] < 0]
  share[doubtful[2]] = 0.0
  sure = found._replace(votes=found.votes._replace(share=share))
  chosen = next_to_label.choose(job, sure, 1)  # of ten: without weights at 4.5
  assert chosen.tolist() == [found.rows[doubtful[2]]]


def test_images_that_are_all_alike_are_chosen_once_each(
  job, found, monkeypatch
):
  alike = lambda job, rows: np.ones((len(rows), 4), np.float32)
  monkeypatch.setattr(labelling, 'embeddings', alike)
  assert len(set(next_to_label.choose(job, found, 2))) == 2


def test_some_of_many_labelled_images_may_vote(run, job):
  few = labelling.of_run(_network(run), most=9)
  assert len(few.voters.rows) == 9 < len(job.voters.rows) == 30
  np.testing.assert_array_equal(few.voters.labels, run.labels[few.voters.rows])
  np.testing.assert_array_equal(few.queue.rows, job.queue.rows)


def test_an_empty_queue_and_a_run_without_labels(run):
  with pytest.raises(UserError, match='queue of the run has no labelled'):
    labelling.of_run(_network(run, filled=False))
  nobody = run._replace(labels=np.full(120, -1, np.int32))
  with pytest.raises(UserError, match='no labelled image'):
    labelling.of_run(run_network.Network(nobody, None, 0))


def test_no_label_kept_back_reaches_training(monkeypatch):
  """Others in their place change nothing of what a training is made of."""
  settings = {
    'labels__per_class': 0,
    'labels__fraction': 1.0,
    'labels__calibration': 10,
  }
  first = tiny.prepare(**settings)
  kept = np.flatnonzero(first.calibration >= 0)
  poisoned = first.data.train.labels.copy()
  poisoned[kept] = np.roll(poisoned[kept], 1)
  assert (poisoned != first.data.train.labels).any()
  load = run_lib.datasets.load
  monkeypatch.setattr(
    run_lib.datasets, 'load',
    lambda cfg: load(cfg)._replace(
      train=sources.Relabelled(load(cfg).train, poisoned)
    ),
  )  # fmt: skip
  second = tiny.prepare(**settings)
  np.testing.assert_array_equal(second.calibration[kept], poisoned[kept])
  assert (first.labels[kept] == -1).all()
  np.testing.assert_array_equal(first.labels, second.labels)
  for ours, theirs in zip(first.facts[:-1], second.facts[:-1], strict=True):
    np.testing.assert_array_equal(ours, theirs)
  batches = [run_lib.input_batches(run, 0) for run in (first, second)]
  seen = 0
  for (ours, _), (theirs, _) in zip(*batches, strict=True):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert not np.isin(ours.ids[ours.labels >= 0], kept).any()
    seen += np.isin(ours.ids, kept).sum()
  assert seen  # they come along, without a label


def test_the_queue_of_a_method_is_that_of_its_memory(run):
  assert isinstance(
    run.setup.method.queue(_network(run).state.memory), label_queue.LabelQueue
  )


@pytest.mark.parametrize(
  'method, network, chosen_by',
  [
    ('mean_shift', 'target', 'queue'),
    ('byol', 'online', 'encoder'),
    ('supervised', 'online', 'encoder'),
  ],
)
def test_other_methods(method, network, chosen_by):
  run = tiny.prepare(method, evaluation__network=network)
  state = tiny.first_state(run, 1)
  if chosen_by == 'queue':
    ids = np.resize(np.flatnonzero(run.labels >= 0), (1, 16))
    queue = state.memory.labelled._replace(
      labels=run.labels[ids], ids=ids.astype(np.int32),
      count=np.full(1, 16, np.int32),
    )  # fmt: skip
    state = state._replace(memory=state.memory._replace(labelled=queue))
  state = parallel.put_sharded(state, run.devices)
  found = labelling.label(labelling.of_run(run_network.Network(run, state, 0)))
  assert len(found.rows) == 28
  assert found.summary['chosen_by'] == chosen_by
  assert np.isfinite(found.votes.share).all()
