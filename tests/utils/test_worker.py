"""A worker whose parent is killed."""

import os
import subprocess
import sys
import time

import pytest

# The parent says which process its worker is, once that one is at work.
_PARENT = """
import multiprocessing, os, sys, time
from semppl_jax.utils import worker

def work(pipe):
  if {watched}:
    worker.end_with_parent()
  pipe.send(os.getpid())
  time.sleep(60)

if __name__ == '__main__':
  here, there = multiprocessing.get_context('fork').Pipe()
  multiprocessing.get_context('fork').Process(target=work, args=[there]).start()
  print(here.recv(), flush=True)
  time.sleep(60)
"""


def _ends(number, seconds):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    try:
      # Whoever inherits an orphan may leave it unread: Z has ended, too.
      with open(f'/proc/{number}/stat') as file:
        if file.read().rpartition(')')[2].split()[0] == 'Z':
          return True
    except FileNotFoundError:
      return True
    time.sleep(0.05)
  return False


@pytest.mark.skipif(not os.path.exists('/proc'), reason='no /proc')
@pytest.mark.parametrize('watched', [True, False])
def test_it_ends_with_its_parent(watched):
  parent = subprocess.Popen(
    [sys.executable, '-c', _PARENT.format(watched=watched)],
    stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  number = int(parent.stdout.readline())
  try:
    parent.kill()
    parent.wait()
    assert _ends(number, 20 if watched else 1) == watched
  finally:
    parent.stdout.close()
    if not watched:
      os.kill(number, 9)
