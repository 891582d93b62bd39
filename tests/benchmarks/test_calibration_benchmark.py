"""benchmarks.calibration: its labels leave every class one; table and plot."""

import numpy as np

from benchmarks import calibration as benchmark
from semppl_jax.data import datasets
from semppl_jax.data import labels as labels_lib
from semppl_jax.evaluation import calibration


def test_every_class_keeps_a_label():
  for kept, per_class in benchmark.DIGITS.items():
    cfg = benchmark.settings('digits', '', kept, 0)
    found = labels_lib.known(cfg.labels, datasets.load(cfg.dataset))
    assert (found.calibration >= 0).sum() == kept
    left = found.labels[found.labels >= 0]
    assert len(left) == 10 * per_class - kept and len(np.unique(left)) == 10
    assert cfg.seed == cfg.labels.seed


def test_rows_and_curves_of_made_up_runs():
  random = np.random.RandomState(0)
  share = random.rand(200)
  right = random.rand(200) < share
  bins = calibration.bins(share, right)
  one = benchmark.Curve(
    0.5, 0.4, (0.1, 0.05), (bins, bins), calibration.tenths(share, right)
  )
  (row,) = benchmark.rows({'A': one})
  assert row[:4] == ['A', 50.0, 10.0, 5.0] and row[-1] == 40.0
  assert len(row) == len(benchmark._HEADS) and row[4] < row[5]
  figure = benchmark.plot({'A': one})
  for ax in figure.axes:
    assert len(ax.lines) == 2
    np.testing.assert_allclose(
      ax.lines[1].get_ydata(), [b.accuracy for b in bins]
    )
