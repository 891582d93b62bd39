"""Everything that knows that a job may have several processes, one a host.

All of them run the same program and meet in collectives: a call to `gather`,
`exchange`, `agree` or `together` must be made by all, in the same order.
Where there is one process these are free of cost, and nothing is connected.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from semppl_jax.errors import UserError
from semppl_jax.utils.text import first_line

MODES = ('auto', 'on', 'off')
# A process that is gone is missed after so many seconds, and the others end.
_HEARTBEAT_SECONDS = 30


class Address(NamedTuple):
  """Where a job's processes meet, as told by hand; None: not told."""

  coordinator: str | None = None  # HOST:PORT, on the host of process 0
  num_processes: int | None = None
  process_id: int | None = None


_NOTHING_TOLD = Address()


def connect(
  told: Address = _NOTHING_TOLD, mode: str = 'auto', timeout: int = 300
) -> None:
  """Joins the job's processes; must come before anything asks for a device.

  What is not told is looked for in the environment, by JAX: on TPU pods, and
  under SLURM, GKE and Open MPI. Does nothing for a job of one process.

  Args:
    told: as many of its fields as are known.
    mode: 'auto': where `told` or the environment speaks of several processes;
      'on': in any case; 'off': never.
    timeout: seconds to wait for the others.

  Raises:
    UserError: an address that cannot be one, numbers that do not fit, or a
      coordinator that cannot be reached in time.
  """
  if mode not in MODES:
    raise UserError(f'distributed is {mode!r}; known: {", ".join(MODES)}.')
  told = _with_environment(told)
  wanted = any(x is not None for x in told) or detected(os.environ)
  if mode == 'off' or (mode == 'auto' and not wanted):
    return
  _check(told)
  if told.coordinator and told.process_id:
    _wait_for(told.coordinator, timeout)
  # Says on which address it waits, which is not ours where JAX has found it.
  logging.getLogger('jax._src.distributed').setLevel(logging.INFO)
  try:
    jax.distributed.initialize(
      *told,
      initialization_timeout=timeout,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    reason = first_line(error)
    raise UserError(
      f'The processes of this job cannot be joined: {reason} Give --coordinator'
      ', --num_processes and --process_id, or --distributed=off.'
    ) from error


def detected(environment: Mapping[str, str]) -> bool:
  """Whether the environment is that of one process of several.

  A TPU virtual machine says so only to who asks its metadata: mode 'on' does.
  """
  several = lambda name: int(environment.get(name) or 1) > 1
  return (
    several('SLURM_STEP_NUM_TASKS')
    or several('OMPI_COMM_WORLD_SIZE')
    or ',' in environment.get('TPU_WORKER_HOSTNAMES', '')
    or ',' in environment.get('TPU_PROCESS_ADDRESSES', '')
  )


def _with_environment(told: Address) -> Address:
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  found = [os.environ.get(name) for name in names]
  try:
    numbers = [x and int(x) for x in found[1:]]
  except ValueError:
    raise UserError(
      f'{" and ".join(names[1:])} are {" and ".join(map(repr, found[1:]))}; '
      'they must be whole numbers.'
    ) from None
  merged = zip(told, [found[0] or None, *numbers], strict=True)
  return Address(*(mine if mine is not None else its for mine, its in merged))


def _check(told: Address) -> None:
  coordinator, number, own = told
  if coordinator is not None:
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit() or int(port) > 65535:
      raise UserError(f'coordinator is {coordinator!r}; it must be HOST:PORT.')
  if number is not None and number < 1:
    raise UserError(f'num_processes is {number}; it must be at least 1.')
  if own is not None and not 0 <= own < (number or own + 1):
    raise UserError(
      f'process_id is {own}; it must be from 0 to num_processes - 1, '
      f'{(number or 1) - 1}.'
    )


def _wait_for(coordinator: str, timeout: int) -> None:
  """Returns when somebody listens there; JAX itself would abort the program."""
  host, _, port = coordinator.rpartition(':')
  ends, reason = time.monotonic() + timeout, ''
  while time.monotonic() < ends:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
      return
    except OSError as error:
      reason = str(error)
    time.sleep(min(1.0, max(0.0, ends - time.monotonic())))
  raise UserError(
    f'No coordinator at {coordinator} in {timeout} s ({reason}): start process '
    '0 there, or mend --coordinator.'
  )


def is_connected() -> bool:
  """Whether this process has joined others."""
  return jax.distributed.is_initialized()


def count() -> int:
  """The number of processes."""
  return jax.process_count()


def index() -> int:
  """This process's number; 0 logs and writes."""
  return jax.process_index()


def is_first() -> bool:
  """Whether this process is the one that logs and writes."""
  return index() == 0


def require_single(what: str) -> None:
  """Raises a UserError, one line, where several processes run `what`."""
  if count() > 1:
    raise UserError(
      f'{what} runs in one process, with all the devices of its host; this job '
      f'has {count()}.'
    )


def allgather(x: np.ndarray) -> np.ndarray:
  """Arrays of one shape and dtype, of all processes: [..] -> [H, ..]."""
  x = np.asarray(x, order='C')
  if count() == 1:
    return x[None]
  # As bytes: JAX would make 32 bits of 64.
  raw = np.frombuffer(x.tobytes(), np.uint8)
  every = np.asarray(multihost_utils.process_allgather(raw))  # [H, bytes]
  return every.reshape(-1).view(x.dtype).reshape((count(),) + x.shape)


def allgather_json(value: Any) -> list[Any]:
  """Every process's value, of JSON types, in the order of the processes."""
  if count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = allgather(np.array(len(text)))  # [H]
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(text)] = text
  rows = zip(allgather(padded), sizes, strict=True)
  return [json.loads(row[:size].tobytes()) for row, size in rows]


def broadcast_from_first(value: Any) -> Any:
  """Process 0's value, of JSON types: what all go by."""
  return allgather_json(value)[0]


def run_on_all(do: Callable[[], Any], first_only: bool = False) -> Any:
  """Calls `do` in every process; where one fails, all do.

  Args:
    do: may raise a UserError.
    first_only: process 0 alone calls it.

  Returns:
    What `do` returned here; None where it was not called.

  Raises:
    UserError: `do`'s own, or in the other processes one that tells of it.
  """
  result, error = None, None
  try:
    if is_first() or not first_only:
      result = do()
  except UserError as e:
    error = e
  told = allgather_json(None if error is None else str(error))
  if error is not None:
    raise error
  for number, line in enumerate(told):
    if line is not None:
      raise UserError(f'Process {number} of this job stopped: {line}')
  return result
