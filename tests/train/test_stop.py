"""A signal is a wish, and is answered at once."""

import subprocess
import sys
import time

# Seconds in C without Python's lock, and no signal ends them, as a compilation.
_WAITS = """
import hashlib, os, signal, threading
from semppl_jax.train import stop as signals
before = signal.getsignal(signal.SIGINT)
with signals.StopSignal() as stop:
  threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
  hashlib.pbkdf2_hmac('sha256', b'', b'', 6_000_000)
  print('over', stop.received, flush=True)
assert signal.getsignal(signal.SIGINT) is before
assert signal.set_wakeup_fd(-1) == -1
"""


def test_it_is_answered_while_python_waits():
  process = subprocess.Popen(
    [sys.executable, '-c', _WAITS],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  line = process.stderr.readline()
  heard = time.monotonic()
  assert line.startswith('Stopping: the step under way is finished and saved')
  assert process.stdout.readline().strip() == 'over 2'
  assert time.monotonic() - heard > 0.5  # it was said long before
  assert process.wait(timeout=60) == 0
  assert process.stderr.read() == ''


_TWICE = """
import os, signal
from semppl_jax.train import stop as signals
with signals.StopSignal():
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGTERM)
"""


def test_the_second_one_stops_at_once():
  done = subprocess.run(
    [sys.executable, '-c', _TWICE], capture_output=True, text=True, check=False
  )
  assert done.returncode != 0 and 'KeyboardInterrupt' in done.stderr
  assert done.stderr.count('Stopping:') == 1


def test_a_thread_keeps_its_callers_handlers():
  code = """
import signal, threading
from semppl_jax.train import stop as signals
def inside():
  with signals.StopSignal() as stop:
    assert stop.received == 0
thread = threading.Thread(target=inside)
thread.start(); thread.join()
assert signal.set_wakeup_fd(-1) == -1
"""
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
