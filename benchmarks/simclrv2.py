"""SimCLRv2's recipe on the digits: pre-train, fine-tune, distil. A table.

  python -m benchmarks.simclrv2 --workdir=runs/simclrv2

From SimCLR's and from SemPPL's encoder, and from both of twice the width, 2
labels per class, 5 seeds, beside pixels and an untrained encoder; a seed
decides weights, batches and which images have labels, the same in all stages.
The commands of a row are those of docs/simclrv2.md: fine-tuning from the
projector's first layer on the 20 labels, then a student of the usual width that
learns the fine-tuned network's probabilities. Settings of both were chosen on
seed 10 and a validation part of the training images (docs/trials.md). Test
top-1 in percent. Resumable; --part=0/2 and --part=1/2 share the work, then once
more without --part.
"""

import os
from typing import Any

from absl import logging

from benchmarks import command, scores, without_training
from experiments import digits, eval_semi_supervised
from semppl_jax import pretraining
from semppl_jax.evaluation import protocols
from semppl_jax.workdir import tables

# Method and width of the encoder that a row begins with.
STARTS = {
  'SimCLR': ('simclr', 1),
  'SemPPL': ('semppl', 1),
  'SimCLR 2x': ('simclr', 2),
  'SemPPL 2x': ('semppl', 2),
}
COLUMNS = {
  'pre-trained, kNN': ('pretrained', 'knn_top1'),
  'pre-trained, linear on the labels': ('pretrained', 'linear_labelled_top1'),
  'fine-tuned': ('fine-tuned', 'top1'),
  'distilled, its classifier': ('distilled', 'classifier_top1'),
  'distilled, kNN': ('distilled', 'knn_top1'),
}

Results = dict[str, dict[int, dict[str, Any]]]  # by start, seed and stage


def stages(workdir: str, start: str, seed: int) -> dict[str, Any]:
  """Results of the stages of one row and seed; trained, or found."""
  if start in without_training.NAMES:
    cfg = _pretraining('semppl', seed)
    return {'pretrained': without_training.results(start, cfg, workdir)}
  row = f'{start}-{seed}'.replace(' ', '_')
  place = lambda stage: os.path.join(workdir, row, stage)
  method, width = STARTS[start]
  cfg = _pretraining(method, seed)
  cfg.encoder.width = width
  found = {'pretrained': pretraining.pretrain(cfg, place('pretrained'))}

  cfg = eval_semi_supervised.get_config('digits_20')
  cfg.checkpoint = place('pretrained')
  cfg.seed = cfg.labels.seed = seed
  cfg.classifier.update(on='projector/1', init='zeros')
  cfg.grid.update(learning_rates=(0.03,), encoder_learning_rates=(0.03,))
  cfg.num_devices, cfg.progress = 1, False
  found['fine-tuned'] = protocols.run_task(cfg, place('fine-tuned'))

  cfg = digits.get_config('distill')
  cfg.teacher.checkpoint = place('fine-tuned')
  cfg.loss.temperature = 1.0
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices, cfg.progress = 1, False
  found['distilled'] = pretraining.pretrain(cfg, place('distilled'))
  return found


def _pretraining(method: str, seed: int) -> Any:
  cfg = digits.get_config(method)
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices, cfg.progress = 1, False
  return cfg


def summarise(results: Results) -> str:
  """Mean and standard error over seeds, in percent."""
  rows = []
  for start, by_seed in results.items():
    row = [start, str(len(by_seed))]
    for stage, key in COLUMNS.values():
      found = [of[stage][key] for of in by_seed.values() if stage in of]
      row.append(scores.percent(found) if found else '')
    rows.append(row)
  return tables.markdown(['begins with', 'seeds', *COLUMNS], rows)


def main() -> None:
  """Trains this part's rows, then writes the table of all."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/simclrv2')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--part', default='0/1', help='every n-th row, e.g. 1/2')
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  part, parts = map(int, args.part.split('/'))
  starts = (*STARTS, *without_training.NAMES)
  cells = [(start, seed) for seed in range(args.seeds) for start in starts]
  results: Results = {start: {} for start in starts}
  for start, seed in cells[part::parts]:
    results[start][seed] = stages(args.workdir, start, seed)
    print(start, seed, summarise({start: {seed: results[start][seed]}}))
  if parts == 1:
    print(summarise(results))
    command.finish(args, results)


if __name__ == '__main__':
  main()
