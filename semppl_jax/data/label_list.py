"""The list that labels.file is: images by name, with or without a class."""

import csv
from collections.abc import Callable, Sequence
from typing import NamedTuple

from semppl_jax.errors import UserError

# Heads of the two columns, in any letters; others do not count.
_NAME = ('name', 'file', 'filename', 'image')
_CLASS = ('class', 'label')
_DELIMITERS = ',;\t'  # of a file with heads; without, a comma


class Entry(NamedTuple):
  """A line of the list."""

  name: str  # of an image
  label: str | None  # the name of its class; None: the one the data set knows


def parse(
  lines: Sequence[str], is_name: Callable[[str], bool], what: str
) -> list[Entry]:
  """Entries of a list: lines NAME or NAME,CLASS, or a CSV with heads.

  A line that is an image's name as it stands is one, commas included. In a CSV
  with the heads `name` and `class`, as `semppl-jax label` writes it, rows
  without a class do not count, nor do other columns.

  Args:
    lines: of the file, none of them empty.
    is_name: whether an image is called so.
    what: the list is, for messages.

  Raises:
    UserError: a row with too few columns, an image with two classes, or heads
      without any class below them.
  """
  columns = _columns(lines[0])
  if columns is None:
    found = [_entry(line, is_name) for line in lines]
  else:
    found = _table(lines, *columns, what)
  classes: dict[str, str | None] = {}
  for name, label in found:
    if classes.setdefault(name, label) != label:
      raise UserError(f'{what}: {name!r} stands there with two classes.')
  return [Entry(name, label) for name, label in classes.items()]


def _columns(head: str) -> tuple[str, int, int] | None:
  """Delimiter, and where names and classes stand; None: it is no head."""
  for delimiter in _DELIMITERS:
    cells = [cell.lower() for cell in _cells(head, delimiter)]
    places = [
      next((i for i, cell in enumerate(cells) if cell in kind), None)
      for kind in (_NAME, _CLASS)
    ]
    if None not in places:
      return delimiter, *places
  return None


def _table(lines, delimiter, name_at, class_at, what):
  found = []
  for number, line in enumerate(lines[1:], 2):
    cells = _cells(line, delimiter)
    if len(cells) <= max(name_at, class_at):
      raise UserError(
        f'{what}: row {number} has {len(cells)} columns, but name and class '
        f'are the columns {name_at + 1} and {class_at + 1} of its heads.'
      )
    if cells[class_at]:
      found.append(Entry(cells[name_at], cells[class_at]))
  if not found:
    raise UserError(
      f'{what}: no row has a class: write one into the column of that name.'
    )
  return found


def _entry(line: str, is_name: Callable[[str], bool]) -> Entry:
  if ',' not in line or is_name(line):
    return Entry(line, None)
  cells = _cells(line, ',')
  if len(cells) != 2 or not all(cells):
    return Entry(line, None)  # for who looks names up to refuse
  return Entry(*cells)


def _cells(line: str, delimiter: str) -> list[str]:
  try:
    (cells,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
  except (csv.Error, ValueError):
    return [line]
  return [cell.strip() for cell in cells]
