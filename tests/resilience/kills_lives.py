"""Lives of a training run, for `kills`: started, killed, or let finish."""

import json
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name('kills_config.py')


class Life:
  """One process of a run, the first of a session of its own."""

  def __init__(self, pid, wait, log):
    self.pid, self._wait, self._log = pid, wait, log

  def is_alive(self):
    try:
      stat = pathlib.Path(f'/proc/{self.pid}/stat').read_text()
    except OSError:
      return False
    return stat.rpartition(')')[2].split()[0] != 'Z'

  def kill(self):
    """SIGKILL; False if it had finished before."""
    if self.is_alive():
      os.kill(self.pid, signal.SIGKILL)
    status = self._wait()
    assert status in (0, -signal.SIGKILL), self._log.read_text()[-3000:]
    return status != 0

  def finish(self):
    assert self._wait() == 0, self._log.read_text()[-3000:]


def _environment(more):
  own = {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'OPENBLAS_NUM_THREADS': '1',  # no threads before a fork
  }
  return os.environ | own | more


def _arguments(workdir, options):
  return [f'--config={CONFIG}', f'--workdir={workdir}', *options]


class Commands:
  """Every life is the command line, in a new process."""

  def __init__(self, environment):
    self._environment = _environment(environment)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    pass

  def start(self, workdir, options, environment):
    log = workdir.with_suffix('.log')
    command = [sys.executable, '-m', 'semppl_jax.main']
    with log.open('a') as file:
      process = subprocess.Popen(
        [*command, *_arguments(workdir, options)],
        env=self._environment | environment, cwd=ROOT,
        stdout=file, stderr=file, start_new_session=True,
      )  # fmt: skip
    return Life(process.pid, process.wait, log)


class Forks:
  """Every life is a fork of one process, see `forks`."""

  def __init__(self, environment):
    self._parent = subprocess.Popen(
      [sys.executable, '-m', 'tests.resilience.forks'],
      env=_environment(environment), cwd=ROOT, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._parent.stdin.close()
    self._parent.wait()

  def start(self, workdir, options, environment):
    log = workdir.with_suffix('.log')
    request = {
      'argv': _arguments(workdir, options),
      'log': str(log),
      'errors': str(log),
      'environment': environment,
    }
    self._parent.stdin.write(json.dumps(request) + '\n')
    self._parent.stdin.flush()
    return Life(self._answer(), self._answer, log)

  def _answer(self):
    return int(self._parent.stdout.readline())
