"""Elements of HTML and SVG. What is not markup already is escaped."""

import html
from collections.abc import Sequence
from typing import Any

_VOID = ('img', 'meta', 'br', 'wbr')


class Html(str):
  """Markup; any other string is text."""


class Absent(Exception):
  """A part that the page lacks; the message is the reason, for its reader."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
  """An element.

  Args:
    name: of the element.
    *children: Html as it is; anything else as text; None: left out.
    **attributes: `class_` is class, `aria_label` aria-label; None: left out.
  """
  texts = ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for key, value in attributes.items()
    if value is not None
  )
  if name in _VOID:
    return Html(f'<{name}{texts}>')
  return Html(f'<{name}{texts}>{join(*children)}</{name}>')


def join(*children: Any) -> Html:
  """One after another."""
  return Html(''.join(map(text, (c for c in children if c is not None))))


def text(value: Any) -> Html:
  """A value as text; Html stays as it is."""
  return value if isinstance(value, Html) else Html(html.escape(str(value)))


def table(
  head: Sequence[Any],
  rows: Sequence[Sequence[Any]],
  *,
  label: str,
  kind: str | None = None,
) -> Html:
  """A table in a box of its own, which scrolls if the table is wide.

  Args:
    head: texts of the first row.
    rows: texts of the others; the first of each is its heading.
    label: what it shows, for who does not see it.
    kind: a class for the style.
  """
  columns = [tag('th', x, scope='col') for x in head]
  body = [
    tag('tr', tag('th', first, scope='row'), *(tag('td', x) for x in rest))
    for first, *rest in rows
  ]
  whole = tag(
    'table',
    tag('thead', tag('tr', *columns)),
    tag('tbody', *body),
    class_=kind,
  )
  return scrolling(whole, label)


def scrolling(content: Html, label: str) -> Html:
  """A box that scrolls sideways, also by the keyboard."""
  return tag(
    'div', content, class_='scroll', role='region', aria_label=label,
    tabindex=0,
  )  # fmt: skip


def details(summary: str, *content: Any) -> Html:
  """What opens when it is asked for."""
  return tag('details', tag('summary', summary), *content)


def note(*content: Any) -> Html:
  """A remark in small type."""
  return tag('p', *content, class_='note')
