"""Eight CPU devices, asked for before JAX starts; tests take the first D."""

import importlib.metadata
import os
import tempfile

# The tests compile much and compute little. One cache serves them all, and the
# processes that they start, as workers of pytest-xdist are.
if not {'PYTEST_XDIST_WORKER', 'SEMPPL_TEST_CACHE'} & set(os.environ):
  _CACHE = tempfile.TemporaryDirectory(prefix='semppl_jax_tests_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
# SEMPPL_TEST_PLATFORM=cuda: what needs one device only, on a GPU.
os.environ['JAX_PLATFORMS'] = os.environ.get('SEMPPL_TEST_PLATFORM', 'cpu')
_FLAGS = ' --xla_backend_optimization_level=0'
# Two workers use both cores as it is.
_FLAGS += ' --xla_cpu_parallel_codegen_split_count=1'
# XLA ends at a flag that it does not know.
_VERSION = tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2]))
if _VERSION < (0, 11):  # fusions compile twice as fast without it
  _FLAGS += ' --xla_cpu_use_fusion_emitters=false'
if _VERSION >= (0, 10):  # a step and its test take an eighth less
  _FLAGS += ' --xla_cpu_opt_preset=FAST_COMPILE'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + _FLAGS

import jax  # noqa: E402, it reads the environment
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(autouse=True, scope='module')
def _programs_of_a_module():
  """What one module compiled is of no use to the next, but takes memory."""
  yield
  jax.clear_caches()
