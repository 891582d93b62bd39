"""Runs that began under an older version go on, are read and evaluated.

golden_data/runs_format3.tar.gz has two runs of the version before objectives
had files: 5 steps of `tiny.make_config`, stopped after step 3, and beside each
what it would have come to. `supervised` was SemPPL with all its terms off.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

import semppl_jax
from semppl_jax import checkpoint, config, pretraining
from semppl_jax.checkpoint import upgrade as leaf_names
from semppl_jax.config import eval_config
from semppl_jax.config.upgrade import renamed, upgrade
from semppl_jax.errors import UserError
from semppl_jax.evaluation import run_network
from semppl_jax.report import page
from semppl_jax.utils import diff
from semppl_jax.workdir import config_file, lock, metrics
from tests.helpers import golden, tiny

_ARCHIVE = golden.FOLDER / 'runs_format3.tar.gz'


def _config(name):
  cfg = tiny.make_config(name, num_devices=1, keep_checkpoints=9)
  cfg.dataset.validation = 0
  if name == 'supervised':
    cfg.views.num_small = 1  # as SemPPL's, of no use
  return cfg


@pytest.fixture
def runs(tmp_path):
  with tarfile.open(_ARCHIVE) as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path


@pytest.mark.parametrize(
  'name',
  ['semppl', pytest.param('supervised', marks=pytest.mark.long)],
)
def test_a_run_goes_on_to_what_it_would_have_come_to(name, runs):
  expected = json.loads((runs / f'{name}.json').read_text())
  workdir = runs / name
  found = pretraining.pretrain(_config(name), str(workdir))
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  # The supervised loss had a name of its own.
  key = 'loss' if name == 'semppl' else 'loss_classifier'
  for row, wanted in zip(rows[3:], expected['metrics'][3:]):
    np.testing.assert_allclose(row['loss'], wanted[key], rtol=1e-5)
  # Rows of before have today's names, too.
  for row, wanted in zip(rows[:3], expected['metrics']):
    assert row['loss/classifier'] == wanted['loss_classifier']
    assert not set(row) & set(metrics.RENAMED)
  scores = {k: x for k, x in expected['results'].items() if 'top1' in k}
  for key, score in scores.items():
    if score is not None:
      # Small views moved the supervised run's running averages, too.
      near = 1e-3 if name == 'semppl' else 0.03
      assert found[key] == pytest.approx(score, abs=near), key
  # It is a run of today's now.
  assert config_file.read(workdir)['method'] == name
  document = checkpoint.folder.read_document(workdir / 'checkpoints/5')
  assert document['format'] == checkpoint.folder.FORMAT == 4


@pytest.mark.parametrize('name', ['semppl', 'supervised'])
def test_a_run_is_read_reported_and_converted(name, runs, tmp_path):
  model = semppl_jax.load_pretrained(runs / name)
  assert model.checkpoint.step == 3 and model.image_size == 8
  assert model.predict(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2,)
  written = page.write([str(runs / name)], str(tmp_path / 'page.html'))
  text = pathlib.Path(written).read_text()
  assert 'settings of another version' not in text
  assert 'Labelled neighbour' in text
  run = run_network.prepare(config_file.read(runs / name))
  assert run_network.restore(run, runs / name).step == 3


def test_its_folder_is_refused_to_another_method(runs):
  cfg = tiny.make_config('byol', num_devices=1)
  with pytest.raises(UserError, match="of method 'semppl', not of 'byol'"):
    lock.check(str(runs / 'semppl'), cfg.to_dict())


def test_settings_are_todays(runs):
  for name in ('semppl', 'supervised'):
    before = json.loads((runs / name / 'config.json').read_text())
    after = upgrade(before)
    ours = json.loads(json.dumps(_config(name).to_dict()))
    ours, found = dict(diff.flat(ours)), dict(diff.flat(after))
    differing = {key for key in ours if ours[key] != found.get(key, '-')}
    assert differing <= set(config.COSMETIC)
    assert set(found) == set(ours)
    assert upgrade(after) == after
    assert 'method' not in before  # it is a copy


def test_excluding_the_same_label_is_a_way_of_cancelling(runs):
  before = json.loads((runs / 'semppl/config.json').read_text())
  assert before['loss']['exclude_same_label'] is False
  assert upgrade(before)['negatives']['cancel'] == 'none'
  before['loss'].update(exclude_same_label=True, exclude_after_epochs=3.0)
  for method in ({}, {'method': 'semppl'}):
    after = upgrade(before | method)
    assert after['negatives']['cancel'] == 'label'
    assert after['negatives']['cancel_after_epochs'] == 3.0
    assert 'exclude_same_label' not in after['loss']
  after = upgrade({'task': 'pretrain', 'method': 'simclr', 'loss': {}})
  usual = config.default('simclr').negatives.to_dict()
  assert after['negatives'] == usual and after['loss'] == {}


def test_a_config_of_before_says_the_same():
  cfg = tiny.make_config(num_devices=1)
  cfg.loss.update(exclude_same_label=True, exclude_after_epochs=1.0)
  cfg.lock()
  config.validate(cfg, 1)
  new = renamed(cfg)
  assert new.negatives.cancel == 'label'
  assert new.negatives.cancel_after_epochs == 1.0
  assert 'exclude_same_label' not in new.loss
  assert 'exclude_same_label' in cfg.loss and new.is_locked
  assert renamed(new) is new
  # Left open, as experiments/folder.py does.
  cfg = tiny.make_config()
  cfg.loss.exclude_after_epochs = None
  assert config.open_keys(renamed(cfg)) == ['negatives.cancel_after_epochs']
  # What it cannot be is refused in a line; of another method, too.
  cfg.loss.exclude_same_label = 3
  with pytest.raises(UserError, match='negatives.cancel is 3; it must be a te'):
    config.validate(renamed(cfg), 1)
  byol = tiny.make_config('byol')
  byol.loss = {'exclude_same_label': True}
  with pytest.raises(UserError, match='is called negatives.cancel now'):
    config.validate(byol, 1)


@pytest.mark.parametrize(
  'changes',
  [
    {'loss.contrastive_weight': 0.3},
    {'loss.invariance_weight': 1.0},
    {'loss.semantic_invariance_weight': 1.0},
    {'classifier.weight': 2.0},
    {'classifier.detached': True},
  ],
)
def test_what_trained_more_than_a_classifier_was_semppl(changes, runs):
  before = json.loads((runs / 'supervised/config.json').read_text())
  for key, value in changes.items():
    section, name = key.split('.')
    before[section][name] = value
  after = upgrade(before)
  assert after['method'] == 'semppl' and 'queue' in after


_ODD = {'task': 'pretrain', 'method': 'semppl', 'queue': 3, 'loss': None}
_ODD |= {'init': '', 'init_modules': 'all'}


@pytest.mark.parametrize(
  'odd',
  [None, [], 'x', {'task': 'linear', 'a': 1}, _ODD | {'minutes': 1}],
)
def test_what_is_no_training_is_left_alone(odd):
  assert upgrade(odd) == odd


def test_an_evaluation_gets_what_came_later():
  before = {'task': 'knn', 'checkpoint': 'x', 'optimizer': {'name': 'lars'}}
  after = upgrade(before | {'weights': {'digest': '0'}})
  assert after['classifier'] == {
    'on': 'encoder', 'init': 'truncated_normal', 'freeze_projector': False
  }  # fmt: skip
  assert after['optimizer']['name'] == 'lars'  # what it says holds
  assert after['optimizer']['scaling'] == 'linear'
  assert after['weights'] == {
    'digest': '0', 'classifier_on': 'encoder', 'network': 'online',
    'prototype_temperature': None,
  }  # fmt: skip
  assert 'weights' not in upgrade(before) and 'classifier' not in before
  # All of it is today's defaults.
  usual = json.loads(json.dumps(eval_config.default().to_dict()))
  usual = dict(diff.flat(usual))
  sections = {name: {} for name in ('optimizer', 'evaluation', 'knn')}
  for key, value in diff.flat(upgrade({'checkpoint': 'x'} | sections)):
    assert usual.get(key) == value or key == 'checkpoint'


def test_a_mean_shift_of_before_had_no_head():
  usual = config.default('mean_shift').to_dict()
  before = {key: x for key, x in usual.items() if key != 'head'}
  before['loss'] = {'same_label': True, 'pseudo_labels': 'vote'}
  after = upgrade(before)
  assert after['head'] == usual['head'] and 'head' not in before
  assert after['loss'] == before['loss'] | {'min_confidence': 0.85}
  assert upgrade(after) == after


def test_sections_that_are_none_are_left_alone():
  odd = {'task': 'pretrain', 'projector': 'x'}
  odd['encoder'] = {'projector_hidden': 4}
  after = upgrade(odd)
  # Nothing is renamed; what came later is added.
  assert after['projector'] == 'x'
  assert after['encoder'] == {'projector_hidden': 4, 'zero_init_residual': True}


def test_leaves_are_named_both_ways():
  new, old = 'state.memory.ids', 'state.queue.ids'
  assert leaf_names.name(old, 3) == new and leaf_names.stored(new, 3) == old
  assert leaf_names.name(old, 4) == old and leaf_names.stored(new, 4) == new
  heads = ["state.online_params['projector/linear']['w']", new]
  kept = "state.online_params['encoder']['w']"
  assert leaf_names.surplus([*heads, kept], [kept], 3) == set(heads)
  assert not leaf_names.surplus([*heads, kept], [kept], 4)
  with_target = [kept, "state.target_params['encoder']['w']"]
  assert not leaf_names.surplus([*heads, kept], with_target, 3)
