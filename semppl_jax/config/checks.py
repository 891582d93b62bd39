"""What can be wrong with a setting: its kind, its range, its choice.

Each check raises a UserError, one line that names the setting, its value and
what would do.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from semppl_jax.errors import UserError
from semppl_jax.utils.diff import flat
from semppl_jax.utils.text import nearest_name

_WANTED = {
  bool: 'True or False',
  int: 'a whole number of 64 bits',
  float: 'a finite number',
  str: 'a text',
}


def look_up(cfg: ml_collections.ConfigDict, key: str) -> Any:
  """The value of a setting by its dotted name."""
  for part in key.split('.'):
    cfg = cfg[part]
  return cfg


def find(settings: Any, key: str) -> Any:
  """A value in nested dicts, as JSON has them, by its dotted name, or None."""
  for part in key.split('.'):
    settings = settings.get(part) if isinstance(settings, dict) else None
  return settings


def check_kinds(
  cfg: ml_collections.ConfigDict,
  like: ml_collections.ConfigDict,
  any_length: Sequence[str] = (),
) -> None:
  """Refuses values of another kind than the defaults, and what is not finite.

  Args:
    cfg: the settings.
    like: the defaults; None there: a number, or None.
    any_length: sections whose tuples may have another length.
  """
  for key, usual in flat(like):
    value = look_up(cfg, key)
    if usual is None and value is None:
      continue
    if isinstance(usual, tuple):
      first = 0.0 if not usual else usual[0]
      fits = isinstance(value, tuple) and all(_is(x, first) for x in value)
      if key.split('.')[0] not in any_length:
        fits = fits and len(value) == len(usual)
      wanted = f'like {usual}'
    else:
      fits = _is(value, 0.0 if usual is None else usual)
      wanted = _WANTED[float if usual is None else type(usual)]
    if not fits:
      raise UserError(f'{key} is {value!r:.200}; it must be {wanted}.')


def _is(value: Any, usual: Any) -> bool:
  """Whether a value is of the kind of the usual one."""
  if isinstance(usual, float):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1e38  # of float32
  same = type(value) is type(usual)
  return same and (type(value) is not int or -(2**63) <= value < 2**63)


def check_ranges(
  cfg: ml_collections.ConfigDict, ranges: Mapping[str, tuple[Any, Any]]
) -> None:
  """Refuses numbers outside {key: (lowest, highest)}; None: no bound."""
  for key, (low, high) in ranges.items():
    value = look_up(cfg, key)
    # Written so that NaN is out of range too.
    if not (value >= low and (high is None or value <= high)):
      wanted = f'at least {low}' if high is None else f'from {low} to {high}'
      raise UserError(f'{key} is {value}; it must be {wanted}.')


def check_rising(
  cfg: ml_collections.ConfigDict, key: str, most: float = math.inf
) -> None:
  """Refuses what is not 0 < low <= high <= most; two numbers, by their kind."""
  value = look_up(cfg, key)
  if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
    raise UserError(
      f'{key} is {value}; it must be two rising numbers above 0'
      f'{"" if most == math.inf else f" and at most {most}"}.'
    )


def check_choices(
  cfg: ml_collections.ConfigDict, choices: Mapping[str, tuple[str, ...]]
) -> None:
  """Refuses values that are not among {key: known values}."""
  for key, known in choices.items():
    value = look_up(cfg, key)
    if value not in known:
      hint = nearest_name(value, known)
      raise UserError(f'{key} is {value!r}; known: {", ".join(known)}{hint}')
