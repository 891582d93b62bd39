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


def _made_up(seed):
  random = np.random.RandomState(seed)
  share = 0.85 * random.rand(200)
  right = random.rand(200) < share
  share[0] = 1.0  # alone in the last bin
  return benchmark.Curve(share, share**2, right, 0.4)


def test_a_row_is_the_mean_over_seeds():
  a, b = _made_up(0), _made_up(1)
  text = benchmark.table({'A': [a, b], 'B': [a]})
  heads, _, first, second = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.strip().splitlines()
  ]
  assert heads[2:] == list(a.scores()) and first[:2] == ['A', '2']
  mean = 50 * (a.right.mean() + b.right.mean())
  assert first[2].startswith(f'{mean:.1f} ±')
  error = calibration.expected_calibration_error
  assert second[3:5] == [
    f'{100 * error(x, a.right):.1f} ± 0.0' for x in (a.share, a.probability)
  ]
  assert float(second[5].split()[0]) < float(second[6].split()[0])


def test_curves_are_of_all_seeds_together():
  found = [_made_up(0), _made_up(1)]
  figure = benchmark.plot({'A': found})
  right = np.concatenate([one.right for one in found])
  for ax, field in zip(figure.axes, ('share', 'probability'), strict=True):
    values = np.concatenate([getattr(one, field) for one in found])
    bins = calibration.bins(values, right)
    drawn = [b for b in bins if b.count >= 10]
    assert len(ax.lines) == 2
    np.testing.assert_allclose(
      ax.lines[1].get_ydata(), [b.accuracy for b in drawn]
    )
