"""A run looked at before it starts."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from semppl_jax import preflight
from semppl_jax.errors import UserError
from semppl_jax.train import device_memory
from semppl_jax.train import run as run_lib
from semppl_jax.workdir import lock
from tests.helpers import tiny

_ROOT = pathlib.Path(__file__).parent.parent


def test_everything_is_told(tmp_path):
  cfg = tiny.make_config(num_devices=2)
  lines = preflight.check_run(cfg, str(tmp_path / 'not' / 'there'))
  heads = [line.split(':')[0] for line in lines]
  assert heads == [
    'settings', 'data', 'duplicates', 'devices', 'memory', 'time', 'disk'
  ]  # fmt: skip
  assert '5 steps of 16 images' in lines[0]
  assert '40 training images, 12 of them with a label, of 3 classes' in lines[1]
  assert lines[2] == 'duplicates: none found among 50 images'
  assert '8 images at once on each device' in lines[4]
  assert '5 steps of' in lines[5]
  assert not (tmp_path / 'not').exists()


def test_duplicates_are_counted_where_images_are_few(tmp_path, monkeypatch):
  random = np.random.RandomState(0)
  images = random.randint(0, 256, (9, 8, 8, 3), np.uint8)
  train = np.concatenate([images, images[:3]])
  path = tmp_path / 'a.npz'
  np.savez(
    path, train_images=train, train_labels=np.arange(12) % 3,
    test_images=images[[0, 8]], test_labels=np.array([0, 1]),
  )  # fmt: skip
  cfg = tiny.make_config(num_devices=1, batch_size=4)
  cfg.labels.per_class = 1
  cfg.dataset.update(name='arrays', path=str(path))
  line = preflight.check_run(cfg, None)[2]
  assert line == (
    'duplicates: 3 pairs of training images; 3 training images have a copy '
    'among the test images, dataset.drop_duplicates=True leaves them out '
    '(`semppl-jax duplicates` lists them)'
  )
  monkeypatch.setattr(preflight, '_FEW', 13)
  assert 'not looked for among 14 images' in preflight.check_run(cfg, None)[2]


def test_floor_of_the_activations():
  run = tiny.prepare(precision='bfloat16', encoder__name='digits')
  # The stem at full side; then two blocks, each of two convolutions and a
  # shortcut, at half of it. Two large views of 8 pixels, a small one of 6.
  elements = lambda s: s * s * 32 + (s // 2) ** 2 * 3 * (32 + 64)
  assert preflight.floor(run) == 2 * (2 * elements(8) + elements(6))


def test_too_little_memory_says_what_would_fit(monkeypatch):
  cfg = tiny.make_config(num_devices=1, batch_size=32)
  run = run_lib.prepare(cfg)
  state = preflight._bytes(preflight._state(run))
  # This step's images, all parts of them, and the next step's.
  state += 2 * preflight._bytes(next(run_lib.input_batches(run, 0))[0])
  each = 2.4 * preflight.floor(run)
  there = int((state + 20.5 * each) / 0.92)  # an eighth is the allocator's
  monkeypatch.setattr(device_memory, 'capacity', lambda device: there)
  with pytest.raises(UserError, match='about 20 images would fit'):
    preflight.check_run(cfg, None)
  cfg.accumulate = 2  # 16 at once
  assert any(
    '16 images at once' in line for line in preflight.check_run(cfg, None)
  )


def test_a_begun_run_with_other_settings_is_refused_as_the_run_is(tmp_path):
  cfg = tiny.make_config(num_devices=1)
  lock.claim(str(tmp_path), cfg.to_dict())
  before = (tmp_path / 'config.json').read_text()
  preflight.check_run(cfg, str(tmp_path))
  cfg.progress = not cfg.progress  # changes nothing that is computed
  preflight.check_run(cfg, str(tmp_path))
  cfg.batch_size = 20
  with pytest.raises(UserError, match='other settings: batch_size is 16'):
    preflight.check_run(cfg, str(tmp_path))
  assert (tmp_path / 'config.json').read_text() == before


def test_too_little_room_on_the_disk(tmp_path, monkeypatch):
  cfg = tiny.make_config(num_devices=1)
  full = lambda place: type('Usage', (), {'free': 1000})
  monkeypatch.setattr(preflight.shutil, 'disk_usage', full)
  with pytest.raises(UserError, match='make room'):
    preflight.check_run(cfg, str(tmp_path))


@pytest.mark.parametrize(
  'arguments, status, words',
  [
    pytest.param([], 0, 'settings: fine', marks=pytest.mark.long),
    pytest.param(
      ['--config.batch_size=7'], 0, 'settings: fine', marks=pytest.mark.long
    ),
    (['--config.batch_size=1'], 2, 'batch_size is 1'),
    (['--config.dataset.name=folder', '--config.dataset.path=/no'], 2, '/no'),
    (['--config.loss.alhpa=1'], 2, "did you mean 'loss.alpha'"),
  ],
)
def test_on_the_command_line(arguments, status, words):
  done = subprocess.run(
    [sys.executable, '-m', 'semppl_jax.check',
     f'--config={_ROOT / "experiments/digits.py"}', *arguments],
    capture_output=True, text=True, cwd=_ROOT, check=False,
  )  # fmt: skip
  assert done.returncode == status, done.stderr[-3000:]
  told = (done.stderr if status else done.stdout).strip()
  assert words in told
  if status:
    assert len(told.splitlines()) == 1


def test_the_time_of_a_small_network_is_estimated(monkeypatch):
  cfg = tiny.make_config(num_devices=2, num_epochs=200.0)
  passes = []

  def seconds(cfg, facts, batch_size, device):
    passes.append(batch_size)
    return 0.5

  monkeypatch.setattr(preflight.pass_time, 'seconds_of_passes', seconds)
  (line,) = (x for x in preflight.check_run(cfg, None) if x.startswith('time'))
  # 500 steps of 2 devices, which share the cores; 1.3 for what is no pass.
  assert line.startswith('time: about 12 min, 500 steps of 1.3 s')
  assert passes == [8]
  monkeypatch.setattr(preflight, '_QUICK', 1)
  assert not any(x.startswith('time') for x in preflight.check_run(cfg, None))
