"""A run knows which data it was begun with."""

import json

import pytest

from semppl_jax import pretraining
from semppl_jax.errors import UserError
from semppl_jax.workdir import metrics, run_data
from tests.helpers import tiny


@pytest.fixture
def run():
  return tiny.prepare()


def with_more_images(run):
  more = run.data._replace(
    fingerprint='another', train=list(range(len(run.data.train) + 2))
  )
  return run._replace(data=more)


def test_what_it_says(run, tmp_path):
  run_data.check(str(tmp_path), run, finished=False)
  said = json.loads((tmp_path / 'data.json').read_text())
  assert said['num_classes'] == tiny.NUM_CLASSES
  assert said['class_names'] == ['0', '1', '2']
  assert (said['images'], said['labels']) == (40, 12)
  run_data.check(str(tmp_path), run, finished=False)  # the same ones


def test_other_images_are_refused_in_the_middle(run, tmp_path):
  run_data.check(str(tmp_path), run, finished=False)
  before = (tmp_path / 'data.json').read_text()
  with pytest.raises(UserError, match=r'\(40 training images then, 42 now\)'):
    run_data.check(str(tmp_path), with_more_images(run), finished=False)
  assert (tmp_path / 'data.json').read_text() == before


def test_a_finished_run_tells_that_its_folder_has_changed(
  run, tmp_path, monkeypatch, capsys
):
  run_data.check(str(tmp_path), run, finished=False)
  metrics.write_json(str(tmp_path / pretraining.RESULTS), {'step': 5})
  changed = with_more_images(run)
  monkeypatch.setattr(pretraining.run_lib, 'prepare', lambda cfg: changed)
  monkeypatch.setattr(pretraining.plausibility, 'tell', lambda run: None)
  cfg = tiny.make_config(num_devices=1)
  assert pretraining.pretrain(cfg, str(tmp_path)) == {'step': 5}
  told = capsys.readouterr().err
  assert 'has changed since this run (40 training images then, 42 now)' in told
  assert 'this run is finished, at step 5' in told


@pytest.mark.parametrize('text', ['[]', '{}', 'null'])
def test_a_run_of_before_goes_on(text, run, tmp_path):
  (tmp_path / 'data.json').write_text(text)
  run_data.check(str(tmp_path), run, finished=False)
  assert json.loads((tmp_path / 'data.json').read_text())['images'] == 40


def test_a_run_that_does_not_say_which_labels_it_had(run, tmp_path):
  run_data.check(str(tmp_path), run, finished=False)
  said = json.loads((tmp_path / 'data.json').read_text())
  del said['labels_fingerprint']
  metrics.write_json(tmp_path / 'data.json', said)
  with pytest.raises(UserError, match=r'40 training images then, 42 now'):
    run_data.check(str(tmp_path), with_more_images(run), finished=False)
  run_data.check(str(tmp_path), run, finished=False)
  assert json.loads((tmp_path / 'data.json').read_text()) == said


def test_labels_are_told_apart(run):
  which = lambda run: run_data.describe(run)['labels_fingerprint']
  other = run._replace(labels=run.labels[::-1].copy())
  named = run._replace(data=run.data._replace(class_names=('a', 'b', 'c')))
  kept = run._replace(calibration=run.labels)
  assert which(run) == which(run._replace(labels=run.labels.copy()))
  assert len({which(r) for r in (run, other, named, kept)}) == 4
