"""Checkpoints whose prototypes are their classifier: Suave's and Daino's."""

import json

import jax
import numpy as np
import pytest

import semppl_jax
from experiments import eval_classifier, eval_linear
from semppl_jax import checkpoint as checkpoint_lib
from semppl_jax import methods
from semppl_jax.errors import CheckpointError
from semppl_jax.evaluation import features as features_lib
from semppl_jax.evaluation import measures
from semppl_jax.models import heads
from semppl_jax.tools import convert
from semppl_jax.train import state as state_lib
from semppl_jax.train import teacher as teacher_lib
from semppl_jax.weights import files as files_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import run_data, run_settings
from tests.helpers import tiny

# Of all colours, so that they are not all of one class.
_IMAGES = np.random.RandomState(0).randint(0, 256, (40, 1, 1, 3), np.uint8)
_IMAGES = np.tile(_IMAGES, (1, 8, 8, 1))


@pytest.fixture(scope='module', params=['suave', 'daino'])
def saved(request, tmp_path_factory):
  """(folder, run, state): a run's checkpoint, its networks differ."""
  return _save(request.param, tmp_path_factory.mktemp(request.param) / 'run')


def _save(method, folder):
  run = tiny.prepare(method)
  random = np.random.RandomState(3)
  move = lambda x: x + random.normal(0, 0.3, x.shape).astype(x.dtype)
  state = tiny.portable(run)
  fields = {'online_params': jax.tree.map(move, dict(state.online_params))}
  if method == 'daino':
    fields['target_params'] = jax.tree.map(move, dict(state.target_params))
  state = state._replace(**fields)
  saver = checkpoint_lib.Checkpointer(str(folder), keep=1)
  saver.save(3, state, {'elapsed_seconds': 0})
  saver.close()
  (folder / 'config.json').write_text(json.dumps(run.cfg.to_dict()))
  (folder / 'data.json').write_text(json.dumps(run_data.describe(run)))
  return folder, run, state


def _scores(saved, network, images):
  """[N, C] scores / tau of the classes, by the run's own networks."""
  _, run, state = saved
  trees = (getattr(state, f'{network}_{x}') for x in ('params', 'state'))
  forward = getattr(run.setup.nets, network)
  outputs, _ = forward(*trees, images.astype(np.float32) / 255, False)
  of_classes = outputs['scores'][:, : tiny.NUM_CLASSES]
  return np.asarray(of_classes) / run.cfg.loss.temperature


def _network(saved):
  return saved[1].cfg.evaluation.network


def test_a_model_predicts_by_its_prototypes(saved, capsys):
  model = semppl_jax.load_pretrained(saved[0])
  assert 'prototypes yes, classifier prototypes' in repr(model)
  assert 'classifier prototypes' in capsys.readouterr().err
  assert model.classifier == 'prototypes'
  # Three classes of twelve prototypes.
  assert model.num_classes == tiny.NUM_CLASSES == 3
  wanted = _scores(saved, _network(saved), _IMAGES)
  np.testing.assert_allclose(model.logits(_IMAGES), wanted, atol=1e-5)
  labels = wanted.argmax(axis=1)
  assert len(set(labels)) > 1
  np.testing.assert_array_equal(model.predict(_IMAGES), labels)
  names = saved[1].data.class_names
  assert model.predict_names(_IMAGES) == [names[i] for i in labels]


def test_of_a_daino_either_network(tmp_path):
  saved = _save('daino', tmp_path / 'run')
  found = {}
  for network in ('online', 'target'):
    model = semppl_jax.load_pretrained(saved[0], network=network)
    found[network] = model.logits(_IMAGES)
    wanted = _scores(saved, network, _IMAGES)
    np.testing.assert_allclose(found[network], wanted, atol=1e-5)
  usual = semppl_jax.load_pretrained(saved[0]).logits(_IMAGES)
  np.testing.assert_array_equal(usual, found['target'])
  assert np.abs(found['online'] - found['target']).max() > 0.1


def _evaluate(experiment, folder, workdir, **changes):
  """On the data of the run in `folder`."""
  cfg = experiment.get_config('run')
  cfg.checkpoint, cfg.progress, cfg.num_devices = str(folder), False, 1
  cfg = run_settings.complete(cfg)
  cfg.update(changes)
  return semppl_jax.evaluate(cfg, str(workdir))


def test_eval_classifier_says_what_the_run_says(saved, tmp_path):
  folder, run, state = saved
  on_devices = state_lib.from_host(state, run.setup.method, run.devices)
  test = run.data.test
  found = features_lib.features(
    on_devices, run.setup.method, run.setup.nets, run.cfg, test, run.devices
  )
  wanted = measures.accuracy(found.votes, test.labels)
  results = _evaluate(eval_classifier, folder, tmp_path)
  assert results['top1'] == pytest.approx(wanted)
  assert results['classifier'] == 'prototypes'
  assert results['network'] == _network(saved)
  # The classifier that trained along may be right as often.
  images = np.stack([test[i]['image'] for i in range(len(test))])
  log_p = jax.nn.log_softmax(_scores(saved, _network(saved), images))
  loss = -np.mean([row[label] for row, label in zip(log_p, test.labels)])
  assert results['loss'] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize('ending', ['safetensors', 'pkl'])
def test_a_file_remembers_it(saved, ending, tmp_path):
  path = tmp_path / f'file.{ending}'
  convert.convert(str(saved[0]), str(path))
  model = semppl_jax.load_pretrained(path)
  before = semppl_jax.load_pretrained(saved[0])
  assert model.classifier == 'prototypes'
  assert load_lib.settings(model.checkpoint) == load_lib.settings(
    before.checkpoint
  )
  np.testing.assert_array_equal(model.logits(_IMAGES), before.logits(_IMAGES))
  assert model.class_names == before.class_names != ()


def test_what_is_trained_on_such_a_checkpoint_is_linear(tmp_path):
  saved = _save('suave', tmp_path / 'run')
  results = _evaluate(eval_linear, saved[0], tmp_path / 'on', num_epochs=1.0)
  assert 'classifier prototypes' in results['checkpoint']
  model = semppl_jax.load_pretrained(tmp_path / 'on')
  assert model.classifier == 'linear' and model.num_classes == 3
  assert 'classifier yes' in repr(model)
  own = {'checkpoint': str(tmp_path / 'on')}
  found = _evaluate(eval_classifier, saved[0], tmp_path / 'own', **own)
  assert found['classifier'] == 'linear'
  assert found['loss'] == pytest.approx(results['loss'], rel=1e-5)


def test_a_teacher_teaches_by_its_prototypes(tmp_path):
  saved = _save('suave', tmp_path / 'run')
  student = tiny.prepare('distill', teacher__checkpoint=str(saved[0]))
  teacher = teacher_lib.load(student, None)
  held = teacher.checkpoint
  images = _IMAGES.astype(np.float32) / 255
  np.testing.assert_allclose(
    teacher.apply(held.params, held.state, images),
    _scores(saved, 'online', _IMAGES),
    atol=1e-5,
  )


def test_prototypes_that_are_no_classes_are_no_classifier(tmp_path):
  folder, _, _ = _save('swav', tmp_path / 'run')
  model = semppl_jax.load_pretrained(folder)
  assert model.classifier == 'linear' and 'classifier yes' in repr(model)
  assert model.num_classes == tiny.NUM_CLASSES


@pytest.mark.parametrize('name', methods.METHODS)
def test_the_methods_that_predict_by_prototypes_are_known(name):
  """`weights` is below `methods`, and has their names."""
  method = tiny.prepare(name).setup.method
  by_prototypes = method.predict is not None and isinstance(
    method.heads, heads.PrototypeHead
  )
  assert by_prototypes == (name in files_lib.BY_PROTOTYPES)


def test_unnamed_classes_are_all_prototypes(tmp_path):
  folder, _, _ = _save('suave', tmp_path / 'run')
  (folder / 'data.json').unlink()
  assert load_lib.load_checkpoint(folder).num_classes == 12


@pytest.mark.parametrize('tau', [0, -0.1, True, '0.1', float('nan')])
def test_a_temperature_that_cannot_be(tau, tmp_path):
  folder, run, _ = _save('suave', tmp_path / 'run')
  settings = run.cfg.to_dict()
  settings['loss']['temperature'] = tau
  (folder / 'config.json').write_text(json.dumps(settings))
  with pytest.raises(CheckpointError, match='temperature is no number above 0'):
    load_lib.load_checkpoint(folder)


def test_prototypes_that_are_not_there(tmp_path):
  found = load_lib.load_checkpoint(_save('suave', tmp_path / 'run')[0])
  path = tmp_path / 'file.safetensors'
  for root in ('prototypes', 'projector'):
    params, state = (
      {m: x for m, x in tree.items() if m.split('/')[0] != root}
      for tree in (found.params, found.state)
    )
    cut = found._replace(params=params, state=state)
    load_lib.save_safetensors(path, cut)
    with pytest.raises(CheckpointError, match=f'classifier, but has no {root}'):
      load_lib.load_checkpoint(path)
  params = {m: x for m, x in found.params.items() if m != 'classifier'}
  many = found._replace(params=params, class_names=tuple('abcdefghijklm'))
  load_lib.save_safetensors(path, many)
  with pytest.raises(CheckpointError, match='13 classes, but has 12 prototyp'):
    load_lib.load_checkpoint(path)
