"""The tables' arithmetic, by hand; and the rows that need no training."""

import numpy as np
import pytest

from benchmarks import digits_methods, drawn_folders, simclrv2, start_from
from semppl_jax.train import run as run_lib


def _row(value, **others):
  return dict.fromkeys(digits_methods.COLUMNS, value) | others


def test_the_table_of_methods_by_hand():
  results = {
    'BYOL': {0: _row(0.8, step_seconds=0.1), 1: _row(0.9, step_seconds=0.3)},
    digits_methods.PIXELS: {0: _row(0.6), 1: _row(0.95)},
    digits_methods.UNTRAINED: {0: _row(0.5), 1: _row(0.5)},
  }
  lines = digits_methods.summarise(results).splitlines()
  # A deviation of 7.07 points of two seeds.
  assert lines[2] == f'| BYOL | 2 |{" 85.0 ± 5.0 |" * 3} 0.200 |'
  assert lines[3].startswith('| pixels | 2 | 77.5 ± 17.5 |')
  assert digits_methods.ahead(results).splitlines() == [
    'BYOL, ahead of pixels on so many of 2 seeds: kNN 1; linear, labelled 1; '
    'linear, all labels 1',
    'BYOL, ahead of untrained encoder on so many of 2 seeds: kNN 2; linear, '
    'labelled 2; linear, all labels 2',
  ]


def test_pixels_know_their_neighbours():
  """A test image that is a labelled one has that one's label."""
  run = run_lib.prepare(digits_methods.config('SemPPL', 0))
  labelled = np.flatnonzero(run.labels >= 0)
  test = [run.data.train[i] for i in labelled]
  found = digits_methods.pixels(
    run._replace(data=run.data._replace(test=_Rows(test)))
  )
  assert found['knn_top1'] == found['linear_labelled_top1'] == 1
  assert digits_methods.pixels(run)['knn_top1'] < 0.9


class _Rows(list):
  @property
  def labels(self):
    return np.array([record['label'] for record in self])


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
