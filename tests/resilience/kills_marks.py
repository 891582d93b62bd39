"""What a training run is doing, told from inside, readable after its death.

A file that the run and its observer have mapped into their memory: what was
written there is there, however the run ended.
"""

import concurrent.futures
import functools
import pathlib

import jax
import numpy as np

PLACES = ('input', 'step', 'checkpoint', 'metrics', 'evaluation')


class Marks:
  """How often each place was entered and left."""

  def __init__(self, path: str | pathlib.Path, new: bool = False):
    # A row of two numbers each: entered and left have a writer of their own.
    mode, shape = 'w+' if new else 'r+', (len(PLACES), 2)
    self._counts = np.memmap(path, np.int64, mode, shape=shape)

  def entered(self, place: str) -> int:
    return int(self._counts[PLACES.index(place), 0])

  def inside(self) -> list[str]:
    return [p for p, (i, o) in zip(PLACES, self._counts.tolist()) if i > o]

  def enter(self, place: str) -> None:
    self._counts[PLACES.index(place), 0] += 1

  def leave(self, place: str) -> None:
    self._counts[PLACES.index(place), 1] += 1


def watch(path: str) -> None:
  """Marks from here on; the package itself does not know of it."""
  from semppl_jax import checkpoint, pretraining
  from semppl_jax.distributed import parallel
  from semppl_jax.train import run as run_lib
  from semppl_jax.workdir import metrics

  marks = Marks(path)
  for owner, name, place in (
    (checkpoint.Checkpointer, 'save', 'checkpoint'),
    (metrics.MetricsWriter, '__init__', 'metrics'),
    (metrics.MetricsWriter, 'write', 'metrics'),
    (pretraining, 'finish', 'evaluation'),
  ):
    setattr(owner, name, _marked(getattr(owner, name), marks, place))
  run_lib.input_batches = _marked_batches(run_lib.input_batches, marks)
  parallel.map_step = _marked_steps(parallel.map_step, marks)


def _marked(function, marks, place):
  @functools.wraps(function)
  def call(*args, **kwargs):
    marks.enter(place)
    try:
      return function(*args, **kwargs)
    finally:
      marks.leave(place)

  return call


def _marked_batches(input_batches, marks):
  def batches(*args):
    inputs = iter(input_batches(*args))
    take = _marked(lambda: next(inputs, None), marks, 'input')
    yield from iter(take, None)

  return batches


def _marked_steps(map_step, marks):
  """A step is left when its numbers are there, not when it is sent off."""
  waiter = concurrent.futures.ThreadPoolExecutor(1)

  def wait(scalars):
    jax.block_until_ready(scalars)
    marks.leave('step')

  def mapped(*args):
    step = map_step(*args)

    def take(*inputs):
      marks.enter('step')
      state, scalars, *outputs = step(*inputs)
      waiter.submit(wait, scalars)
      return state, scalars, *outputs

    return take

  return mapped
