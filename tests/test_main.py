"""The command line, as a user's shell sees it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_DIGITS = str(_ROOT / 'experiments' / 'digits.py')


def _command(*arguments):
  return [sys.executable, '-m', 'semppl_jax.main', *map(str, arguments)]


def _call(tmp_path, *arguments, config=_DIGITS):
  workdir = tmp_path / 'run'
  return subprocess.run(
    _command(f'--config={config}', f'--workdir={workdir}', *arguments),
    capture_output=True,
    text=True,
    cwd=_ROOT,
    timeout=300,
  )


@pytest.fixture(scope='module')
def forks():
  """Imports once what takes longer than the mistakes that are looked for."""
  with subprocess.Popen(
    [sys.executable, '-m', 'tests.resilience.forks'], cwd=_ROOT, text=True,
    env=os.environ | {'OPENBLAS_NUM_THREADS': '1'},  # no threads before a fork
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
  ) as process:  # fmt: skip
    yield process


@contextlib.contextmanager
def _ended_after(seconds, process):
  timer = threading.Timer(seconds, process.kill)
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


@pytest.fixture
def call(forks, tmp_path):
  """As `_call`, in a fork of a process that has imported the package."""

  def run(*arguments, config=_DIGITS):
    files = {name: tmp_path / f'{name}.txt' for name in ('log', 'errors')}
    argv = [f'--config={config}', f'--workdir={tmp_path / "run"}', *arguments]
    request = {k: str(path) for k, path in files.items()}
    request |= {'argv': argv, 'environment': {}}
    forks.stdin.write(json.dumps(request) + '\n')
    forks.stdin.flush()
    with _ended_after(300, forks):
      answer = forks.stdout.readline(), forks.stdout.readline()
    assert all(answer), 'the process that forks has ended'
    status = int(answer[1])
    said = [path.read_text() for path in files.values()]
    for path in files.values():
      path.unlink()
    return subprocess.CompletedProcess(argv, status, *said)

  return run


@pytest.mark.parametrize(
  'argument, words',
  [
    ('--config.loss.alhpa=1', ("'loss.alhpa'", "mean 'loss.alpha'")),
    ('--config.loss.alpha=much', ('loss.alpha', "'much'")),
    ('--wrokdir=x', ("'wrokdir'", 'workdir')),
    ('--config.encoder.name=resnet51', ("'resnet51'", "'resnet50'")),
    ('--config.dataset.name=digit', ("'digit'", "'digits'")),
    ('--config.optimizer.name=adamv', ("'adamv'", "'adamw'")),
    ('--config.queue.capacity=0', ('queue.capacity is 0', 'at least 1')),
    ('--config.labels.per_class=0', ('labels.per_class', 'semantic term')),
  ],
)
def test_a_mistake_is_one_line_and_status_2(argument, words, call, tmp_path):
  done = call(argument)
  assert done.returncode == 2, done.stderr
  lines = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1, done.stderr
  for word in words:
    assert word in lines[0]
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def test_a_mistake_in_a_process_of_its_own(tmp_path):
  done = _call(tmp_path, '--config.loss.alhpa=1')
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1 and "'loss.alpha'?" in done.stderr


def test_an_unknown_config_file_and_an_unknown_variant(call):
  done = call(config='experiments/nope.py')
  assert done.returncode == 2
  assert done.stderr.strip() == (
    "error: --config: there is no file 'experiments/nope.py'."
  )
  variant = str(_ROOT / 'experiments' / 'imagenet.py:5pct')
  done = call(config=variant)
  assert done.returncode == 2
  assert "'5pct'; known: resnet_50_1x_1pct, " in done.stderr
  assert 'Traceback' not in done.stderr


_KNN = str(_ROOT / 'experiments' / 'eval_knn.py:digits_20')
_TINY = _ROOT / 'tests' / 'golden_data' / 'release_checkpoint_tiny.pkl'


@pytest.mark.parametrize(
  'checkpoint, words',
  [
    ('', 'checkpoint is empty'),
    ('experiments', 'is a directory'),
    ('setup.py', 'neither a pickle'),
    ('sk_resnet_50_1x_1_pct', 'download https://storage.googleapis.com'),
  ],
)
def test_a_wrong_checkpoint_is_one_line_and_status_2(
  checkpoint, words, call, tmp_path
):
  done = call(f'--config.checkpoint={checkpoint}', config=_KNN)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert words in done.stderr
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'config, task, words',
  [
    (_KNN, 'foo', "'foo'; known: linear"),
    (_DIGITS, 'linear', 'known: pretrain'),
  ],
)
def test_a_wrong_task_is_one_line(config, task, words, call):
  done = call(f'--config.task={task}', config=config)
  assert done.returncode == 2 and words in done.stderr, done.stderr
  assert 'Traceback' not in done.stderr


def test_a_released_file_is_evaluated(tmp_path):
  done = _call(tmp_path, f'--config.checkpoint={_TINY}', config=_KNN)
  assert done.returncode == 0, done.stderr
  assert 'tiny 1x, step 1,000, projector yes' in done.stderr
  assert 'top1' in done.stdout and (tmp_path / 'run/per_class.json').exists()


def test_experiments_load_from_another_folder(tmp_path):
  """They build on their neighbours, wherever the command is called."""
  config = _ROOT / 'experiments' / 'digits_contrastive.py'
  done = subprocess.run(
    _command(f'--config={config}', '--config.loss.alpha=2', '--workdir'),
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(_ROOT)},
    timeout=120,
  )
  assert 'experiments' not in done.stderr, done.stderr
  assert done.returncode == 2  # --workdir has no value


@pytest.mark.parametrize(
  'flags, wanted',
  [
    (['--config.loss.exclude_same_label=False'], ('none', 15.0)),
    pytest.param(
      ['--noconfig.loss.exclude_same_label'],
      ('none', 15.0),
      marks=pytest.mark.long,
    ),
    pytest.param(
      ['--config.loss.exclude_same_label'],
      ('label', 15.0),
      marks=pytest.mark.long,
    ),
    (
      ['--config.loss.exclude_after_epochs=2', '--config.loss.alpha=3'],
      ('label', 2.0),
    ),
  ],
)
def test_old_names_on_the_command_line(flags, wanted):
  code = (
    'import sys; from semppl_jax import main; main._parse(sys.argv);'
    'cfg = main._CONFIG.value;'
    'print(cfg.negatives.cancel, cfg.negatives.cancel_after_epochs)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, f'--config={_DIGITS}', *flags],
    capture_output=True, text=True, cwd=_ROOT, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == [wanted[0], str(wanted[1])]


@pytest.mark.long
def test_killed_and_resumed_on_the_command_line(tmp_path):
  """SIGKILL at no particular moment; the same command goes on to the end."""
  settings = [
    '--config.num_epochs=3', '--config.checkpoint_every_steps=5',
    '--config.evaluation.probes=False',
  ]  # fmt: skip
  workdir = tmp_path / 'run'
  command = _command(f'--config={_DIGITS}', f'--workdir={workdir}', *settings)
  running = subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 240
  saved = lambda: [p for p in workdir.glob('checkpoints/*') if p.name.isdigit()]
  while not saved():
    assert running.poll() is None and time.monotonic() < deadline
    time.sleep(0.1)
  running.send_signal(signal.SIGKILL)
  running.wait()
  done = _call(tmp_path, *settings)
  assert done.returncode == 0, done.stderr
  assert 'Going on from the checkpoint of step' in done.stderr
  assert 'knn_top1' in done.stdout
  again = _call(tmp_path, *settings)
  assert again.returncode == 0 and 'finished, at step 35' in again.stderr
