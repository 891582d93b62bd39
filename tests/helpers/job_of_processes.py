r"""One process of a job of several here: a script, for test_processes.

  python -m tests.helpers.job_of_processes NUMBER COUNT PORT DEVICES WORKDIR \
    [KEY=VALUE]

Trains the tiny experiment. KEY: kill_at, signal_at (a step before whose batch
this process gets SIGKILL or SIGTERM), or a key of the config, dots as __.
Nothing is plotted: importing what draws takes longer than the training.
"""

import ast
import os
import signal
import sys
import types

import jax

from semppl_jax import pretraining, workdir
from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.train import run as run_lib
from tests.helpers import tiny, toy_support


def main():
  """Exit status: as of main."""
  index, count, port, devices = map(int, sys.argv[1:5])
  options = dict(option.split('=', 1) for option in sys.argv[6:])
  options = {k: ast.literal_eval(v) for k, v in options.items()}
  jax.config.update('jax_num_cpu_devices', devices)
  if count > 1:
    address = processes.Address(f'localhost:{port}', count, index)
    processes.connect(address, timeout=30)
  at = {
    options.pop('kill_at', None): signal.SIGKILL,
    options.pop('signal_at', None): signal.SIGTERM,
  }
  input_batches = run_lib.input_batches

  def watched(run, start, *rest):
    for step, batch in enumerate(input_batches(run, start, *rest), start + 1):
      if step in at:
        os.kill(os.getpid(), at[step])
      yield batch

  run_lib.input_batches = watched
  toy_support.register()
  workdir.plots = types.SimpleNamespace(plots=lambda *_, **__: None)
  try:
    cfg = tiny.make_config(**options)
    print(pretraining.pretrain(cfg, sys.argv[5]))
  except (UserError, RuntimeError) as error:
    print('error:', error, file=sys.stderr, flush=True)
    os._exit(
      getattr(error, 'status', 2)
    )  # as main: the usual exit would wait for the others


if __name__ == '__main__':
  main()
