"""Saliency masks of a data set's training images, made once.

  python -m semppl_jax.saliency --dataset=folder --path=DIR --out=DIR/masks

and then training with --config.dataset.masks=DIR/masks. Nothing is learnt and
no label is used: a mask is what contrast, borders and GrabCut make of one image
(see `data/foregrounds.py`). Look at OUT/contact_sheet.png before you trust the
masks. Stop and start it as you like: finished shards are kept.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import process
from typing import Any

import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageOps

from semppl_jax.config import defaults
from semppl_jax.data import datasets, images, masks, sources
from semppl_jax.errors import UserError
from semppl_jax.tools import command, mask_store
from semppl_jax.tools.foregrounds import METHOD, foreground, opencv
from semppl_jax.utils import worker

# Files are decoded a little larger than masks are: cheaper than whole.
_DECODED_SIDE = 384
_GREY = 128  # what training puts in the background's place
_TILE = 128  # side of the contact sheet's pictures, in pixels
_GAP, _LINE = 4, 14  # between them, and for the text under them
_COLUMNS = 3  # images in a row of the sheet


def make(
  source: sources.Source,
  folder: str | pathlib.Path,
  *,
  fingerprint: str,
  dataset: str,
  workers: int = 1,
  sheet: int = 24,
) -> None:
  """Makes the masks that are not there yet, a contact sheet, and says so.

  Args:
    source: N images whose ids are 0 .. N - 1.
    folder: of the masks; see `masks`.
    fingerprint: of the data set.
    dataset: what it is, in words.
    workers: processes; 1: this one.
    sheet: images on the contact sheet; 0: no sheet.

  Raises:
    UserError: no images, other ids, a folder of other masks or that cannot be
      written.
  """
  if not len(source):
    raise UserError(f'{dataset} has no training image.')
  _pixels(source, len(source) - 1)  # wrong ids: said before anything is made
  size = mask_store.shard_size(len(source))
  layout = mask_store.create(
    folder, masks.Layout(dataset, fingerprint, len(source), size, METHOD)
  )
  with mask_store.locked(folder):
    unreadable = _make_missing(source, folder, layout, workers)
  store = masks.Masks(folder, fingerprint, len(source))
  there = sum(store.has(i) for i in range(len(store)))
  print(
    f'{len(store):,} images: {there:,} have a mask, {len(store) - there:,} '
    'have none.'
  )
  if unreadable:
    first = ', '.join(map(str, sorted(unreadable)[:10]))
    more = ', ...' if len(unreadable) > 10 else ''
    print(f'Unreadable in this run: {len(unreadable):,} (ids {first}{more}).')
  if sheet > 0:
    path = pathlib.Path(folder) / 'contact_sheet.png'
    contact_sheet(source, store, sheet).save(path)
    print(f'Look at {path} before you use them.')


def contact_sheet(
  source: sources.Source, store: masks.Masks, count: int
) -> Image.Image:
  """Original, mask and masked image, of images spread over the data set.

  Args:
    source: the images.
    store: their masks.
    count: of images, at most.

  Returns:
    A picture with three images in a row, and their ids under them.
  """
  ids = np.unique(np.linspace(0, len(store) - 1, count).round().astype(int))
  wide, high = 3 * (_TILE + _GAP) + 2 * _GAP, _TILE + _LINE + _GAP
  rows, columns = -(-len(ids) // _COLUMNS), min(len(ids), _COLUMNS)
  sheet = Image.new('RGB', (columns * wide, rows * high), 'white')
  draw = ImageDraw.Draw(sheet)
  for place, i in enumerate(ids.tolist()):
    row, column = divmod(place, _COLUMNS)
    left, top = column * wide, row * high
    below = top
    for k, picture in enumerate(_pictures(source, store, i)):
      small = ImageOps.contain(Image.fromarray(picture), (_TILE, _TILE))
      sheet.paste(small, (left + k * (_TILE + _GAP), top))
      below = top + small.height
    label = f'{i}' if store.has(i) else f'{i}: no mask'
    draw.text((left, below), label, fill='black')
  return sheet


def _pictures(
  source: sources.Source, store: masks.Masks, index: int
) -> list[np.ndarray]:
  """An image, its mask and what training sees: those of them that there are."""
  image, mask = _pixels(source, index), store.read(index)
  if image is None or mask is None:
    return [] if image is None else [image]
  mask = masks.fit(mask, *image.shape[:2])[..., None]
  white = np.repeat(mask, 3, axis=-1) * np.uint8(255)
  return [image, white, np.where(mask, image, np.uint8(_GREY))]


def _pixels(source: sources.Source, index: int) -> np.ndarray | None:
  """An image, at most _DECODED_SIDE long; None: it cannot be read."""
  try:
    record = source[index]
    image = images.load(record['image'], _DECODED_SIDE)
  except images.Unreadable:
    return None
  if record['id'] != index:
    raise UserError(
      f'Image {index} of the data set has the id {record["id"]}: masks can '
      'only be made of images that are numbered without gaps.'
    )
  return image


def _make_missing(
  source: sources.Source,
  folder: str | pathlib.Path,
  layout: masks.Layout,
  workers: int,
) -> list[int]:
  """Writes the shards that are not there; returns ids of unreadable images."""
  todo = masks.missing(folder, layout)
  left = sum(len(layout.ids(shard)) for shard in todo)
  shards = functools.partial(_make_shard, source, folder, layout)
  unreadable = []
  with tqdm.tqdm(
    total=layout.num_images, initial=layout.num_images - left, unit='image'
  ) as bar:
    for shard, found in _each(shards, todo, min(workers, len(todo))):
      unreadable += found
      bar.update(len(layout.ids(shard)))
  return unreadable


def _make_shard(
  source: sources.Source,
  folder: str | pathlib.Path,
  layout: masks.Layout,
  shard: int,
) -> list[int]:
  """Writes one shard; returns the ids of its unreadable images."""
  unreadable = []

  def mask(index: int) -> np.ndarray | None:
    image = _pixels(source, index)
    if image is None:
      unreadable.append(index)
      return None
    return foreground(image)

  mask_store.write_shard(folder, layout, shard, map(mask, layout.ids(shard)))
  return unreadable


def _each(
  function: Callable[[int], Any], numbers: Sequence[int], workers: int
) -> Iterator[tuple[int, Any]]:
  """(number, function(number)) as they are done, by so many processes."""
  if workers <= 1:
    yield from ((number, function(number)) for number in numbers)
    return
  others = multiprocessing.active_children()
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    multiprocessing.get_context('spawn'),
    initializer=_start_worker,
    initargs=(function,),
  ) as pool:
    running = {pool.submit(_in_worker, number): number for number in numbers}
    try:
      for future in concurrent.futures.as_completed(running):
        yield running[future], future.result()
    except BaseException as error:
      # Else we would wait here until all shards that were begun are done.
      for child in set(multiprocessing.active_children()) - set(others):
        child.terminate()
      if not isinstance(error, process.BrokenProcessPool):
        raise
      raise UserError(
        'A worker process died, of too little memory perhaps: run the same '
        'command again, with fewer --workers.'
      ) from None


_function: Callable[[int], Any] | None = None  # of a worker process


def _start_worker(function: Callable[[int], Any]) -> None:
  # Kept here: the source may be a list of a million names, too long to be sent
  # with each shard.
  global _function
  _function = function
  opencv().setNumThreads(1)
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no stack trace
  worker.end_with_parent()


def _in_worker(number: int) -> Any:
  return _function(number)


def _load(options: argparse.Namespace) -> sources.Dataset:
  """The data set as training would load it with the same settings."""
  cfg = defaults.default().dataset
  cfg.name, cfg.path = options.dataset, options.path
  cfg.train_split = options.split
  cfg.unlabelled_split = options.unlabelled_split
  return datasets.load(cfg)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m semppl_jax.saliency',
    description="Saliency masks of a data set's training images. Training uses "
    'them with --config.dataset.masks=OUT.',
  )
  add = parser.add_argument
  add('--dataset', required=True, help="training's dataset.name: folder, ...")
  add('--path', default='', help="training's dataset.path")
  add('--out', required=True, help='folder for the masks')
  add('--split', default='', help="training's dataset.train_split")
  add('--unlabelled_split', default='', help='and dataset.unlabelled_split')
  add(
    '--workers',
    type=int,
    default=len(os.sched_getaffinity(0)),
    help='processes (default: %(default)s, one a core)',
  )
  add(
    '--sheet',
    type=int,
    default=24,
    help='images on OUT/contact_sheet.png (default: %(default)s; 0: no sheet)',
  )
  return parser


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  options = _parser().parse_args(arguments)

  def work():
    opencv()  # before the data set: its lack is known at once
    data = _load(options)
    make(
      data.train,
      pathlib.Path(options.out).expanduser(),
      fingerprint=data.fingerprint,
      dataset=' '.join(filter(None, (options.dataset, options.path))),
      workers=options.workers,
      sheet=options.sheet,
    )

  return command.status(work)


if __name__ == '__main__':
  sys.exit(main())
