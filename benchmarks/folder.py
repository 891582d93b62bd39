"""Small folders: SemPPL, ReLICv2, supervised only, pixels, a histogram.

  apt-get install fonts-noto-color-emoji
  pip install '.[saliency]'
  python -m benchmarks.folder --workdir=runs/folder_table
  python -m benchmarks.folder --kind=letters --workdir=runs/letters_table

Makes folders (`benchmarks.emoji_folder` with foreground masks, or a kind of
`benchmarks.drawn_folders`), one for each seed, trains the three variants of
experiments/folder.py on each, and writes table.md and table.json: test scores,
and SemPPL's leads set by set. Settings were chosen on seeds 10 and 11. Steps
are fixed, whatever the computer is like: 812, for supervised only 650.
Resumable, and several processes may share the work, as in `benchmarks.digits`:
--part=0/2 and --part=1/2, then once more without --part.
"""

import argparse
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging

from benchmarks import drawn_folders, emoji_folder, scores
from experiments import folder
from semppl_jax import config, pretraining
from semppl_jax.data import datasets
from semppl_jax.evaluation import baselines
from semppl_jax.tools import saliency
from semppl_jax.workdir import metrics

COLUMNS = {
  'knn_top1': 'kNN',
  'linear_labelled_top1': 'linear',
  'classifier_top1': 'classifier',
}
NAMES = {
  'semppl': 'SemPPL',
  'relicv2': 'ReLICv2 and labels',
  'supervised': 'supervised only',
}
BASELINES = {
  'baseline_pixels_top1': 'pixels',
  'baseline_histogram_top1': 'HSV histogram',
}
EMOJI = 'emoji'
STEPS = 812  # of a training with unlabelled images


def cells(seeds: int) -> Iterator[tuple[int, str]]:
  """All trainings: set and method; comparable ones together."""
  for seed in range(seeds):
    for method in folder.METHODS:
      yield seed, method


def make_set(workdir: str, kind: str, seed: int, unlabelled: int) -> str:
  """A folder, of emoji with its masks; its path."""
  path = os.path.join(workdir, f'set_{seed}_{unlabelled}')
  many = {'seed': seed, 'unlabelled': unlabelled}
  if kind != EMOJI:
    once(path, lambda new: drawn_folders.make(kind, new, **many))
    return path
  once(path, lambda new: emoji_folder.make(new, **many))
  data = datasets.load(dataset(path))
  about = {'fingerprint': data.fingerprint, 'dataset': f'folder {path}'}
  once(masks(path), lambda new: saliency.make(data.train, new, **about))
  return path


def dataset(path: str) -> Any:
  """The `dataset` section of a config for a folder."""
  cfg = config.default().dataset
  cfg.update(name='folder', path=path)
  return cfg


def once(path: str, make: Callable[[str], None]) -> None:
  """Makes a folder that is not there; another process may do so meanwhile."""
  if os.path.isdir(path):
    return
  own = f'{path}.{os.getpid()}'
  make(own)
  try:
    os.rename(own, path)
  except OSError:  # the other one was first
    shutil.rmtree(own)


def masks(path: str) -> str:
  """Where a set's masks lie: beside it."""
  return f'{path}-masks'


def settings(path: str, method: str, seed: int) -> Any:
  """Of one training; its steps are fixed, whatever the computer is like."""
  cfg = folder.get_config(method)
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices = 1
  cfg.dataset.path = path
  if os.path.isdir(masks(path)):
    cfg.dataset.masks = masks(path)
    cfg.views.saliency = 0.7
  steps, cfg.batch_size = (650, 24) if method == 'supervised' else (STEPS, 64)
  images = len(datasets.load(dataset(path)).train)
  cfg.num_epochs = steps * cfg.batch_size / images
  return cfg


def without_network(path: str) -> dict[str, dict[str, Any]]:
  """Top-1 of each baseline, which stands in all columns."""
  data = datasets.load(dataset(path))
  labels = data.train.labels
  found = baselines.scores(data.train, labels, data.test, data.test.labels)
  return {
    name: dict.fromkeys(COLUMNS, found[key]) for key, name in BASELINES.items()
  }


# Results by method and set.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def summarise(results: Results) -> str:
  """Mean and standard error over the sets, in percent, as Markdown."""
  heads = ['method', 'sets', *COLUMNS.values()]
  lines = ['| ' + ' | '.join(heads) + ' |', '| --- ' * len(heads) + '|']
  for method, rows in results.items():
    row = [method, str(len(rows))]
    row += [scores.percent([r[key] for r in rows.values()]) for key in COLUMNS]
    lines.append('| ' + ' | '.join(row) + ' |')
  return '\n'.join(lines) + '\n'


def leads(results: Results) -> str:
  """SemPPL minus each of the others on the same sets, in points."""
  ours, lines = results.get(NAMES['semppl'], {}), []
  for method, rows in results.items():
    if rows is ours:
      continue
    said = []
    for key, column in COLUMNS.items():
      gains = [ours[s][key] - rows[s][key] for s in ours if s in rows]
      ahead = sum(gain > 0 for gain in gains)
      said.append(
        f'{column} {scores.percent(gains, "+")} ({ahead} of {len(gains)} sets)'
      )
    lines.append(f'over {method}: {", ".join(said)}')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Trains what is missing and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', default='runs/folder_table')
  kinds = (EMOJI, *drawn_folders.KINDS)
  parser.add_argument('--kind', default=EMOJI, choices=kinds)
  parser.add_argument('--part', default='0/1', help='of the work, I/N')
  parser.add_argument('--seeds', type=int, default=5, help='sets 0 to N - 1')
  parser.add_argument('--unlabelled', type=int, default=60, help='of a class')
  options = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  make = lambda seed: make_set(
    str(workdir), options.kind, seed, options.unlabelled
  )
  run = lambda seed, method: str(workdir / f'{method}-{seed}')
  part, parts = map(int, options.part.split('/'))
  for number, (seed, method) in enumerate(cells(options.seeds)):
    if number % parts == part:
      cfg = settings(make(seed), method, seed)
      print(seed, method, pretraining.pretrain(cfg, run(seed, method)))
  results: dict[str, dict[int, Any]] = {}
  for seed, method in cells(options.seeds):
    path = os.path.join(run(seed, method), pretraining.RESULTS)
    if done := metrics.read_json(path):
      results.setdefault(NAMES[method], {})[seed] = done
      for name, row in without_network(make(seed)).items():
        results.setdefault(name, {})[seed] = row
  table = f'{summarise(results)}\nSemPPL {leads(results)}'
  (workdir / 'table.md').write_text(table)
  metrics.write_json(str(workdir / 'table.json'), results)
  print(table)


if __name__ == '__main__':
  main()
