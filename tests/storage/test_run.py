"""Runs whose work directory is in a bucket, beside the same on a disk."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from semppl_jax import checkpoint, errors, pretraining, storage
from semppl_jax.evaluation import follow
from semppl_jax.report import page
from semppl_jax.storage import objects
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics, plots
from tests.evaluation import test_protocols
from tests.helpers import bucket as bucket_lib
from tests.helpers import proxy as proxy_lib
from tests.helpers import tiny
from tests.resilience import kills_check

_SECRET = 'hunter2hunter2'


def make_config(**changes):
  return tiny.make_config(num_devices=1, **changes)


def run(place, **changes):
  return pretraining.pretrain(make_config(**changes), str(place))


@pytest.fixture(autouse=True, scope='module')
def _light():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'train_step', tiny.light_step)
    tiny.remember_steps(patch)
    yield


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """An unbroken run on the disk."""
  place = tmp_path_factory.mktemp('runs') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, 'plots', lambda *_, **__: None)
    run(place)
  return place


def light_end(run, state, workdir, past):
  """In place of the evaluation."""
  results = {'step': int(state.step[0]), 'seconds': past.seconds}
  metrics.write_json(os.path.join(workdir, 'results.json'), results)
  return results


@pytest.fixture
def light(monkeypatch, tmp_path):
  """A run on the disk; it and those of this test are not evaluated."""
  monkeypatch.setattr(pretraining, 'finish', light_end)
  run(tmp_path / 'run')
  return tmp_path / 'run'


@pytest.fixture(scope='module')
def done(s3_server):
  """One in a bucket."""
  with bucket_lib.told(s3_server):
    place = storage.path(bucket_lib.make('s3')) / 'deep/run'
    run(place)
    yield place


def test_it_leaves_what_a_run_on_a_disk_leaves(done, alone):
  kills_check.assert_same(done, alone)
  there = {name.partition('/')[0] for name in objects.tree(done)}
  assert there == {
    'checkpoints', 'config.json', 'data.json', 'metrics.jsonl.parts', 'plots',
    'results.json',
  }  # fmt: skip
  assert objects.names(done / 'plots') == [
    'losses.png', 'pseudo_labels.png', 'tsne.png',
  ]  # fmt: skip
  assert (done / 'plots/tsne.png').read_bytes()[:4] == b'\x89PNG'
  assert not (done.parent / '.lock').exists()


def test_a_finished_one_is_not_touched(done, capsys):
  before = objects.tree(done)
  assert run(done) == json.loads((done / 'results.json').read_text())
  assert objects.tree(done) == before
  with pytest.raises(errors.UserError, match='other settings: seed is 0 there'):
    run(done, seed=1)


def test_what_reads_runs_reads_it_there(done, alone, tmp_path):
  here, there = (load_lib.load_checkpoint(str(p)) for p in (alone, done))
  assert load_lib.digest(here) == load_lib.digest(there)
  assert str(load_lib.load_checkpoint(str(done), step=3)) != str(there)
  file = done.parent / 'x.safetensors'
  load_lib.save_safetensors(file, there)
  assert load_lib.digest(load_lib.load_checkpoint(str(file))) == (
    load_lib.digest(there)
  )
  with pytest.raises(errors.CheckpointError, match='has no checkpoint of step'):
    load_lib.load_checkpoint(str(done), step=4)
  with pytest.raises(errors.CheckpointError, match='There is no checkpoint'):
    load_lib.load_checkpoint(str(done.parent / 'none'))
  written = page.write([str(done)])
  assert written == done / 'report.html'
  assert 'Curves' in written.read_text()
  written.unlink()


def test_a_worker_follows_it(done):
  cfg = test_protocols.make_config('knn', checkpoint=str(done))
  cfg.dataset.num_classes = tiny.NUM_CLASSES
  worker = done.parent / 'worker'
  results = follow.follow(cfg, str(worker))
  assert [row['step'] for row in metrics.read(str(worker))] == [3, 5]
  found = json.loads((worker / 'step_5/results.json').read_text())
  assert found == results and found['checkpoint_step'] == 5
  assert follow.follow(cfg, str(worker)) == results  # goes on


def test_one_that_ends_anywhere_goes_on(s3, light):
  place, batches = s3 / 'run', run_lib.input_batches

  def until(last):
    def some(*args):
      for number, batch in enumerate(batches(*args)):
        if number == last:
          raise KeyboardInterrupt
        yield batch

    return some

  for last in (2, 4, 1):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(run_lib, 'input_batches', until(last))
      with pytest.raises(KeyboardInterrupt):
        run(place)
  assert checkpoint.steps(str(place)) == [3]
  run(place)
  kills_check.assert_same(place, light)


def _destroy(place, how):
  newest = place / 'checkpoints/5'
  largest = max(objects.tree(newest).items(), key=lambda item: item[1].size)[0]
  if how == 'garbage':
    (newest / largest).write_bytes(bytes(100))
  if how == 'missing':
    (newest / 'info/metadata').unlink()
  if how == 'cut off':
    (newest / 'commit_success.txt').unlink()
  (place / 'results.json').unlink()


@pytest.mark.parametrize(
  'how', ['garbage', pytest.param('missing', marks=pytest.mark.long), 'cut off']
)
def test_the_checkpoint_before_a_damaged_one_is_taken(s3, light, how, capsys):
  place = s3 / 'run'
  run(place)
  _destroy(place, how)
  run(place)
  kills_check.assert_same(place, light)
  said = capsys.readouterr().err
  assert 'Going on from the checkpoint of step 3.' in said
  told = f'Checkpoint {place}/checkpoints/5 is damaged or gone'
  assert (told in said) == (how != 'cut off')
  assert (place / 'checkpoints/damaged/5').exists() == (how != 'cut off')


def test_which_checkpoints_stay(s3):
  saver = checkpoint.InBucket(str(s3), keep=2, keep_every=4)
  for step in range(1, 8):
    if step == 3:
      saver.keep_also(3)
    saver.save(step, {'x': np.arange(step), 'none': np.zeros(0)}, {'n': step})
  assert saver.latest_step() == 7 and saver.latest_step(5) == 4
  saver.save(7, {'x': np.zeros(1)}, {})  # is there already
  saver.discard_after(6)
  saver.close()
  assert checkpoint.steps(str(s3)) == [3, 4, 6]
  other = checkpoint.InBucket(str(s3), keep=2)
  like = {'x': np.zeros(6, np.int64), 'none': np.zeros(0)}
  tree, info, step = other.restore(like)
  assert (step, info, list(tree['x'])) == (6, {'n': 6}, [0, 1, 2, 3, 4, 5])
  with pytest.raises(errors.UserError, match='/checkpoints/6 does not fit'):
    other.restore(like | {'x': np.zeros(5)})
  other.close()


def test_an_upload_that_was_cut_off_counts_for_nothing(s3):
  (s3 / 'checkpoints/3/arrays/d/x').write_text('left over')
  (s3 / 'checkpoints/9/arrays/d/x').write_text('left over')
  saver = checkpoint.InBucket(str(s3), keep=2)
  assert saver.latest_step() is None
  saver.save(3, {'x': np.arange(3)}, {})
  saver.close()
  assert checkpoint.steps(str(s3)) == [3]
  assert not (s3 / 'checkpoints/3/arrays/d/x').exists()
  assert not (s3 / 'checkpoints/9').exists()


def test_no_room_on_the_disk_for_the_copy(s3, monkeypatch, tmp_path):
  saver = checkpoint.InBucket(str(s3), keep=2)
  saver.save(3, {'x': np.arange(3)}, {})
  saver.close()

  def full(*unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(objects, 'download', full)
  with pytest.raises(errors.CheckpointError, match='No space left on device'):
    checkpoint.read(str(s3), 3, ('state',))


def test_a_token_that_expires_in_the_middle(proxied, light):
  place, proxy = proxied
  marker = f'/{place.bucket}/run/checkpoints/3/commit_success.txt'

  def rule(number, method, path):
    if any(asked[1] == marker for asked in proxy.requests):
      return proxy_lib.refuse(400, 'ExpiredToken')
    return None

  proxy.rule = rule
  with pytest.raises(errors.UserError) as error:
    run(place / 'run')
  assert 'expired (ExpiredToken): renew them' in str(error.value)
  proxy.rule = None
  run(place / 'run')
  kills_check.assert_same(place / 'run', light)


@pytest.mark.long  # each waits before it is repeated
def test_every_request_fails_once(s3_server, light):
  """Refused, cut off before and after it is done, half of the answer, slow."""
  acts = [
    proxy_lib.refuse(503, 'SlowDown'), proxy_lib.cut_request,
    proxy_lib.cut_answer, proxy_lib.cut_body, proxy_lib.wait(0.05),
  ]  # fmt: skip
  seen = {}

  def rule(number, method, path):
    seen[method, path] = seen.get((method, path), -1) + 1
    return None if seen[method, path] % 2 else acts[number % len(acts)]

  with (
    proxy_lib.Proxy(s3_server['AWS_ENDPOINT_URL']) as proxy,
    bucket_lib.told(s3_server | {'AWS_ENDPOINT_URL': proxy.endpoint}),
  ):
    place = storage.path(bucket_lib.make('s3')) / 'run'
    proxy.rule = rule
    run(place)
    proxy.rule = None
    kills_check.assert_same(place, light)
    assert len(seen) > 30


def command(*arguments, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'semppl_jax.main', *arguments],
    env=os.environ | environment, capture_output=True, text=True,
  )  # fmt: skip


@pytest.mark.parametrize(
  'workdir, words',
  [
    ('s3://nobody-has-it/run', 's3://nobody-has-it: there is no such bucket'),
    pytest.param(
      f's3://me:{_SECRET}@buck/run', 'has a user, a password or a query',
      marks=pytest.mark.long,
    ),
  ],
)  # fmt: skip
def test_on_the_command_line_it_is_a_line_and_a_status(s3, workdir, words):
  found = command(
    '--config=digits',
    f'--workdir={workdir}',
    AWS_SECRET_ACCESS_KEY=_SECRET,
    AWS_SESSION_TOKEN=_SECRET,
  )
  assert found.returncode == 2 and not found.stdout
  assert found.stderr.startswith('error: ') and words in found.stderr
  assert found.stderr.count('\n') == 1 and _SECRET not in found.stderr


def test_no_file_of_a_run_has_a_secret_in_it(s3, light):
  told = {
    'AWS_ACCESS_KEY_ID': 'AKIDAKID', 'AWS_SECRET_ACCESS_KEY': _SECRET,
    'AWS_SESSION_TOKEN': _SECRET,
  }  # fmt: skip
  with bucket_lib.told(told):
    run(s3 / 'run')
    for name in objects.tree(s3):
      data = (s3 / name).read_bytes()
      assert _SECRET.encode() not in data and b'AKIDAKID' not in data, name
