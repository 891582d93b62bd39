"""Labels for all the rest of the images, and how sure they are.

  semppl-jax label --run=WORKDIR [--next=20]
  semppl-jax label --checkpoint=FILE --images=DIR --labels=FILE.csv

Of a run: every training image without a visible label, by the run's own votes.
Of a checkpoint: the images of a folder, by those that --labels names, one
NAME,CLASS a line, or by those in --labels=DIR/train/CLASS. Writes a CSV, the
most doubtful image first; corrections go into its column `class`, and the file
is then a labels.file of the next training. See docs/label.md.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from semppl_jax import model, storage
from semppl_jax.config import defaults
from semppl_jax.data import (
  datasets,
  folders,
  sources,
)
from semppl_jax.data import labels as labels_lib
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.evaluation import (
  label_files,
  labelling,
  next_to_label,
  run_network,
)
from semppl_jax.tools import command
from semppl_jax.train import run as run_lib
from semppl_jax.weights import files as weight_files
from semppl_jax.workdir import config_file, metrics, names, run_data


class Labels(NamedTuple):
  """Labels of n images, the most doubtful first."""

  names: list[str]  # n
  labels: list[str]  # [n] pseudo-labels, names of classes
  share: np.ndarray  # [n] float32, of the votes, in [0, 1]
  probability: np.ndarray | None  # [n] float32 of being right; None: not known
  runner_up: list[str]  # [n] the next class; '': there is none
  nearest: list[list[str]]  # [n][m] labelled images, nearest first
  similarity: np.ndarray  # [n, m] float32, of their embeddings, cosine
  next: list[str]  # images to label next
  summary: dict[str, Any]  # what the JSON file holds
  path: str  # of the CSV


def label(
  run: str | os.PathLike = '',
  *,
  checkpoint: str | os.PathLike = '',
  images: str | os.PathLike = '',
  labels: str | os.PathLike = '',
  next_images: int = 0,
  out: str | os.PathLike = '',
  network: str | None = None,
  step: int | None = None,
  progress: bool = False,
) -> Labels:
  """Labels for all images that have none, and how sure they are.

  Args:
    run: the folder of a run; or else a checkpoint.
    checkpoint: a file, a run's folder or a name that `load_pretrained` takes;
      its encoder is used.
    images: with a checkpoint: a folder of images, or a text file of paths.
    labels: with a checkpoint: a file of NAME,CLASS of some of these images, or
      a folder with train/CLASS; its unlabelled/ are images, too.
    next_images: so many images to label next are chosen.
    out: the CSV; '': labels.csv, in the folder of the run or here. A JSON file
      of the same name says how good it is, NAME_next.txt what to label next.
    network: 'online' or 'target', of what has both; None: the run's
      evaluation.network, or as `load_checkpoint` chooses.
    step: which checkpoint of a run; None: the newest good one.
    progress: whether a bar is shown.

  Raises:
    UserError: no run, no labels, data that are gone, numbers that do not fit,
      or a CSV there with corrections in it, in one line.
  """
  if bool(run) == bool(checkpoint):
    raise UserError('Give either a run or a checkpoint (--run, --checkpoint).')
  if run and (images or labels):
    raise UserError(
      'A run has images and labels of its own: --images and --labels go with '
      '--checkpoint.'
    )
  if next_images < 0:
    raise UserError(f'--next is {next_images}; it must be at least 0.')
  path = storage.path(run) / label_files.NAME
  if out or not run:
    path = command.output(out or path, ('.csv',))
  if run:
    job = _of_run(run, network, step)
  else:
    known = _images(os.fspath(images), os.fspath(labels))
    found = model.load_pretrained(checkpoint, network=network, step=step)
    job = _of_checkpoint(found, *known)
  label_files.check_replaceable(path, job)
  unlabelled = np.sum((job.labels < 0) & (job.calibration < 0))
  if next_images > unlabelled:
    raise UserError(
      f'--next is {next_images}, but only {unlabelled:,} images have no label.'
    )
  found = labelling.label(job, progress=progress)
  chosen = next_to_label.choose(job, found, next_images) if next_images else []
  label_files.write(path, job, found)
  if next_images:
    label_files.write_next(path, job, chosen)
  return _answer(job, found, chosen, path)


def _answer(job, found, chosen, path):
  name = lambda row: sources.name(job.source, int(row))
  classes = lambda ids: [str(job.class_names[i]) if i >= 0 else '' for i in ids]
  votes = found.votes
  return Labels(
    names=[name(row) for row in found.rows],
    labels=classes(votes.labels),
    share=votes.share,
    probability=found.probability,
    runner_up=classes(votes.runner_up),
    nearest=[[name(row) for row in near] for near in votes.neighbours],
    similarity=votes.similarity,
    next=[name(row) for row in chosen],
    summary=found.summary,
    path=str(path),
  )


def _of_run(
  folder: str | os.PathLike, network: str | None, step: int | None
) -> labelling.Job:
  settings = config_file.read(folder)
  if not isinstance(settings, dict):
    raise UserError(
      f'--run {folder} is not the folder of a run: it has no config.json.'
    )
  if 'checkpoint' in settings:
    raise UserError(
      f'--run {folder} is an evaluation: give the run that its checkpoint '
      'is of.'
    )
  if network:
    evaluation = {**settings.get('evaluation', {}), 'network': network}
    settings = {**settings, 'evaluation': evaluation}
  run = run_network.prepare(settings)
  begun = metrics.read_json(os.path.join(folder, run_data.FILE))
  if isinstance(begun, dict):  # absent from runs of older versions
    _check_data(folder, begun, run)
  return labelling.of_run(run_network.restore(run, storage.path(folder), step))


def _check_data(
  folder: str | os.PathLike, begun: dict[str, Any], run: run_lib.TrainRun
) -> None:
  """Refuses a run whose images, or calibration images, are others now.

  Other labels alone are told.
  """
  if begun.get('fingerprint', '') not in ('', run.data.fingerprint):
    raise UserError(
      f'--run {folder} was trained on other images ({begun["images"]:,} then, '
      f'{len(run.data.train):,} now): bring them back.'
    )
  now = run_data.describe(run)
  keys = 'labels', 'labels_fingerprint'  # older runs lack the second
  if all(begun.get(key, now[key]) == now[key] for key in keys):
    return
  told = (
    f'--run {folder} was trained with other labels than its settings give now '
    f'({begun["labels"]:,} then, {now["labels"]:,} now)'
  )
  # Of another list others are drawn, some of which the run has learned from.
  if run.cfg.labels.calibration:
    raise UserError(
      f'{told}, so that other images would be its calibration images: bring '
      'labels.file back.'
    )
  command.warn(f'{told}: it has learned those of then.')


def _of_checkpoint(
  found: model.Model, data: sources.Dataset, known: np.ndarray
) -> labelling.Job:
  """Images that a checkpoint's encoder labels by those of known classes."""
  devices = jax.local_devices()
  weights = parallel.replicate((found.params, found.state), len(devices))
  network = labelling.Network(
    labelling.one_view(lambda state, views: (found.apply(*state, views),)),
    parallel.put_sharded(weights, devices),
    devices,
    batch_size=64,
    size=found.image_size,
    center=found.center,
  )
  return labelling.of_images(network, data.train, known, data.class_names)


def _images(images: str, labels: str) -> tuple[sources.Dataset, np.ndarray]:
  """A data set of --images, and which labels --labels gives."""
  if not labels:
    raise UserError(
      'A checkpoint has no labelled images: give --labels=FILE of NAME,CLASS '
      'lines, or --labels=DIR with train/CLASS.'
    )
  if os.path.isdir(labels):
    return _of_classes(labels, images)
  if not images:
    raise UserError('--images is missing: the images that --labels names.')
  data = _dataset(command.image_paths(images), ())
  cfg = defaults.default().labels
  cfg.file = labels
  data, known, _ = labels_lib.known(cfg, data)
  return data, known


def _of_classes(folder: str, images: str) -> tuple[sources.Dataset, np.ndarray]:
  """Labelled images of train/CLASS, and unlabelled ones."""
  found = folders.search(folder)
  number = sum(label >= 0 for label in found.labels)  # they come first
  if not number:
    raise UserError(f'--labels {folder} has no image in train/CLASS/.')
  labelled, rest = found.train[:number], found.train[number:]
  own = set(map(os.path.realpath, labelled))
  if images:
    rest += command.image_paths(images)
  rest = [path for path in rest if os.path.realpath(path) not in own]
  rest = list(dict.fromkeys(map(os.path.abspath, rest)))
  data = _dataset(
    labelled + rest, found.labels[:number], tuple(found.class_names)
  )
  return data, data.train.labels


def _dataset(
  paths: list[str],
  labels: Sequence[int],
  class_names: tuple[str, ...] = (),
) -> sources.Dataset:
  """Image files, the first of them with labels, called as in a training."""
  labels = [*labels, *[-1] * (len(paths) - len(labels))]
  source = datasets.files(list(map(os.path.abspath, paths)), labels)
  return sources.Dataset(
    source, None, len(class_names), class_names, (0, 0, 3), ''
  )


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='semppl-jax label',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--run', default='', metavar='WORKDIR', help='of a training')
  add('--checkpoint', default='', help='or a file, or the name of a model')
  add('--images', default='', metavar='DIR', help='or a list of paths')
  add(
    '--labels', default='', metavar='FILE',
    help='of NAME,CLASS lines; or a folder with train/CLASS',
  )  # fmt: skip
  add('--out', default='', metavar='FILE.csv', help='default: RUN/labels.csv')
  add(
    '--next', type=int, default=0, metavar='N', dest='next_images',
    help='so many images to label next, into FILE_next.txt',
  )  # fmt: skip
  add('--network', choices=weight_files.NETWORKS, help='of what has both')
  add('--step', type=int, help='which checkpoint of a run')
  options = parser.parse_args(arguments)
  logging.set_verbosity(logging.WARNING)  # orbax says much below it

  def work():
    found = label(**vars(options), progress=True)
    for line in label_files.lines(found.summary):
      print(line)
    own = metrics.read_json(storage.path(options.run) / names.RESULTS)
    if options.run and isinstance(own, dict):
      value = own.get('pseudo_label_accuracy')
      if value is not None:
        print(f"The run's own vote, in results.json: {value:.1%} right.")
    print(f'Written: {found.path}')
    if found.next:
      to = label_files.next_path(found.path)
      print(f'To label next, one of each kind of doubt, also in {to}:')
      print(*found.next, sep='\n')

  return command.status(work)


if __name__ == '__main__':
  sys.exit(main())
