"""All processes of a job run the same thing, or none does."""

import hashlib
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.utils import diff

_LIBRARIES = ('jax', 'jaxlib', 'dm-haiku', 'optax', 'numpy')


def check(settings: Mapping[str, Any]) -> None:
  """Refuses a job whose processes have other settings, code or libraries.

  Args:
    settings: the resolved config, nested dicts of JSON types.

  Raises:
    UserError: in every process; names what differs, and where.
  """
  if processes.count() == 1:
    return
  every = processes.allgather_json(fingerprint(settings))
  for number, other in enumerate(every):
    differing = diff.between(
      every[0], other, words=('in process 0', f'in process {number}')
    )
    if differing:
      raise UserError(
        f'The processes of this job differ: {diff.first_few(differing)}.'
        ' Start the same command with the same version everywhere.'
      )


def fingerprint(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings, flat, with the versions of code and libraries beside them."""
  code = hashlib.sha256()
  package = pathlib.Path(__file__).parent.parent
  for path in sorted(package.rglob('*.py')):
    code.update(str(path.relative_to(package)).encode() + path.read_bytes())
  plain = json.loads(json.dumps(settings))
  return dict(diff.flat(plain)) | {
    'code of semppl_jax': code.hexdigest()[:16],
    'Python': '.'.join(map(str, sys.version_info[:2])),
    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
  }
