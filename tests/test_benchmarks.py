"""The table's arithmetic, by hand."""

from benchmarks import digits


def _row(**values):
  return dict.fromkeys(digits.COLUMNS, 0.5) | values


def test_mean_and_standard_error():
  rows = [_row(knn_top1=0.8), _row(knn_top1=0.9), _row(knn_top1=1.0)]
  table = digits.summarise({('10%', 'SemPPL'): rows})
  head, _, line = table.splitlines()
  cells = [cell.strip() for cell in line.strip('|').split('|')]
  names = [cell.strip() for cell in head.strip('|').split('|')]
  # Deviation 0.1 of 3 values: 10 / sqrt(3) = 5.8 percent.
  assert dict(zip(names, cells))['kNN'] == '90.0 ± 5.8'
  assert cells[:3] == ['10%', 'SemPPL', '3']


def test_every_cell_has_a_folder_of_its_own():
  cells = list(digits.runs())
  assert len(cells) == 3 * (5 + 3)
  assert len({digits.folder('x', *cell) for cell in cells}) == len(cells)
