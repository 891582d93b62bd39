"""SemPPL with few labels: chosen by USL, at random, or class by class.

  python -m benchmarks.selection --workdir=runs/selection
  python -m benchmarks.selection --workdir=runs/textures --kind=textures

scikit-learn's digits, 10, 20 and 40 labels, seeds 0 to 4; or a folder of 800
coloured textures of eight classes (`benchmarks.drawn_folders`), 8, 16 and 40
labels. Of each seed a ReLICv2 run without any label (digits_relicv2.py,
folder.py) gives the projections that `semppl-jax select` chooses from; then
SemPPL (digits.py, folder.py) trains from the start with the labels of that
list. Beside it SemPPL with as many labels at random (labels.rule=random), and
with as many of each class (stratified), which nobody can draw before labelling.
A seed decides weights, batches and labels. The digits' queue holds the labelled
images of about 20 batches, as in digits.py.

Resumable, and may be started several times on one work directory, as
benchmarks.methods. Writes table.md and table.json: test top-1 in percent, mean
and standard error, and the paired difference from random.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from benchmarks import (
  command,
  drawn_folders,
  folder,
  method_runs,
  method_table,
  scores,
)
from experiments import digits, digits_relicv2
from experiments import folder as folder_experiment
from semppl_jax.data import datasets
from semppl_jax.data import labels as labels_lib
from semppl_jax.tools import select
from semppl_jax.workdir import metrics, tables

ARMS = ('usl', 'random', 'stratified')
BASELINE = 'random'
START = 'relicv2'  # whose projections are chosen from
EARLY = 0.2  # share of training after which pseudo-labels are looked at
KINDS = ('digits', 'textures')
STEPS = 400  # of a training on textures
COLUMNS = {
  'early': f'pseudo-labels at {EARLY:.0%}',
  **{
    key: method_table.COLUMNS[key]
    for key in ('pseudo_label_accuracy', 'knn_top1', 'linear_labelled_top1')
  },
}


class Cell(NamedTuple):
  """One run: of an arm (or the start), with so many labels, by a seed."""

  arm: str
  budget: int
  seed: int
  kind: str = 'digits'  # of KINDS

  def folder(self, workdir: str) -> str:
    """Where it lies in the table's work directory."""
    return os.path.join(workdir, f'{self.arm}-{self.budget}-{self.seed}')


def chosen(cell: Cell, workdir: str) -> str:
  """The list that USL chooses for a run, made if it is not there."""
  path = f'{cell.folder(workdir)}.txt'
  if not os.path.exists(path):
    start = start_of(cell).folder(workdir)
    status = select.main([
      f'--checkpoint={start}', f'--budget={cell.budget}', f'--out={path}',
      f'--seed={cell.seed}',
    ])  # fmt: skip
    if status:
      raise SystemExit(status)
  return path


def start_of(cell: Cell) -> Cell:
  """The run without labels that its list is chosen by."""
  return cell._replace(arm=START, budget=0)


def classes(kind: str) -> int:
  """How many classes the data set has."""
  return 10 if kind == 'digits' else len(drawn_folders.TEXTURES)


def budgets(kind: str) -> tuple[int, ...]:
  """How many labels there are, multiples of the number of classes."""
  return tuple(classes(kind) * n for n in (1, 2, 4 if kind == 'digits' else 5))


def config(cell: Cell, workdir: str, epochs: float = 0) -> Any:
  """Settings of one run, on one device.

  Args:
    cell: which.
    workdir: of the table.
    epochs: 0: the experiment's, or STEPS.
  """
  is_start = cell.arm == START
  if cell.kind == 'digits':
    cfg = (digits_relicv2 if is_start else digits).get_config()
    if not is_start:
      cfg.queue.capacity = cfg.queue.capacity * cell.budget // 20
  else:
    cfg = _textures('relicv2' if is_start else 'semppl', workdir)
  cfg.seed = cfg.labels.seed = cell.seed
  cfg.num_devices = 1
  cfg.progress = False
  cfg.num_epochs = epochs or cfg.num_epochs
  cfg.labels.per_class = cell.budget // classes(cell.kind)  # of the start: 0
  if cell.arm == 'usl':
    cfg.labels.update(per_class=0, file=chosen(cell, workdir))
  if cell.arm == 'random':
    cfg.labels.rule = 'random'
  return cfg


def _textures(method: str, workdir: str) -> Any:
  """Settings for the folder, which is drawn if it is not there."""
  path = os.path.join(workdir, 'images')
  many = {'labelled': 100, 'unlabelled': 0, 'test': 50}  # of a class
  make = lambda new: drawn_folders.make('textures', new, seed=10, **many)
  folder.once(path, make)
  cfg = folder_experiment.get_config(method)
  cfg.dataset.update(path=path, image_size=48)
  # What folder.py would choose on a CPU; a GPU shall train the same.
  cfg.encoder.update(name='digits', stem='imagenet')
  cfg.views.update(large_size=32, small_size=16)
  cfg.labels.fraction = 0.0
  cfg.batch_size = 64
  images = many['labelled'] * classes('textures')
  cfg.num_epochs = STEPS * cfg.batch_size / images
  return cfg


def cells(seeds: int, kind: str = 'digits') -> Iterator[Cell]:
  """All runs, each after the one that it needs."""
  for seed in range(seeds):
    yield Cell(START, 0, seed, kind)
    for budget in budgets(kind):
      for arm in ARMS:
        yield Cell(arm, budget, seed, kind)


def ready(cell: Cell, workdir: str) -> bool:
  """Whether the run that it needs, if any, is finished."""
  if cell.arm != 'usl':
    return True
  return method_runs.results(start_of(cell), workdir) is not None


def work(plan: Sequence[Cell], workdir: str, epochs: float = 0) -> None:
  """Trains whatever is ready and nobody else's, until all is finished."""

  def left():
    waiting = [x for x in plan if method_runs.results(x, workdir) is None]
    return [x if ready(x, workdir) else None for x in waiting]

  method_runs.until_done(
    left,
    lambda cell: method_runs.attempt(
      config(cell, workdir, epochs), cell.folder(workdir)
    ),
  )


def found(cell: Cell, workdir: str) -> dict[str, Any] | None:
  """What a finished run has for the table; None: it is not finished."""
  one = method_runs.results(cell, workdir)
  if one is None:
    return None
  cfg = config(cell, workdir)
  seen = labels_lib.visible_labels(cfg.labels, datasets.load(cfg.dataset))
  counts = np.bincount(seen[seen >= 0], minlength=classes(cell.kind))
  return one | {
    'early': _early(cell.folder(workdir)),
    'classes': int(np.count_nonzero(counts)),
    'largest': int(counts.max()),
  }


def _early(folder: str) -> float | None:
  """Accuracy of the pseudo-labels of the line at EARLY of the training."""
  rows = metrics.read(folder)
  last = max((row['step'] for row in rows), default=0)
  known = [
    row['pseudo_label_accuracy']
    for row in rows
    if row['step'] <= EARLY * last
    and row.get('pseudo_label_accuracy') is not None
  ]
  return known[-1] if known else None


def table(
  seeds: int, workdir: str, kind: str = 'digits'
) -> tuple[str, dict[str, Any]]:
  """The table of what is finished, and its numbers by budget, arm and seed."""
  numbers: dict[str, dict[int, dict[str, Any]]] = {}
  for cell in cells(seeds, kind):
    one = None if cell.arm == START else found(cell, workdir)
    if one:
      row = numbers.setdefault(f'{cell.budget} {cell.arm}', {})
      row[cell.seed] = one
  rows = []
  for budget in budgets(kind):
    baseline = numbers.get(f'{budget} {BASELINE}', {})
    for arm in ARMS:
      by_seed = numbers.get(f'{budget} {arm}')
      if by_seed:
        rows.append([f'{budget}', arm, *_row(by_seed, baseline)])
  heads = ['labels', 'chosen', 'seeds', 'classes', 'largest class']
  heads += [*COLUMNS.values(), f'kNN, less {BASELINE}']
  return tables.markdown(heads, rows), numbers


def _row(
  by_seed: Mapping[int, dict[str, Any]],
  baseline: Mapping[int, dict[str, Any]],
) -> list[str]:
  """Seeds, classes, largest class, the columns, and the paired difference."""
  values = lambda key: [row.get(key) for row in by_seed.values()]
  percent = lambda known, sign='': scores.percent(known, sign) if known else ''
  known = lambda key: [x for x in values(key) if x is not None]
  pairs = [
    row['knn_top1'] - baseline[seed]['knn_top1']
    for seed, row in by_seed.items()
    if 'knn_top1' in row and 'knn_top1' in baseline.get(seed, {})
  ]
  return [
    f'{len(by_seed)}',
    f'{np.mean(values("classes")):.1f}',
    f'{np.mean(values("largest")):.1f}',
    *(percent(known(key)) for key in COLUMNS),
    percent(pairs, '+') if by_seed is not baseline else '',
  ]


def main() -> None:
  """Trains what is left, then writes the table."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/selection')
  parser.add_argument('--kind', default='digits', choices=KINDS)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument(
    '--epochs', type=float, default=0, help="for a trial; 0: the experiments'"
  )
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  os.makedirs(args.workdir, exist_ok=True)
  plan = list(cells(args.seeds, args.kind))
  waiting = sum(method_runs.results(x, args.workdir) is None for x in plan)
  command.say(f'{waiting} runs of one core are left, a minute or two each.')
  work(plan, args.workdir, args.epochs)
  text, numbers = table(args.seeds, args.workdir, args.kind)
  command.finish_table(args, text, numbers)


if __name__ == '__main__':
  main()
