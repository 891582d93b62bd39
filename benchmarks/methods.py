"""One table of SemPPL and its rivals: same data, network, views and selection.

  python -m benchmarks.methods --workdir=runs/methods
  python -m benchmarks.methods --methods=swav,suave --seeds=5 --labels=2

scikit-learn's digits, experiments/digits.py. Of each row the settings of TRIALS
are tried on seed 10 and 300 held-out training images; the one with the best
mean of kNN and linear on the labelled images is taken for seeds 0, 1, ..., with
the test images. A seed decides weights, batches and which images have labels.
A row may begin with another's checkpoint of the same seed; both are then
trained. Rows that need no training stand beside.

Prints first what is to be trained and, from the runs that are finished, how
long it takes. Resumable: finished runs are kept. Start it as often as there are
cores, on one work directory: each takes runs that no other has, and waits for
those. Writes table.md and table.json: test top-1 in percent, mean and standard
error, and the paired difference from SemPPL.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from benchmarks import command, digits_methods, scores
from experiments import digits, digits_relicv2
from semppl_jax import pretraining
from semppl_jax.errors import UserError
from semppl_jax.train import watchdog
from semppl_jax.workdir import metrics, tables

VALIDATION_SEED = 10
VALIDATION_IMAGES = 300
BASELINE = 'semppl'  # whose scores the others' are compared with
_RATES = [{'optimizer.learning_rate': x} for x in (8e-3, 4e-3)]


def _product(*choices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  found = [{}]
  for options in choices:
    found = [one | option for one in found for option in options]
  return found


def _prototypes(*numbers: int) -> list[dict[str, Any]]:
  return [{'prototypes.number': number} for number in numbers]


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    experiment: () -> its config.
    trials: settings that are tried on the validation seed.
    begins_with: another row, whose checkpoint of the same seed is its init.
  """

  experiment: Any
  trials: list[dict[str, Any]]
  begins_with: str = ''


ROWS = {
  'semppl': Row(digits.get_config, [{}]),
  'relicv2': Row(digits_relicv2.get_config, [{}]),
  'swav': Row(
    lambda: digits.get_config('swav'), _product(_RATES, _prototypes(32, 64))
  ),
  'dino': Row(
    lambda: digits.get_config('dino'),
    _product(
      [{'optimizer.learning_rate': x} for x in (4e-3, 2e-3)],
      [{'loss.target_temperature': (x, x)} for x in (0.02, 0.03)],
    ),
  ),
  'mira': Row(
    lambda: digits.get_config('mira'),
    _product(
      [{'optimizer.learning_rate': x} for x in (4e-3, 2e-3)],
      _prototypes(32, 64),
    ),
  ),
  'suave': Row(
    lambda: digits.get_config('suave'),
    _product(
      [{'optimizer.learning_rate': x} for x in (8e-3, 2e-3)],
      [{'support.views': x} for x in (8, 24)],
    ),
    'swav',
  ),
  'daino': Row(
    lambda: digits.get_config('daino'),
    _product(
      [{'optimizer.learning_rate': x} for x in (8e-3, 2e-3)],
      [{'support.views': x} for x in (8, 24)],
    ),
    'dino',
  ),
  'semppl_after_relicv2': Row(
    digits.get_config,
    [{'optimizer.learning_rate': x} for x in (8e-3, 4e-3, 2e-3, 5e-4)],
    'relicv2',
  ),
}
WITHOUT_TRAINING = (digits_methods.UNTRAINED, digits_methods.PIXELS)
COLUMNS = {
  'pseudo_label_accuracy': 'pseudo-labels',
  'prediction_top1': 'own prediction',
  'knn_top1': 'kNN',
  'linear_labelled_top1': 'linear, labelled',
  'linear_all_top1': 'linear, all labels',
}


class Cell(NamedTuple):
  """One run: of a row, by a seed, with one of its trials."""

  row: str
  trial: int
  seed: int

  @property
  def validates(self) -> bool:
    """Whether it decides on settings, and sees no test image."""
    return self.seed == VALIDATION_SEED

  def folder(self, workdir: str) -> str:
    """Where it lies in the table's work directory."""
    return os.path.join(workdir, f'{self.row}-{self.seed}-{self.trial}')


def config(cell: Cell, workdir: str, labels: str) -> Any:
  """Settings of one run, on one device.

  Args:
    cell: which.
    workdir: of the table, where the run lies that this one begins with.
    labels: '2': so many a class; '10%': a share of all.
  """
  row = ROWS[cell.row]
  cfg = row.experiment()
  cfg.seed = cfg.labels.seed = cell.seed
  cfg.num_devices = 1
  cfg.progress = False
  if labels.endswith('%'):
    cfg.labels.update(per_class=0, fraction=float(labels[:-1]) / 100)
    if 'queue' in cfg and 'balance' in cfg.queue:
      cfg.queue.capacity = 256  # labelled images of 20 batches, as with 2
  else:
    cfg.labels.per_class = int(labels)
  if cell.validates:
    cfg.dataset.validation = VALIDATION_IMAGES
  cfg.update_from_flattened_dict(row.trials[cell.trial])
  if row.begins_with:
    start = _best(row.begins_with, workdir)
    begin = Cell(row.begins_with, start, cell.seed)
    cfg.init = begin.folder(workdir)
  return cfg


def results(cell: Cell, workdir: str) -> dict[str, Any] | None:
  """What a finished run has in results.json."""
  path = os.path.join(cell.folder(workdir), pretraining.RESULTS)
  return metrics.read_json(path)


def _judged(found: dict[str, Any]) -> float:
  """A validation run's score; 0 for one that was stopped by an alarm."""
  return (
    found.get('knn_top1', 0.0) + found.get('linear_labelled_top1', 0.0)
  ) / 2


def _best(row: str, workdir: str) -> int | None:
  """The trial with the best score; None: not all are finished."""
  number = len(ROWS[row].trials)
  if number == 1:
    return 0
  found = [
    results(Cell(row, trial, VALIDATION_SEED), workdir)
    for trial in range(number)
  ]
  return None if None in found else int(np.argmax(list(map(_judged, found))))


def cells(names: Sequence[str], seeds: int) -> Iterator[Cell]:
  """All runs of a table but for the choice of a trial, -1: the best one."""
  for name in names:
    trials = len(ROWS[name].trials)
    needed = any(ROWS[other].begins_with == name for other in names)
    for trial in range(trials if trials > 1 or needed else 0):
      yield Cell(name, trial, VALIDATION_SEED)
  for seed in range(seeds):
    for name in names:
      yield Cell(name, -1, seed)


def ready(cell: Cell, workdir: str) -> Cell | None:
  """The run with its trial, if all that it needs is finished."""
  row = ROWS[cell.row]
  if cell.trial < 0:
    best = _best(cell.row, workdir)
    if best is None:
      return None
    cell = cell._replace(trial=best)
  if row.begins_with:
    before = ready(Cell(row.begins_with, -1, cell.seed), workdir)
    if before is None or results(before, workdir) is None:
      return None
  return cell


def train(cell: Cell, workdir: str, labels: str) -> bool:
  """Trains a run; False: another process is at it."""
  return attempt(config(cell, workdir, labels), cell.folder(workdir))


def attempt(cfg: Any, folder: str) -> bool:
  """Trains a run of such settings; False: another process is at it."""
  path = os.path.join(folder, pretraining.RESULTS)
  try:
    pretraining.pretrain(cfg, folder)
  except watchdog.AlarmError as error:
    command.say(f'{folder}: {error}')
    metrics.write_json(path, {'alarm': str(error), 'seconds': 0.0, 'step': 0})
  except UserError as error:
    if 'Another job works' not in str(error):
      raise
    return False
  command.say(f'{folder}: {metrics.read_json(path)}')
  return True


def work(plan: Sequence[Cell], workdir: str, labels: str) -> None:
  """Trains whatever is ready and nobody else's, until all is finished."""

  def left():
    now = [ready(cell, workdir) for cell in plan]
    return [x for x in now if x is None or results(x, workdir) is None]

  until_done(left, lambda cell: train(cell, workdir, labels))


def until_done(
  left: Callable[[], Sequence[Any]], one: Callable[[Any], bool]
) -> None:
  """Trains runs one by one, beside other processes that do.

  Args:
    left: () -> runs that are not finished; None: one that waits for another.
    one: run -> whether it was trained; False: another process is at it.
  """
  while waiting := left():
    if not any(one(run) for run in waiting if run is not None):
      time.sleep(5)  # others are at what is left


def forecast(plan: Sequence[Cell], workdir: str) -> str:
  """How many runs are left, and how long they take by those that are done."""
  seconds: dict[str, list[float]] = {}
  left = []
  for cell in plan:
    now = ready(cell, workdir)
    found = now and results(now, workdir)
    if found:
      seconds.setdefault(cell.row, []).append(found['seconds'])
    else:
      left.append(cell.row)
  every = [x for row in seconds.values() for x in row]
  if not every:
    return f'{len(left)} runs of one core, a minute or two each.'
  hours = sum(np.mean(seconds.get(row, every)) for row in left) / 3600
  return f'{len(left)} runs are left, {hours:.1f} hours of one core.'


def table(names: Sequence[str], seeds: int, workdir: str) -> tuple[str, Any]:
  """The table of what is finished, and its numbers by row and seed."""
  found: dict[str, dict[int, dict[str, Any]]] = {}
  for name in names:
    for seed in range(seeds):
      now = ready(Cell(name, -1, seed), workdir)
      one = now and results(now, workdir)
      if one:
        found.setdefault(name, {})[seed] = one | {'trial': now.trial}
  for name in WITHOUT_TRAINING:
    for seed in range(seeds):
      one = digits_methods.one_cell(workdir, name, seed)
      found.setdefault(name, {})[seed] = one
  rows = []
  for name, by_seed in found.items():
    stopped = sum('alarm' in row for row in by_seed.values())
    number = f'{len(by_seed)}, {stopped} stopped' if stopped else len(by_seed)
    rows.append(
      [name, f'{number}', *_cells_of(by_seed, found.get(BASELINE, {}))]
    )
  heads = ['objective', 'seeds', *COLUMNS.values()]
  heads += [f'{column}, less {BASELINE}' for column in ('kNN', 'linear')]
  return tables.markdown([*heads, 'seconds'], rows), found


def _cells_of(
  by_seed: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]
) -> list[str]:
  cells = [
    _percent([row.get(key) for row in by_seed.values()]) for key in COLUMNS
  ]
  for key in ('knn_top1', 'linear_labelled_top1'):
    pairs = [
      (row.get(key), baseline[seed].get(key))
      for seed, row in by_seed.items()
      if seed in baseline
    ]
    known = [a - b for a, b in pairs if None not in (a, b)]
    cells.append(_percent(known, '+') if by_seed is not baseline else '')
  seconds = [row['seconds'] for row in by_seed.values() if 'seconds' in row]
  return [*cells, f'{np.median(seconds):.0f}' if seconds else '']


def _percent(values: Sequence[float | None], sign: str = '') -> str:
  known = [value for value in values if value is not None]
  return scores.percent(known, sign) if known else ''


def choices(names: Sequence[str], workdir: str) -> str:
  """Every validation score that decided."""
  rows = []
  for name in names:
    for trial, settings in enumerate(ROWS[name].trials):
      one = results(Cell(name, trial, VALIDATION_SEED), workdir)
      if one:
        told = ', '.join(f'{k}={v}' for k, v in settings.items())
        taken = 'yes' if _best(name, workdir) == trial else ''
        score = 'stopped' if 'alarm' in one else f'{100 * _judged(one):.1f}'
        rows.append([name, told, score, taken])
  return tables.markdown(
    ['objective', 'settings', 'kNN and linear, validation', 'taken'], rows
  )


def with_starts(names: Sequence[str]) -> list[str]:
  """The rows and those that they begin with, in the table's order."""
  wanted = set(names) | {ROWS[name].begins_with for name in names}
  return [name for name in ROWS if name in wanted]


def main() -> None:
  """Trains what is left, then writes the table."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/methods')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--labels', default='2', help='a class, or e.g. 10%%')
  parser.add_argument('--methods', default=','.join(ROWS))
  args = parser.parse_args()
  unknown = set(args.methods.split(',')) - ROWS.keys()
  if unknown:
    parser.error(
      f'--methods: {", ".join(sorted(unknown))}; known: {", ".join(ROWS)}'
    )
  logging.set_verbosity(logging.WARNING)
  os.makedirs(args.workdir, exist_ok=True)
  names = with_starts(args.methods.split(','))
  plan = list(cells(names, args.seeds))
  command.say(forecast(plan, args.workdir))
  work(plan, args.workdir, args.labels)
  text, found = table(names, args.seeds, args.workdir)
  text = f'{text}\n{choices(names, args.workdir)}'
  with open(os.path.join(args.workdir, 'table.md'), 'w') as file:
    file.write(text)
  metrics.write_json(os.path.join(args.workdir, 'table.json'), found)
  print(text)
  command.finish(args, found)


if __name__ == '__main__':
  main()
