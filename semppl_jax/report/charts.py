"""Charts as inline SVG. Colours are variables of the page's style.

Lines and points differ in colour, and in dashes or shapes besides.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from semppl_jax.report.markup import Html, tag

COLOURS = 8  # in style.css: --c0 .. --c7
_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 350, 10, 172
_MOST_BINS = 180  # points of a line; more logged steps are averaged
_LONGEST_NAME = 16  # letters of a class in the plane
_DASHES = (None, '7 3', '2 3', '9 3 2 3')


class Line(NamedTuple):
  """A series of a chart."""

  name: str
  number: int  # decides colour and dashes
  steps: np.ndarray  # [n] float, rising
  values: np.ndarray  # [n] float, finite


class _Scale(NamedTuple):
  """Values -> places in the picture."""

  low: float
  high: float
  start: float
  end: float

  def __call__(self, values: np.ndarray) -> np.ndarray:
    share = (values - self.low) / (self.high - self.low)
    return self.start + share * (self.end - self.start)


def line_chart(
  title: str,
  lines: Sequence[Line],
  *,
  share: bool = False,
  marks: Sequence[float] = (),
  legend: bool = True,
) -> Html:
  """A figure of series over steps.

  Args:
    title: above it.
    lines: at least one.
    share: whether values are shares, drawn from 0 to 100%.
    marks: steps that get a vertical line.
    legend: whether names stand below.
  """
  x = _Scale(*_limits([line.steps for line in lines]), _LEFT, _RIGHT)
  limits = (0.0, 1.0) if share else _limits([line.values for line in lines])
  y = _Scale(*_padded(*limits), _BOTTOM, _TOP)
  drawn = tag(
    'svg',
    *_grid(x, y, share),
    *(
      tag('path', d=f'M{x(np.float64(m)):.1f} {_TOP}V{_BOTTOM}', class_='mark')
      for m in marks
    ),
    *(part for line in lines for part in _drawn(line, x, y)),
    viewBox=f'0 0 {_WIDTH} {_HEIGHT}',
    role='img',
    aria_label=f'{title}. ' + ' '.join(_in_words(x, share) for x in lines),
  )
  return tag(
    'figure',
    tag('figcaption', title),
    drawn,
    keys(lines) if legend and len(lines) > 1 else None,
    class_='chart',
  )


def keys(lines: Sequence[Line]) -> Html:
  """A legend."""
  items = [
    tag('li', _sample(line.number), tag('span', line.name)) for line in lines
  ]
  return tag('ul', *items, class_='keys')


def number(value: float, share: bool = False) -> str:
  """A number at an axis or in a table."""
  if share:
    return f'{value:.1%}'.replace('.0%', '%')
  if abs(value) >= 1000 or value == int(value):
    return f'{value:,.0f}'
  return f'{value:.3g}'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers from low to high."""
  step = 10 ** math.floor(math.log10((high - low) / most))
  step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= most)
  first = math.ceil(low / step - 1e-9)
  return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _limits(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
  joined = np.concatenate(arrays)
  low, high = float(joined.min()), float(joined.max())
  if low == high:
    return low - 0.5, high + 0.5
  return low, high


def _padded(low: float, high: float) -> tuple[float, float]:
  room = 0.04 * (high - low)
  return low - room, high + room


def _grid(x: _Scale, y: _Scale, share: bool) -> list[Html]:
  parts = [_label('step', _LEFT - 6, _BOTTOM + 17, 'end')]
  for value in ticks(y.low, y.high):
    place = y(np.float64(value))
    parts += [
      tag('path', d=f'M{_LEFT} {place:.1f}H{_RIGHT}', class_='grid'),
      _label(number(value, share), _LEFT - 6, place + 4, 'end'),
    ]
  for value in ticks(x.low, x.high, most=6):
    if value == int(value):  # there are no half steps
      place = x(np.float64(value))
      parts.append(_label(number(value), place, _BOTTOM + 17, 'middle'))
  return parts


def _label(content: str, x: float, y: float, anchor: str) -> Html:
  return tag('text', content, x=f'{x:.1f}', y=f'{y:.1f}', text_anchor=anchor)


def _drawn(line: Line, x: _Scale, y: _Scale) -> list[Html]:
  """The line, over the range of what it is the mean of."""
  steps, mean, low, high = _binned(line)
  style = f'--own:var(--c{line.number % COLOURS})'
  parts = []
  if len(steps) < len(line.steps):
    edge = _points(x(np.r_[steps, steps[::-1]]), y(np.r_[low, high[::-1]]))
    parts.append(tag('path', d=f'M{edge}Z', class_='range', style=style))
  kind = 'line'
  if len(steps) == 1:  # no line, but a dot
    steps, mean, kind = np.repeat(steps, 2), np.repeat(mean, 2), 'line dot'
  parts.append(
    tag(
      'path', tag('title', line.name), d='M' + _points(x(steps), y(mean)),
      class_=kind, style=style, stroke_dasharray=_dash(line.number),
    )
  )  # fmt: skip
  return parts


def _dash(number: int) -> str | None:
  return _DASHES[(number + number // COLOURS) % len(_DASHES)]


def _binned(line: Line) -> tuple[np.ndarray, ...]:
  """Steps, means, lowest, highest of at most _MOST_BINS parts of a line."""
  count = min(len(line.steps), _MOST_BINS)
  parts = np.array_split(line.values, count)
  steps = [part.mean() for part in np.array_split(line.steps, count)]
  found = [(p.mean(), p.min(), p.max()) for p in parts]
  return np.array(steps), *np.array(found).T


def _points(x: np.ndarray, y: np.ndarray) -> str:
  return ' '.join(f'{a:.1f} {b:.1f}' for a, b in zip(x, y, strict=True))


def _sample(number: int) -> Html:
  line = tag(
    'path', d='M1 5H25', class_='line', style=f'--own:var(--c{number % 8})',
    stroke_dasharray=_dash(number),
  )  # fmt: skip
  return tag('svg', line, viewBox='0 0 26 10', class_='key', aria_hidden='true')


def _in_words(line: Line, share: bool) -> str:
  first, last = (number(line.values[i], share) for i in (0, -1))
  return (
    f'{line.name}: {first} at step {line.steps[0]:.0f}, {last} at step '
    f'{line.steps[-1]:.0f}.'
  )


def scatter(
  points: np.ndarray,
  classes: np.ndarray,
  names: Sequence[str],
  *,
  title: str,
  wrong: np.ndarray | None = None,
) -> Html:
  """Points in the plane, by class; classes have their names in their midst.

  Args:
    points: [n, 2].
    classes: [n] int, -1: unknown.
    names: of the classes.
    title: above it.
    wrong: [n] bool, points that get a cross; None: none.
  """
  low, high = points.min(axis=0), points.max(axis=0)
  places = 8 + 344 * (points - low) / np.maximum(high - low, 1e-9)
  present = [int(c) for c in np.unique(classes) if c >= 0]
  parts = [_dots(places[classes == c], c) for c in (-1, *present)]
  if wrong is not None and wrong.any():
    crosses = ''.join(
      f'M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6' for x, y in places[wrong]
    )
    parts.append(tag('path', d=crosses, class_='cross'))
  if len(present) <= 2 * COLOURS:
    middles = [np.median(places[classes == c], axis=0) for c in present]
    parts += [_class_name(names[c], *m) for c, m in zip(present, middles)]
  drawn = tag(
    'svg', *parts, viewBox='0 0 360 360', role='img',
    aria_label=f'{title}: {len(points)} points in {len(present)} classes',
  )  # fmt: skip
  caption = tag('figcaption', title)
  return tag('figure', caption, drawn, class_='chart scatter')


def _class_name(name: str, x: float, y: float) -> Html:
  """A class's name in the midst of its points, whole within the picture."""
  short = name if len(name) <= _LONGEST_NAME else f'{name[:_LONGEST_NAME]}…'
  room = 5 * len(short)  # half of its width, about
  return tag(
    'text', tag('title', name), short, text_anchor='middle', class_='name',
    x=f'{min(max(x, room), 360 - room):.0f}',
    y=f'{min(max(y + 5, 14), 356):.0f}',
  )  # fmt: skip


def _dots(places: np.ndarray, number: int) -> Html | None:
  """One path: strokes of no length, whose ends are round or square."""
  if not len(places):
    return None
  path = ''.join(f'M{x:.1f} {y:.1f}h.01' for x, y in places)
  colour = 'var(--muted)' if number < 0 else f'var(--c{number % COLOURS})'
  square = number >= 0 and number // COLOURS % 2
  return tag(
    'path', d=path, class_='dots', style=f'--own:{colour}',
    stroke_linecap='square' if square else 'round',
  )  # fmt: skip
