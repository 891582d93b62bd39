"""The C library's allocator, told to keep the memory that XLA gives back.

On a CPU XLA asks for a step's temporaries anew in every step. glibc returns so
large a piece to the system at once, and the system hands it out page by page,
each cleared at its first touch: a fifth of a step (benchmarks/NOTES.md).
"""

import ctypes
import importlib.metadata
import importlib.util
import os

import jax

# mallopt's parameters, of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
  """Has malloc use freed memory again, where JAX has nothing but a CPU.

  Must come before JAX starts its threads. The process then stays as large as it
  once was, and computes in the thread that asks for it: to others glibc gives
  arenas in which a large piece is never kept.

  Returns:
    Whether it does. Not where an accelerator's plugin is installed, nor without
    glibc, nor if the environment has settings for malloc.
  """
  if not _is_cpu_only() or _is_set():
    return False
  try:
    libc = ctypes.CDLL(None)
    mallopt, _ = libc.mallopt, libc.gnu_get_libc_version
  except (AttributeError, OSError, TypeError):  # another C library
    return False
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  # No piece is mapped by itself and unmapped when freed; the heap's end stays.
  return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def _is_cpu_only() -> bool:
  """As far as can be told before JAX starts."""
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms == 'cpu'
  return not (
    importlib.metadata.entry_points(group='jax_plugins')
    or importlib.util.find_spec('jax_plugins')
    or importlib.util.find_spec('libtpu')
  )


def _is_set() -> bool:
  return 'malloc' in os.environ.get('GLIBC_TUNABLES', '') or any(
    name.startswith('MALLOC_') for name in os.environ
  )
