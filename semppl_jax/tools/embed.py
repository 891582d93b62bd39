"""Embeddings of many images, with their names.

  semppl-jax embed --checkpoint=RUN --images=DIR --out=embeddings.npy
  semppl-jax embed --checkpoint=digits --dataset=digits --split=test --out=e.csv

OUT.npy has the embeddings, [N, e] float32, and OUT.names.txt beside it their
images' names, a line each; OUT.csv has both. Images that cannot be read are
left out and listed. Only a block of images is in memory at a time, and a job
that was stopped goes on with the same command.
"""

import argparse
import csv
import os
import pathlib
import sys
import time
import zlib
from typing import NamedTuple

import numpy as np
import tqdm

from semppl_jax import model as model_lib
from semppl_jax import storage
from semppl_jax.config import defaults
from semppl_jax.data import datasets, python_objects, sources
from semppl_jax.errors import UserError
from semppl_jax.tools import command
from semppl_jax.utils import files
from semppl_jax.weights import files as weight_files
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics

_BLOCK = 512  # images between two points from which a stopped job goes on
_ENDINGS = ('.npy', '.csv')


class Written(NamedTuple):
  """What `save_embeddings` has done."""

  path: pathlib.Path
  images: int  # rows of the file
  unreadable: dict[str, str]  # name -> reason, of the images left out
  images_per_second: float  # of this call, compiling included; 0: none was left


def save_embeddings(
  model: model_lib.Model, images: sources.Source, path: str | os.PathLike
) -> Written:
  """Writes the encoder's embeddings of all images, in their order.

  Args:
    model: see `load_pretrained`.
    images: N records with 'image' by index; names are theirs, or numbers.
    path: ends in .npy, or in .csv: columns name, 0, 1, ..., e - 1.

  Raises:
    UserError: another ending, no image, none that can be read, or a file that
      is there already.
  """
  path = command.output(storage.on_disk(path, '--out'), _ENDINGS)
  if path.exists():
    raise UserError(f'{path} is there already: delete it, or name another one.')
  if not len(images):
    raise UserError('There is no image: give at least one.')
  names = [
    datasets.printable(sources.name(images, i)) for i in range(len(images))
  ]
  job = {
    'checkpoint': load_lib.digest(model.checkpoint),
    'sees': [model.image_size, model.center],
    'images': [len(names), zlib.crc32('\n'.join(names).encode())],
  }
  part = path.with_name(f'{path.name}.part')
  note = path.with_name(f'{path.name}.part.json')
  done, left_out, unreadable = _begin(part, note, job)
  shape = (len(images), model.embedding_size)
  rows = np.lib.format.open_memmap(
    part, 'r+' if done else 'w+', np.float32, shape=None if done else shape
  )
  begun, first = time.monotonic(), done
  with tqdm.tqdm(total=len(images), initial=done, unit='image') as bar:
    while done < len(images):
      block = np.arange(done, min(done + _BLOCK, len(images)))
      rows[done : done + len(block)], readable = model.features(
        sources.Rows(images, block),
        on_unreadable=lambda name, reason: unreadable.update(
          {datasets.printable(name): reason}
        ),
      )
      left_out += block[~readable].tolist()
      done += len(block)
      rows.flush()
      metrics.write_json(
        note,
        job | {'done': done, 'left_out': left_out, 'unreadable': unreadable},
      )
      bar.update(len(block))
  seconds = time.monotonic() - begun
  # By their places: several images may have one name.
  kept = np.delete(np.arange(len(names)), left_out)
  if len(kept):
    _finish(path, rows, names, kept)
  part.unlink()
  note.unlink()
  if not len(kept):
    reason = next(iter(unreadable.values()))
    raise UserError(f'None of {len(names):,} images can be read: {reason}.')
  speed = (done - first) / seconds if done > first else 0.0
  return Written(path, len(kept), unreadable, speed)


def _begin(
  part: pathlib.Path, note: pathlib.Path, job: dict
) -> tuple[int, list[int], dict[str, str]]:
  """How far a job that was stopped has come, and what it could not read."""
  said = metrics.read_json(note) if part.exists() else None
  if said is None:
    return 0, [], {}
  if any(said.get(key) != value for key, value in job.items()):
    raise UserError(
      f'{part} is of other images or of another checkpoint: delete it, or name '
      'another --out.'
    )
  return said['done'], said['left_out'], said['unreadable']


def _finish(
  path: pathlib.Path, rows: np.ndarray, names: list[str], kept: np.ndarray
) -> None:
  """Writes the file from all rows, a block at a time."""
  blocks = [kept[i : i + _BLOCK] for i in range(0, len(kept), _BLOCK)]
  if path.suffix == '.csv':
    with files.atomic(path) as new, new.open('w', newline='') as file:
      table = csv.writer(file)
      table.writerow(['name', *range(rows.shape[1])])
      for block in blocks:
        for i, row in zip(block.tolist(), rows[block], strict=True):
          table.writerow([names[i], *map(str, row)])
    return
  with files.atomic(path) as new:
    shape = (len(kept), rows.shape[1])
    copy = np.lib.format.open_memmap(new, 'w+', np.float32, shape=shape)
    for start, block in zip(range(0, len(kept), _BLOCK), blocks, strict=True):
      copy[start : start + len(block)] = rows[block]
    copy.flush()
    files.write_text(
      names_path(path), ''.join(f'{names[i]}\n' for i in kept.tolist())
    )


def names_path(path: pathlib.Path) -> pathlib.Path:
  """Where the names of an .npy file's rows stand."""
  return path.with_suffix('.names.txt')


def _source(options: argparse.Namespace) -> sources.Source:
  """The images that the flags name."""
  if bool(options.images) == bool(options.dataset):
    raise UserError('Give either --images or --dataset.')
  if options.images:
    return python_objects.source(command.image_paths(options.images))
  cfg = defaults.default().dataset
  cfg.name, cfg.path = options.dataset, options.path
  data = datasets.load(cfg)
  chosen = data.train if options.split == 'train' else data.test
  if chosen is None:
    raise UserError(f'{options.dataset} has no {options.split} images.')
  return chosen


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='semppl-jax embed',
    description='Embeddings of many images, with their names.',
  )
  add = parser.add_argument
  add('--checkpoint', required=True, help="a run's folder, a file or a name")
  add('--network', choices=weight_files.NETWORKS, help='of what has both')
  add('--images', default='', help='a folder, an image, or a list of paths')
  add('--dataset', default='', help="or training's dataset.name: digits, ...")
  add('--path', default='', help='with its dataset.path')
  add('--split', choices=('train', 'test'), default='train')
  add('--out', required=True, help='ends in .npy or .csv')
  options = parser.parse_args(arguments)

  def work():
    images = _source(options)
    model = model_lib.load_pretrained(
      options.checkpoint, network=options.network
    )
    found = save_embeddings(model, images, options.out)
    print(
      f'{found.path}: {found.images:,} images, {model.embedding_size} numbers '
      f'each; {found.images_per_second:,.0f} images/s, compiling included.'
    )
    for name, reason in list(found.unreadable.items())[:10]:
      print(f'Left out: {name} ({reason}).')
    if len(found.unreadable) > 10:
      print(f'Left out: {len(found.unreadable):,} images in all.')

  return command.status(work)


if __name__ == '__main__':
  sys.exit(main())
