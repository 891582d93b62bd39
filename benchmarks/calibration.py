"""What shares and probabilities of pseudo-labels are worth, on images known.

  python -m benchmarks.calibration --workdir=runs/calibration --seeds=3

Trains SemPPL on the digits with 20 labels, and 50 or 100 more that are kept
back for calibration; with --kind=textures (or another of drawn_folders) with 4
or 5 labels a class on a folder, 50 more kept back. Of the images whose label no
one saw, ten bins of share and of probability are compared with how many are
right in them: table.md, table.json, and calibration.svg and .png to look at.
Resumable: finished runs are not touched.
"""

import argparse
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks import drawn_folders, folder
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
_HEADS = (
  'run', 'right', 'ECE share', 'ECE probability', 'most doubtful tenth',
  'surest tenth', 'by own vote',
)  # fmt: skip


class Curve(NamedTuple):
  """What one run's shares and probabilities are worth, on n images."""

  accuracy: float
  own: float  # of the run's own vote, in results.json
  errors: tuple[float, float]  # ECE of share, of probability
  bins: tuple[list[calibration.Bin], list[calibration.Bin]]  # likewise
  tenths: list[calibration.Bin]


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
  both = said.votes.share[new], said.probability[new]
  right = right[new]
  error = calibration.expected_calibration_error
  return Curve(
    float(right.mean()),
    own,
    tuple(error(x, right) for x in both),
    tuple(calibration.bins(x, right) for x in both),
    calibration.tenths(both[0], right),
  )


def rows(curves: dict[str, Curve]) -> list[list[Any]]:
  """Of the table, in percent."""
  percent = lambda x: round(100 * float(x), 1)
  return [
    [
      name, percent(c.accuracy), *map(percent, c.errors),
      percent(c.tenths[0].accuracy), percent(c.tenths[-1].accuracy),
      percent(c.own),
    ]
    for name, c in curves.items()
  ]  # fmt: skip


def plot(curves: dict[str, Curve]) -> Figure:
  """Reliability diagrams: of shares, and of probabilities."""
  figure = Figure(figsize=(9, 4.5), layout='constrained')
  axes = figure.subplots(1, 2, sharey=True)
  titles = 'share of the votes', 'probability'
  for place, (ax, title) in enumerate(zip(axes, titles)):
    ax.plot([0, 1], [0, 1], color='#999999', lw=1, label='right as often')
    for name, one in curves.items():
      found = one.bins[place]
      ax.plot(
        [b.confidence for b in found], [b.accuracy for b in found],
        marker='o', ms=4, label=f'{name}: ECE {one.errors[place]:.1%}',
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
  """Trains what is missing, then writes tables and curves."""
  parser = argparse.ArgumentParser(prog='python -m benchmarks.calibration')
  parser.add_argument('--workdir', default='runs/calibration')
  parser.add_argument(
    '--kind', default='digits', choices=('digits', *drawn_folders.KINDS)
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument(
    '--kept', type=int, nargs='+', help='default: all (50, 100)'
  )
  options = parser.parse_args()
  sizes = DIGITS if options.kind == 'digits' else FOLDER
  curves = {}
  for seed in range(options.seeds):
    for kept in options.kept or sizes:
      name = f'{options.kind}, {kept} kept back, seed {seed}'
      workdir = os.path.join(options.workdir, f'{options.kind}-{kept}-{seed}')
      cfg = settings(options.kind, options.workdir, kept, seed)
      results = pretraining.pretrain(cfg, workdir)
      curves[name] = curve(workdir, results['pseudo_label_accuracy'])
      tables.write(
        options.workdir, _HEADS, rows(curves),
        'Percent of the images that no one labelled.',
      )  # fmt: skip
      figure = plot(curves)
      for ending in ('svg', 'png'):
        figure.savefig(os.path.join(options.workdir, f'calibration.{ending}'))
  print(tables.markdown(_HEADS, rows(curves)))


if __name__ == '__main__':
  main()
