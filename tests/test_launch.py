"""Several processes of one job, started by one command."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from semppl_jax import launch

_ROOT = pathlib.Path(__file__).parent.parent


def test_each_process_is_told_who_it_is():
  one, two = launch.environments(2, {'HOME': '/x'})
  assert one['HOME'] == two['HOME'] == '/x'
  assert one['JAX_COORDINATOR_ADDRESS'] == two['JAX_COORDINATOR_ADDRESS']
  assert one['JAX_NUM_PROCESSES'] == '2'
  assert (one['JAX_PROCESS_ID'], two['JAX_PROCESS_ID']) == ('0', '1')
  assert [x['CUDA_VISIBLE_DEVICES'] for x in (one, two)] == ['0', '1']
  some = launch.environments(2, {'CUDA_VISIBLE_DEVICES': '5,3,1'})
  assert [x['CUDA_VISIBLE_DEVICES'] for x in some] == ['5', '3']


_MEET = """
from semppl_jax.distributed import processes
processes.connect()
import jax, sys
found = processes.allgather_json(processes.index())
open(sys.argv[1] + str(processes.index()), 'w').write(str(found))
jax.distributed.shutdown()
"""


def test_the_processes_meet(tmp_path, monkeypatch):
  monkeypatch.chdir(_ROOT)
  command = [sys.executable, '-c', _MEET, f'{tmp_path}/']
  assert launch.run(command, 2) == 0
  assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
    '0': '[0, 1]', '1': '[0, 1]',
  }  # fmt: skip


_ONE_FAILS = """
import os, sys, time
if os.environ['JAX_PROCESS_ID'] == '1':
  sys.exit(3)
time.sleep(100)
"""


def test_one_that_fails_ends_all():
  begun = time.monotonic()
  assert launch.run([sys.executable, '-c', _ONE_FAILS], 2, grace=0.5) == 3
  assert time.monotonic() - begun < 60


_SLEEP = """
import sys
from semppl_jax import launch
sys.exit(launch.run([sys.executable, '-c', 'import time; time.sleep(100)'], 2))
"""


def test_a_signal_goes_to_all():
  process = subprocess.Popen([sys.executable, '-c', _SLEEP], cwd=_ROOT)
  time.sleep(3)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
  'arguments, visible, status, words',
  [
    (['--processes=0'], '', 2, '--processes is 0'),
    (['--processes=3'], '0,1', 2, '--processes is 3 of the 2 GPUs'),
    (['--processes=1', '--workdir=x'], '', 2, '--config is missing'),
  ],
)
def test_on_the_command_line(arguments, visible, status, words):
  done = subprocess.run(
    [sys.executable, '-m', 'semppl_jax.launch', *arguments],
    cwd=_ROOT, capture_output=True, text=True, check=False,
    env={**os.environ, 'CUDA_VISIBLE_DEVICES': visible},
  )  # fmt: skip
  assert done.returncode == status and words in done.stderr, done.stderr
