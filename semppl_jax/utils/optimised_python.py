"""Python without assertions (-O), in which Haiku names its modules wrongly."""

import os
import sys

_WHY = (
  'semppl_jax does not run under python -O (PYTHONOPTIMIZE): dm-haiku leaves '
  'out a step that stands in an assertion, and then names modules wrongly. '
  'Start Python without it.'
)


def refuse() -> None:
  """One line and status 2 on the command line, an ImportError elsewhere."""
  if __debug__:
    return
  begun = os.path.basename(sys.argv[0] if sys.argv else '')
  if begun in ('-m', 'semppl-jax'):
    print(f'error: {_WHY}', file=sys.stderr)
    sys.exit(2)
  raise ImportError(_WHY)
