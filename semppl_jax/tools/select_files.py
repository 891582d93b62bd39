"""The files that chosen images are written to: list, scores and picture."""

import collections
import os
import pathlib
from typing import Any

import ml_collections
import numpy as np
from PIL import Image, ImageDraw, ImageOps

import semppl_jax
from semppl_jax.data import images, label_list, sources
from semppl_jax.data import labels as labels_lib
from semppl_jax.errors import UserError
from semppl_jax.selection import usl
from semppl_jax.tools import command
from semppl_jax.utils import files
from semppl_jax.workdir import metrics

_TILE = 128  # side of the contact sheet's pictures, in pixels
_GAP, _LINE = 4, 14  # between them, and for the text under them
_COLUMNS = 8  # images in a row of the sheet
_SMALL = 48  # pixels; below, they are shown as squares


def check_outside(
  out: pathlib.Path, section: ml_collections.ConfigDict
) -> None:
  """Refuses a place where the picture would be one more image to label."""
  if section.name != 'folder':
    return
  inside = pathlib.Path(section.path).expanduser().resolve()
  if out.resolve().is_relative_to(inside):
    raise UserError(
      f'--out={out} lies in the data set, where its picture would count as an '
      'image: choose another folder.'
    )


def check_without_classes(out: pathlib.Path, source: sources.Source) -> None:
  """Refuses to replace a list into which somebody has written classes."""
  if not out.exists():
    return
  names = {x for name in source.names for x in (name, name.rpartition('/')[2])}
  entries = label_list.parse(
    labels_lib.read_list(os.fspath(out), '--out'),
    names.__contains__,
    f'--out={out}',
  )
  if any(entry.label is not None for entry in entries):
    raise UserError(
      f'--out={out} is there already, with classes of yours: use it as '
      'labels.file; move it away, or write to another file.'
    )


def write(
  out: pathlib.Path,
  source: sources.Source,
  rows: np.ndarray,
  settings: dict[str, Any],
  chosen: usl.Selection,
) -> None:
  """Writes the list, and settings and scores beside it.

  Args:
    out: the list, list.txt; list.json is beside it.
    source: all images.
    rows: of the chosen ones.
    settings: what they were chosen with, for JSON.
    chosen: their scores.
  """
  names = listed(source, rows)
  files.write_text(out, '\n'.join(names) + '\n')
  told = {'version': semppl_jax.__version__, 'method': 'usl', **settings}
  metrics.write_json(
    _beside(out, '.json'), told | {'chosen': _scores(source, rows, chosen)}
  )
  print(f'{len(names):,} images to label: {out}, {_beside(out, ".json")}')


def _beside(out: pathlib.Path, suffix: str) -> pathlib.Path:
  """list.txt -> list.json, say."""
  stem = out.stem if out.suffix == '.txt' else out.name
  return out.with_name(stem + suffix)


def _scores(
  source: sources.Source, rows: np.ndarray, chosen: usl.Selection
) -> list[dict[str, Any]]:
  """A line of the JSON file for each image, in the order of the list."""
  sizes = np.bincount(chosen.clusters)
  return [
    {
      'name': source.names[row],
      'cluster_size': int(size),
      'density': float(density),
      'score': float(score),
    }
    for row, size, density, score in zip(
      rows, sizes, chosen.density[chosen.rows], chosen.scores, strict=True
    )
  ]


def listed(source: sources.Source, rows: np.ndarray) -> list[str]:
  """Names as labels.file finds them, also when a class was given to an image.

  CLASS/FILE, or FILE where the class is not known: in a folder the image is
  then moved to train/CLASS/.

  Args:
    source: all images.
    rows: of the chosen ones.
  """
  file = lambda name: name.rpartition('/')[2]
  whole = collections.Counter(source.names)
  short = collections.Counter(map(file, source.names))
  names, twice = [], []
  for row in rows:
    name = source.names[row]
    if source.labels[row] >= 0:
      alone = whole[name] == 1
    elif alone := short[file(name)] == 1:
      name = file(name)
    names.append(name)
    twice += [] if alone else [name]
  if twice:
    command.warn(
      f'other images are called as {len(twice):,} of the chosen ones are, such '
      f'as {twice[0]!r}: labels.file cannot tell them apart.'
    )
  return names


def draw(
  out: pathlib.Path, source: sources.Source, rows: np.ndarray, most: int
) -> None:
  """Writes the contact sheet, unless nobody wants one; see `contact_sheet`."""
  if most > 0:
    path = _beside(out, '.png')
    with files.atomic(path) as part:
      contact_sheet(source, rows, most).save(part, 'png')
    print(f'Look at {path}.')


def contact_sheet(
  source: sources.Source, rows: np.ndarray, most: int
) -> Image.Image:
  """The chosen images, eight in a row, place in the list and name under them.

  Args:
    source: the images.
    rows: of the chosen ones, in the order of the list.
    most: so many of them at most, the first ones.
  """
  rows = rows[:most]
  columns = min(len(rows), _COLUMNS)
  wide, high = _TILE + _GAP, _TILE + _LINE + _GAP
  sheet = Image.new(
    'RGB', (columns * wide, -(-len(rows) // columns) * high), 'white'
  )
  pen = ImageDraw.Draw(sheet)
  for place, row in enumerate(rows.tolist()):
    line, column = divmod(place, columns)
    left, top = column * wide, line * high
    image = Image.fromarray(images.load(source[row]['image'], _TILE))
    small = max(image.size) < _SMALL
    how = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    sheet.paste(ImageOps.contain(image, (_TILE, _TILE), how), (left, top))
    # The font that is always there knows little more.
    name = sources.name(source, row).rpartition('/')[2]
    name = name.encode('ascii', 'replace').decode()[-16:]
    pen.text((left, top + _TILE), f'{place + 1}: {name}', fill='black')
  return sheet
