"""Evaluations of the digits' checkpoints: a table of docs/results.md.

  python -m benchmarks.digits_evaluation --workdir=runs/digits_table

Takes the SemPPL runs of `benchmarks.digits` (or trains them), 2 labels per
class, and runs the evaluation tasks on each: kNN and linear on the 20 labelled
images, fine-tuning on them, linear on all 1,500. Resumable. Writes
evaluation.md and evaluation.json.
"""

import importlib
import os
from typing import Any

from absl import logging

from benchmarks import digits, scores
from semppl_jax.evaluation import protocols
from semppl_jax.workdir import metrics

# Name in the table: experiment, variant.
TASKS = {
  'kNN, 20 labels': ('eval_knn', 'digits_20'),
  'linear, 20 labels': ('eval_linear', 'digits_20'),
  'fine-tuned, 20 labels': ('eval_semi_supervised', 'digits_20'),
  'linear, all labels': ('eval_linear', 'digits'),
}


def one_evaluation(workdir: str, name: str, seed: int) -> dict[str, Any]:
  """Evaluates one run by one task (or finds it done)."""
  cell = ('2 per class', 'SemPPL', seed)
  digits.one_run(workdir, *cell)
  run = digits.folder(workdir, *cell)
  experiment, variant = TASKS[name]
  cfg = importlib.import_module(f'experiments.{experiment}').get_config(variant)
  cfg.checkpoint, cfg.seed, cfg.labels.seed = run, seed, seed
  cfg.progress, cfg.num_devices = False, 1
  return protocols.run_task(
    cfg, os.path.join(run, 'evaluation', f'{experiment}_{variant}')
  )


def summarise(results: dict[str, list[float]]) -> str:
  """Mean and standard error of top-1 as a Markdown table, in percent."""
  lines = ['| evaluation | seeds | top-1 |', '| --- | --- | --- |']
  for name, top1 in results.items():
    lines.append(f'| {name} | {len(top1)} | {scores.percent(top1)} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Evaluates all runs and writes the table."""
  parser = digits.arguments()
  parser.add_argument('--seeds', type=int, default=5, help='so many runs')
  options = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  workdir = options.workdir
  results = {
    name: [
      one_evaluation(workdir, name, seed)['top1']
      for seed in range(options.seeds)
    ]
    for name in TASKS
  }
  table = summarise(results)
  with open(os.path.join(workdir, 'evaluation.md'), 'w') as file:
    file.write(table)
  metrics.write_json(os.path.join(workdir, 'evaluation.json'), results)
  print(table)


if __name__ == '__main__':
  main()
