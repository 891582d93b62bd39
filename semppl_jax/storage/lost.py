"""Folders that another job may have taken over: nothing is written there."""

from collections.abc import Callable

from semppl_jax.storage.address import Address

_CHECKS: dict[str, Callable[[], None]] = {}


def watch(place: Address, check: Callable[[], None]) -> None:
  """From now on `check` is called before every write below an address."""
  _CHECKS[f'{place}/'] = check


def forget(place: Address) -> None:
  """No more."""
  _CHECKS.pop(f'{place}/', None)


def check(place: Address) -> None:
  """Raises what a check says of a place that is to be written."""
  for folder, one in list(_CHECKS.items()):
    if str(place).startswith(folder):
      one()
