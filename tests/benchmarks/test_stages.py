"""Tables of SimCLRv2's recipe and of trained checkpoints, by hand."""

import numpy as np
import pytest

from benchmarks import drawn_folders, simclrv2, start_from


@pytest.mark.skipif(
  bool(drawn_folders.missing_fonts()), reason='needs fonts of matplotlib 3.11'
)
def test_printed_digits_are_the_same_for_the_same_seed(tmp_path):
  for name, seed in (('a', 1), ('b', 1), ('c', 2)):
    start_from.printed_digits(tmp_path / f'{name}.npz', seed)
  a, b, c = (dict(np.load(tmp_path / f'{name}.npz')) for name in 'abc')
  assert all(np.array_equal(a[key], b[key]) for key in a)
  assert not np.array_equal(a['train_images'], c['train_images'])
  assert np.bincount(a['train_labels']).tolist() == [100] * 10


def test_the_table_of_rates_by_hand():
  cells = [('digits', '', 1, seed) for seed in (0, 1)]
  cells += [('digits', 'checkpoint', 0.3, seed) for seed in (0, 1)]
  results = {
    cell: {'knn_top1': 0.1 * i} for i, cell in enumerate(cells, start=1)
  }
  lines = start_from.summarise(results).splitlines()
  assert lines[2] == '| digits | random weights | 1 | 10.0 / 20.0 |'
  assert lines[3] == '| digits | checkpoint | 0.3 | 30.0 / 40.0 |'


def test_the_table_of_stages_by_hand():
  stages = {
    'pretrained': {'knn_top1': 0.5, 'linear_labelled_top1': 0.6},
    'fine-tuned': {'top1': 0.7},
    'distilled': {'classifier_top1': 0.8, 'knn_top1': 0.9},
  }
  better = stages | {'fine-tuned': {'top1': 0.9}}
  table = simclrv2.summarise({
    'SimCLR': {0: stages, 1: better},
    'pixels': {0: {'pretrained': stages['pretrained']}},
  })  # fmt: skip
  row, pixels = table.splitlines()[2:]
  cells = '50.0 ± 0.0 | 60.0 ± 0.0 | 80.0 ± 10.0 | 80.0 ± 0.0 | 90.0 ± 0.0'
  assert row == f'| SimCLR | 2 | {cells} |'
  assert pixels == '| pixels | 1 | 50.0 ± 0.0 | 60.0 ± 0.0 |  |  |  |'
