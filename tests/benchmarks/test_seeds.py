"""The watchdog on real trainings: good starts go on, broken runs do not."""

import pytest

from benchmarks import seeds
from semppl_jax.train import run as run_lib


@pytest.mark.long
def test_starts_of_three_seeds_raise_no_alarm():
  step = seeds.mapped(run_lib.prepare(seeds.config()))
  for seed in (101, 102, 103):
    run = run_lib.prepare(seeds.config(seed))
    assert seeds.alarm(run, step, seeds.STEPS) == ''


@pytest.mark.long
@pytest.mark.parametrize(
  'name, words',
  [
    ('no predictor, the online network as target', 'embedding_std'),
    ('100 times the rate', 'loss/augmentation|taken over'),
    ('labels of one class only', 'taken over'),
  ],
)
def test_broken_runs_alarm(name, words):
  run = seeds.broken()[name]
  said = seeds.alarm(run, seeds.mapped(run), seeds.STEPS)
  assert any(word in said for word in words.split('|')), said
