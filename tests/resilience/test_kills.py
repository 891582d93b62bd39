"""Runs that are killed at random moments end as if they never had been."""

import pytest

from tests.resilience import kills


@pytest.mark.long  # test_pretraining has runs that end at any step
def test_three_kills(tmp_path):
  """With a step that compiles at once: the rest is the run's own."""
  assert len(kills.kill(3, 0, tmp_path, light=True)) == 3


@pytest.mark.long
def test_fifty_kills(tmp_path):
  """Every life after the first kill goes on with what the last one left."""
  fell = kills.kill(50, 1, tmp_path, light=True)
  print(kills.summary(fell))
  assert len(fell) == 50


@pytest.mark.long
def test_kills_of_the_command_line_itself(tmp_path):
  """The real step, and a new process for every life."""
  assert len(kills.kill(3, 2, tmp_path, command=True)) == 3
