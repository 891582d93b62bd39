"""benchmarks.batch_sizes: which runs, with which settings; the table."""

import os

import numpy as np
import pytest

from benchmarks import batch_sizes, method_runs
from benchmarks.batch_sizes import Cell
from semppl_jax.train import schedules
from semppl_jax.workdir import metrics


def _peak(cfg):
  rates = schedules.learning_rate(
    np.arange(100),
    base=cfg.optimizer.learning_rate,
    batch_size=cfg.batch_size,
    total_steps=100,
    warmup_steps=10,
    scaling=cfg.optimizer.scaling,
  )
  return float(rates.max())


def test_queue_and_rate_go_with_the_batch():
  usual = batch_sizes.config(Cell('semppl', 128, 'linear', 1, 0))
  for rule, factor in (('constant', 1), ('square root', 2), ('linear', 4)):
    cfg = batch_sizes.config(Cell('semppl', 512, rule, 1, 0))
    assert _peak(cfg) == pytest.approx(factor * _peak(usual))
    assert cfg.queue.capacity == 4 * usual.queue.capacity
    assert cfg.num_epochs == usual.num_epochs
  assert all(
    batch_sizes.config(cell).dataset.validation == 300
    for cell in batch_sizes.cells(1)
  )


def test_parts_are_of_the_batch():
  cfg = batch_sizes.config(Cell('relicv2', 512, 'linear', 8, 0))
  assert (cfg.batch_size, cfg.accumulate, cfg.loss.alpha) == (512, 8, 0)


def test_the_table_has_what_is_finished(tmp_path, monkeypatch):
  def pretrain(cfg, workdir):
    os.makedirs(workdir)
    score = cfg.batch_size / 1000 + cfg.seed / 100
    found = dict.fromkeys(batch_sizes.COLUMNS, score)
    metrics.write_json(f'{workdir}/results.json', found)

  monkeypatch.setattr(method_runs.pretraining, 'pretrain', pretrain)
  for seed in range(2):
    cell = Cell('semppl', 256, 'linear', 1, seed)
    method_runs.attempt(batch_sizes.config(cell), cell.folder(str(tmp_path)))
  text, numbers = batch_sizes.table(3, str(tmp_path))
  assert list(numbers) == ['semppl 256 linear 1']
  assert text.splitlines()[2:] == [
    '| semppl | 256 | 1 | linear | 0.008 | 2 |' + ' 26.1 ± 0.5 |' * 4
  ]
