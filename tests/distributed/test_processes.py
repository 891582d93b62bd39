"""Jobs of several processes: the same numbers, one end, one resumption."""

import contextlib
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from semppl_jax import checkpoint
from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.utils import diff
from semppl_jax.workdir import metrics

_ROOT = pathlib.Path(__file__).parents[2]
_TIMES = ('seconds', 'images_per_second')


def _port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def _start(workdir, processes, devices, *options, own=None):
  """Starts a job; `own`: options of one process, {number: [option]}."""
  port = _port()
  environment = os.environ | {'PYTHONPATH': str(_ROOT)}
  return [
    subprocess.Popen(
      [sys.executable, '-m', 'tests.helpers.job_of_processes',
       str(i), str(processes), str(port), str(devices), str(workdir), *options,
       *(own or {}).get(i, [])],
      cwd=_ROOT, env=environment, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for i in range(processes)
  ]  # fmt: skip


def _end(job, timeout=240):
  """(exit status, standard error) of each process."""
  try:
    errors = [process.communicate(timeout=timeout)[1] for process in job]
  finally:
    for process in job:
      process.kill()
  return [(p.returncode, e) for p, e in zip(job, errors, strict=True)]


def _finish(*arguments, **options):
  for status, error in _end(_start(*arguments, **options)):
    assert status == 0, error[-3000:]


def _result(workdir):
  """Metrics but for times, and the arrays of the last checkpoint."""
  rows = [
    {k: v for k, v in row.items() if k not in _TIMES}
    for row in metrics.read(str(workdir))
  ]
  step = checkpoint.steps(str(workdir))[-1]
  return rows, checkpoint.read(str(workdir), step, ('state',))


def _assert_same(one, other):
  assert [row['step'] for row in one[0]] == [row['step'] for row in other[0]]
  for a, b in zip(one[0], other[0], strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert (a[name] is None) == (b[name] is None), name
      if a[name] is not None:
        assert b[name] == pytest.approx(a[name], rel=2e-3, abs=2e-4), name
  assert one[1].keys() == other[1].keys()
  for name, leaf in one[1].items():
    other_leaf = other[1][name]
    if leaf.dtype.kind != 'f':
      np.testing.assert_array_equal(other_leaf, leaf, err_msg=name)
    else:
      # What a bias before BatchNorm gets is nothing but rounding.
      scale = max(np.linalg.norm(leaf), 1e-2)
      distance = np.linalg.norm(other_leaf - leaf) / scale
      assert distance < 2e-3, (name, distance)


# A gradient without momentum: Adam would blow up what rounding does to zeros.
_CALM = ('optimizer__name="sgd"', 'optimizer__learning_rate=0.1')
# Three processes compile it.
_FEW_VIEWS = ('views__num_small=0', 'views__one_pass=True')
# Labelled images that come with every batch.
_SUPPORT = (
  'method="toy_support"', 'views__num_small=0', 'support__images=0',
  'support__classes=2', 'support__images_per_class=4', 'support__jitter=0.0',
)  # fmt: skip
# Guesses of a head that learns beside.
_HEAD = (
  'method="mean_shift"', 'views__num_small=0', 'loss__pseudo_labels="head"',
  'head__batch_size=8', 'head__learning_rate=0.1', 'loss__min_confidence=0.5',
)  # fmt: skip


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The same run by one process, made once: call it with the options."""

  @functools.cache
  def run(*options):
    workdir = tmp_path_factory.mktemp('alone')
    _finish(workdir, 1, 4, *_CALM, *options)
    return workdir

  return run


@pytest.mark.parametrize(
  'processes, devices, options',
  [
    (2, 2, _FEW_VIEWS),
    pytest.param(2, 2, (), marks=pytest.mark.long),
    pytest.param(4, 1, (), marks=pytest.mark.long),
    pytest.param(2, 2, _SUPPORT, marks=pytest.mark.long),
    # A batch that is shared out to prototypes, with a queue, by all of them.
    pytest.param(2, 2, ('method="swav"',), marks=pytest.mark.long),
    # Each process has its part of the labelled images beside the batch.
    pytest.param(2, 2, ('method="suave"',), marks=pytest.mark.long),
    pytest.param(2, 2, ('method="daino"',), marks=pytest.mark.long),
    # What the host works out of all hosts' neighbours.
    pytest.param(2, 2, _HEAD, marks=pytest.mark.long),
  ],
)
def test_processes_give_what_one_gives(
  tmp_path, alone, processes, devices, options
):
  alone = alone(*options)
  _finish(tmp_path, processes, devices, *_CALM, *options)
  _assert_same(_result(alone), _result(tmp_path))
  read = lambda folder: json.loads((folder / 'results.json').read_text())
  one, several = read(alone), read(tmp_path)
  assert one['devices'] == several['devices'] == '4 x cpu'
  for name in ('step', 'num_labels', 'pseudo_label_accuracy', 'knn_top1'):
    assert several[name] == pytest.approx(one[name], abs=0.026), name


@pytest.mark.long  # four processes compile at once: two minutes on two cores
def test_a_killed_process_ends_the_job_which_goes_on(tmp_path, alone):
  often = 'checkpoint_every_steps=1'
  job = _start(tmp_path, 2, 2, *_CALM, often, own={1: ['kill_at=5']})
  assert job[1].wait(timeout=200) == -9
  begun = time.monotonic()
  status, error = _end(job)[0]
  assert time.monotonic() - begun < 60
  assert status not in (0, -9)
  assert 'peer' in error or 'another task died' in error, error[-2000:]
  # Writing one checkpoint begins when the one before is whole.
  assert checkpoint.steps(str(tmp_path))[-1] in (2, 3)
  # The same run, on another number of processes.
  _finish(tmp_path, 4, 1, *_CALM)
  _assert_same(_result(alone()), _result(tmp_path))


@pytest.mark.long  # test_pretraining has the signal to one process alone
def test_a_signal_to_one_stops_all_after_one_step(tmp_path, alone):
  job = _start(tmp_path, 2, 2, *_CALM, own={1: ['signal_at=3']})
  for status, error in _end(job):
    assert status == 128 + 15, error[-3000:]
  (step,) = checkpoint.steps(str(tmp_path))[-1:]
  assert 2 <= step < 5
  _finish(tmp_path, 1, 4, *_CALM)
  _assert_same(_result(alone()), _result(tmp_path))


@pytest.mark.long
def test_an_alarm_takes_all_back_and_stops_them_in_the_end(tmp_path):
  job = _start(
    tmp_path, 2, 2, 'optimizer__name="sgd"', 'optimizer__learning_rate=9e37',
    'optimizer__warmup_epochs=0.0', 'watchdog__action="roll_back"',
    'watchdog__rollbacks=1', 'checkpoint_every_steps=1',
  )  # fmt: skip
  ends = _end(job)
  assert [status for status, _ in ends] == [3, 3], ends[0][1][-3000:]
  last = {error.strip().splitlines()[-1] for _, error in ends}
  assert len(last) == 1 and 'stopped; ' in last.pop()
  (line,) = (tmp_path / 'rollbacks.jsonl').read_text().splitlines()
  assert json.loads(line)['back_to'] < json.loads(line)['step']


def test_processes_that_differ_are_refused(tmp_path):
  own = {1: ['loss__alpha=0.5']}
  for status, error in _end(_start(tmp_path / 'a', 2, 1, own=own)):
    assert status == 2, error[-3000:]
    assert 'loss.alpha is 0.2 in process 0 and 0.5 in process 1' in error, (
      error[-1000:]
    )


def test_missing_data_is_one_line_in_all(tmp_path):
  job = _start(
    tmp_path, 2, 1, 'dataset__name="arrays"', 'dataset__path="no.npz"'
  )
  for status, error in _end(job):
    assert status == 2 and 'no.npz' in error, error[-3000:]


def test_an_absent_coordinator_is_named():
  address = processes.Address(f'localhost:{_port()}', 2, 1)
  begun = time.monotonic()
  with pytest.raises(UserError, match=address.coordinator):
    processes.connect(address, timeout=2)
  assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
  'told, message',
  [
    (processes.Address('nonsense', 2, 0), 'HOST:PORT'),
    (processes.Address('a:99999', 2, 0), 'HOST:PORT'),
    (processes.Address('a:1', 2, 2), 'process_id is 2'),
    (processes.Address('a:1', 0, 0), 'num_processes is 0'),
  ],
)
def test_addresses_that_cannot_be(told, message):
  with pytest.raises(UserError, match=message):
    processes.connect(told, timeout=1)


def test_environments_of_several_processes_are_known():
  assert not processes.detected({})
  assert not processes.detected({'SLURM_STEP_NUM_TASKS': '1'})
  assert not processes.detected({'TPU_WORKER_HOSTNAMES': 'one'})
  assert processes.detected({'SLURM_STEP_NUM_TASKS': '8'})
  assert processes.detected({'TPU_WORKER_HOSTNAMES': 'one,two'})


def _slurm_job():
  """A job's number: JAX takes it modulo 4096 for a port from 61440 on."""
  for number in np.random.permutation(4096):
    with contextlib.suppress(OSError), socket.socket() as free:
      free.bind(('localhost', 61440 + int(number)))
      return str(number)
  raise AssertionError('no port is free')


_MEET = """
import jax
from semppl_jax.distributed import processes
processes.connect()
me = f'process {processes.index()} of {processes.count()}'
print(processes.allgather_json(me), flush=True)
jax.distributed.shutdown()
"""


def test_processes_of_slurm_find_each_other():
  """As `srun` starts them, with nothing told; the port follows from the job."""
  several = {
    'SLURM_JOB_ID': _slurm_job(),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_NODES': '1',
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NUM_TASKS': '2',
  }
  job = [
    subprocess.Popen(
      [sys.executable, '-c', _MEET], cwd=_ROOT, text=True,
      env=os.environ | several
      | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    found = [process.communicate(timeout=120) for process in job]
  finally:
    for process in job:
      process.kill()
  for out, error in found:
    assert "['process 0 of 2', 'process 1 of 2']" in out, error[-3000:]


def test_one_process_needs_nobody():
  assert processes.allgather_json({'a': 1}) == [{'a': 1}]
  np.testing.assert_array_equal(processes.allgather(np.arange(3)), [[0, 1, 2]])
  assert processes.run_on_all(lambda: 7) == 7
  with pytest.raises(UserError, match='mine'):
    processes.run_on_all(lambda: (_ for _ in ()).throw(UserError('mine')))


def test_differences_name_both_sides():
  found = diff.between({'a': 1}, {'a': 2}, words=('in x', 'in y'))
  assert found == ['a is 1 in x and 2 in y']
