"""The evaluation worker: every checkpoint of a job once, to the job's end."""

import json
import shutil

import jax
import pytest

from semppl_jax import checkpoint, errors
from semppl_jax.evaluation import follow
from semppl_jax.train import watchdog
from semppl_jax.workdir import stop_file
from tests.evaluation import test_protocols
from tests.helpers import tiny


class Job:
  """A run's folder, whose checkpoints appear when the worker looks away."""

  def __init__(self, folder):
    self.folder = folder
    run = tiny.prepare()
    self._state = tiny.portable(run)
    self._config = json.dumps(run.cfg.to_dict())

  def save(self, step, keep=9, change=0.0):
    self.folder.mkdir(exist_ok=True)
    (self.folder / 'config.json').write_text(self._config)
    saver = checkpoint.Checkpointer(str(self.folder), keep=keep)
    params = jax.tree.map(lambda x: x + change, self._state.online_params)
    saver.save(step, self._state._replace(online_params=params), {})
    saver.close()

  def end(self):
    (self.folder / 'results.json').write_text('{}')


@pytest.fixture(scope='module')
def job_state(tmp_path_factory):
  return Job(tmp_path_factory.mktemp('unused'))


@pytest.fixture
def job(job_state, tmp_path):
  job_state.folder = tmp_path / 'job'
  return job_state


def make_config(job):
  cfg = test_protocols.make_config('knn', checkpoint=str(job.folder))
  cfg.dataset.num_classes = tiny.NUM_CLASSES
  return cfg


def steps(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line)['step'] for line in text.splitlines()]


def run_with(job, workdir, acts):
  """Follows the job; every time that it waits, the next act happens."""
  waited = []
  acts = iter(acts)

  def sleep(seconds):
    waited.append(seconds)
    next(acts)()

  results = follow.follow(make_config(job), str(workdir), sleep)
  assert not list(acts)
  return results, waited


def test_every_checkpoint_once_and_then_the_end(job, tmp_path):
  workdir = tmp_path / 'worker'

  def two():
    job.save(2)
    job.save(5)

  def last():
    job.save(9)
    job.end()

  # Started before its job: nothing is there yet.
  results, waited = run_with(job, workdir, [lambda: None, two, last])
  assert waited == [10.0] * 3
  assert steps(workdir) == [2, 5, 9]
  assert results['checkpoint_step'] == 9
  stored = json.loads((workdir / 'step_9' / 'results.json').read_text())
  assert stored == results
  # Ended: the worker has nothing to do, and says the same.
  again, waited = run_with(job, workdir, [])
  assert again == results and not waited


def test_a_worker_that_was_stopped_goes_on(job, tmp_path):
  workdir = tmp_path / 'worker'
  job.save(2)

  def stop():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run_with(job, workdir, [stop])
  job.save(4)
  job.end()
  run_with(job, workdir, [])
  assert steps(workdir) == [2, 4]


def test_a_checkpoint_that_the_job_deletes_is_left_out(
  job, tmp_path, monkeypatch
):
  job.save(2)
  real = follow.protocols.run_task

  def run_task(cfg, workdir, step):
    if step == 2:
      job.save(4, keep=1)  # and 2 is gone
    return real(cfg, workdir, step)

  monkeypatch.setattr(follow.protocols, 'run_task', run_task)
  workdir = tmp_path / 'worker'
  _, waited = run_with(job, workdir, [job.end])
  assert steps(workdir) == [4] and len(waited) == 1


def test_a_job_that_an_alarm_stops_ends_the_worker(job, tmp_path, capsys):
  def save():
    job.save(5)
    job.save(7)  # nobody knows yet that it is suspect

  def stop():
    job.save(8)
    alarm = watchdog.AlarmError(9, 6, 'From step 8 to 9 all is one')
    stop_file.write(
      job.folder, stop_file.Stop(alarm.step, alarm.good, alarm.what)
    )

  results, _ = run_with(job, tmp_path, [save, stop])
  assert steps(tmp_path) == [5, 7]
  assert results['checkpoint_step'] == 5
  assert 'stopped by an alarm at step 9: From' in capsys.readouterr().err


def test_a_folder_of_another_jobs_worker(job, tmp_path):
  """Nothing of one job is told as another's."""
  workdir = tmp_path / 'worker'
  job.save(5)
  job.end()
  run_with(job, workdir, [])
  other = make_config(job)
  other.checkpoint = str(tmp_path / 'other')
  with pytest.raises(errors.UserError, match='checkpoint is ".*job" there'):
    follow.follow(other, str(workdir))
  # The same folder trained anew, from other weights.
  shutil.rmtree(job.folder)
  job.save(5, change=1.0)
  job.end()
  with pytest.raises(errors.UserError, match='weights.digest is'):
    run_with(job, workdir, [])


def test_what_cannot_be_followed(job, tmp_path):
  cfg = make_config(job)
  cfg.checkpoint = test_protocols.TINY
  with pytest.raises(errors.UserError, match='is a file'):
    follow.follow(cfg, str(tmp_path / 'worker'))
  cfg = make_config(job)
  cfg.knn.k = 0
  with pytest.raises(errors.UserError, match='knn.k is 0'):
    follow.follow(cfg, str(tmp_path / 'worker'))
  job.folder.mkdir()
  job.end()
  with pytest.raises(
    errors.UserError, match='no good checkpoint: the job has ended'
  ):
    follow.follow(make_config(job), str(tmp_path / 'ended'))
  (job.folder / 'results.json').unlink()
  job.save(1)
  cfg = make_config(job)
  cfg.encoder.name = 'resnet50'  # stays wrong: no reason to go on waiting
  with pytest.raises(errors.UserError, match='encoder.name'):
    follow.follow(cfg, str(tmp_path / 'worker'), lambda _: pytest.fail())
