"""What the operating system said, out of the text of a library's error."""

import errno
import os
import re

from semppl_jax.utils.text import first_line

_NUMBERS = {os.strerror(number): number for number in errno.errorcode}
# TensorStore tells its whole specification; the system's words stand before it.
_TENSORSTORE = (
  r': ([^:\[]*) \[(?:os_error_code|tensorstore_spec|source locations)='
)
_ARRAY_RECORD = r'failed: ([^;\n]+)'  # pread() failed: ...; reading


def said(error: BaseException) -> tuple[str, int | None]:
  """The system's words, or the error's own, in a line; and their errno."""
  if found := re.search(_TENSORSTORE, str(error)):
    return found[1], _NUMBERS.get(found[1])
  found = re.search(_ARRAY_RECORD, str(error))
  if found and (words := found[1].strip()) in _NUMBERS:
    return words, _NUMBERS[words]
  return first_line(error)[:200], getattr(error, 'errno', None)
