"""From a folder of images without labels to labels, in rounds.

  apt-get install fonts-noto-color-emoji
  python -m benchmarks.rounds --workdir=runs/rounds

What a user does with 304 images of one's own (`benchmarks.emoji_folder`, eight
classes, coloured): trains without labels (folder.py:relicv2), labels 30 images,
trains (folder.py), labels 20 more, trains, and once more. Two arms: images that
`semppl-jax select` and then `semppl-jax label --next` name; and images drawn at
random. The user's labels are the truth, which lies outside of the folder and
which nothing else sees.

Resumable. Writes table.md and table.json: of each round the share of images
without a label whose pseudo-label in labels.csv is right, the test images that
the classifier and kNN get right, and how many classes have a label.
"""

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from benchmarks import command, emoji_folder, folder, scores
from experiments import folder as experiment
from semppl_jax import pretraining
from semppl_jax.data import datasets
from semppl_jax.evaluation import label_files
from semppl_jax.tools import label, select
from semppl_jax.workdir import tables

ARMS = ('chosen', 'random')
LABELS = (30, 50, 70)  # of the images, after each round
STEPS = 400
EACH = 38  # images of a class without a label
TEST = 50  # of a class
COLUMNS = {
  'right': 'pseudo-labels',
  'classifier_top1': 'classifier, test',
  'knn_top1': 'kNN, test',
  'classes': 'classes with a label',
}


def make_set(workdir: str, seed: int) -> tuple[str, dict[str, str]]:
  """A folder of images without labels, and the class of each by its name."""
  path = os.path.join(workdir, f'set_{seed}')
  truth = f'{path}-truth.csv'

  def make(new):
    rows = emoji_folder.make(
      pathlib.Path(new), seed=seed, labelled=0, unlabelled=EACH, test=TEST
    )
    with open(truth, 'w', newline='') as file:
      csv.writer(file).writerows(rows)
    for name in emoji_folder.CLASSES:  # as a user who knows the classes does
      os.makedirs(os.path.join(new, 'train', name), exist_ok=True)

  folder.once(path, make)
  with open(truth, newline='') as file:
    return path, dict(csv.reader(file))


def settings(path: str, seed: int, labels: str = '') -> Any:
  """Of one training; without labels it is ReLICv2's."""
  cfg = experiment.get_config('semppl' if labels else 'relicv2')
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices = 1
  cfg.progress = False
  cfg.dataset.path = path
  cfg.labels.update(file=labels, fraction=0.0)
  cfg.batch_size = 64
  images = len(datasets.load(folder.dataset(path)).train)
  cfg.num_epochs = STEPS * cfg.batch_size / images
  return cfg


def choose(
  arm: str, round_: int, folder_of: Mapping[int, str], names: list[str]
) -> list[str]:
  """The images to label in a round, by the run of the round before.

  Args:
    arm: see ARMS.
    round_: 0: the first one.
    folder_of: of the runs so far, -1: the one without labels.
    names: of the images without a label.
  """
  count = LABELS[round_] - (LABELS[round_ - 1] if round_ else 0)
  before = folder_of[round_ - 1]
  if arm == 'random':
    seed = int(os.path.basename(before).rpartition('-')[2])
    order = np.random.RandomState([seed, round_]).permutation(sorted(names))
    return order[:count].tolist()
  if round_:
    return label.label(before, next_images=count).next
  out = f'{before}-list.txt'
  if not os.path.exists(out):
    flags = [f'--checkpoint={before}', f'--budget={count}', f'--out={out}']
    if status := select.main(flags):
      raise SystemExit(status)
  return pathlib.Path(out).read_text().splitlines()


def one_arm(workdir: str, arm: str, seed: int) -> list[dict[str, Any]]:
  """All rounds of an arm: what each has for the table."""
  path, truth = make_set(workdir, seed)
  at = lambda what: os.path.join(workdir, f'{what}-{seed}')
  folder_of = {-1: at('start')}
  pretraining.pretrain(settings(path, seed), folder_of[-1])
  given: dict[str, str] = {}
  rounds = []
  for round_ in range(len(LABELS)):
    left = [name for name in truth if name not in given]
    for name in choose(arm, round_, folder_of, left):
      file = os.path.basename(name)
      given[file] = truth[file]
    labels = f'{at(f"{arm}_{round_}")}.csv'
    with open(labels, 'w', newline='') as file:
      csv.writer(file).writerows(given.items())
    folder_of[round_] = at(f'{arm}_{round_}')
    found = pretraining.pretrain(
      settings(path, seed, labels), folder_of[round_]
    )
    rounds.append(
      found
      | {
        'right': _right(folder_of[round_], truth, given),
        'classes': len(set(given.values())),
        'labels': len(given),
      }
    )
  return rounds


def _right(
  run: str, truth: Mapping[str, str], given: Mapping[str, str]
) -> float:
  """Share of right pseudo-labels in a run's labels.csv."""
  with open(os.path.join(run, label_files.NAME), newline='') as file:
    said = {
      os.path.basename(row['name']): row['pseudo_label']
      for row in csv.DictReader(file)
    }
  rest = truth.keys() - given.keys()
  return float(np.mean([said[name] == truth[name] for name in rest]))


def main() -> None:
  """Trains what is left, then writes the table."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/rounds')
  parser.add_argument('--seeds', type=int, default=1)
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  os.makedirs(args.workdir, exist_ok=True)
  found = {
    arm: [one_arm(args.workdir, arm, seed) for seed in range(args.seeds)]
    for arm in ARMS
  }
  rows = []
  for arm, of_seeds in found.items():
    for number, rounds in enumerate(zip(*of_seeds)):
      cells = [
        scores.percent([one[key] for one in rounds])
        for key in COLUMNS
        if key != 'classes'
      ]
      classes = np.mean([one['classes'] for one in rounds])
      rows.append([arm, str(LABELS[number]), *cells, f'{classes:.1f}'])
  text = tables.markdown(['images', 'labels', *COLUMNS.values()], rows)
  command.finish_table(args, text, found)


if __name__ == '__main__':
  main()
