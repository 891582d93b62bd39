"""benchmarks.selection: which runs, with which labels; the table; the costs."""

import functools
import os

import numpy as np
import pytest

from benchmarks import method_runs, selection, selection_cost
from benchmarks.selection import Cell
from semppl_jax.data import datasets
from semppl_jax.data import labels as labels_lib
from semppl_jax.workdir import metrics


@pytest.fixture
def trained(monkeypatch):
  """Configs in the order of their training; lists of the first images."""
  seen = []

  def pretrain(cfg, workdir):
    seen.append(cfg)
    os.makedirs(workdir)
    score = 0.5 + cfg.seed / 100
    if cfg.labels.file:
      score += 0.2
    found = {'knn_top1': score, 'linear_labelled_top1': score, 'step': 10}
    metrics.write_json(f'{workdir}/results.json', found)
    with open(f'{workdir}/metrics.jsonl', 'w') as file:
      for step in (1, 2, 3, 10):
        file.write(f'{{"step": {step}, "pseudo_label_accuracy": 0.{step}}}\n')

  def choose(flags):
    given = dict(flag.removeprefix('--').split('=', 1) for flag in flags)
    assert os.path.exists(f'{given["checkpoint"]}/results.json')
    names = [str(i) for i in range(int(given['budget']))]
    names = [x for x in names if x in _names()]
    with open(given['out'], 'w') as file:
      file.write('\n'.join(names))
    return 0

  monkeypatch.setattr(method_runs.pretraining, 'pretrain', pretrain)
  monkeypatch.setattr(selection.select, 'main', choose)
  return seen


@functools.cache
def _names():
  return set(datasets.load(selection.digits.get_config().dataset).train.names)


def test_every_arm_has_as_many_labels(trained, tmp_path):
  plan = list(selection.cells(1))
  selection.work(plan, str(tmp_path))
  start, *others = trained
  assert start.loss.alpha == 0 and start.labels.per_class == 0
  assert len(others) == 9
  data = datasets.load(start.dataset)
  for cfg, cell in zip(others, plan[1:], strict=True):
    assert cfg.loss.alpha > 0 and not cfg.init
    assert cfg.queue.capacity == {10: 16, 20: 32, 40: 64}[cell.budget]
    seen = labels_lib.visible_labels(cfg.labels, data)
    if cell.arm == 'usl':
      assert cfg.labels.file.endswith(f'usl-{cell.budget}-0.txt')
    else:
      assert np.sum(seen >= 0) == cell.budget
    counts = np.bincount(seen[seen >= 0], minlength=10)
    assert (cell.arm == 'stratified') == (len(set(counts)) == 1)
  selection.work(plan, str(tmp_path))
  assert len(trained) == 10  # finished ones are kept


def test_the_table_by_hand(trained, tmp_path):
  selection.work(list(selection.cells(2)), str(tmp_path))
  text, numbers = selection.table(2, str(tmp_path))
  usl, random, stratified = text.splitlines()[2:5]
  cells = [cell.strip() for cell in stratified.strip('| ').split('|')]
  assert cells == [
    '10', 'stratified', '2', '10.0', '1.0', '20.0 ± 0.0', '',
    '50.5 ± 0.5', '50.5 ± 0.5', '+0.0 ± 0.0',
  ]  # fmt: skip
  assert usl.endswith('| 70.5 ± 0.5 | 70.5 ± 0.5 | +20.0 ± 0.0 |')
  assert random.endswith('| 50.5 ± 0.5 | 50.5 ± 0.5 |  |')
  assert numbers['40 usl'][1]['early'] == 0.2


def test_a_list_is_chosen_once_its_start_is_finished(tmp_path):
  assert not selection.ready(Cell('usl', 10, 0), str(tmp_path))
  assert selection.ready(Cell('random', 10, 0), str(tmp_path))


def test_costs_are_measured_and_projected():
  small, large = (selection_cost.measure(n, 5, 2) for n in (40, 80))
  assert all(small[part] > 0 for part in selection_cost.PARTS)
  large |= {'density': 2.0, 'k-means': 3.0, 'peak_mb': small['peak_mb'] + 4}
  found = selection_cost.projected([small, large], iterations=4)
  more = selection_cost.IMAGENET / 80
  assert found['density'] == pytest.approx(2 * more**2)
  wider = selection_cost.IMAGENET_BUDGET / 5
  assert found['k-means'] == pytest.approx(3 * more * wider * 2)
  grown = 0.1 * (selection_cost.IMAGENET - 80)
  assert found['peak_mb'] == pytest.approx(large['peak_mb'] + grown)
  text = selection_cost.table([small, large, found])
  assert '1,281,167, projected' in text and text.count('projected') == 1
