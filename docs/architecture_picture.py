"""The layers of the package, as a picture: as the test of imports has them."""

import ast
import pathlib

from docs import svg

_TEST = pathlib.Path(__file__).parent.parent / 'tests/test_architecture.py'
_ENTRY = 'main'  # in the uppermost layer
_LEFT, _RIGHT = 60, 900  # sides
_ARROWS = 806  # where the arrows' column begins
_TOP = 24  # of the uppermost layer
_BOX, _GAP = 30, 8  # height of a box, between two


def layers() -> dict[int, tuple[str, ...]]:
  """Packages of each layer, and modules beside them."""
  found = {
    ast.unparse(node.targets[0]): node.value
    for node in ast.parse(_TEST.read_text()).body
    if isinstance(node, ast.Assign)
  }
  lower, entry = (ast.literal_eval(found[name]) for name in ('LAYERS', 'ENTRY'))
  return lower | {max(lower) + 1: entry}


def draw() -> str:
  """The text of docs/architecture.svg."""
  found = sorted(layers().items(), reverse=True)
  height = sum(_height(_rows(names)) for _, names in found)
  drawing = svg.Drawing(
    960,
    _TOP + height + 56,
    'The packages of semppl_jax in layers: each imports lower layers only.',
  )
  y = _TOP
  for number, names in found:
    y += _layer(drawing, y, number, _rows(names))
  drawing.words(
    (_LEFT + _RIGHT) / 2, y + 32, 'A package imports lower layers only; in the '
    'uppermost one a module imports those that stand before it.', look='soft',
  )  # fmt: skip
  return drawing.text()


def _rows(names: tuple[str, ...]) -> list[list[tuple[str, float, float]]]:
  """(name, x, width) in rows that end before the arrows."""
  rows, x = [[]], _LEFT + 12
  for name in names:
    width = 30 + 8.4 * len(name)
    if x + width > _ARROWS - 12:
      rows.append([])
      x = _LEFT + 12
    rows[-1].append((name, x, width))
    x += width + _GAP
  return rows


def _height(rows: list) -> int:
  return len(rows) * (_BOX + _GAP) + _GAP


def _layer(drawing: svg.Drawing, y: float, number: int, rows: list) -> int:
  """Draws a layer at y, and an arrow to the one below; its height."""
  height = _height(rows)
  drawing.box(_LEFT, y, _RIGHT - _LEFT, height)
  drawing.words(
    _LEFT - 12, y + height / 2 + 5, str(number), anchor='end', look='soft'
  )
  for row, names in enumerate(rows):
    for name, x, width in names:
      top = y + _GAP + row * (_BOX + _GAP)
      entry = name == _ENTRY
      drawing.box(x, top, width, _BOX, 'purple' if entry else 'blue')
      drawing.words(x + width / 2, top + 20, name, bold=entry)
  if number:
    x = (_ARROWS + _RIGHT) / 2
    drawing.arrow((x, y + 6), (x, y + height - 4))
  return height
