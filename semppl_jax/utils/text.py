"""Texts of others, errors' and files', fit for a message of one line."""

import difflib
from collections.abc import Iterable


def first_line(said: object) -> str:
  """The first line of what an error says, or its kind if it says nothing."""
  return (str(said).strip().splitlines() or [type(said).__name__])[0]


def printable(text: str) -> str:
  """A text from a file, cut, with ? for what is not printable."""
  text = text if len(text) <= 200 else text[:200] + '...'
  return ''.join(c if c.isprintable() else '?' for c in text)


def nearest_name(name: str, known: Iterable[str]) -> str:
  """'; did you mean X?' for a misspelt name, or an empty string."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
  return f'; did you mean {close[0]!r}?' if close else ''
