"""Runs in a bucket that are killed, by several processes, in a bad network."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from semppl_jax import checkpoint, pretraining, storage
from semppl_jax.errors import UserError
from semppl_jax.storage import clients
from semppl_jax.train import step as step_lib
from semppl_jax.workdir import metrics
from tests.distributed import test_processes
from tests.helpers import bucket as bucket_lib
from tests.helpers import proxy as proxy_lib
from tests.helpers import tiny
from tests.resilience import kills_check
from tests.storage import test_run

pytestmark = pytest.mark.long
_ROOT = pathlib.Path(__file__).parents[2]
_CONFIG = _ROOT / 'tests/resilience/kills_config.py'


def start(workdir, log, *options, module='semppl_jax.main', **environment):
  own = {
    'PYTHONPATH': str(_ROOT),
    'KILLS_LIGHT': '1',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  with pathlib.Path(log).open('a') as file:
    return subprocess.Popen(
      [sys.executable, '-m', module, *options],
      env=os.environ | own | environment, cwd=_ROOT, stdout=file, stderr=file,
    )  # fmt: skip


def train(workdir, log, *options, **environment):
  return start(
    workdir, log, f'--config={_CONFIG}', f'--workdir={workdir}', *options,
    **environment,
  )  # fmt: skip


def finish(process, log):
  assert process.wait(300) == 0, pathlib.Path(log).read_text()[-3000:]


class _Aim:
  """Kills a process at a request, before it is done or after."""

  def __init__(self, number, is_after, fell):
    self._number, self._is_after, self._fell = number, is_after, fell
    self.process = None

  def rule(self, number, method, path):
    if number != self._number:
      return None
    where = path.partition('?')[0].partition('/run')[2]
    self._fell.append(f'{method} {where}, after: {self._is_after}')
    return self._act

  def _act(self, handler, body):
    if self._is_after:
      handler.ask(body)
    self.process.send_signal(signal.SIGKILL)
    handler.hang_up()


_DIGITS = ('--config.dataset.name=digits', '--config.num_epochs=0.4')


def test_ten_kills(s3_server, tmp_path):
  """Of digits; at a request drawn at random, before it is done or after."""
  random, log = np.random.default_rng(0), tmp_path / 'log'
  finish(train(tmp_path / 'alone', log, *_DIGITS), log)
  with (
    proxy_lib.Proxy(s3_server['AWS_ENDPOINT_URL']) as proxy,
    bucket_lib.told(s3_server | {'AWS_ENDPOINT_URL': proxy.endpoint}),
  ):
    place = storage.path(bucket_lib.make('s3')) / 'run'
    fell = []
    for life in range(10):
      # The first requests look what is there; a checkpoint has about 16.
      wanted = int(random.integers(4, 60)) if life % 3 else life
      aim = _Aim(len(proxy.requests) + wanted, random.random() < 0.5, fell)
      proxy.rule = aim.rule
      aim.process = train(place, log, *_DIGITS)
      assert aim.process.wait(300) == -signal.SIGKILL, log.read_text()[-3000:]
      proxy.rule = None
      for step in checkpoint.steps(str(place)):
        checkpoint.read(str(place), step, ('state',))
      if (place / 'metrics.jsonl.parts').exists():
        kills_check.assert_rising(place)
    finish(train(place, log, *_DIGITS), log)
    print(*fell, sep='\n')
    assert len(fell) == 10
    kills_check.assert_same(place, tmp_path / 'alone')


def test_a_job_of_two_processes_without_a_shared_disk(s3, tmp_path):
  """Its queue lies on both; the same numbers as one process on a disk."""
  logs = [tmp_path / 'log0', tmp_path / 'log1']
  module = 'tests.helpers.job_of_processes'

  def job(workdir, count, devices, *options):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    running = [
      start(
        workdir, log, str(i), str(count), str(port), str(devices),
        str(workdir), *test_processes._CALM, *test_processes._FEW_VIEWS,
        *options, module=module,
        TMPDIR=str(tmp_path / f'disk{i}'),
      )
      for i, log in enumerate(logs[:count])
    ]  # fmt: skip
    return [process.wait(300) for process in running]

  for i in (0, 1):
    (tmp_path / f'disk{i}').mkdir()
  assert job(tmp_path / 'alone', 1, 2) == [0], logs[0].read_text()[-3000:]
  assert 0 not in job(s3 / 'run', 2, 1, 'kill_at=5')
  # One that is killed may not have sent its checkpoint yet.
  assert job(s3 / 'run', 2, 1, 'signal_at=4') == [128 + signal.SIGTERM] * 2
  assert checkpoint.steps(str(s3 / 'run'))[-1] in (3, 4)
  assert job(s3 / 'run', 2, 1) == [0, 0], logs[0].read_text()[-3000:]
  alone, both = (
    test_processes._result(place) for place in (tmp_path / 'alone', s3 / 'run')
  )
  test_processes._assert_same(alone, both)
  kills_check.assert_rising(s3 / 'run')
  assert not list((tmp_path / 'disk1').glob('semppl_jax_*'))


def test_two_jobs_want_one_folder(s3, tmp_path):
  logs = [tmp_path / 'log0', tmp_path / 'log1']
  running = [train(s3 / 'run', log) for log in logs]
  found = sorted(process.wait(300) for process in running)
  said = [log.read_text() for log in logs]
  # The second may have come when the first had finished.
  assert found == [0, 2] or any('is finished' in one for one in said)
  if found == [0, 2]:
    line = next(one for one in said if 'error: ' in one).splitlines()[-1]
    assert line.startswith('error: Another job works in --workdir s3://')
  kills_check.assert_rising(s3 / 'run')


def test_several_processes_one_bucket(s3, tmp_path):
  """Each its own folder, and workers that follow while they train."""
  logs = [tmp_path / f'log{i}' for i in range(3)]
  jobs = [
    train(s3 / f'run{i}', log, f'--config.seed={i}')
    for i, log in enumerate(logs[:2])
  ]
  while not (s3 / 'run0/config.json').exists():
    time.sleep(0.2)
  worker = start(
    s3 / 'worker', logs[2], '--config=eval_knn.py:run',
    f'--config.checkpoint={s3}/run0', f'--workdir={s3}/worker',
    '--config.follow=True', '--config.follow_seconds=1', module='tests.helpers'
    '.tiny_main',
  )  # fmt: skip
  for process, log in zip([*jobs, worker], logs):
    finish(process, log)
  rows = [metrics.read(str(s3 / f'run{i}')) for i in (0, 1)]
  assert rows[0][-1]['step'] == rows[1][-1]['step'] == 40
  assert rows[0][-1]['loss'] != rows[1][-1]['loss']
  seen = [row['step'] for row in metrics.read(str(s3 / 'worker'))]
  assert seen[-1] == 40 and seen == sorted(seen)


def test_refused_at_each_call_and_the_same_command_goes_on(
  s3_server, tmp_path, monkeypatch
):
  """From some request on nothing is answered; the error is a line."""
  monkeypatch.setattr(step_lib, 'train_step', tiny.light_step)
  monkeypatch.setattr(pretraining, 'finish', test_run.light_end)
  tiny.remember_steps(monkeypatch)
  test_run.run(tmp_path / 'alone')
  acts = [
    proxy_lib.refuse(400, 'ExpiredToken'), proxy_lib.cut_request,
    proxy_lib.refuse(403, 'AccessDenied'), proxy_lib.cut_answer,
  ]  # fmt: skip
  with proxy_lib.Proxy(s3_server['AWS_ENDPOINT_URL']) as proxy:
    told = {'AWS_ENDPOINT_URL': proxy.endpoint, 'AWS_MAX_ATTEMPTS': '1'}
    with bucket_lib.told(s3_server | told):
      home, failed = storage.path(bucket_lib.make('s3')), 0
      clients.of(home)._fs.retries = 1
      for number in range(0, 200, 3):
        place, first = home / f'run{number}', len(proxy.requests)
        proxy.rule = lambda n, *unused, at=number, first=first: (
          acts[at % len(acts)] if n - first >= at else None
        )
        try:
          test_run.run(place)
        except UserError as error:
          failed += 1
          text = str(error)
          assert '\n' not in text and str(home) in text, text
        else:
          proxy.rule = None
          break
        proxy.rule = None
        test_run.run(place)
        kills_check.assert_same(place, tmp_path / 'alone')
      print(f'{failed} runs failed, each at another call')
      assert failed > 15
