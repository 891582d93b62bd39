"""Embeddings of many images, with their names.

  semppl-jax embed --checkpoint=RUN --images=DIR --out=embeddings.npy
  semppl-jax embed --checkpoint=digits --dataset=digits --split=test --out=e.csv

OUT.npy has the embeddings, [N, e] float32, and OUT.names.txt beside it their
images' names, a line each; OUT.csv has both. Images that cannot be read are
left out and listed. Only a part of the images is in memory at a time, and a job
that was stopped goes on with the same command.
"""

import argparse
import csv
import os
import pathlib
import shutil
import sys
import time
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from semppl_jax import model as model_lib
from semppl_jax import storage
from semppl_jax.config import defaults
from semppl_jax.data import datasets, python_objects, sources
from semppl_jax.errors import UserError
from semppl_jax.tools import command, kept_features
from semppl_jax.utils import files
from semppl_jax.weights import files as weight_files
from semppl_jax.weights import load as load_lib

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
  # Until the file is whole; gone then.
  folder = path.with_name(f'{path.name}.part')
  kept_features.begin(folder, {
    'checkpoint': load_lib.digest(model.checkpoint),
    'sees': [model.image_size, model.center],
    'images': [len(names), zlib.crc32('\n'.join(names).encode())],
  })  # fmt: skip
  begun, computed, kept, unreadable = time.monotonic(), 0, [], {}
  for part in kept_features.parts(model, images, folder):
    computed += part.is_new * len(part.rows)
    # By their places: several images may have one name.
    kept += part.rows[part.readable].tolist()
    unreadable |= part.unreadable
  seconds = time.monotonic() - begun
  unreadable = {datasets.printable(x): why for x, why in unreadable.items()}
  if kept:
    size = model.embedding_size
    parts = kept_features.parts(model, images, folder, doing='written')
    _finish(path, parts, [names[i] for i in kept], size)
  shutil.rmtree(folder)
  if not kept:
    reason = next(iter(unreadable.values()))
    raise UserError(f'None of {len(names):,} images can be read: {reason}.')
  return Written(path, len(kept), unreadable, computed / seconds)


def _finish(
  path: pathlib.Path,
  parts: Iterable[kept_features.Part],
  names: list[str],
  size: int,
) -> None:
  """Writes the file, and the names beside it, a part at a time.

  Args:
    path: of the file.
    parts: all images, also those that cannot be read.
    names: N, of those that can.
    size: of an embedding.
  """
  blocks = (part.features[part.readable] for part in parts)
  start = 0
  if path.suffix == '.csv':
    with files.atomic(path) as new, new.open('w', newline='') as file:
      table = csv.writer(file)
      table.writerow(['name', *range(size)])
      for block in blocks:
        called = names[start : start + len(block)]
        for name, row in zip(called, block, strict=True):
          table.writerow([name, *map(str, row)])
        start += len(block)
    return
  with files.atomic(path) as new:
    shape = (len(names), size)
    rows = np.lib.format.open_memmap(new, 'w+', np.float32, shape=shape)
    for block in blocks:
      rows[start : start + len(block)] = block
      start += len(block)
    rows.flush()
    files.write_text(names_path(path), ''.join(f'{name}\n' for name in names))


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
