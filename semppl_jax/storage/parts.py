"""Files that grow line by line, where an object cannot be appended to.

FILE.parts/N.jsonl beside FILE: the newest part is put again as it grows, and
makes way for another when it is large. Who reads joins FILE and its parts.
"""

import time
from collections.abc import Callable

from semppl_jax.storage import objects
from semppl_jax.storage.address import Address

SECONDS = 30.0  # between two writes
_LARGE = 2**18  # bytes of a part


class Lines:
  """The lines that one process adds to a file, after those that are there."""

  def __init__(
    self, place: Address, clock: Callable[[], float] = time.monotonic
  ):
    self._folder, self._clock = _folder(place), clock
    there = [name.partition('.')[0] for name in objects.names(self._folder)]
    self._number = 1 + max((int(n) for n in there if n.isdigit()), default=0)
    self._text, self._is_new, self._written = b'', False, clock()

  def add(self, line: str) -> None:
    """Adds a line; it is written within `SECONDS`, if more are added."""
    self._text += line.encode()
    self._is_new = True
    if self._clock() - self._written >= SECONDS:
      self.flush()

  def flush(self) -> None:
    """Writes what has been added."""
    if not self._is_new:
      return
    objects.write(self._folder / f'{self._number:06d}.jsonl', self._text)
    self._is_new, self._written = False, self._clock()
    if len(self._text) > _LARGE:
      self._text, self._number = b'', self._number + 1


def read(place: Address) -> str:
  """A file and its parts, joined.

  Raises:
    FileNotFoundError: there is neither.
  """
  try:
    return _read(place)
  except FileNotFoundError:  # or they were joined meanwhile
    return _read(place)


def _read(place: Address) -> str:
  parts = [_folder(place) / name for name in objects.names(_folder(place))]
  texts = []
  for one in (place, *parts):
    try:
      texts.append(objects.read(one).decode('utf-8', 'replace'))
    except FileNotFoundError:
      if one is not place or not parts:
        raise
  return ''.join(texts)


def join(place: Address, text: str) -> None:
  """Puts a text in place of a file and its parts."""
  objects.write(place, text.encode())
  # From the first on: what is left stands for no more than its own steps.
  objects.remove(
    _folder(place) / name for name in objects.names(_folder(place))
  )


def _folder(place: Address) -> Address:
  return place.with_name(f'{place.name}.parts')
