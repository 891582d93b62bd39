"""What the command lines of all tools share: the exit status."""

import sys
from collections.abc import Callable

from semppl_jax.errors import UserError


def status(work: Callable[[], object]) -> int:
  """Does a tool's work; what its user can mend is a line, not a trace.

  Returns:
    0; 2: something is wrong; 130: Ctrl-C.
  """
  try:
    work()
  except (UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('Stopped: the same command goes on.', file=sys.stderr)
    return 130
  return 0
