"""Traces are of the steps that were asked for."""

import jax.numpy as jnp
import pytest

from semppl_jax.train import profile as profile_lib


@pytest.fixture
def traced(monkeypatch):
  """Which steps were taken while a trace was on; it is not made."""
  on, seen = [], []
  monkeypatch.setattr(profile_lib.jax.profiler, 'start_trace', on.append)
  monkeypatch.setattr(profile_lib.jax.profiler, 'stop_trace', on.clear)

  def take(profile, steps):
    with profile:
      for step in steps:
        profile.before(step)
        seen.extend([step] * len(on))
        profile.after(step, jnp.zeros(()))
    assert not on
    return seen

  return take


@pytest.mark.parametrize(
  'asked, steps, expected',
  [
    ((0, 0), range(1, 5), []),
    ((2, 3), range(1, 6), [2, 3]),
    ((2, 2), range(1, 4), [2]),
    ((2, 9), range(1, 4), [2, 3]),  # the run ends before
    ((2, 4), range(3, 7), [3, 4]),  # and begins later
    ((2, 4), range(6, 8), []),
  ],
)
def test_steps_first_to_last(traced, asked, steps, expected):
  assert traced(profile_lib.Profile('nowhere', asked), steps) == expected


def test_a_trace_is_written(tmp_path):
  with profile_lib.Profile(str(tmp_path), (1, 1)) as profile:
    profile.before(1)
    profile.after(1, jnp.arange(3).sum())
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
