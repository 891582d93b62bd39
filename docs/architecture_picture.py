"""The floors of the house, as a picture: as the test of imports has them."""

import ast
import pathlib

from docs import svg

_TEST = pathlib.Path(__file__).parent.parent / 'tests/test_architecture.py'
_HEART = 'pretrain_step'
_LEFT, _RIGHT = 60, 900  # walls
_STAIRS = 806  # where the stairwell begins
_TOP = 96  # of the uppermost floor
_ROOM, _GAP = 30, 8  # height of a room, between two


def floors() -> dict[int, tuple[str, ...]]:
  """Rooms of each floor."""
  for node in ast.parse(_TEST.read_text()).body:
    if (
      isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'FLOORS'
    ):
      return ast.literal_eval(node.value)
  raise LookupError(f'{_TEST.name} has no FLOORS.')


def draw() -> str:
  """The text of docs/architecture.svg."""
  storeys = [
    (number, _rows(rooms)) for number, rooms in sorted(floors().items())
  ][::-1]
  height = sum(_height(rows) for _, rows in storeys)
  drawing = svg.Drawing(
    960,
    _TOP + height + 56,
    'The modules of semppl_jax as rooms on the floors of a house: each imports '
    'lower floors only.',
  )
  _roof(drawing)
  y = _TOP
  for number, rows in storeys:
    _floor(drawing, y, number, rows)
    y += _height(rows)
  drawing.words(
    (_LEFT + _RIGHT) / 2, y + 32, 'All stairs go down: a room imports lower '
    'floors only, and rooms on one floor do not know each other.', look='soft',
  )  # fmt: skip
  return drawing.text()


def _rows(rooms: tuple[str, ...]) -> list[list[tuple[str, float, float]]]:
  """(room, x, width) in rows that end before the stairs."""
  rows, x = [[]], _LEFT + 12
  for room in rooms:
    width = 30 + 8.4 * len(room)
    if x + width > _STAIRS - 12:
      rows.append([])
      x = _LEFT + 12
    rows[-1].append((room, x, width))
    x += width + _GAP
  return rows


def _height(rows: list) -> int:
  return len(rows) * (_ROOM + _GAP) + _GAP


def _roof(drawing: svg.Drawing) -> None:
  middle = (_LEFT + _RIGHT) / 2
  drawing.area(
    ((_LEFT - 24, _TOP), (middle, 14), (_RIGHT + 24, _TOP)), 'orange'
  )
  drawing.words(middle, 66, 'experiments', bold=True)
  drawing.words(middle, 86, 'settings only', size=14)


def _floor(drawing: svg.Drawing, y: float, number: int, rows: list) -> None:
  height = _height(rows)
  drawing.area(
    ((_LEFT, y), (_RIGHT, y), (_RIGHT, y + height), (_LEFT, y + height)),
    'plain',
  )
  drawing.words(
    _LEFT - 12, y + height / 2 + 5, str(number), anchor='end', look='soft'
  )
  for row, rooms in enumerate(rows):
    for room, x, width in rooms:
      top = y + _GAP + row * (_ROOM + _GAP)
      heart = room == _HEART
      drawing.box(x, top, width, _ROOM, 'purple' if heart else 'blue')
      drawing.words(x + width / 2, top + 20, room, bold=heart)
  if number:
    drawing.arrow(*_stairs(y, height))


def _stairs(y: float, height: float) -> list[svg.Point]:
  """From the floor's upper left to its lower right, in steps."""
  steps = 5
  wide, high = 70 / steps, (height - 6) / steps
  points = [(_STAIRS, y + 3)]
  for _ in range(steps):
    x, now = points[-1]
    points += [(x + wide, now), (x + wide, now + high)]
  return points
