"""Whose work directory it is: WORKDIR/config.json says it."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from semppl_jax import differences, files
from semppl_jax.errors import UserError


def claim(
  workdir: str, config: Mapping[str, Any], *, ignore: Sequence[str] = ()
) -> None:
  """Writes WORKDIR/config.json, or checks that it says the same already.

  Args:
    workdir: made if it is not there.
    config: the resolved config, nested dicts of JSON types; tuples count as
      lists.
    ignore: names (dotted if nested) that may differ; the file then takes the
      new values.

  Raises:
    UserError: the directory belongs to a run with other settings, or holds
      checkpoints of unknown settings.
  """
  folder = pathlib.Path(workdir)
  text = json.dumps(config, indent=2) + '\n'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'--workdir {workdir} cannot be made: {error.strerror}. Choose another.'
    ) from None
  there, here = _standing(folder), dict(differences.flat(json.loads(text)))
  if there == here:
    return
  differing = differences.between(
    here if there is None else there, here, ignore
  )
  if differing:
    what = differences.first_few(differing)
    raise UserError(
      f'--workdir {workdir} holds a run with other settings: {what}. '
      'Choose another --workdir or the old settings.'
    )
  files.write_text(folder / 'config.json', text)


def _standing(folder: pathlib.Path) -> dict[str, Any] | None:
  """The settings that a work directory has, flat; None: nobody's yet."""
  path = folder / 'config.json'
  advice = 'choose another --workdir, or bring the file back'
  try:
    return dict(differences.flat(dict(json.loads(path.read_text('utf-8')))))
  except FileNotFoundError:
    if any((folder / 'checkpoints').glob('[0-9]*')):
      raise UserError(
        f'--workdir {folder} has checkpoints but no config.json: {advice}.'
      ) from None
    return None
  except (ValueError, TypeError, OSError):
    raise UserError(f'{path} cannot be read as JSON: {advice}.') from None
