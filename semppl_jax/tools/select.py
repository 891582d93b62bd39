"""Which images to label: a list for labels.file, from any checkpoint.

  semppl-jax select --checkpoint=RUN_OR_FILE --dataset=folder --path=DIR \\
    --budget=30 --out=list.txt

All training images are candidates, whatever is known of them: no label is used
to choose (USL, see `selection.usl`). Beside list.txt, names cluster by cluster,
there are list.json, with settings and scores, and list.png to look at. Features
are kept in a folder features-ID/ beside it, so that a stopped command goes on,
and another budget or seed is soon done.
"""

import argparse
import json
import os
import pathlib
import sys
import zlib
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from semppl_jax import model as model_lib
from semppl_jax import storage
from semppl_jax.config import defaults
from semppl_jax.data import datasets, sources
from semppl_jax.errors import UserError
from semppl_jax.evaluation import features as features_lib
from semppl_jax.selection import usl
from semppl_jax.tools import command, kept_features, select_files
from semppl_jax.weights import files as weight_files
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import config_file, metrics, run_data


class Candidates(NamedTuple):
  """Images to choose from, and what the network says of them."""

  source: sources.Source  # N images
  features: np.ndarray  # [n, d] float32, of those that can be read
  rows: np.ndarray  # [n] int, their rows


def candidates(
  model: model_lib.Model,
  source: sources.Source,
  folder: str | pathlib.Path,
  *,
  output: str,
  fingerprint: str,
) -> Candidates:
  """Features of all images; those that were computed before are read.

  Args:
    model: the network.
    source: N images.
    folder: that a folder of the features of these weights and images lies in,
      or will.
    output: 'embedding' or 'projection'.
    fingerprint: of the images.

  Returns:
    Those of the images that can be read.

  Raises:
    UserError: no image can be read.
    OSError: the folder cannot be written.
  """
  key = {
    'checkpoint': load_lib.digest(model.checkpoint),
    'images': fingerprint,
    'number': len(source),
    'output': output,
    'image_size': int(model.image_size),
    'center': float(model.center),
  }
  number = zlib.crc32(json.dumps(key, sort_keys=True).encode())
  folder = pathlib.Path(folder) / f'features-{number:08x}'
  kept_features.begin(folder, key)
  found, readable = None, np.zeros(len(source), bool)
  for part in kept_features.parts(model, source, folder, output):
    if found is None:
      shape = len(source), part.features.shape[1]
      found = features_lib.allocate(shape, part.features.dtype)
    found[part.rows], readable[part.rows] = part.features, part.readable
  if not readable.any():
    raise UserError(f'None of the {len(source):,} images can be read.')
  rows = np.flatnonzero(readable)
  if len(rows) < len(source):
    _say_unreadable(source, np.flatnonzero(~readable))
    found = found[rows]
  return Candidates(source, found, rows)


def _say_unreadable(source: sources.Source, rows: np.ndarray) -> None:
  first = ', '.join(sources.name(source, int(row)) for row in rows[:5])
  more = ', ...' if len(rows) > 5 else ''
  command.warn(
    f'{len(rows):,} of {len(source):,} images cannot be read and are left out: '
    f'{first}{more}.'
  )


def _config_of(checkpoint: str) -> Any:
  """The settings of the run that a checkpoint is the folder of, or None."""
  if not storage.is_dir(os.path.expanduser(checkpoint)):
    return None
  found = config_file.read(os.path.expanduser(checkpoint))
  return found if isinstance(found, dict) else None


def _dataset(
  options: argparse.Namespace, run: Any
) -> ml_collections.ConfigDict:
  """The `dataset` section: of the flags, or else of the checkpoint's run."""
  section = ml_collections.ConfigDict(defaults.dataset())
  if options.dataset:
    section.name = options.dataset
  elif run and isinstance(run.get('dataset'), dict):
    said = run['dataset']
    section.update({key: said[key] for key in section if key in said})
  else:
    raise UserError(
      f'--dataset is not given, and --checkpoint {options.checkpoint} is not '
      "the folder of a run, whose data set would be taken: give training's "
      'dataset.name.'
    )
  for key in ('path', 'train_split', 'unlabelled_split'):
    section[key] = getattr(options, key) or section[key]
  return section


def _warn_of_labels(checkpoint: str, run: Any, fingerprint: str) -> None:
  """Says it if the network may have learnt the labels of these images."""
  labels = run.get('labels') if run else None
  if not isinstance(labels, dict):
    return
  said = ', '.join(
    f'labels.{key}={labels[key]}'
    for key in ('per_class', 'fraction', 'file', 'subset')
    if labels.get(key)
  )
  path = os.path.join(os.path.expanduser(checkpoint), run_data.FILE)
  begun = metrics.read_json(path)
  known = isinstance(begun, dict) and 'fingerprint' in begun
  if said and not (known and begun['fingerprint'] != fingerprint):
    command.warn(
      f'{checkpoint} was trained with labels of these images ({said}): the '
      'choice knows them.'
    )


def _work(options: argparse.Namespace) -> None:
  changes = {
    name: value
    for name in usl.Settings._fields
    if (value := getattr(options, name)) is not None
  }
  usl.resolve(options.preset, changes)  # known before the slow part
  if options.budget < 1:
    raise UserError(f'--budget={options.budget}: it takes at least 1.')
  out = storage.on_disk(options.out, '--out').expanduser()
  if out.is_dir():
    raise UserError(
      f'--out={out} is a folder; it must be a file, say list.txt.'
    )
  run = _config_of(options.checkpoint)
  section = _dataset(options, run)
  model, output = _load(options)
  data = datasets.load(section)
  source = data.train
  if source.names is None:
    raise UserError(
      f'The images of {section.name} have no names, so no list can name them.'
    )
  select_files.check_outside(out, section)
  select_files.check_without_classes(out, source)
  usl.check_budget(options.budget, len(source))
  _warn_of_labels(options.checkpoint, run, data.fingerprint)
  said = 'projection' if output == 'projection' else 'encoder embedding'
  print(f'{len(source):,} images; features: the {said} of {model.checkpoint}.')
  found = candidates(
    model, source, out.parent, output=output, fingerprint=data.fingerprint
  )
  chosen = usl.select(
    found.features, options.budget, preset=options.preset, seed=options.seed,
    progress=True, **changes,
  )  # fmt: skip
  rows = found.rows[chosen.rows]
  settings = {
    'budget': options.budget,
    'preset': options.preset,
    'seed': options.seed,
    'settings': chosen.settings._asdict(),
    'features': output,
    'checkpoint': {
      'path': options.checkpoint,
      'fingerprint': load_lib.digest(model.checkpoint),
      'is': str(model.checkpoint),
    },
    'dataset': {
      'name': section.name,
      'path': section.path,
      'fingerprint': data.fingerprint,
      'images': len(source),
      'unreadable': len(source) - len(found.rows),
    },
  }
  select_files.write(out, source, rows, settings, chosen)
  select_files.draw(out, source, rows, options.sheet)
  _say_classes(data, found, rows)


def _load(options: argparse.Namespace) -> tuple[model_lib.Model, str]:
  """The network, and which of its outputs are the features."""
  model = model_lib.load_pretrained(options.checkpoint, network=options.network)
  usual = 'projection' if model.projection_size else 'embedding'
  output = options.features or usual
  if output == 'projection' and not model.projection_size:
    raise UserError(
      f'--features=projection, but {model.checkpoint} has no projector: take '
      'embedding.'
    )
  return model, output


def _say_classes(
  data: sources.Dataset, found: Candidates, rows: np.ndarray
) -> None:
  """Where the truth of all is known: which classes the choice has."""
  if np.any(data.train.labels[found.rows] < 0):
    print(
      'Label them: write ,CLASS after the names in the list (or move the '
      'images to train/CLASS/), and train with --config.labels.file=LIST.'
    )
    return
  counts = np.bincount(data.train.labels[rows], minlength=data.num_classes)
  print(
    f'By the true labels: {np.count_nonzero(counts)} of {data.num_classes} '
    f'classes are among them; the largest has {counts.max()} of {len(rows)}.'
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='semppl-jax select',
    description='Which images to label: USL, from any checkpoint. Training '
    'uses the list with --config.labels.file=OUT.',
  )
  add = parser.add_argument
  add(
    '--checkpoint',
    required=True,
    help="a run's folder, a file, or a released one's name",
  )
  add('--budget', type=int, required=True, help='images to label')
  add('--out', required=True, help='the list, e.g. list.txt')
  add(
    '--dataset',
    default='',
    help="training's dataset.name: folder, ... (default: that of the run)",
  )
  add('--path', default='', help="training's dataset.path")
  add(
    '--train_split',
    default='',
    help="training's dataset.train_split",
  )
  add('--unlabelled_split', default='', help='and dataset.unlabelled_split')
  add(
    '--features',
    choices=('projection', 'embedding'),
    help='default: projection, if there is a projector',
  )
  add('--network', choices=weight_files.NETWORKS, help='of what has both')
  add('--seed', type=int, default=0, help='of the clusters (default: 0)')
  add(
    '--sheet',
    type=int,
    default=200,
    help='images on the picture, at most (default: %(default)s; 0: no picture)',
  )
  add(
    '--preset',
    default='small',
    help=f'settings of {", ".join(usl.PRESETS)} (default: %(default)s); '
    'each by itself:',
  )
  add('--k', type=int, help='neighbours of the density')
  add('--iterations', type=int, help='of k-means, at most')
  add('--rounds', type=int, help='1: the densest image of each cluster')
  add('--weight', type=float, help='of what pushes choices apart')
  add('--momentum', type=float, help='of that, from round to round')
  add('--power', type=float, help='of 1 / squared distance')
  add('--horizon', type=float, help='largest squared distance; 0: any')
  add('--nearest', type=int, help='choices that count; 0: all')
  add(
    '--own_cluster',
    action=argparse.BooleanOptionalAction,
    help='whether the choice of the same cluster counts',
  )
  return parser


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  options = _parser().parse_args(arguments)
  return command.status(lambda: _work(options))


if __name__ == '__main__':
  sys.exit(main())
