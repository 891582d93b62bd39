"""Drawings as SVG text: boxes, words and arrows, light or dark.

A page that shows a picture cannot hand its colours on to it. So the picture
has a panel of its own, and follows the reader's setting by a media query.
"""

from xml.sax import saxutils

Point = tuple[float, float]

# Class -> property -> colour on a light and on a dark panel.
_COLOURS = {
  'panel': {'fill': ('#ffffff', '#161b22'), 'stroke': ('#d0d7de', '#30363d')},
  'halo': {'stroke': ('#ffffff', '#161b22')},
  'words': {'fill': ('#1f2328', '#e6edf3')},
  'soft': {'fill': ('#57606a', '#9da7b3')},
  'line': {'stroke': ('#57606a', '#9da7b3')},
  'line-tip': {'fill': ('#57606a', '#9da7b3')},
  'gradient': {'stroke': ('#cf222e', '#ff7b72')},
  'gradient-tip': {'fill': ('#cf222e', '#ff7b72')},
  'plain': {'fill': ('#f6f8fa', '#21262d'), 'stroke': ('#8c959f', '#6e7681')},
  'blue': {'fill': ('#ddf4ff', '#0c2d6b'), 'stroke': ('#0969da', '#58a6ff')},
  'orange': {'fill': ('#fff1e5', '#5a2d0c'), 'stroke': ('#bc4c00', '#ffa657')},
  'green': {'fill': ('#dafbe1', '#0f3d1c'), 'stroke': ('#1a7f37', '#56d364')},
  'purple': {'fill': ('#fbefff', '#3c1e70'), 'stroke': ('#8250df', '#bc8cff')},
}
_SHAPES = """text { font-family: system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; }
.line, .gradient, .halo { fill: none; stroke-width: 1.8; }
.gradient { stroke-width: 3.5; }
.halo { stroke-width: 9; }
.dashed { stroke-dasharray: 6 5; }
"""  # noqa: E501


class Drawing:
  """A picture in the making; coordinates are pixels, y grows downwards."""

  def __init__(self, width: int, height: int, title: str):
    """An empty panel.

    Args:
      width: of the panel.
      height: of the panel.
      title: what the picture shows, for those who do not see it.
    """
    self._size, self._title = (width, height), title
    self._parts: list[str] = []

  def box(
    self, x: float, y: float, width: float, height: float, look: str = 'plain'
  ) -> None:
    """A box with rounded corners, in one of the colours."""
    self._parts.append(
      f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{width:g}" '
      f'height="{height:g}" rx="6"/>'
    )

  def words(
    self,
    x: float,
    y: float,
    *lines: str,
    size: int = 15,
    anchor: str = 'middle',
    look: str = 'words',
    bold: bool = False,
  ) -> None:
    """Lines of text; (x, y) is where the first one stands."""
    weight = ' font-weight="600"' if bold else ''
    for i, line in enumerate(lines):
      self._parts.append(
        f'<text class="{look}" x="{x:g}" y="{y + 1.3 * size * i:g}" '
        f'font-size="{size}" text-anchor="{anchor}"{weight}>'
        f'{saxutils.escape(line)}</text>'
      )

  def arrow(
    self,
    *points: Point,
    look: str = 'line',
    dashed: bool = False,
    over: bool = False,
  ) -> None:
    """A line through points, with a tip at its end.

    Args:
      *points: two or more.
      look: line or gradient.
      dashed: whether it is.
      over: it passes over another line, which is interrupted.
    """
    path = f'points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"'
    if over:
      self._parts.append(f'<polyline class="halo" {path}/>')
    kind, tip = look + ' dashed' * dashed, f'marker-end="url(#{look})"'
    self._parts.append(f'<polyline class="{kind}" {path} {tip}/>')

  def text(self) -> str:
    """The file."""
    width, height = self._size
    dark = ''.join(f'  {rule}\n' for rule in _rules(1))
    style = _SHAPES + ''.join(f'{rule}\n' for rule in _rules(0))
    head = (
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
      f'width="{width}" height="{height}" role="img">\n'
      f'<title>{saxutils.escape(self._title)}</title>\n<style>\n{style}'
      f'@media (prefers-color-scheme: dark) {{\n{dark}}}\n</style>\n'
      f'<defs>\n{_tip("line", 5)}\n{_tip("gradient", 3.2)}\n</defs>\n'
      f'<rect class="panel" x="0.5" y="0.5" width="{width - 1}" '
      f'height="{height - 1}" rx="10"/>\n'
    )
    return head + '\n'.join(self._parts) + '\n</svg>\n'


def _rules(scheme: int) -> list[str]:
  """A line of CSS for each class; 0: light, 1: dark."""
  return [
    f'.{name} {{ '
    + ' '.join(f'{key}: {pair[scheme]};' for key, pair in colours.items())
    + ' }'
    for name, colours in _COLOURS.items()
  ]


def _tip(look: str, size: float) -> str:
  return (
    f'<marker id="{look}" viewBox="0 0 10 10" refX="9" refY="5" '
    f'markerWidth="{size:g}" markerHeight="{size:g}" orient="auto">'
    f'<path class="{look}-tip" d="M0,0 L10,5 L0,10 z"/></marker>'
  )
