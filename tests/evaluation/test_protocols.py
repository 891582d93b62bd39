"""Every task of evaluation, end to end on the smallest setting."""

import json
import os
import signal

import numpy as np
import pytest

from semppl_jax import checkpoint, errors, preflight
from semppl_jax.config import eval_config
from semppl_jax.data import pipeline
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation import protocols
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.train import stop as stop_lib
from semppl_jax.weights import haiku_trees, release_pickle
from semppl_jax.weights import load as load_lib
from tests.helpers import golden, tiny

TINY = golden.path('release_checkpoint_tiny.pkl')
CLASSES = 3


def make_config(task, **changes):
  """40 training and 10 test images of noise, 8 x 8."""
  cfg = eval_config.default()
  cfg.task = task
  cfg.checkpoint = TINY
  cfg.progress = False
  cfg.log_every_steps = 1
  cfg.batch_size, cfg.num_epochs, cfg.num_devices = 8, 1.0, 1
  cfg.dataset.update(name='synthetic', num_examples=40, image_size=8)
  cfg.dataset.num_classes = CLASSES
  cfg.crops.update(size=8, center=1.0)
  cfg.grid.update(learning_rates=(0.1,), encoder_learning_rates=(0.01,))
  cfg.evaluation.batch_size = 16
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A checkpoint whose network compiles in half the time of the release's."""
  folder = tmp_path_factory.mktemp('small')
  return tiny.write_checkpoint(folder / 'small.safetensors', CLASSES)


def read(path):
  return json.loads(path.read_text())


def lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def same_losses(one, other, **tolerance):
  loss = lambda workdir: [row['loss'] for row in lines(workdir)]
  np.testing.assert_allclose(loss(one), loss(other), **tolerance)


@pytest.mark.parametrize('task', protocols.TASKS)
def test_a_task_writes_its_results(task, tmp_path, capsys):
  cfg = make_config(task)
  if task == 'classifier':
    cfg.dataset.num_classes = 10  # as many as the checkpoint's classifier has
  results = protocols.run_task(cfg, str(tmp_path))
  assert results == read(tmp_path / 'results.json')
  assert 0 <= results['top1'] <= results['top5'] <= 1
  assert results['num_labels'] == 40 and results['num_test'] == 10
  assert results['checkpoint_step'] == 1000
  assert 'tiny 1x, step 1,000' in results['checkpoint']
  assert 'tiny 1x, step 1,000' in capsys.readouterr().err
  classes = read(tmp_path / 'per_class.json')
  assert len(classes) == cfg.dataset.num_classes
  right = sum(c['accuracy'] * c['images'] for c in classes.values())
  assert right == pytest.approx(10 * results['top1'])
  assert (results['loss'] is None) == (task == 'knn')
  # Done is done: nothing is computed again, whatever watches it.
  cfg.log_every_steps = 7
  assert protocols.run_task(cfg, str(tmp_path)) == results
  cfg.seed = 1
  with pytest.raises(errors.UserError, match='seed is 0 there and 1 here'):
    protocols.run_task(cfg, str(tmp_path))


def test_cached_features_train_the_same_classifier(small, tmp_path):
  online = make_config(
    'linear', crops__augment=False, num_epochs=2.0, checkpoint=small
  )
  cached = make_config(
    'linear',
    crops__augment=False,
    num_epochs=2.0,
    checkpoint=small,
    features='cached',
  )
  found = [
    protocols.run_task(cfg, str(tmp_path / name))
    for cfg, name in ((online, 'online'), (cached, 'cached'))
  ]
  assert found[0]['top1'] == found[1]['top1']
  assert found[0]['loss'] == pytest.approx(found[1]['loss'], rel=1e-5)
  assert len(lines(tmp_path / 'online')) == found[0]['steps'] == 10
  same_losses(tmp_path / 'online', tmp_path / 'cached', rtol=1e-5)


def test_the_number_of_devices_changes_nothing(small, tmp_path):
  for number in (1, 4):
    cfg = make_config('semi_supervised', checkpoint=small, num_devices=number)
    protocols.run_task(cfg, str(tmp_path / str(number)))
  same_losses(tmp_path / '1', tmp_path / '4', rtol=1e-4)


def test_only_labelled_images_are_used(tmp_path, monkeypatch):
  """All that reaches the device has a label of the subset."""
  seen = []
  whole = pipeline.batches

  def batches(*args, **kwargs):
    for batch, truth in whole(*args, **kwargs):
      seen.append(batch)
      yield batch, truth

  monkeypatch.setattr(pipeline, 'batches', batches)
  cfg = make_config('linear', labels__per_class=2, num_epochs=4.0)
  run = setup_lib.prepare(cfg)
  results = protocols.run_task(cfg, str(tmp_path))
  assert results['num_labels'] == 2 * CLASSES
  ids = np.concatenate([batch.ids for batch in seen])
  labels = np.concatenate([batch.labels for batch in seen])
  assert set(ids) == set(np.flatnonzero(run.labels >= 0))
  np.testing.assert_array_equal(labels, run.labels[ids])


def test_an_interrupted_evaluation_goes_on_exactly(
  small, tmp_path, monkeypatch
):
  whole = tmp_path / 'whole'
  protocols.run_task(
    make_config('semi_supervised', checkpoint=small), str(whole)
  )
  parts = tmp_path / 'parts'
  original = pipeline.batches

  def batches(*args, **kwargs):
    for i, item in enumerate(original(*args, **kwargs)):
      if i == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      yield item

  monkeypatch.setattr(pipeline, 'batches', batches)
  with pytest.raises(stop_lib.Interrupted) as stopped:
    protocols.run_task(
      make_config('semi_supervised', checkpoint=small), str(parts)
    )
  assert stopped.value.code == 128 + signal.SIGTERM
  # The third batch is drawn while the second one waits on the devices.
  assert len(lines(parts)) == 2 and not (parts / 'results.json').exists()
  monkeypatch.setattr(pipeline, 'batches', original)
  protocols.run_task(
    make_config('semi_supervised', checkpoint=small), str(parts)
  )
  same_losses(whole, parts, rtol=0)
  one, other = map(load_lib.load_checkpoint, (whole, parts))
  assert load_lib.digest(one) == load_lib.digest(other)
  assert one.kind == 'run' and one.step == 5
  assert str(one).startswith('one_block 1x, small stem, step 5')


def test_the_grid_chooses_by_held_out_images(small, tmp_path, monkeypatch):
  """The best pair is taken; its training has not seen the held-out part."""
  cfg = make_config('semi_supervised', checkpoint=small)
  cfg.grid.update(learning_rates=(0.1, 0.2), encoder_learning_rates=(0.0, 0.01))
  scores = {
    '0.1_0.0': 0.5, '0.1_0.01': 0.75, '0.2_0.0': 0.75, '0.2_0.01': 0.25
  }  # fmt: skip
  for name, top1 in scores.items():  # as if they were done before
    folder = tmp_path / 'grid' / name
    folder.mkdir(parents=True)
    if name != '0.2_0.0':
      result = {'top1': top1, 'top5': 1.0, 'loss': 1.5}
      (folder / 'results.json').write_text(json.dumps(result))
  seen = []
  original = classifier_lib.fit

  def fit(run, hparams, source, labels, workdir):
    seen.append((hparams.learning_rate, labels.copy()))
    return original(run, hparams, source, labels, workdir)

  monkeypatch.setattr(classifier_lib, 'fit', fit)
  results = protocols.run_task(cfg, str(tmp_path))
  assert [rate for rate, _ in seen][0] == 0.2 and len(seen) == 2
  part, whole = (labels for _, labels in seen)
  assert np.sum(part >= 0) == 32 and np.sum(whole >= 0) == 40
  found = read(tmp_path / 'grid' / '0.2_0.0' / 'results.json')
  best = max(
    [('0.1_0.01', 0.75, -1.5), ('0.2_0.0', found['top1'], -found['loss'])],
    key=lambda x: x[1:],
  )[0]
  rates = f'{results["learning_rate"]}_{results["encoder_learning_rate"]}'
  assert rates == best


def test_pairs_that_diverge_lose(small, tmp_path):
  """Found in the search, again on resume; all of them: one clear line."""
  cfg = make_config('semi_supervised', checkpoint=small)
  cfg.grid.update(learning_rates=(1e30, 0.1), encoder_learning_rates=(0.01,))
  results = protocols.run_task(cfg, str(tmp_path / 'some'))
  assert results['learning_rate'] == 0.1
  done = read(tmp_path / 'some' / 'grid' / '1e+30_0.01' / 'results.json')
  assert done['loss'] is None
  (tmp_path / 'some' / 'results.json').unlink()
  again = protocols.run_task(cfg, str(tmp_path / 'some'))
  assert again['learning_rate'] == 0.1
  cfg.grid.learning_rates = (1e30, 2e30)
  with pytest.raises(errors.UserError, match='not finite with any pair'):
    protocols.run_task(cfg, str(tmp_path / 'all'))


def test_the_last_good_checkpoint_is_kept(small, tmp_path):
  cfg = make_config(
    'semi_supervised', checkpoint=small, checkpoint_every_steps=1
  )
  cfg.grid.update(learning_rates=(1e8,), encoder_learning_rates=(1e8,))
  with pytest.raises(errors.UserError, match='last good checkpoint is that of'):
    protocols.run_task(cfg, str(tmp_path))
  assert checkpoint.steps(str(tmp_path))


def test_a_grid_needs_images_to_hold_out(tmp_path):
  cfg = make_config('semi_supervised', labels__per_class=1, grid__holdout=0.9)
  cfg.grid.learning_rates = (0.1, 0.2)
  with pytest.raises(errors.UserError, match='grid.holdout 0.9 of 3 labelled'):
    protocols.run_task(cfg, str(tmp_path))


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'grid__holdout': 0.0}, 'grid.holdout is 0.0'),
    ({'grid__holdout': 1.0}, 'grid.holdout is 1.0'),
    ({'grid__learning_rates': (-0.1,)}, 'must be numbers >= 0'),
    ({'grid__learning_rates': ('a',)}, 'must be like (0.03, 0.1, 0.3)'),
    ({'grid__learning_rates': (float('nan'),)}, 'must be like (0.03,'),
    ({'grid__learning_rates': (0.1, 0.1)}, 'the same value twice'),
    ({'grid__learning_rates': ()}, 'is empty: set both'),
    ({'crops__area': (0.5,)}, 'crops.area is'),
    ({'crops__aspect': (1.0, float('inf'))}, 'crops.aspect is'),
    ({'checkpoint': '~nobody_of_this_name/x'}, 'There is no checkpoint'),
    ({'checkpoint': 'x' * 300}, 'There is no checkpoint'),
    ({'checkpoint': ''}, 'checkpoint is empty'),
    ({'checkpoint': 'nowhere.pkl'}, "no checkpoint 'nowhere.pkl'"),
    ({'checkpoint': 'resnet_50_1x_1_pct'}, 'download https://storage'),
    ({'encoder__name': 'resnet50'}, "is a tiny 1x, but encoder.name is"),
    ({'encoder__width': 2}, 'is a tiny 1x, but encoder.width is 2'),
    ({'task': 'classifier'}, 'has 10 classes'),
    ({'task': 'lineer'}, "did you mean 'linear'"),
    ({'features': 'cached'}, 'crops.augment=False'),
    ({'task': 'semi_supervised', 'features': 'cached'}, 'features=online'),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'num_devices': 99}, 'num_devices is 99, but there are'),
    ({'num_devices': 3}, 'not a multiple of the 3 devices'),
    ({'crops__area': (0.5, 0.1)}, 'crops.area is'),
    ({'crops__aspect': (0.0, 1.0)}, 'crops.aspect is'),
    ({'crops__center': 0.0}, 'crops.center is'),
    ({'knn__of': 'logits'}, "knn.of is 'logits'"),
    ({'dataset__name': 'digit'}, "did you mean 'digits'"),
  ],
)  # fmt: skip
def test_what_cannot_work_is_refused_first(changes, words, tmp_path):
  cfg = make_config('linear')
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  with pytest.raises(errors.UserError) as error:
    protocols.run_task(cfg, str(tmp_path / 'work'))
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'work').exists()


def test_data_without_a_test_split_or_labels(tmp_path):
  images = np.zeros((4, 8, 8, 3), np.uint8)
  path = tmp_path / 'data.npz'
  arrays = {'train_images': images, 'train_labels': np.arange(4) % 2}
  np.savez(path, **arrays)
  cfg = make_config('knn', dataset__name='arrays', dataset__path=str(path))
  with pytest.raises(errors.UserError, match='no test image'):
    protocols.run_task(cfg, str(tmp_path / 'work'))
  unlabelled = {'train_images': images, 'train_labels': np.full(4, -1)}
  tests = {'test_images': images, 'test_labels': np.arange(4) % 2}
  np.savez(path, **unlabelled, **tests)
  with pytest.raises(errors.UserError, match='no labelled training image'):
    protocols.run_task(cfg, str(tmp_path / 'work'))


def test_knn_needs_the_head_that_it_compares(tmp_path):
  for of in ('projection', 'prediction'):
    cfg = make_config('knn', knn__of=of)
    assert protocols.run_task(cfg, str(tmp_path / of))['top1'] >= 0
  found = load_lib.load_checkpoint(TINY)
  bare = found._replace(
    params={m: x for m, x in found.params.items() if '~' in m},
    state={m: x for m, x in found.state.items() if 'tiny' in m},
  )
  path = tmp_path / 'bare.safetensors'
  load_lib.save_safetensors(path, bare)
  cfg = make_config('knn', knn__of='prediction', checkpoint=str(path))
  with pytest.raises(errors.CheckpointError, match='has no predictor'):
    protocols.run_task(cfg, str(tmp_path / 'none'))
  cfg = make_config('classifier', checkpoint=str(path))
  with pytest.raises(errors.CheckpointError, match='has no classifier'):
    protocols.run_task(cfg, str(tmp_path / 'none'))


# -- The target network --


@pytest.fixture(scope='module')
def both(small, tmp_path_factory):
  """A pickle whose target network is unlike its online one, `small`."""
  found = load_lib.load_checkpoint(small)
  path = tmp_path_factory.mktemp('both') / 'both.pkl'
  load_lib.save_release(path, found)
  content = release_pickle.read(path)
  held = content['experiment_state']
  for kind in ('params', 'state'):
    held[f'target_{kind}'] = {
      module: {
        name: leaf[..., ::-1] if name == 'w' else leaf
        for name, leaf in leaves.items()
      }
      for module, leaves in held[f'online_{kind}'].items()
      if haiku_trees.root(module) not in ('predictor', 'classifier')
    }
  release_pickle.write(path, content)
  return str(path)


@pytest.mark.parametrize('task', ['linear', 'semi_supervised', 'knn'])
def test_a_task_of_the_target_network(task, both, tmp_path):
  """As of a file that holds it alone; `online` is the default."""
  file = tmp_path / 'target.safetensors'
  target = load_lib.load_checkpoint(both, network='target')
  load_lib.save_safetensors(file, target._replace(target=None))
  seen = {}
  for name, checkpoint_, network in (
    ('usual', both, ''),
    ('online', both, 'online'),
    ('target', both, 'target'),
    ('file', str(file), ''),
  ):
    cfg = make_config(task, checkpoint=checkpoint_, knn__k=5)
    cfg.evaluation.network = network
    seen[name] = protocols.run_task(cfg, str(tmp_path / name))
  assert [found['network'] for found in seen.values()] == [
    'online', 'online', 'target', 'target',
  ]  # fmt: skip
  score = lambda name: (
    seen[name]['loss'],
    read(tmp_path / name / 'per_class.json'),
  )
  assert score('usual') == score('online')
  assert score('file') == score('target') != score('online')
  assert 'of the target network' in seen['target']['checkpoint']


def test_a_network_that_is_not_there_is_one_line(both, small, tmp_path):
  file = tmp_path / 'target.safetensors'
  target = load_lib.load_checkpoint(both, network='target')
  load_lib.save_safetensors(file, target)
  for task, checkpoint_, network, words in (
    (
      'knn',
      small,
      'target',
      "holds the online .*'target': set it to online",
    ),
    ('knn', str(file), 'online', "holds the target .*'online': set it to targ"),
    ('knn', small, 'targt', "evaluation.network is 'targt'.*'target'"),
    ('classifier', both, 'target', 'network=online has it'),
  ):
    cfg = make_config(task, checkpoint=checkpoint_)
    cfg.evaluation.network = network
    with pytest.raises(errors.UserError, match=words) as error:
      protocols.run_task(cfg, str(tmp_path / 'work'))
    assert '\n' not in str(error.value)
  assert not (tmp_path / 'work').exists()
  cfg = make_config('knn', checkpoint=both, knn__of='prediction')
  cfg.evaluation.network = 'target'
  for run in (protocols.run_task, preflight.check_run):
    with pytest.raises(errors.CheckpointError, match='has no predictor'):
      run(cfg, str(tmp_path / 'work'))
  cfg.knn.of = 'projection'
  assert protocols.run_task(cfg, str(tmp_path / 'work'))['top1'] >= 0


def test_an_evaluation_of_before_goes_on(small, tmp_path):
  """Its config.json lacks the settings that came with the target network."""
  cfg = make_config('knn', checkpoint=small)
  results = protocols.run_task(cfg, str(tmp_path))
  settings = read(tmp_path / 'config.json')
  del settings['evaluation']['network'], settings['weights']['network']
  del settings['weights']['prototype_temperature']
  for name in ('vote', 'temperature', 'more_k'):
    del settings['knn'][name]
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  assert protocols.run_task(cfg, str(tmp_path)) == results


# -- Votes --


def test_votes_of_several_numbers_of_neighbours(small, tmp_path):
  changes = {'checkpoint': small, 'knn__vote': 'weighted'}
  cfg = make_config('knn', knn__k=20, knn__more_k=(1, 40), **changes)
  found = protocols.run_task(cfg, str(tmp_path / 'all'))
  assert found['k'] == 20 and found['vote'] == 'weighted'
  for k in (1, 40):
    cfg = make_config('knn', knn__k=k, **changes)
    alone = protocols.run_task(cfg, str(tmp_path / str(k)))
    assert found[f'k{k}_top1'] == alone['top1']
    assert found[f'k{k}_top5'] == alone['top5']
    assert 'k1_top1' not in alone


def test_all_labelled_images_vote_softly(small, tmp_path):
  changes = {'checkpoint': small, 'knn__temperature': 0.1}
  cfg = make_config('knn', knn__vote='snn', knn__k=1, **changes)
  found = protocols.run_task(cfg, str(tmp_path / 'soft'))
  assert (found['k'], found['vote'], found['loss']) == (40, 'snn', None)
  # The same order as the weighted votes of all.
  cfg = make_config('knn', knn__vote='weighted', knn__k=40, **changes)
  votes = protocols.run_task(cfg, str(tmp_path / 'votes'))
  for name in ('top1', 'top5'):
    assert found[name] == votes[name]


def test_a_votes_temperature_counts(small, tmp_path):
  seen = set()
  for temperature in (1e-3, 100.0):
    cfg = make_config('knn', checkpoint=small, knn__k=40)
    cfg.knn.update(vote='weighted', temperature=temperature)
    name = tmp_path / str(temperature)
    protocols.run_task(cfg, str(name))
    seen.add((name / 'per_class.json').read_text())
  assert len(seen) == 2


def test_more_neighbours_than_labelled_images(small, tmp_path):
  for changes, words in (
    ({'knn__k': 41, 'knn__vote': 'weighted'}, 'knn.k is 41, but there are 40 '),
    ({'knn__k': 41, 'knn__more_k': (5,)}, 'knn.k is 41, but there are 40 '),
    ({'knn__more_k': (5, 41)}, 'knn.more_k is .5, 41., but there are 40 '),
  ):
    cfg = make_config('knn', checkpoint=small, **changes)
    for run in (protocols.run_task, preflight.check_run):
      with pytest.raises(errors.UserError, match=words) as error:
        run(cfg, str(tmp_path / 'work'))
      assert '\n' not in str(error.value)
  assert not (tmp_path / 'work').exists()
  # One majority: all vote, as they always did.
  cfg = make_config('knn', checkpoint=small, knn__k=41)
  assert protocols.run_task(cfg, str(tmp_path / 'all'))['k'] == 40
