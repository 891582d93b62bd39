"""Ramps against the schedules of DINO, Daino and MIRA, and by hand."""

import jax
import numpy as np
import pytest

from semppl_jax.utils import ramps
from tests.helpers import golden

GOLDEN = golden.load('clustering_schedules.npz')


def values(fn, steps):
  found = np.stack([jax.jit(fn)(step) for step in range(steps)])
  assert found.dtype == np.float32
  return found


@pytest.mark.parametrize(
  'name, first, last',
  [
    ('dino_wd', 0.04, 0.4),
    ('dino_momentum', 0.996, 1.0),
    ('mira_beta', 3 / 4, 2 / 3),
    ('mira_ema', 0.99, 1.0),
  ],
)
def test_a_cosine_is_the_releases(name, first, last):
  wanted = GOLDEN[name]
  found = values(lambda t: ramps.cosine(t, first, last, 30), len(wanted))
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
  'name, epochs', [('dino_teacher_temp_rn50', 50), ('daino_teacher_temp', 10)]
)
def test_a_temperature_by_epoch_is_the_releases(name, epochs):
  settings = {'epochs': epochs, 'steps': lambda e: int(2.5 * e)}
  found = values(
    lambda step: ramps.linear_by_epoch(step, 0.04, 0.07, **settings), 150
  )
  # Epochs of 2 and of 3 steps, in turn.
  epoch = np.repeat(np.arange(60), [2, 3] * 30)
  np.testing.assert_allclose(found, GOLDEN[name][epoch], rtol=1e-6)


@pytest.mark.parametrize(
  'epochs, wanted',
  [
    (0, [7, 7, 7, 7, 7, 7]),
    (1, [1, 1, 7, 7, 7, 7]),
    (2, [1, 1, 7, 7, 7, 7]),
    (3, [1, 1, 4, 4, 7, 7]),
  ],
)
def test_few_epochs_by_hand(epochs, wanted):
  found = values(
    lambda step: ramps.linear_by_epoch(
      step, 1.0, 7.0, epochs=epochs, steps=lambda e: 2 * e
    ),
    6,
  )
  np.testing.assert_array_equal(found, wanted)


def test_lines_and_cosines_by_hand():
  times = (-3, 0, 1, 2, 4, 9)
  line = [ramps.linear(t, 1.0, 5.0, 4) for t in times]
  np.testing.assert_array_equal(line, [1, 1, 2, 3, 5, 5])
  curve = [ramps.cosine(t, 1.0, 5.0, 4) for t in times]
  quarter = 3 - 2 * np.sqrt(0.5)
  np.testing.assert_allclose(curve, [1, 1, quarter, 3, 5, 5], rtol=1e-6)
  # No duration: the end is reached after one step.
  assert [ramps.linear(t, 1.0, 5.0, 0) for t in (0, 1)] == [1, 5]
