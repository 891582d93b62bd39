"""Schedules against the release's numbers, and against values by hand."""

import jax
import numpy as np
import pytest

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
