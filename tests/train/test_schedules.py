"""Schedules against the releases' numbers, and against values by hand."""

import functools

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize(
  'name, base, kind, start, final',
  [
    ('swav_lr', 0.3, 'swav', 0.3 / 16, 3e-4),  # 4096 images: 4.8, 0.3, 0.0048
    ('dino_lr', 0.3, 'swav', 0.0, 0.0048 * 256 / 4080),
    ('mira_lr', 0.3, 'mira', 0.3 / 16, 0.0),
  ],
)
@pytest.mark.parametrize('transform', (lambda f: f, jax.jit))
def test_learning_rates_of_clustering_methods_are_the_releases(
  name, base, kind, start, final, transform
):
  wanted = golden.load('clustering_schedules.npz')[name]
  rate = transform(
    lambda step: schedules.learning_rate(
      step, base=base, batch_size=4080 if name == 'dino_lr' else 4096,
      total_steps=30, warmup_steps=10, start=start, final=final,
      warmup_kind=kind,
    )
  )  # fmt: skip
  found = np.stack([rate(step) for step in range(30)])
  np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_starts_and_finals_by_hand():
  def rates(kind, warmup=4):
    return [
      schedules.learning_rate(
        step, base=2.0, batch_size=512, total_steps=6, warmup_steps=warmup,
        start=0.5, final=0.25, warmup_kind=kind,
      )
      for step in (0, 1, 2, 3, 4, 5, 6, 99)
    ]  # fmt: skip

  # All times 2: from 1 up to 4, down to 0.5 in two steps.
  end = [4, 2.25, 0.5, 0.5]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  close(rates('byol'), [1, 1.75, 2.5, 3.25, *end])
  close(rates('swav'), [1, 2, 3, 4, *end])
  close(rates('mira'), [1.6, 2.2, 2.8, 3.4, *end])
  # A warm-up of one step has its start, or what is between; none has neither.
  assert [rates(kind, 1)[0] for kind in schedules.WARMUPS] == [1, 1, 2.5]
  assert [rates(kind, 0)[0] for kind in schedules.WARMUPS] == [4, 4, 4]


def test_the_usual_schedules_did_not_move_by_a_bit():
  """Their formulas of before there were starts, ends and kinds."""

  def fraction(step, duration):
    return jnp.clip(jnp.asarray(step, jnp.float32) / max(duration, 1), 0, 1)

  def cosine(x):
    return 0.5 * (1 + jnp.cos(jnp.pi * x))

  def before(step):
    decay = cosine(fraction(step - 10, 90 - 10))
    rate = jnp.where(step < 10, fraction(step, 10), decay)
    return 0.3 * (4080 / 256) * rate, 1 - (1 - 0.996) * cosine(
      fraction(step, 90)
    )

  def now(step):
    return schedules.learning_rate(
      step, base=0.3, batch_size=4080, total_steps=90, warmup_steps=10
    ), schedules.ema_rate(step, base=0.996, total_steps=90)

  every = jnp.arange(100)
  for transform in (lambda f: f, jax.jit):
    np.testing.assert_array_equal(
      transform(jax.vmap(now))(every), transform(jax.vmap(before))(every)
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
