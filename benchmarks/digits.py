"""What semantic positives add, on the digits: README's table.

  python -m benchmarks.digits --workdir=runs/digits_table

Trains SemPPL, its special case ReLICv2 and supervised only, with 2 labels per
class (10 seeds) and 10% of the labels (3 seeds); a seed decides weights,
batches and which images have labels. Settings were chosen on seeds 10 to 14 and
a validation part of the training images (--config.dataset.validation=300),
never on these seeds or the test split: benchmarks/NOTES.md. Resumable: finished
runs are kept, a broken-off one goes on. Several processes may share the work:
--part=0/2 and --part=1/2, then once more without --part. Writes table.md and
table.json, and below the table SemPPL's lead over ReLICv2, seed by seed.
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any

from absl import logging

from benchmarks import scores
from experiments import digits, digits_relicv2, digits_supervised
from semppl_jax import pretraining
from semppl_jax.workdir import metrics

METHODS = {
  'SemPPL': digits,
  'ReLICv2 (no semantic terms)': digits_relicv2,
  'supervised only': digits_supervised,
}
# Labels, seeds; the queue holds about 20 batches' labelled images in both.
SETTINGS = {
  '2 per class': (dict(per_class=2, fraction=0.0), 32, 10),
  '10%': (dict(per_class=0, fraction=0.1), 256, 3),
}
COLUMNS = {
  'pseudo_label_accuracy': 'pseudo-labels',
  'knn_top1': 'kNN',
  'linear_labelled_top1': 'linear, labelled',
  'linear_all_top1': 'linear, all labels',
}


def runs() -> Iterator[tuple[str, str, int]]:
  """All cells of the table: labels, method, seed; comparable ones together."""
  for labels, (_, _, seeds) in SETTINGS.items():
    for seed in range(seeds):
      for method in METHODS:
        yield labels, method, seed


def one_run(workdir: str, labels: str, method: str, seed: int) -> Any:
  """Trains one cell (or finds it finished) and returns its results."""
  cfg = METHODS[method].get_config()
  chosen, capacity, _ = SETTINGS[labels]
  cfg.labels.update(chosen, seed=seed)
  cfg.queue.capacity = capacity
  cfg.seed = seed
  cfg.num_devices = 1
  return pretraining.pretrain(cfg, folder(workdir, labels, method, seed))


def folder(workdir: str, labels: str, method: str, seed: int) -> str:
  """Where a cell's run lies."""
  name = f'{labels}-{method.split()[0]}-{seed}'
  return os.path.join(workdir, name.replace(' ', '_').replace('%', 'pct'))


# Of each labels and method: results.json by seed.
Results = dict[tuple[str, str], dict[int, dict[str, Any]]]


def summarise(results: Results) -> str:
  """Mean and standard error over seeds as a Markdown table, in percent."""
  heads = ['labels', 'method', 'seeds', *COLUMNS.values()]
  lines = ['| ' + ' | '.join(heads) + ' |', '| --- ' * len(heads) + '|']
  for (labels, method), rows in results.items():
    cells = [labels, method, str(len(rows))]
    for key in COLUMNS:
      cells.append(scores.percent([row[key] for row in rows.values()]))
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def leads(results: Results) -> str:
  """SemPPL minus ReLICv2 on the same seeds, and SemPPL's worst seed."""
  lines = []
  for labels in SETTINGS:
    ours, other = (results.get((labels, m), {}) for m in list(METHODS)[:2])
    seeds = sorted(ours.keys() & other.keys())
    for key, name in COLUMNS.items() if len(seeds) > 1 else ():
      gains = [ours[s][key] - other[s][key] for s in seeds]
      lines.append(
        f'{labels}, {name}: {scores.percent(gains, "+")}, ahead on '
        f'{sum(gain > 0 for gain in gains)} of {len(gains)} seeds; worst seed '
        f'{100 * min(ours[s][key] for s in seeds):.1f}'
      )
  return '\n'.join(lines) + '\n'


def arguments() -> argparse.ArgumentParser:
  """Of this command and of `digits_evaluation`."""
  parser = argparse.ArgumentParser(prog='python -m benchmarks.digits')
  parser.add_argument('--workdir', default='runs/digits_table')
  return parser


def main() -> None:
  """Trains this part's cells, then writes the table of all finished ones."""
  parser = arguments()
  parser.add_argument('--part', default='0/1', help='every n-th run, e.g. 1/2')
  options = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  workdir = options.workdir
  part, parts = map(int, options.part.split('/'))
  for i, cell in enumerate(runs()):
    if i % parts == part:
      print(*cell, one_run(workdir, *cell), flush=True)
  results: Results = {}
  for labels, method, seed in runs():
    path = os.path.join(
      folder(workdir, labels, method, seed), pretraining.RESULTS
    )
    if done := metrics.read_json(path):
      results.setdefault((labels, method), {})[seed] = done
  table = summarise(results)
  with open(os.path.join(workdir, 'table.md'), 'w') as file:
    file.write(table + '\n' + leads(results))
  metrics.write_json(
    os.path.join(workdir, 'table.json'),
    {' / '.join(key): rows for key, rows in results.items()},
  )
  print(table + '\n' + leads(results))


if __name__ == '__main__':
  main()
