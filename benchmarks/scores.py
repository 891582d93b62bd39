"""Scores of several seeds in a cell of a table."""

from collections.abc import Sequence

import numpy as np


def percent(values: Sequence[float], sign: str = '') -> str:
  """Mean ± standard error, in percent; of one value the error is 0.

  Args:
    values: shares, one for each seed.
    sign: '+': the mean has its sign.
  """
  found = 100 * np.array(values)
  error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
  return f'{found.mean():{sign}.1f} ± {error:.1f}'
