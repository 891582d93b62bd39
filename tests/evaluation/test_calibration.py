"""Platt scaling and calibration errors, by hand and against the truth."""

import numpy as np
import pytest
from scipy import special

from semppl_jax.evaluation import calibration


def test_error_and_bins_by_hand():
  confidence = np.array([0.05, 0.05, 0.95, 1.0])
  right = np.array([True, False, True, True])
  low, high = calibration.bins(confidence, right)
  assert low == (2, 0.05, 0.5) and high == (2, 0.975, 1.0)
  error = calibration.expected_calibration_error(confidence, right)
  assert error == pytest.approx(0.5 * 0.45 + 0.5 * 0.025)


def test_tenths_begin_with_the_least_confident():
  confidence = np.linspace(1, 0, 40)
  right = confidence > 0.5
  parts = calibration.tenths(confidence, right)
  assert [part.count for part in parts] == [4] * 10
  assert [part.accuracy for part in parts] == [0] * 5 + [1] * 5
  assert parts[0].confidence < parts[-1].confidence


def test_platt_finds_the_curve_that_made_the_answers():
  random = np.random.RandomState(0)
  share = random.uniform(0.02, 0.98, 20_000)
  true = special.expit(0.5 * special.logit(share) - 1)
  platt = calibration.fit(share, random.rand(len(share)) < true)
  assert platt == pytest.approx((0.5, -1), abs=0.05)
  np.testing.assert_allclose(platt(share), true, atol=0.02)


def test_a_larger_share_is_never_a_smaller_probability():
  share = np.linspace(0.1, 0.9, 60)
  platt = calibration.fit(share, share < 0.5)
  assert platt.slope == 0
  np.testing.assert_allclose(platt(share), platt(share)[0])


@pytest.mark.parametrize('right', [True, False])
def test_a_few_images_of_one_kind_are_no_certainty(right):
  """Platt's targets: of 60 right ones the next is right with 61/62."""
  platt = calibration.fit(np.full(60, 0.9), np.full(60, right))
  expected = 61 / 62 if right else 1 / 62
  np.testing.assert_allclose(platt(np.array([0.9])), expected, atol=1e-3)


def test_shares_of_0_and_1_have_probabilities():
  platt = calibration.Platt(1.0, 0.0)
  np.testing.assert_allclose(platt(np.array([0, 1])), [0.001, 0.999], rtol=1e-3)


def test_no_image_is_judged_by_itself():
  """Coin flips: what learns them by heart would look calibrated."""
  random = np.random.RandomState(1)
  share, right = random.rand(50), random.rand(50) < 0.5
  found = calibration.cross_validated(share, right)
  changed = right.copy()
  changed[7] = not changed[7]
  again = calibration.cross_validated(share, changed)
  assert found[7] == again[7] and (found != again).any()
