"""What differs between two sets of named values, in words."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from semppl_jax.utils.text import printable

_ABSENT = 'absent'


def between(
  there: Mapping[str, Any],
  here: Mapping[str, Any],
  ignore: Sequence[str] = (),
  words: tuple[str, str] = ('there', 'here'),
) -> list[str]:
  """One phrase for each name that has another value there than here.

  Args:
    there: what stands on disk.
    here: what is wanted.
    ignore: names that may differ.
    words: what the two are called.
  """
  pairs = {
    name: (there.get(name, _ABSENT), here.get(name, _ABSENT))
    for name in dict(there) | dict(here)
    if name not in ignore
  }
  return [
    f'{printable(name)} is {_text(old)} {words[0]} and {_text(new)} {words[1]}'
    for name, (old, new) in pairs.items()
    if old != new
  ]


def _text(value: Any) -> str:
  return value if value is _ABSENT else printable(json.dumps(value))


def first_few(phrases: Sequence[str], show: int = 3) -> str:
  """The first phrases, and how many more there are."""
  more = f' (and {len(phrases) - show} more)' if len(phrases) > show else ''
  return '; '.join(phrases[:show]) + more


def flat(
  tree: Mapping[str, Any] | ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """(dotted name, value) of nested values; an empty mapping is a value."""
  for key, value in tree.items():
    if isinstance(value, Mapping | ConfigDict) and value:
      yield from flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value
