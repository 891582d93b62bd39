"""Runs whose work directory is in a bucket, beside the same on a disk."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from semppl_jax import checkpoint, errors, preflight, pretraining, storage
from semppl_jax.evaluation import follow
from semppl_jax.report import page
from semppl_jax.storage import objects
from semppl_jax.tools import label as label_tool
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics, stop_file
from tests.evaluation import test_protocols
from tests.helpers import bucket as bucket_lib
from tests.helpers import proxy as proxy_lib
from tests.helpers import tiny
from tests.resilience import kills_check

_SECRET = 'hunter2hunter2'
_TRAIN_STEP, _FINISH = step_lib.train_step, pretraining.finish


def make_config(**changes):
  return tiny.make_config(num_devices=1, **changes)


def run(place, **changes):
  return pretraining.pretrain(make_config(**changes), str(place))


def light_end(run, state, workdir, past):
  """In place of the evaluation."""
  results = {'step': int(state.step[0]), 'seconds': past.seconds}
  metrics.write_json(os.path.join(workdir, 'results.json'), results)
  return results


@pytest.fixture(autouse=True, scope='module')
def _light():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'train_step', tiny.light_step)
    patch.setattr(pretraining, 'finish', light_end)
    tiny.remember_steps(patch)
    yield


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """An unbroken run on the disk."""
  place = tmp_path_factory.mktemp('runs') / 'run'
  run(place)
  return place


@pytest.fixture(scope='module')
def done(s3_server):
  """One in a bucket; its credentials must be told nowhere."""
  told = {
    'AWS_ACCESS_KEY_ID': 'AKIDAKID', 'AWS_SECRET_ACCESS_KEY': _SECRET,
    'AWS_SESSION_TOKEN': _SECRET,
  }  # fmt: skip
  with bucket_lib.told(s3_server | told):
    place = storage.path(bucket_lib.make('s3')) / 'deep/run'
    run(place)
    yield place


def test_it_leaves_what_a_run_on_a_disk_leaves(done, alone):
  kills_check.assert_same(done, alone)
  there = {name.partition('/')[0] for name in objects.tree(done)}
  assert there == {
    'checkpoints', 'config.json', 'data.json', 'metrics.jsonl.parts',
    'results.json',
  }  # fmt: skip
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


@pytest.mark.long
def test_plots_and_report_are_written_there(s3, monkeypatch):
  monkeypatch.setattr(pretraining, 'finish', _FINISH)
  place = s3 / 'run'
  assert run(place) == json.loads((place / 'results.json').read_text())
  assert objects.names(place / 'plots') == [
    'losses.png', 'pseudo_labels.png', 'tsne.png',
  ]  # fmt: skip
  assert (place / 'plots/tsne.png').read_bytes()[:4] == b'\x89PNG'
  written = page.write([str(place)])
  assert written == place / 'report.html'
  assert 'Curves' in written.read_text()


@pytest.mark.long
def test_a_trace_of_steps_is_written_there(s3):
  run(s3 / 'run', profile_steps=(2, 3))
  assert any(name.endswith('.gz') for name in objects.tree(s3 / 'run/profile'))


@pytest.mark.long  # a step that fills the queue has to be compiled
def test_labels_for_the_rest_are_written_there(s3, monkeypatch):
  done = s3 / 'run'
  monkeypatch.setattr(step_lib, 'train_step', _TRAIN_STEP)
  run(done)
  found = label_tool.label(run=str(done), next_images=2)
  assert found.path == str(done / 'labels.csv') and len(found.next) == 2
  for name in ('labels.csv', 'labels.json', 'labels_next.txt'):
    assert (done / name).is_file()
    (done / name).unlink()


@pytest.mark.long  # it compiles a pass to time it
def test_a_look_before_it_starts(s3):
  lines = preflight.check_run(make_config(), str(s3 / 'run'))
  assert lines[-1].startswith('storage: checkpoints of 0.1 MB')
  assert f'in {s3}/run; one at a time on the disk at /' in lines[-1]
  assert objects.tree(s3) == {}


def test_an_alarm_is_noted(s3):
  stop = stop_file.Stop(5, 3, 'it exploded')
  assert stop_file.read(s3) is None
  stop_file.write(str(s3), stop)
  assert stop_file.read(s3) == stop
  stop_file.remove(str(s3))
  assert stop_file.read(s3) is None


def test_a_worker_follows_it(done):
  cfg = test_protocols.make_config('knn', checkpoint=str(done))
  cfg.dataset.num_classes = tiny.NUM_CLASSES
  worker = done.parent / 'worker'
  results = follow.follow(cfg, str(worker))
  assert [row['step'] for row in metrics.read(str(worker))] == [3, 5]
  found = json.loads((worker / 'step_5/results.json').read_text())
  assert found == results and found['checkpoint_step'] == 5
  assert follow.follow(cfg, str(worker)) == results  # goes on


def test_one_that_ends_anywhere_goes_on(s3, alone):
  place, batches = s3 / 'run', run_lib.input_batches

  def until(last):
    def some(*args):
      for number, batch in enumerate(batches(*args)):
        if number == last:
          raise KeyboardInterrupt
        yield batch

    return some

  for last in (4, 1):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(run_lib, 'input_batches', until(last))
      with pytest.raises(KeyboardInterrupt):
        run(place)
  assert checkpoint.steps(str(place)) == [3]
  run(place)
  kills_check.assert_same(place, alone)


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
  'how',
  [
    'garbage',
    pytest.param('missing', marks=pytest.mark.long),
    pytest.param('cut off', marks=pytest.mark.long),
  ],
)
def test_the_checkpoint_before_a_damaged_one_is_taken(s3, alone, how, capsys):
  place = s3 / 'run'
  objects.upload(alone, place)
  (place / '.lock').unlink()  # a disk's
  _destroy(place, how)
  run(place)
  kills_check.assert_same(place, alone)
  said = capsys.readouterr().err
  assert 'Going on from the checkpoint of step 3.' in said
  told = f'Checkpoint {place}/checkpoints/5 is damaged or gone'
  assert (told in said) == (how != 'cut off')
  assert (place / 'checkpoints/damaged/5').exists() == (how != 'cut off')


def test_which_checkpoints_stay(proxied):
  s3, proxy = proxied
  saver = checkpoint.InBucket(str(s3), keep=2, keep_every=4)
  for step in range(1, 8):
    if step == 3:
      saver.keep_also(3)
    saver.save(step, {'x': np.arange(step), 'none': np.zeros(0)}, {'n': step})
  assert saver.latest_step() == 7 and saver.latest_step(5) == 4
  saver.save(7, {'x': np.zeros(1)}, {})  # is there already
  saver.discard_after(6)
  saver.close()
  _check_order(proxy.requests, s3)
  assert checkpoint.steps(str(s3)) == [3, 4, 6]
  other = checkpoint.InBucket(str(s3), keep=2)
  like = {'x': np.zeros(6, np.int64), 'none': np.zeros(0)}
  tree, info, step = other.restore(like)
  assert (step, info, list(tree['x'])) == (6, {'n': 6}, [0, 1, 2, 3, 4, 5])
  with pytest.raises(errors.UserError, match='/checkpoints/6 does not fit'):
    other.restore(like | {'x': np.zeros(5)})
  other.close()


def _check_order(requests, place):
  """The marker is written last and deleted first."""
  for step in (1, 2):
    below = f'/{place.bucket}/checkpoints/{step}/'
    asked = [(how, path) for how, path in requests if path.startswith(below)]
    marker = f'{below}commit_success.txt'
    written = [path for how, path in asked if how == 'PUT']
    deleted = [path for how, path in asked if how == 'DELETE']
    assert len(written) == len(deleted) > 8
    assert written[-1] == deleted[0] == marker


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


def test_a_token_that_expires_in_the_middle(proxied, alone):
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
  kills_check.assert_same(place / 'run', alone)


@pytest.mark.long  # each waits before it is repeated
def test_every_request_fails_once(s3_server, alone):
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
    kills_check.assert_same(place, alone)
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


def test_no_file_of_a_run_has_a_secret_in_it(done):
  for name in objects.tree(done):
    data = (done / name).read_bytes()
    assert _SECRET.encode() not in data and b'AKIDAKID' not in data, name
