"""A job of several processes on this machine, one for each GPU.

  python -m semppl_jax.launch --processes=8 --config=EXPERIMENT --workdir=DIR

starts `python -m semppl_jax.main` so often, with the same arguments, and tells
the processes how to find each other. One process that drives all GPUs is
simpler; several never hang where a synchronising CUDA call of one GPU meets a
collective of another (NVIDIA's JAX-Toolbox, GPU_performance).
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

# So long the others have to end by themselves when one has failed.
_GRACE_SECONDS = 90
_VISIBLE = 'CUDA_VISIBLE_DEVICES'


def run(
  command: Sequence[str], processes: int, grace: float = _GRACE_SECONDS
) -> int:
  """Runs a command several times at once, as the processes of one job.

  SIGINT and SIGTERM go to all of them.

  Args:
    command: the same for each; `environments` tells them apart.
    processes: how many.
    grace: seconds that the others have when one has failed.

  Returns:
    0, or the exit status of the first one that failed, 128 + N for signal N.
  """
  job = [
    subprocess.Popen(command, env=environment)
    for environment in environments(processes, os.environ)
  ]

  def pass_on(number, unused_frame):
    for process in job:
      with contextlib.suppress(OSError):
        process.send_signal(number)

  before = {
    number: signal.signal(number, pass_on)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    return _wait(job, grace)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def environments(
  processes: int, environment: Mapping[str, str]
) -> list[dict[str, str]]:
  """What tells each process who it is, and which GPU it has."""
  visible = [x for x in environment.get(_VISIBLE, '').split(',') if x]
  gpus = visible or [str(i) for i in range(processes)]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  shared = {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': str(processes),
  }
  return [
    {**environment, **shared, 'JAX_PROCESS_ID': str(i), _VISIBLE: gpus[i]}
    for i in range(processes)
  ]


def _wait(job: Sequence[subprocess.Popen], grace: float) -> int:
  """Until all have ended; what lasts too long after a failure is killed."""
  status, deadline = 0, None
  while running := [p for p in job if p.poll() is None]:
    failed = [p.returncode for p in job if p.returncode]
    if failed and deadline is None:
      status, deadline = failed[0], time.monotonic() + grace
    if deadline and time.monotonic() > deadline:
      for process in running:
        process.kill()
    time.sleep(0.1)
  status = status or next((p.returncode for p in job if p.returncode), 0)
  return 128 - status if status < 0 else status


def main() -> int:
  """Entry point; all but --processes goes to `semppl_jax.main`."""
  parser = argparse.ArgumentParser(
    prog='python -m semppl_jax.launch',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--processes', type=int, required=True, metavar='N')
  options, rest = parser.parse_known_args()
  given = [x for x in os.environ.get(_VISIBLE, '').split(',') if x]
  if options.processes < 1 or 0 < len(given) < options.processes:
    of = f' of the {len(given)} GPUs in ${_VISIBLE}' if given else ''
    parser.error(f'--processes is {options.processes}{of}: one for each GPU')
  command = [sys.executable, '-m', 'semppl_jax.main', *rest]
  return run(command, options.processes)


if __name__ == '__main__':
  sys.exit(main())
