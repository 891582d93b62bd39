"""Checkpoints of older versions: what their leaves are called today."""

from collections.abc import Iterable

# Format -> {beginning of their names: of ours}.
_RENAMED = {3: {'state.queue': 'state.memory'}}
READABLE = (3, 4)


def name(stored: str, format_: int) -> str:
  """Today's name of a leaf that a file of some format stores."""
  for theirs, ours in _RENAMED.get(format_, {}).items():
    if stored.startswith(theirs):
      return ours + stored.removeprefix(theirs)
  return stored


def stored(name_: str, format_: int) -> str:
  """The inverse of `name`."""
  for theirs, ours in _RENAMED.get(format_, {}).items():
    if name_.startswith(ours):
      return theirs + name_.removeprefix(ours)
  return name_


def surplus(
  there: Iterable[str], wanted: Iterable[str], format_: int
) -> set[str]:
  """Leaves that an older version saved and nobody needs.

  Before format 4 the supervised baseline had a target network, a queue and
  heads, which nothing trained. That it is such a run is for its config.json to
  say (see `workdir.lock`): here any method without a target network counts.
  """
  wanted = set(wanted)
  if format_ > 3 or any(name.startswith('state.target_') for name in wanted):
    return set()
  heads = "['projector/", "['predictor/"
  return {
    name
    for name in set(there) - wanted
    if name.startswith(('state.target_', 'state.memory'))
    or any(head in name for head in heads)
  }
