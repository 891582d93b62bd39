"""Every objective on the digits, beside pixels and an untrained encoder.

  python -m benchmarks.digits_methods --workdir=runs/digits_methods

2 labels per class, 5 seeds; a seed decides weights, batches and which images
have labels. Test top-1 in percent, and seconds of a step, of which compiling is
a part. Settings were chosen on seed 10 and a validation part of the training
images (docs/trials.md), never on these seeds or the test split. Resumable:
finished runs are kept, a broken-off one goes on. Two processes share the work
by --part=0/2 and --part=1/2; then once more without --part. Writes table.md and
table.json, and on how many seeds each objective is ahead of what needs no
training.
"""

import os
from typing import Any

import numpy as np
from absl import logging

from benchmarks import command, scores
from experiments import digits, digits_relicv2
from semppl_jax import pretraining
from semppl_jax.data import sources
from semppl_jax.evaluation import features, final_scores
from semppl_jax.train import resume
from semppl_jax.train import run as run_lib
from semppl_jax.workdir import metrics, tables

METHODS = {
  'SemPPL': digits.get_config,
  'ReLICv2': digits_relicv2.get_config,
  'BYOL': lambda: digits.get_config('byol'),
  'SimCLR': lambda: digits.get_config('simclr'),
  'supervised only': lambda: digits.get_config('supervised'),
}
UNTRAINED = 'untrained encoder'
PIXELS = 'pixels'
COLUMNS = {
  'knn_top1': 'kNN',
  'linear_labelled_top1': 'linear, labelled',
  'linear_all_top1': 'linear, all labels',
}


def config(method: str, seed: int) -> Any:
  """Of one run, on one device."""
  cfg = METHODS[method]()
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices = 1
  cfg.progress = False
  return cfg


def pixels(run: run_lib.TrainRun) -> dict[str, float]:
  """The columns with all pixels of an image as its embedding."""
  found = final_scores.scores(
    *map(_pixels, (run.data.train, run.data.test)),
    labels=run.labels,
    truth=run.data.train.labels,
    test_truth=run.data.test.labels,
    cfg=run.cfg,
  )
  return {key: found[key] for key in COLUMNS}


def _pixels(source: sources.Source) -> features.Features:
  images = np.stack([source[i]['image'] for i in range(len(source))])
  nothing = np.full(len(images), -1, np.int32)
  return features.Features(
    embeddings=images.reshape(len(images), -1) / np.float32(255),
    votes=nothing,
    guesses=nothing,
    readable=np.ones(len(images), bool),
  )


def one_cell(workdir: str, name: str, seed: int) -> dict[str, Any]:
  """What one row of the table has for one seed; trained, or found there."""
  folder = os.path.join(workdir, f'{name}-{seed}'.replace(' ', '_'))
  if name in METHODS:
    found = pretraining.pretrain(config(name, seed), folder)
    return found | {'step_seconds': found['seconds'] / found['step']}
  there = metrics.read_json(os.path.join(folder, pretraining.RESULTS))
  if there is not None:
    return there
  run = run_lib.prepare(config('SemPPL', seed))
  if name == UNTRAINED:
    os.makedirs(folder, exist_ok=True)
    state = run_lib.initial_state(run)
    return pretraining.finish(run, state, folder, resume.History())
  return pixels(run)


def summarise(results: dict[str, dict[int, dict[str, Any]]]) -> str:
  """Mean and standard error over seeds, in percent, and seconds of a step.

  Args:
    results: of each row, by seed.
  """
  heads = ['objective', 'seeds', *COLUMNS.values(), 'seconds a step']
  rows = []
  for name, by_seed in results.items():
    cells = [name, str(len(by_seed))]
    for key in COLUMNS:
      cells.append(scores.percent([row[key] for row in by_seed.values()]))
    seconds = [row.get('step_seconds') for row in by_seed.values()]
    cells.append('' if None in seconds else f'{np.median(seconds):.3f}')
    rows.append(cells)
  return tables.markdown(heads, rows)


def ahead(results: dict[str, dict[int, dict[str, Any]]]) -> str:
  """On how many seeds an objective is above pixels and untrained encoder."""
  lines = []
  for name in results.keys() & METHODS.keys():
    for other in (PIXELS, UNTRAINED):
      pairs = [
        (row, results[other][seed])
        for seed, row in results[name].items()
        if seed in results.get(other, {})
      ]
      counts = [
        f'{column} {sum(a[key] > b[key] for a, b in pairs)}'
        for key, column in COLUMNS.items()
      ]
      lines.append(
        f'{name}, ahead of {other} on so many of {len(pairs)} seeds: '
        f'{"; ".join(counts)}'
      )
  return '\n'.join(sorted(lines)) + '\n'


def main() -> None:
  """Trains this part's cells, then writes the table of all that are there."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/digits_methods')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--part', default='0/1', help='every n-th run, e.g. 1/2')
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  part, parts = map(int, args.part.split('/'))
  names = [*METHODS, UNTRAINED, PIXELS]
  cells = [(name, seed) for seed in range(args.seeds) for name in names]
  results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
  for name, seed in cells[part::parts]:
    results[name][seed] = one_cell(args.workdir, name, seed)
    print(name, seed, results[name][seed], flush=True)
  if parts > 1:
    return
  table = f'{summarise(results)}\n{ahead(results)}'
  with open(os.path.join(args.workdir, 'table.md'), 'w') as file:
    file.write(table)
  metrics.write_json(os.path.join(args.workdir, 'table.json'), results)
  print(table)
  command.finish(args, results)


if __name__ == '__main__':
  main()
