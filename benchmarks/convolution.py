"""An encoder with XLA's convolutions and max-pool, and with this device's.

  taskset -c 0 python -m benchmarks.convolution               # of one core
  python -m benchmarks.convolution --encoder=digits --stem=small --size=8

Forward and backward passes of an encoder in training mode, on one device, both
forms in turns: XLA's own, and what `models/convolution.py` has for the device.
Seconds are the process's, of all its threads, the least of --rounds: what else
runs on the machine disturbs them less than those of the clock. Prints a table;
--json=FILE writes it.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks import command
from semppl_jax.models import convolution, encoders
from semppl_jax.workdir import tables

_BN = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}


def passes(
  architecture: encoders.Architecture, batch_size: int, size: int
) -> dict[str, Callable[[], Any]]:
  """Name -> a pass, compiled at its first call, of the present form."""
  net = hk.transform_with_state(
    lambda x: encoders.ResNet(architecture, _BN)(x, True)
  )
  images = jax.random.uniform(jax.random.key(0), (batch_size, size, size, 3))
  params, state = jax.jit(net.init)(jax.random.key(0), images)
  forward = lambda params: net.apply(params, state, None, images)[0]
  loss = lambda params: jnp.sum(forward(params) ** 2)
  made = {'forward': jax.jit(forward), 'and backward': jax.jit(jax.grad(loss))}
  return {
    name: lambda function=function: jax.block_until_ready(function(params))
    for name, function in made.items()
  }


def chosen(form: str) -> contextlib.AbstractContextManager[Any]:
  """While it lasts, what is traced has XLA's own form, or 'ours'."""
  if form == 'ours':
    return contextlib.nullcontext()
  own = lambda default, **forms: default
  return mock.patch.object(convolution, '_by_platform', own)


def main() -> None:
  """Measures and prints."""
  parser = command.parser(__doc__)
  parser.add_argument(
    '--encoder', default='resnet50', choices=encoders.ENCODERS
  )
  parser.add_argument('--stem', default='imagenet', choices=encoders.STEMS)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--size', type=int, default=96, help='pixels a side')
  parser.add_argument('--rounds', type=int, default=8)
  args = parser.parse_args()
  architecture = encoders.Architecture(args.encoder, stem=args.stem)
  runs, first, seconds = {}, {}, {}
  for form in ("XLA's own", 'ours'):
    with chosen(form):
      for name, run in passes(architecture, args.batch_size, args.size).items():
        begun = time.perf_counter()
        run()
        first[form, name] = time.perf_counter() - begun
        runs[form, name], seconds[form, name] = run, []
  for _ in range(args.rounds):
    for key, run in runs.items():
      begun = time.process_time()
      run()
      seconds[key].append(time.process_time() - begun)
  rows = [
    [*key, f'{1e3 * min(values):.1f}', f'{first[key]:.1f}']
    for key, values in seconds.items()
  ]
  print(tables.markdown(['form', 'pass', 'ms', 'first call, s'], rows))
  best = {key: min(values) for key, values in seconds.items()}
  for name in ('forward', 'and backward'):
    ratio = best['ours', name] / best["XLA's own", name]
    print(f"{name}: {ratio:.2f} times XLA's own")
  command.finish(args, {', '.join(key): seconds[key] for key in seconds})


if __name__ == '__main__':
  main()
