"""Quality while training: RankMe, leave-one-out kNN, and whose labels count."""

import jax
import numpy as np
import pytest

from semppl_jax.data import sources
from semppl_jax.errors import UserError
from semppl_jax.evaluation import features, final_scores, knn, quality
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from tests.helpers import tiny


def _rankme_in_numpy(x):
  """The formula, in float64."""
  s = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
  p = s / np.sum(s) + 1e-7
  return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize('shape', [(50, 16), (7, 16), (1, 4)])
def test_rankme_is_the_formula(shape):
  random = np.random.RandomState(0)
  x = random.randn(*shape).astype(np.float32)
  x *= 0.5 ** np.arange(shape[1], dtype=np.float32)  # far from round
  assert quality.rankme(x) == pytest.approx(_rankme_in_numpy(x), rel=1e-4)


def test_rankme_by_hand():
  # All directions alike; scale changes nothing.
  assert quality.rankme(3 * np.eye(5, dtype='f4')) == pytest.approx(5, rel=1e-4)
  # Not centred: a collapse is one direction, as is no spread at all.
  assert quality.rankme(np.ones((30, 8), 'f4')) == pytest.approx(1, abs=1e-3)
  # Shares 3/4 and 1/4: exp(3/4 log 4/3 + 1/4 log 4).
  x = np.diag([3.0, 1.0]).astype('f4')
  assert quality.rankme(x) == pytest.approx(4 / 3**0.75, rel=1e-4)


@pytest.mark.parametrize(
  'x', [np.zeros((0, 4)), np.zeros((3, 4)), np.array([[1.0, np.nan]])]
)
def test_rankme_of_nothing_is_no_number(x):
  assert np.isnan(quality.rankme(x.astype(np.float32)))


def test_what_is_measured_is_not_what_is_hidden():
  """Neither hidden labels, nor test images and their labels, matter."""
  run = tiny.prepare()
  state = run_lib.initial_state(run)
  found = _measured(run, state)
  assert set(found) == {'rankme', 'leave_one_out_knn_top1'}
  assert 1 < found['rankme'] <= 16
  hidden = np.where(run.labels < 0, 0, run.labels)
  train = sources.Relabelled(run.data.train, hidden)
  other = run._replace(data=run.data._replace(train=train, test=None))
  assert _measured(other, state) == found
  alike = np.where(run.labels >= 0, 0, -1)
  shown = _measured(run._replace(labels=alike), state)
  assert shown == found | {'leave_one_out_knn_top1': 1.0}
  assert found['leave_one_out_knn_top1'] < 1


def test_validation_images_take_the_part_of_the_test():
  """What the end of training says of the same state."""
  run = tiny.prepare(dataset__validation=9, evaluation__probes=False)
  state = run_lib.initial_state(run)
  found = _measured(run, state)
  assert set(found) == {'rankme', 'validation_knn_top1'}
  embed = lambda source: features.features(
    state, run.setup.method, run.setup.nets, run.cfg, source, run.devices
  )
  train, test = embed(run.data.train), embed(run.data.test)
  scores = final_scores.scores(
    train,
    test,
    labels=run.labels,
    truth=run.data.train.labels,
    test_truth=run.data.test.labels,
    cfg=run.cfg,
  )
  assert found['validation_knn_top1'] == scores['knn_top1']
  assert found['rankme'] == pytest.approx(quality.rankme(train.embeddings))


def test_is_the_same_on_any_number_of_devices():
  run = tiny.prepare(evaluation__batch_size=15, evaluation__k=3)
  whole = tiny.portable(run)
  found = []
  for number in (1, 2, 4):
    devices = jax.devices()[:number]
    state = state_lib.from_host(whole, run.setup.method, devices)
    found.append(_measured(run._replace(devices=devices), state))
  for other in found[1:]:
    top1 = 'leave_one_out_knn_top1'
    assert other[top1] == found[0][top1]
    assert other['rankme'] == pytest.approx(found[0]['rankme'], rel=1e-5)


def test_is_of_the_network_that_is_evaluated():
  run = tiny.prepare(evaluation__network='target')
  state = run_lib.initial_state(run)
  flat = jax.tree.map(lambda x: 0 * x, state.online_params)
  alone = state._replace(online_params=flat)
  assert _measured(run, alone) == _measured(run, state)
  online = _measured(tiny.prepare(), alone)
  assert online['rankme'] is None  # all embeddings are zeros


def test_rankme_is_of_a_fixed_sample():
  run = tiny.prepare(evaluation__rank_images=6)
  state = run_lib.initial_state(run)
  found = _measured(run, state)
  assert found == _measured(run, state)
  assert 1 < found['rankme'] < 6.001  # of six images
  whole = _measured(tiny.prepare(), state)
  assert whole['rankme'] != found['rankme']
  top1 = 'leave_one_out_knn_top1'  # all labelled images, whatever the sample is
  assert whole[top1] == found[top1]


def test_images_that_cannot_be_decoded_do_not_count(monkeypatch):
  run = tiny.prepare()
  state = run_lib.initial_state(run)
  bad = int(np.flatnonzero(run.labels >= 0)[0])
  rest = np.delete(np.arange(40), bad)
  smaller = run._replace(
    data=run.data._replace(train=sources.Rows(run.data.train, rest)),
    labels=run.labels[rest],
  )
  wanted = _measured(smaller, state)
  original = features.over_images

  def over_images(*arguments, **options):
    outputs, readable = original(*arguments, **options)
    outputs[0][bad], readable[bad] = np.nan, False
    return outputs, readable

  monkeypatch.setattr(features, 'over_images', over_images)
  assert _measured(run, state) == pytest.approx(wanted, rel=1e-5)


def test_without_labels_there_is_rankme_alone():
  one_each = tiny.prepare(labels__per_class=1)
  state = run_lib.initial_state(one_each)
  nobody = one_each._replace(labels=np.full(40, -1, np.int32))
  for run in (one_each, nobody):
    assert set(_measured(run, state)) == {'rankme'}
    quality.check(run)
  keep = {'evaluation__keep_best': True, 'evaluation__every_epochs': 1.0}
  few = tiny.prepare(labels__per_class=1, **keep)
  with pytest.raises(UserError, match='too few labels for kNN') as error:
    quality.check(few)
  assert '\n' not in str(error.value)
  quality.check(tiny.prepare(labels__per_class=2, **keep))
  quality.check(
    tiny.prepare(labels__per_class=1, dataset__validation=9, **keep)
  )


def test_too_little_memory_names_the_settings(monkeypatch):
  def over_images(*unused, **options):
    raise jax.errors.JaxRuntimeError(f'{said}: 9 bytes too many')

  monkeypatch.setattr(features, 'over_images', over_images)
  measure = quality.Quality(tiny.prepare())
  said = 'RESOURCE_EXHAUSTED'
  with pytest.raises(UserError, match='evaluation.batch_size is 16') as error:
    measure(run_lib.initial_state(tiny.prepare()))
  assert '\n' not in str(error.value)
  said = 'INTERNAL'
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    measure(run_lib.initial_state(tiny.prepare()))


def test_many_labelled_images_are_not_all_asked(monkeypatch):
  monkeypatch.setattr(quality, '_ASKED', 5)
  asked, original = [], knn.leave_one_out

  def leave_one_out(embeddings, labels, k, rows):
    asked.append((len(embeddings), len(rows)))
    return original(embeddings, labels, k, rows)

  monkeypatch.setattr(knn, 'leave_one_out', leave_one_out)
  run = tiny.prepare()
  _measured(run, run_lib.initial_state(run))
  assert asked == [(12, 5)]


def _measured(run, state):
  found = quality.Quality(run)(state)
  assert found.pop('quality_seconds') > 0
  return found
