"""What it takes to read a checkpoint pickle: memory and time.

  python -m benchmarks.load_pickle --megabytes=200

Writes a pickle as DeepMind's release does (protocol 2, arrays of a ResNet's
sizes) and reads it, each time in a process of its own: with our reader, and
with Python's unpickler behind a list of allowed names. The multiples are of the
arrays' bytes; the peak of a process is what it adds to Python and NumPy.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pickle
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from semppl_jax.weights import release_pickle

_MEGABYTES = flags.DEFINE_integer('megabytes', 200, 'Bytes of all arrays.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Runs; the fastest one counts.')
# Other benchmarks have it too, and tests may import several.
_JSON = flags.DEFINE_string(
  'json', None, 'File for the numbers.', allow_override=True
)

_ALLOWED = {
  ('_codecs', 'encode'),
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', '_reconstruct'),
}


class _Unpickler(pickle.Unpickler):
  """The usual way: allows names, but runs the rest of the program."""

  def find_class(self, module, name):
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f'{module}.{name}')
    return super().find_class(module, name)


def arrays(megabytes: int) -> dict[str, dict[str, np.ndarray]]:
  """{module: {name: float32 array}}: kernels, scales and offsets."""
  random = np.random.default_rng(0)
  tree: dict[str, dict[str, np.ndarray]] = {}
  left = megabytes * 10**6 // 4
  while left > 0:
    # The four stages of a bottleneck network, over and over.
    width = 64 << (len(tree) // 12 % 4)
    shape = (3, 3, width, width) if len(tree) % 3 else (1, 1, width, 4 * width)
    name = f'res_net/~/block_group/~/block_{len(tree)}/~/conv'
    leaves = {'w': shape, 'scale': shape[3:], 'offset': shape[3:]}
    tree[name] = {
      key: random.standard_normal((1, *size), np.float32)
      for key, size in leaves.items()
    }
    left -= int(sum(leaf.size for leaf in tree[name].values()))
  return tree


def write(path: str, megabytes: int) -> int:
  """Writes the pickle; returns the arrays' bytes."""
  tree = arrays(megabytes)
  content = {'online_params': tree, 'online_state': {}}
  with open(path, 'wb') as file:
    pickle.dump({'experiment_state': content, 'step': 1}, file, protocol=2)
  return sum(
    leaf.nbytes for leaves in tree.values() for leaf in leaves.values()
  )


def unpickle(path: str) -> Any:
  """Reads a pickle with Python's unpickler."""
  with open(path, 'rb') as file:
    return _Unpickler(file).load()


READERS = {'ours': release_pickle.read, "Python's, restricted": unpickle}


def measure(reader: str, path: str) -> dict[str, float]:
  """Reads the file in this process; adds to its peak: seconds, bytes."""
  before = _peak()
  start = time.perf_counter()
  kept = READERS[reader](path)
  seconds = time.perf_counter() - start
  resident = _peak() - before
  del kept
  return {'seconds': seconds, 'resident': resident}


def trace(reader: str, path: str) -> dict[str, float]:
  """Reads the file while each allocation is counted, which is slow."""
  tracemalloc.start()
  kept = READERS[reader](path)
  traced = tracemalloc.get_traced_memory()[1]
  del kept
  return {'traced': traced}


def _peak() -> int:
  unit = 1 if sys.platform == 'darwin' else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _apart(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function in a fresh process."""
  # Processes begin with their parent's peak: this one must stay small.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    return pool.submit(function, *args).result()


def compare(path: str, megabytes: int, repeats: int) -> dict[str, Any]:
  """Measures all readers: memory in multiples, time also as a ratio to ours."""
  size = _apart(write, path, megabytes)
  rows: dict[str, Any] = {}
  for reader in READERS:
    runs = [_apart(measure, reader, path) for _ in range(repeats)]
    rows[reader] = {
      'resident': max(run['resident'] for run in runs) / size,
      'traced': _apart(trace, reader, path)['traced'] / size,
      'seconds': min(run['seconds'] for run in runs),
    }
  for row in rows.values():
    row['time_ratio'] = row['seconds'] / rows['ours']['seconds']
  return {'bytes': size, 'file_bytes': os.path.getsize(path), 'readers': rows}


def table(results: dict[str, Any]) -> str:
  """The results in Markdown."""
  lines = [
    '| reader | peak resident / arrays | peak traced / arrays | time / ours |',
    '| --- | --- | --- | --- |',
  ]
  for reader, row in results['readers'].items():
    cells = (f'{row[key]:.2f}' for key in ('resident', 'traced', 'time_ratio'))
    lines.append(f'| {reader} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main(unused_argv: list[str]) -> None:
  """Prints the table."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'pretrain.pkl')
    results = compare(path, _MEGABYTES.value, _REPEATS.value)
  megabytes = results['bytes'] / 1e6
  print(
    f'{megabytes:.0f} MB in arrays, {results["file_bytes"] / 1e6:.0f} in all'
  )
  print(table(results))
  if _JSON.value:
    with open(_JSON.value, 'w') as file:
      json.dump(results, file, indent=2)


if __name__ == '__main__':
  app.run(main)
