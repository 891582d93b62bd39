"""One table as Markdown and as JSON."""

import os
from collections.abc import Sequence
from typing import Any

from semppl_jax import storage
from semppl_jax.utils import files
from semppl_jax.workdir import metrics


def write(
  workdir: str | os.PathLike,
  heads: Sequence[str],
  rows: Sequence[Sequence[Any]],
  notes: str = '',
) -> None:
  """Writes WORKDIR/table.md and WORKDIR/table.json.

  Args:
    workdir: a folder that is there.
    heads: names of the columns.
    rows: their cells; floats are shown with two digits after the point, None
      as a dash.
    notes: lines below the table.
  """
  table = markdown(heads, rows)
  files.write_text(
    storage.path(workdir) / 'table.md', f'{table}\n{notes}'.rstrip() + '\n'
  )
  records = [dict(zip(heads, row)) for row in rows]
  metrics.write_json(storage.path(workdir) / 'table.json', records)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table in Markdown, see `write`."""
  lines = [heads, ['---'] * len(heads), *rows]
  return ''.join('| ' + ' | '.join(map(_text, row)) + ' |\n' for row in lines)


def _text(value: Any) -> str:
  if value is None:
    return '–'
  return f'{value:.2f}' if isinstance(value, float) else str(value)
