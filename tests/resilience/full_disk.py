"""A full disk, without privileges: files that cannot grow."""

import contextlib
import resource
import signal


@contextlib.contextmanager
def files_of(size):
  """Files cannot grow beyond so many bytes: a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)
