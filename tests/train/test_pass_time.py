"""A step's time, from a pass that is measured."""

import itertools
import types

import jax
import numpy as np
import pytest

from semppl_jax import config
from semppl_jax.methods import base
from semppl_jax.train import pass_time


def settings(method):
  cfg = config.default(method)
  cfg.encoder.name, cfg.encoder.stem = 'digits', 'small'
  cfg.labels.fraction = 1.0
  cfg.update_from_flattened_dict(
    {
      'views.num_large': 2, 'views.large_size': 8, 'views.num_small': 6,
      'views.small_size': 4,
    }
  )  # fmt: skip
  if method != 'supervised':
    cfg.projector.hidden = cfg.projector.size = cfg.predictor.hidden = 8
  return cfg


FACTS = base.RunFacts(3, 40, np.ones(3) / 3, 40, 10, lambda epochs: 0)


def measured(method):
  return pass_time.seconds_of_passes(
    settings(method), FACTS, 4, jax.devices()[0]
  )


def test_a_pass_is_measured():
  assert 0 < measured('semppl') < 10


@pytest.mark.parametrize(
  'method, passes',
  [
    # Small views have a quarter of the pixels; the target network sees large
    # ones, forwards only.
    ('semppl', 2 + 6 / 4 + 2 / 3),
    ('byol', 2 + 6 / 4 + 2 / 3),
    ('supervised', 2),  # nothing sees the small ones
  ],
)
def test_passes_are_those_of_the_views_that_are_seen(
  method, passes, monkeypatch
):
  clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
  monkeypatch.setattr(pass_time, 'time', clock)
  assert measured(method) == pytest.approx(passes)
