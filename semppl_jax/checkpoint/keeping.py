"""Which checkpoints of a run stay, and which make way for newer ones."""

from collections.abc import Sequence
from typing import Any


class Kept:
  """Orbax's preservation policy of a run: the newest, and some others.

  Args:
    newest: so many of the newest stay,
    every: and those of every so many steps; 0: no others.
  """

  def __init__(self, newest: int, every: int = 0):
    self._newest, self._every = newest, every
    self.also: int | None = None  # one more step

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Whether each stays.

    Args:
      checkpoints: with a field `step`, rising.
      context: nothing that is needed.
    """
    del context
    steps = [one.step for one in checkpoints]
    stay = {*steps[-self._newest :], self.also}
    every = self._every
    return [step in stay or bool(every and step % every == 0) for step in steps]
