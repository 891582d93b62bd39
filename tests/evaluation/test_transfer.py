"""Transfer end to end, on small data sets with the real names and features."""

import json
import os
import signal

import numpy as np
import pytest

from experiments import eval_transfer
from semppl_jax import errors
from semppl_jax.config import eval_config
from semppl_jax.data import pipeline, transfer_sets
from semppl_jax.data.transfer_sets import SETS
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation import logistic, measures, transfer
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.train import stop as stop_lib
from semppl_jax.weights import load as load_lib
from tests.helpers import golden, tiny, transfer_data
from tests.helpers.transfer_data import CLASSES, PER_CLASS, TEST_PER_CLASS

TINY = golden.path('release_checkpoint_tiny.pkl')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('data')
  transfer_data.write(path)
  return path


def make_config(path, *sets, **changes):
  cfg = eval_config.default()
  cfg.task = 'transfer'
  cfg.checkpoint = TINY
  cfg.update(progress=False, log_every_steps=1, batch_size=8, num_devices=1)
  cfg.dataset.update(path=str(path), image_size=64)
  cfg.crops.update(size=16, center=1.0)
  cfg.evaluation.batch_size = 16
  cfg.grid.update(learning_rates=(0.1,), encoder_learning_rates=(0.01,))
  cfg.transfer.update(num_l2=4, l2=(1e-3, 1e4), steps=3)
  if sets:
    cfg.transfer.sets = sets
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


def read(path):
  return json.loads(path.read_text())


def test_all_sets_linear(data_dir, tmp_path, capsys):
  """And the number of devices changes nothing."""
  results = transfer.run(make_config(data_dir), str(tmp_path / '1'))
  assert list(results) == [*SETS, 'mean', 'network']
  assert results == read(tmp_path / '1' / 'results.json')
  scores = [results[name] for name in SETS]
  assert results['mean'] == pytest.approx(np.mean(scores))
  # Colours tell the classes: 1/3 is chance.
  assert min(scores) > 0.5 and np.mean(scores) > 0.8
  rows = read(tmp_path / '1' / 'table.json')
  assert [row['data set'] for row in rows] == list(SETS)
  for row, name in zip(rows, SETS):
    one = read(tmp_path / '1' / 'sets' / f'{name}.json')
    assert one['score'] == results[name]
    assert row['measure'] == one['measure'] == SETS[name].measure
    assert row['score'] == pytest.approx(100 * results[name])
    assert row['chosen'] == f'L2 {one["l2"]:.3g}'
    assert one['l2'] in np.geomspace(1e4, 1e-3, 4)
    assert row['test images'] == CLASSES * TEST_PER_CLASS
    assert one['unreadable_images'] == 0
    if name not in transfer_data.OWN:
      train = row['train images'] + row['validation images']
      assert train == CLASSES * PER_CLASS
  table = (tmp_path / '1' / 'table.md').read_text()
  assert table.count('\n| ') == 12
  told = capsys.readouterr().err
  assert 'the middle 100.0% at 16 px' in told
  assert 'pets: 24 images to train on, of which 12 choose settings' in told
  some = ('cifar10', 'aircraft', 'pets')
  again = transfer.run(
    make_config(data_dir, *some, num_devices=4), str(tmp_path / '4')
  )
  assert [again[name] for name in some] == [results[name] for name in some]
  for name in some:
    one, other = (read(tmp_path / n / 'sets' / f'{name}.json') for n in '14')
    assert one | {'seconds': 0} == other | {'seconds': 0}


def test_the_experiment_is_byols_protocol():
  linear, tuning = (
    eval_transfer.get_config(v) for v in ('linear', 'fine_tune')
  )
  assert eval_transfer.get_config().to_dict() == linear.to_dict()
  assert linear.transfer.mode == 'linear' and linear.crops.center == 1
  assert linear.transfer.l2 == (1e-6, 1e5) and linear.transfer.num_l2 == 45
  assert tuning.transfer.mode == 'fine_tune' and tuning.crops.center == 0.875
  assert tuning.batch_size == 256 and tuning.transfer.steps == 20_000
  assert tuning.optimizer.momentum == 0.9 and tuning.optimizer.nesterov
  assert tuning.crops.augment and tuning.crops.size == linear.crops.size == 224
  with pytest.raises(ValueError, match="'tune'; known: linear, fine_tune"):
    eval_transfer.get_config('tune')


def embed(cfg, name):
  """The features of a set, with no help of the package's own."""
  run = setup_lib.prepare_without_data(cfg)
  params, state = (
    setup_lib.replicated(run, x)
    for x in (run.checkpoint.params, run.checkpoint.state)
  )
  opened = transfer_sets.load(name, cfg.dataset)
  train, test = (
    setup_lib.embed(run, source, params, state)[0]
    for source in (opened.data.train, opened.data.test)
  )
  return opened, train, test


@pytest.mark.parametrize('name', ['dtd', 'pets'])
def test_validation_images_choose_and_are_trained_on_in_the_end(
  name, data_dir, tmp_path, monkeypatch
):
  asked = []
  original = logistic.regression

  def regression(*args, **kwargs):
    asked.append((args, kwargs))
    return original(*args, **kwargs)

  monkeypatch.setattr(logistic, 'regression', regression)
  cfg = make_config(data_dir, name)
  transfer.run(cfg, str(tmp_path))
  ((features, labels, held_out, queries), settings), *rest = asked
  assert not rest
  (data, validation), train, test = embed(cfg, name)
  np.testing.assert_allclose(features, train, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(queries, test, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(labels, data.train.labels)
  np.testing.assert_array_equal(np.flatnonzero(held_out), validation)
  assert settings['strengths'] == pytest.approx(np.geomspace(1e4, 1e-3, 4))
  assert settings['max_iterations'] == 1000
  assert settings['measure'] is {
    'dtd': measures.top1, 'pets': measures.mean_per_class
  }[name]  # fmt: skip


def test_the_score_is_the_measures(data_dir, tmp_path, monkeypatch):
  """Predictions that are right for one class alone."""
  for name in ('food101', 'pets'):
    transfer_data.write(tmp_path, [name])
  real = transfer_sets.load

  def unbalanced(name, cfg):
    """Six test images: four of class 0, one of each other."""
    data, validation = real(name, cfg)
    order = np.argsort(data.test.labels, kind='stable')[[0, 1, 2, 3, 4, 8]]
    test = transfer_sets.sources.Rows(data.test, order)
    return transfer_sets.TransferSet(data._replace(test=test), validation)

  def always_0(features, labels, held_out, queries, **unused_kwargs):
    del features, labels, held_out
    predicted = np.zeros(len(queries), int)
    return logistic.Chosen(1.0, np.array([0.1, 0.3, 0.2]), predicted, 0)

  monkeypatch.setattr(transfer_sets, 'load', unbalanced)
  monkeypatch.setattr(logistic, 'regression', always_0)
  cfg = make_config(tmp_path, 'food101', 'pets')
  results = transfer.run(cfg, str(tmp_path / 'work'))
  assert results['food101'] == pytest.approx(4 / 6)
  assert results['pets'] == pytest.approx(1 / 3)
  assert results['mean'] == pytest.approx((4 / 6 + 1 / 3) / 2)
  assert read(tmp_path / 'work/sets/pets.json')['top1'] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
  'scores, unfinished, words',
  [
    ((0.1, 0.2, 0.3, 0.4), 0, 'the weakest penalty, 0.001, is the best'),
    ((0.5, 0.2, 0.3, 0.5), 0, 'the strongest penalty, 10000, is the best'),
    ((0.1, 0.5, 0.3, 0.4), 2, '2 of 5 fits stopped before they converged'),
    ((0.1, 0.5, 0.5, 0.4), 0, ''),
  ],
)
def test_warnings(
  scores, unfinished, words, data_dir, tmp_path, monkeypatch, capsys
):
  def regression(features, labels, held_out, queries, *, strengths, **unused):
    del features, labels, held_out, unused
    l2 = strengths[np.argmax(scores)]
    predicted = np.zeros(len(queries), int)
    return logistic.Chosen(l2, np.array(scores), predicted, unfinished)

  monkeypatch.setattr(logistic, 'regression', regression)
  transfer.run(make_config(data_dir, 'cifar10'), str(tmp_path))
  told = capsys.readouterr().err
  assert words in told
  for phrase in ('is the best', 'fits stopped'):
    assert (phrase in told) == (phrase in words)


def test_one_penalty_is_no_border(data_dir, tmp_path, capsys):
  cfg = make_config(data_dir, 'cifar10', transfer__num_l2=1)
  transfer.run(cfg, str(tmp_path))
  assert 'is the best' not in capsys.readouterr().err
  assert read(tmp_path / 'sets' / 'cifar10.json')['l2'] == 1e4


def test_a_run_that_was_killed_between_sets_goes_on(
  data_dir, tmp_path, monkeypatch
):
  cfg = make_config(data_dir, 'cifar10', 'dtd', 'birdsnap')
  whole = transfer.run(cfg, str(tmp_path / 'whole'))
  calls = []
  original = logistic.regression

  def regression(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return original(*args, **kwargs)

  monkeypatch.setattr(logistic, 'regression', regression)
  with pytest.raises(KeyboardInterrupt):
    transfer.run(cfg, str(tmp_path / 'parts'))
  sets = tmp_path / 'parts' / 'sets'
  assert [path.name for path in sets.iterdir()] == ['cifar10.json']
  before = (sets / 'cifar10.json').read_text()
  loaded = []  # what is done needs its data no more
  load = transfer_sets.load

  def recorded(name, cfg):
    loaded.append(name)
    return load(name, cfg)

  monkeypatch.setattr(transfer_sets, 'load', recorded)
  assert transfer.run(cfg, str(tmp_path / 'parts')) == whole
  assert loaded == ['dtd', 'birdsnap'] and len(calls) == 4
  assert (sets / 'cifar10.json').read_text() == before
  assert transfer.run(cfg, str(tmp_path / 'parts')) == whole
  assert len(calls) == 4
  other = make_config(data_dir, 'cifar10', 'dtd', 'birdsnap', seed=1)
  with pytest.raises(errors.UserError, match='seed is 0 there and 1 here'):
    transfer.run(other, str(tmp_path / 'parts'))


def test_missing_sets(tmp_path):
  transfer_data.write(tmp_path, ['cifar10'])
  sets = ('dtd', 'cifar10', 'aircraft')
  cfg = make_config(tmp_path, *sets)
  with pytest.raises(errors.UserError) as error:
    transfer.run(cfg, str(tmp_path / 'work'))
  text = str(error.value)
  assert text.startswith('2 of 3 data sets not found: dtd, aircraft. ')
  assert f'tfds build dtd --data_dir={tmp_path}' in text and '\n' not in text
  assert 'transfer.missing=skip' in text
  assert not (tmp_path / 'work').exists()
  cfg.transfer.missing = 'skip'
  results = transfer.run(cfg, str(tmp_path / 'work'))
  assert results['mean'] == results['cifar10']
  assert results['left_out'] == 'dtd, aircraft'
  table = (tmp_path / 'work' / 'table.md').read_text()
  assert 'Left out: There is no data set dtd in' in table
  assert 'Left out: There is no' in table and 'aircraft/' not in results
  # One that has come meanwhile is taken up.
  transfer_data.write(tmp_path, ['dtd'])
  assert transfer.run(cfg, str(tmp_path / 'work'))['left_out'] == 'aircraft'
  cfg.transfer.sets = ('aircraft',)
  with pytest.raises(errors.UserError, match='1 of 1 data sets not found'):
    transfer.run(cfg, str(tmp_path / 'none'))


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'sets': ('cifar10', 'flower')}, "'flower'; known: food101, .*'flowers'"),
    ({'sets': ()}, 'must be one data set or more'),
    ({'sets': ('dtd', 'dtd')}, 'each once'),
    ({'l2': (1.0, 0.1)}, 'transfer.l2 is'),
    ({'l2': (0.0, 0.1)}, 'transfer.l2 is'),
    ({'l2': (1.0,)}, 'transfer.l2 is'),
    ({'l2': (1.0, float('inf'))}, 'transfer.l2 is'),
    ({'num_l2': 0}, 'transfer.num_l2 is 0'),
    ({'max_iterations': 0}, 'transfer.max_iterations is 0'),
    ({'steps': 0}, 'transfer.steps is 0'),
    ({'mode': 'finetune'}, "did you mean 'fine_tune'"),
  ],
)
def test_what_cannot_work_is_refused_first(changes, words, tmp_path):
  cfg = make_config(tmp_path)
  cfg.transfer.update(changes)
  with pytest.raises(errors.UserError, match=words) as error:
    transfer.run(cfg, str(tmp_path / 'work'))
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'work').exists()


def test_labelled_subsets_are_not_for_transfer(tmp_path):
  cfg = make_config(tmp_path, labels__per_class=2)
  with pytest.raises(errors.UserError, match='transfer takes all'):
    transfer.run(cfg, str(tmp_path / 'work'))


@pytest.fixture
def damaged(tmp_path):
  """Birdsnap with an image each of training and test that are none."""
  transfer_data.write(tmp_path, ['birdsnap'])
  for split in ('train', 'test'):
    file = tmp_path / 'birdsnap' / split / 'class_1' / '1.jpg'
    file.write_bytes(b'no image')
  return tmp_path


def test_unreadable_images_are_left_out_and_counted(
  damaged, tmp_path, monkeypatch
):
  seen = []
  original = logistic.regression

  def regression(features, labels, held_out, queries, **kwargs):
    seen.append(len(features) == len(labels) == len(held_out))
    seen.append(len(labels))
    return original(features, labels, held_out, queries, **kwargs)

  monkeypatch.setattr(logistic, 'regression', regression)
  transfer.run(make_config(damaged, 'birdsnap'), str(tmp_path / 'work'))
  assert seen == [True, CLASSES * PER_CLASS - 1]
  one = read(tmp_path / 'work' / 'sets' / 'birdsnap.json')
  assert one['unreadable_images'] == 2
  assert one['test_images'] == CLASSES * TEST_PER_CLASS - 1
  note = 'birdsnap: 2 images cannot be decoded'
  assert note in (tmp_path / 'work' / 'table.md').read_text()
  cfg = make_config(damaged, 'birdsnap', dataset__on_corrupt='error')
  with pytest.raises(errors.UserError, match=r'train\[8\] class_1/1.jpg'):
    transfer.run(cfg, str(tmp_path / 'strict'))


def test_no_readable_test_image(damaged, tmp_path):
  for file in damaged.glob('birdsnap/test/*/*.jpg'):
    file.write_bytes(b'no image')
  with pytest.raises(errors.UserError, match='no test image can be decoded'):
    transfer.run(make_config(damaged, 'birdsnap'), str(tmp_path / 'work'))


@pytest.fixture
def trainings(monkeypatch):
  """What each training saw: (folder, rate, labels, ids of its batches)."""
  seen = []
  fit, batches = classifier_lib.fit, pipeline.batches

  def spied_fit(run, hparams, source, labels, workdir):
    seen.append((workdir, hparams, labels.copy(), []))
    return fit(run, hparams, source, labels, workdir)

  def spied_batches(*args, **kwargs):
    for batch, truth in batches(*args, **kwargs):
      seen[-1][-1].append(batch.ids)
      yield batch, truth

  monkeypatch.setattr(classifier_lib, 'fit', spied_fit)
  monkeypatch.setattr(pipeline, 'batches', spied_batches)
  return seen


def tuned(path, *sets, **changes):
  changes = {'crops__center': 0.875, 'transfer__steps': 8} | changes
  cfg = make_config(path, *sets, transfer__mode='fine_tune', **changes)
  cfg.grid.update(learning_rates=(0.0, 0.1))
  return cfg


@pytest.mark.parametrize(
  'num_devices', [pytest.param(1, marks=pytest.mark.long), 4]
)
def test_fine_tuning(data_dir, tmp_path, trainings, monkeypatch, num_devices):
  """Rates are chosen without the validation images; then all are used."""
  decays = []
  network = load_lib.Checkpoint.network

  def spied(self):
    decays.append(self.bn_decay)
    return network(self)

  monkeypatch.setattr(load_lib.Checkpoint, 'network', spied)
  small = tiny.write_checkpoint(tmp_path / 'small.safetensors', 0, 16)
  cfg = tuned(data_dir, 'pets', num_devices=num_devices, checkpoint=small)
  results = transfer.run(cfg, str(tmp_path / 'run'))
  tmp_path = tmp_path / 'run'
  assert results == read(tmp_path / 'results.json')
  _, validation = transfer_sets.load('pets', tuned(data_dir).dataset)
  assert len(trainings) == 3
  for folder, hparams, labels, ids in trainings:
    assert hparams.total_steps == len(ids) == 8 and hparams.warmup_steps == 0
    assert hparams.encoder_learning_rate == 0.01
    rows = np.flatnonzero(labels >= 0)
    assert set(np.concatenate(ids)) == set(rows)
    if folder == str(tmp_path / 'pets'):
      assert len(rows) == CLASSES * PER_CLASS
    else:
      assert set(rows) == set(range(CLASSES * PER_CLASS)) - set(validation)
  assert trainings[-1][0] == str(tmp_path / 'pets')
  one = read(tmp_path / 'sets' / 'pets.json')
  pairs = [
    read(tmp_path / 'pets' / 'grid' / f'{rate}_0.01' / 'results.json')
    for rate in (0.0, 0.1)
  ]
  best = max((0, 1), key=lambda i: (pairs[i]['score'], -pairs[i]['loss']))
  assert one['learning_rate'] == trainings[-1][1].learning_rate
  assert one['learning_rate'] == (0.0, 0.1)[best]
  assert one['validation_score'] == pairs[best]['score']
  row = read(tmp_path / 'table.json')[0]
  rate = one['learning_rate']
  assert row['chosen'] == f'learning rates {rate:g}, encoder 0.01'
  # Of the checkpoint; and for epochs of 3 steps, the least there is.
  assert decays == [0.9, 0.9]


@pytest.mark.long
def test_fine_tuning_goes_on_exactly(damaged, tmp_path, trainings):
  """Stopped in the last training: the search is not made again."""
  cfg = tuned(damaged, 'birdsnap', transfer__steps=4)
  whole = transfer.run(cfg, str(tmp_path / 'whole'))
  del trainings[:]
  spied = pipeline.batches

  def stopped(*args, **kwargs):
    for i, item in enumerate(spied(*args, **kwargs)):
      if len(trainings) == 3 and i == 1:
        os.kill(os.getpid(), signal.SIGTERM)
      yield item

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline, 'batches', stopped)
    with pytest.raises(stop_lib.Interrupted):
      transfer.run(cfg, str(tmp_path / 'parts'))
  assert not list((tmp_path / 'parts' / 'sets').glob('*.json'))
  del trainings[:]
  assert transfer.run(cfg, str(tmp_path / 'parts')) == whole
  assert [folder for folder, *_ in trainings] == [
    str(tmp_path / 'parts' / 'birdsnap')
  ]
  assert len(trainings[0][-1]) == 2
  losses = [
    [json.loads(line)['loss'] for line in file.read_text().splitlines()]
    for file in (
      tmp_path / n / 'birdsnap/metrics.jsonl' for n in ('whole', 'parts')
    )
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 4
  # More than an epoch: the unreadable image of training was met, too.
  one, other = (
    read(tmp_path / n / 'sets/birdsnap.json') for n in ('whole', 'parts')
  )
  assert one | {'seconds': 0} == other | {'seconds': 0}
  assert one['unreadable_images'] == 2
  assert one['test_images'] == CLASSES * TEST_PER_CLASS - 1


def test_the_decay_of_batch_norm_grows_with_the_epoch(
  data_dir, tmp_path, monkeypatch
):
  """BYOL's max(1 - 10 / steps of an epoch, 0.9): 200 images, one at a time."""
  decays = []
  load, network = transfer_sets.load, load_lib.Checkpoint.network

  def many(name, cfg):
    data, validation = load(name, cfg)
    train = transfer_sets.sources.Rows(data.train, np.arange(200) % 24)
    return transfer_sets.TransferSet(data._replace(train=train), validation)

  def spied(self):
    decays.append(self.bn_decay)
    if len(decays) == 2:
      raise KeyboardInterrupt  # what comes after is other tests' concern
    return network(self)

  monkeypatch.setattr(transfer_sets, 'load', many)
  monkeypatch.setattr(load_lib.Checkpoint, 'network', spied)
  with pytest.raises(KeyboardInterrupt):
    transfer.run(tuned(data_dir, 'cars', batch_size=1), str(tmp_path))
  assert decays == [0.9, pytest.approx(0.95)]
