"""benchmarks.method_costs: settings and the table."""

import pytest

from benchmarks import method_costs


def test_settings_keep_what_is_the_objectives_own():
  cfg = method_costs.settings('suave', 'resnet18', 16, (96, 64, 32))
  # 3840 of batches of 256, and 128 labelled images beside one.
  assert (cfg.queue.capacity, cfg.support.images) == (240, 8)
  assert (cfg.views.num_large, cfg.views.num_small) == (2, 8)
  assert cfg.views.small_size == 32 and cfg.accumulate == 1


def test_the_table_by_hand():
  found = {
    'semppl': {'operations': 4e9, 'seconds': 2.0},
    'swav': {'operations': 1e9, 'seconds': 1.5},
  }
  lines = method_costs.show(found).splitlines()
  assert lines[2:] == [
    '| semppl | 4.0 | 1.00 | 2.00 | 1.00 |',
    '| swav | 1.0 | 0.25 | 1.50 | 0.75 |',
  ]
  assert method_costs.show({'semppl': {'operations': 4e9}}).splitlines()[2] == (
    '| semppl | 4.0 | 1.00 |'
  )


@pytest.mark.parametrize('name', method_costs.METHODS)
def test_every_objective_has_settings(name):
  cfg = method_costs.settings(name, 'resnet18', 16, (96, 64, 32))
  assert cfg.method == name and cfg.batch_size == 16
