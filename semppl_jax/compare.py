"""SemPPL, ReLICv2 and supervised only on one folder: one table, one page.

  semppl-jax compare --config.dataset.path=DIR --workdir=runs/mine

Trains the three variants of experiments/folder.py in WORKDIR/semppl, /relicv2
and /supervised, one after another, with the same labels, for --config.minutes
(10) each; ReLICv2 takes as many steps as SemPPL. All other arguments are those
of `semppl_jax.main`. The same command goes on where it was stopped. Leaves
WORKDIR/table.md, table.json and compared.html.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Variant of experiments/folder.py -> what the table calls it.
METHODS = {
  'semppl': 'SemPPL',
  'relicv2': 'ReLICv2 and labels',
  'supervised': 'supervised only',
}
_ALARM = 3  # exit status of a training that the watchdog stopped
# Settings that the first training chose by the clock.
_SAME = ('num_epochs', 'batch_size')


def run(workdir: str, arguments: Sequence[str]) -> int:
  """Trains all, and writes the table and the page.

  Args:
    workdir: a folder for the three runs.
    arguments: for each of them, of `semppl_jax.main`.

  Returns:
    0, or the exit status of a training that failed; one that the watchdog
    stopped is left out of the table.
  """
  for method in METHODS:
    folder = os.path.join(workdir, method)
    command = [
      sys.executable, '-m', 'semppl_jax.main', f'--config=folder:{method}',
      f'--workdir={folder}',
    ]  # fmt: skip
    own = [] if method != 'relicv2' else _as(os.path.join(workdir, 'semppl'))
    print(f'--- {METHODS[method]}', flush=True)
    status = subprocess.run([*command, *own, *arguments]).returncode
    if status not in (0, _ALARM):
      return 128 - status if status < 0 else status
  _tell(workdir)
  return 0


def _as(folder: str) -> list[str]:
  """Arguments that give another run as many steps."""
  from semppl_jax import config
  from semppl_jax.workdir import config_file

  settings = config_file.read(folder)
  found = {key: config.find(settings, key) for key in _SAME}
  return [f'--config.{k}={x}' for k, x in found.items() if x is not None]


def _tell(workdir: str) -> None:
  from semppl_jax import storage
  from semppl_jax.report import page
  from semppl_jax.workdir import metrics, names, tables

  folders = {m: os.path.join(workdir, m) for m in METHODS}
  results = {
    method: metrics.read_json(os.path.join(folder, names.RESULTS))
    for method, folder in folders.items()
  }
  heads, rows = table({m: found for m, found in results.items() if found})
  note = 'Percent of the test images. One run each: look twice at small leads.'
  tables.write(workdir, heads, rows, note)
  print(tables.markdown(heads, rows))
  print(note)
  there = [f for f in folders.values() if storage.is_dir(f)]
  written = page.write(there, os.path.join(workdir, 'compared.html'))
  print(f'A page about them: {written}')


def table(
  results: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], list[list[Any]]]:
  """Heads and rows: what needs no network, then each method.

  Args:
    results: of results.json, by method.
  """
  from semppl_jax.evaluation import verdict

  percent = lambda found, key: (
    None if found.get(key) is None else round(100 * found[key], 1)
  )
  any_of = next(iter(results.values()), {})
  # They are no kNN and no classifier: the column in the middle is theirs.
  rows = [
    [name, None, percent(any_of, key), None, None]
    for key, name in verdict.BASELINES.items()
  ]
  for method, found in results.items():
    scores = [percent(found, key) for key in verdict.SCORES]
    rows.append([METHODS[method], *scores, found.get('step')])
  return ['method', *verdict.SCORES.values(), 'steps'], rows


def main() -> int:
  """Entry point of `semppl-jax compare`."""
  parser = argparse.ArgumentParser(
    prog='semppl-jax compare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--workdir', required=True, metavar='DIR')
  options, rest = parser.parse_known_args()
  if any(argument.startswith('--config=') for argument in rest):
    parser.error('--config is experiments/folder.py; leave it out')
  if not any(a.startswith('--config.dataset.path') for a in rest):
    parser.error('--config.dataset.path=DIR is missing: the folder of images')
  return run(options.workdir, rest)


if __name__ == '__main__':
  sys.exit(main())
