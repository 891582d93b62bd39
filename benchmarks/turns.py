"""Programs that take turns, so that all meet the same weather.

A runner has `name`, `first` (seconds of its first call) and `take()`, which
runs it once and returns its seconds.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from benchmarks import programs
from semppl_jax.distributed import parallel

_COMPILED = '/jax/core/compile/backend_compile_duration'


class Runner(Protocol):
  """See the module."""

  name: str
  first: float

  def take(self) -> float:
    """Runs it once; its seconds."""


class Compilations:
  """How many programs XLA compiled, and in how many seconds.

  JAX has no way to take a listener off: make one of these.
  """

  def __init__(self):
    self.seconds: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, seconds: float, **unused) -> None:
    if event == _COMPILED:
      self.seconds.append(seconds)


class Ours:
  """A program of `programs`, mapped over devices; its state goes on."""

  def __init__(
    self,
    name: str,
    program: programs.Program,
    devices: Sequence[jax.Device],
    compilations: Compilations,
    ahead: int = 1,
  ):
    """Runs it twice: the second time it must not compile.

    Args:
      name: of the runner.
      program: for one device.
      devices: one.
      compilations: counts them.
      ahead: so many steps for a turn, dispatched as a run does: without waiting
        for one before the next.
    """
    self.name, self._ahead = name, 1
    self._step = parallel.map_step(program.step, devices)
    # Two programs begin with one state, and each gives its own away.
    self._state = parallel.put_sharded(
      jax.tree.map(np.array, program.state), devices
    )
    self._batch = parallel.put_sharded(program.batch, devices)
    before = len(compilations.seconds)
    self.first = self.take()
    self.compile_seconds = sum(compilations.seconds[before:])
    before = len(compilations.seconds)
    self.take()
    self.compiled_again = len(compilations.seconds) - before
    self._ahead = ahead

  def take(self) -> float:
    """Runs it; seconds of a step."""
    begun = time.perf_counter()
    for _ in range(self._ahead):
      self._state, *outputs = self._step(
        self._state, self._batch, jax.random.key(0)
      )
    jax.block_until_ready((self._state, outputs))
    return (time.perf_counter() - begun) / self._ahead


class TorchServer:
  """`benchmarks.torch_twin.step` in a process of its own."""

  def __init__(self, python: str, sizes: dict[str, Any], *options: str):
    """Starts it and waits until it listens.

    Args:
      python: an interpreter that has PyTorch.
      sizes: of `torch_twin.step.Sizes`.
      *options: further ones.
    """
    command = [python, '-m', 'benchmarks.torch_twin.step', '--serve']
    self._process = subprocess.Popen(
      [*command, f'--sizes={json.dumps(sizes)}', *options],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.ready = self._read()

  def ask(self, what: str) -> float:
    """Runs `whole`, `bare` or `embed`; seconds of a step."""
    self._process.stdin.write(f'{what}\n')
    self._process.stdin.flush()
    return self._read()['seconds']

  def close(self) -> None:
    """Ends it."""
    self._process.stdin.close()
    self._process.wait()

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'PyTorch ended, status {self._process.wait()}.')
    return json.loads(line)


class Theirs:
  """One of the programs of a TorchServer."""

  def __init__(self, name: str, server: TorchServer, what: str):
    """Runs it twice: the first time it may compile."""
    self.name, self._server, self._what = name, server, what
    self.first = self.take()
    self.take()

  def take(self) -> float:
    """Runs it once; its seconds."""
    return self._server.ask(self._what)


def take_turns(
  runners: Sequence[Runner], rounds: int
) -> dict[str, list[float]]:
  """{name: seconds of each round}; the order is turned around every round."""
  seconds: dict[str, list[float]] = {runner.name: [] for runner in runners}
  for i in range(rounds):
    for runner in runners if i % 2 == 0 else reversed(runners):
      seconds[runner.name].append(runner.take())
  return seconds
