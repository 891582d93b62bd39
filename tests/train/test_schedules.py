"""Schedules against the releases' numbers, and against values by hand."""

import functools

import jax
import numpy as np
import pytest

from experiments import imagenet_byol
from semppl_jax.train import schedules
from tests.helpers import golden

SETTINGS = ('A', 'B', 'C_warmup0')


def release(tag):
  file = golden.load('schedules.npz')
  batch, base, total, warmup = file[
    f'{tag}/settings_batch_size_base_lr_total_warmup'
  ]
  settings = {
    'base': float(base),
    'batch_size': int(batch),
    'total_steps': int(total),
    'warmup_steps': int(warmup),
  }
  return settings, {k.split('/')[1]: v for k, v in file.items() if tag in k}


@pytest.mark.parametrize('tag', SETTINGS)
@pytest.mark.parametrize('transform', (lambda f: f, jax.jit))
def test_learning_rate_equals_the_releases(tag, transform):
  settings, expected = release(tag)
  rate = transform(lambda s: schedules.learning_rate(s, **settings))
  values = np.stack([rate(step) for step in expected['steps']])
  assert values.dtype == np.float32
  np.testing.assert_allclose(
    values, expected['learning_rate'], rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize('tag', SETTINGS)
def test_ema_rate_equals_the_releases(tag):
  settings, expected = release(tag)
  total = settings['total_steps']
  values = np.stack(
    [
      schedules.ema_rate(step, base=0.996, total_steps=total)
      for step in expected['steps']
    ]
  )
  assert values.dtype == np.float32
  np.testing.assert_allclose(
    values, expected['target_ema_base0.996'], rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize(
  'tag, base, batch_size',
  [
    ('v2_pretrain_800ep', 0.1, 4096),
    ('readme_100ep', 0.075, 4096),
    ('finetune_1pct', 0.005, 1024),
    ('finetune_10pct', 0.005, 1024),
  ],
)
def test_learning_rate_scaled_by_the_root_equals_simclrs(tag, base, batch_size):
  file = golden.load('simclr_schedule.npz')
  total, warmup = map(int, file[f'{tag}/total_warmup'])
  rates = [
    schedules.learning_rate(
      int(step), base=base, batch_size=batch_size, total_steps=total,
      warmup_steps=warmup, scaling='sqrt',
    )
    for step in file[f'{tag}/steps']
  ]  # fmt: skip
  wanted = file[f'{tag}/rate']
  np.testing.assert_allclose(rates, wanted, rtol=1e-6, atol=1e-6)
  assert max(rates) > 0.1


@pytest.mark.parametrize('preset', imagenet_byol.PRESETS)
def test_presets_of_epochs_are_byols(preset):
  file, cfg = golden.load('byol.npz'), imagenet_byol.get_config(preset)
  steps = functools.partial(
    schedules.to_steps, num_examples=1_281_167, batch_size=cfg.batch_size
  )
  total = steps(cfg.num_epochs)
  for step, rate, tau in zip(
    *(file[f'schedule/{preset}/{name}'] for name in ('steps', 'rate', 'tau'))
  ):
    found = schedules.learning_rate(
      step, base=cfg.optimizer.learning_rate, batch_size=cfg.batch_size,
      total_steps=total, warmup_steps=steps(cfg.optimizer.warmup_epochs),
      scaling=cfg.optimizer.scaling,
    )  # fmt: skip
    np.testing.assert_allclose(found, rate, rtol=1e-6, atol=1e-6)
    found = schedules.ema_rate(step, base=cfg.ema.base, total_steps=total)
    np.testing.assert_allclose(found, tau, rtol=1e-6)


def test_learning_rate_by_hand():
  at = lambda step: schedules.learning_rate(
    step, base=0.5, batch_size=512, total_steps=20, warmup_steps=10
  )
  # Peak 0.5 x 512 / 256 = 1; half of the decay is over at step 15.
  np.testing.assert_allclose(
    [at(0), at(5), at(10), at(15), at(20), at(99)],
    [0, 0.5, 1, 0.5, 0, 0],
    atol=1e-6,
  )
  peak = schedules.learning_rate(
    0, base=0.5, batch_size=64, total_steps=9, warmup_steps=0, scaling='sqrt'
  )
  assert peak == 4.0  # 0.5 x 8


@pytest.mark.parametrize('total, warmup', ((5, 5), (5, 10), (0, 0)))
def test_a_run_within_its_warmup_stays_finite(total, warmup):
  rates = [
    schedules.learning_rate(
      s, base=1.0, batch_size=256, total_steps=total, warmup_steps=warmup
    )
    for s in range(6)
  ]
  assert np.isfinite(rates).all()
  assert max(rates) <= 1


def test_constant_ema_rate_does_not_move():
  values = [
    schedules.ema_rate(s, base=0.99, total_steps=10, constant=True)
    for s in (0, 5, 10)
  ]
  np.testing.assert_array_equal(values, np.float32(0.99))


@pytest.mark.parametrize(
  'epochs, num_examples, batch_size, steps',
  (
    (300, 1_281_167, 4096, 93_835),  # 93,835.5
    (3, 10, 4, 7),  # a batch straddles two epochs
    (0.29, 100, 1, 29),  # 28.999... in floating point
    (0.001, 100, 10, 1),
    (0, 100, 10, 0),
  ),
)
def test_to_steps(epochs, num_examples, batch_size, steps):
  value = schedules.to_steps(
    epochs, num_examples=num_examples, batch_size=batch_size
  )
  assert value == steps
  assert isinstance(value, int)
