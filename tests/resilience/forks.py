"""Starts runs as forks of a process that has imported the package: a script.

  python -m tests.resilience.forks

Reads {"argv", "log", "errors", "environment"} from its input, a JSON line each:
arguments, files for its output and its errors, and what else it finds in its
environment. Answers with the process id, and with its status when it has ended.
A fork is sound here because the parent has one thread and no JAX backend, which
is looked at; what a run then does is `main` and nothing else.
"""

import json
import os
import sys

from semppl_jax import main, pretraining

assert pretraining  # what takes long to import


def _become(request):
  """In the child: the command line that was asked for."""
  os.setsid()
  write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(os.open(request['log'], write), 1)
  os.dup2(os.open(request['errors'], write), 2)
  os.environ.update(request['environment'])
  sys.argv = ['main', *request['argv']]


def serve():
  """Until its input ends; a child returns from it, too, as `main`."""
  for line in sys.stdin:
    assert len(os.listdir('/proc/self/task')) == 1, 'threads: no fork'
    pid = os.fork()
    if pid == 0:
      _become(json.loads(line))
      main.main()
      return
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == '__main__':
  serve()
