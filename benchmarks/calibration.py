"""What shares and probabilities of pseudo-labels are worth, on images known.

  python -m benchmarks.calibration --workdir=runs/calibration --seeds=3

Trains SemPPL on the digits with 20 labels, and 50 or 100 more that are kept
back for calibration; with --kind=textures (or another of drawn_folders) with 4
or 5 labels a class on a folder, 50 more kept back. Of the images whose label no
one saw, ten bins of share and of probability are compared with how many are
right in them: table.md and table.json, mean and standard error over seeds in
percent, and calibration.svg and .png, bins of all seeds' images together.
Resumable: finished runs are not touched.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks import command, drawn_folders, folder, scores
from experiments import digits
from semppl_jax import pretraining
from semppl_jax.data import datasets
from semppl_jax.data import labels as labels_lib
from semppl_jax.evaluation import calibration, labelling, run_network
from semppl_jax.workdir import config_file, tables

# Labels of each class, of which so many are kept back.
DIGITS = {50: 7, 100: 12}
FOLDER = {50: 11}
_IMAGES = 65  # of a class, in a drawn folder
_LEAST = 10  # images in a bin that is drawn


class Curve(NamedTuple):
  """What one run's shares and probabilities are worth, on n images."""

  share: np.ndarray  # [n] float, of the votes
  probability: np.ndarray  # [n] float
  right: np.ndarray  # [n] bool
  own: float  # accuracy of the run's own vote, in results.json

  def scores(self) -> dict[str, float]:
    """Columns of the table, shares of 1."""
    error = calibration.expected_calibration_error
    tenths = calibration.tenths(self.share, self.right)
    return {
      'right': float(self.right.mean()),
      'ECE of share': error(self.share, self.right),
      'ECE of probability': error(self.probability, self.right),
      'most doubtful tenth right': tenths[0].accuracy,
      'surest tenth right': tenths[-1].accuracy,
      'own prediction right': self.own,
    }


def settings(kind: str, workdir: str, kept: int, seed: int) -> Any:
  """Of one training: labels by the first seed that leaves each class one.

  Args:
    kind: 'digits', or of drawn_folders.
    workdir: where a folder's images go.
    kept: labels that are kept back.
    seed: which of the benchmark's.
  """
  if kind == 'digits':
    cfg, per_class = digits.get_config(), DIGITS[kept]
  else:
    path = os.path.join(workdir, kind)
    counts = {'labelled': _IMAGES, 'unlabelled': 0, 'test': 20}
    make = lambda own: drawn_folders.make(kind, own, seed=10, **counts)
    folder.once(path, make)
    cfg, per_class = folder.settings(path, 'semppl', 0), FOLDER[kept]
    cfg.labels.fraction = 0.0
  cfg.labels.update(per_class=per_class, calibration=kept)
  data = datasets.load(cfg.dataset) if kind == 'digits' else _folder(cfg)
  cfg.seed = cfg.labels.seed = _leaving_each_class_one(
    cfg.labels, data, 20 * seed
  )
  cfg.num_devices = 1
  return cfg


def _folder(cfg: Any) -> Any:
  section = cfg.dataset.copy_and_resolve_references()
  section.update(image_size=64)  # open yet, and of no account for labels
  return datasets.load(section)


def _leaving_each_class_one(section: Any, data: Any, seed: int) -> int:
  section = section.copy_and_resolve_references()
  section.update(share=0.0)
  while True:
    section.seed = seed
    left = labels_lib.known(section, data).labels
    if len(np.unique(left[left >= 0])) == data.num_classes:
      return seed
    seed += 1


def curve(workdir: str, own: float) -> Curve:
  """Of a finished run.

  Args:
    workdir: of the run.
    own: the accuracy of its own vote.
  """
  run = run_network.prepare(config_file.read(workdir))
  found = run_network.restore(run, pathlib.Path(workdir))
  job = labelling.of_run(found)
  said = labelling.label(job)
  # The calibration images are those that the probabilities were fitted to.
  new = job.calibration[said.rows] < 0
  right = said.votes.labels == np.asarray(job.source.labels)[said.rows]
  return Curve(said.votes.share[new], said.probability[new], right[new], own)


def table(curves: Mapping[str, Sequence[Curve]]) -> str:
  """In percent, mean and standard error over the seeds of a row."""
  lines = []
  for name, of_seeds in curves.items():
    found = [one.scores() for one in of_seeds]
    cells = [scores.percent([one[key] for one in found]) for key in found[0]]
    lines.append([name, str(len(found)), *cells])
  return tables.markdown(['run', 'seeds', *found[0]], lines)


def plot(curves: Mapping[str, Sequence[Curve]]) -> Figure:
  """Reliability diagrams: of shares, and of probabilities."""
  figure = Figure(figsize=(9, 4.5), layout='constrained')
  axes = figure.subplots(1, 2, sharey=True)
  for ax, title in zip(axes, ('share of the votes', 'probability')):
    field = title.split()[0]
    ax.plot([0, 1], [0, 1], color='#999999', lw=1, label='right as often')
    for name, of_seeds in curves.items():
      both = [(getattr(one, field), one.right) for one in of_seeds]
      bins = calibration.bins(*map(np.concatenate, zip(*both)))
      bins = [one for one in bins if one.count >= _LEAST]
      ax.plot(
        [b.confidence for b in bins], [b.accuracy for b in bins],
        marker='o', ms=4, label=f'{name}, {len(of_seeds)} seeds',
      )  # fmt: skip
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(f'{title}, ten bins')
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.grid(alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc='upper left')
  axes[0].set_ylabel('right')
  figure.suptitle('Pseudo-labels of images that no one labelled', fontsize=12)
  return figure


def main() -> None:
  """Trains what is missing, then writes table and curves."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/calibration')
  parser.add_argument(
    '--kind',
    nargs='+',
    default=['digits'],
    choices=('digits', *drawn_folders.KINDS),
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument(
    '--kept', type=int, nargs='+', help='default: all (50, 100)'
  )
  args = parser.parse_args()
  curves = {}
  cells = [
    (kind, kept)
    for kind in args.kind
    for kept in args.kept or (DIGITS if kind == 'digits' else FOLDER)
  ]
  for kind, kept in cells:
    of_seeds = curves[f'{kind}, {kept} kept back'] = []
    for seed in range(args.seeds):
      workdir = os.path.join(args.workdir, f'{kind}-{kept}-{seed}')
      cfg = settings(kind, args.workdir, kept, seed)
      results = pretraining.pretrain(cfg, workdir)
      of_seeds.append(curve(workdir, results['pseudo_label_accuracy']))
  figure = plot(curves)
  for ending in ('svg', 'png'):
    figure.savefig(os.path.join(args.workdir, f'calibration.{ending}'))
  found = {
    name: [one.scores() for one in of_seeds]
    for name, of_seeds in curves.items()
  }
  command.finish_table(args, table(curves), found)


if __name__ == '__main__':
  main()
