"""What a run will need, looked at before its expensive part starts."""

import os
import pathlib
import shutil
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from semppl_jax import config, storage, types
from semppl_jax.data import duplicates, sources, thumbnails
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import UserError
from semppl_jax.evaluation import protocols, quality
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.train import (
  device_memory,
  initial_weights,
  pass_time,
  plausibility,
  recipe,
)
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import teacher as teacher_lib
from semppl_jax.workdir import lock, run_log, run_settings

# Temporary memory beside the convolutions' outputs, as XLA compiles the step
# for an H100 (table in docs/devices.md), rounded up; without and with remat.
_KEPT = {False: 2.4, True: 0.9}
_FEW = 5000  # images that are searched for duplicates: seconds
_QUICK = 5e8  # bytes of convolutions' outputs, of a pass that is timed


def check_run(cfg: ml_collections.ConfigDict, workdir: str | None) -> list[str]:
  """Settings, data, devices, memory, time and disk.

  The step is not compiled; of a small network one pass is, to time it.

  Args:
    cfg: the resolved config, of any task.
    workdir: where the run would be; None: the disk is not looked at.

  Returns:
    A line for each thing.

  Raises:
    UserError: what would stop the run, now or later.
  """
  if 'checkpoint' in cfg:
    return _evaluation(cfg)
  cfg = recipe.complete(cfg, workdir)
  run = run_lib.prepare(cfg)
  quality.check(run)
  if workdir:
    lock.check(workdir, cfg.to_dict(), ignore=config.COSMETIC)
  start = initial_weights.load(run, workdir)
  teacher = teacher_lib.load(run, workdir)
  plausibility.tell(run)
  batch, data = _data(run)
  lines = [_settings(run), data, _duplicates(run.data)]
  lines += [one.line for one in (start, teacher) if one is not None]
  lines += [*_memory(run, batch, teacher), *_time(run)]
  return lines + ([_disk(run, workdir)] if workdir else [])


def floor(run: run_lib.TrainRun) -> int:
  """Bytes of the online network's convolutions' outputs, per image.

  Of all its views, once each: what the backward pass cannot do without.
  """
  views = pass_time.view_shapes(run.cfg.views)
  return jnp.dtype(run.cfg.precision).itemsize * sum(
    group.shape[0] * _outputs(run, group.shape[2])
    for group in run.setup.method.online_views(views)
  )


def support_floor(run: run_lib.TrainRun) -> int:
  """The same of the support of a step, all its views, on one device."""
  images = config.support_size(run.cfg) // len(run.devices)
  if not images:
    return 0
  each = run.cfg.support.views * _outputs(run, run.cfg.views.large_size)
  return jnp.dtype(run.cfg.precision).itemsize * images * each


def _outputs(run: run_lib.TrainRun, size: int) -> int:
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  nets = run.setup.nets
  params, state = jax.eval_shape(nets.init, jax.random.key(0), images)
  predict = lambda *arguments: nets.online(*arguments, True)[0]
  return device_memory.convolution_outputs(
    predict, params, state, images, axis=parallel.AXIS
  )


def _evaluation(cfg: ml_collections.ConfigDict) -> list[str]:
  cfg = run_settings.complete(cfg)
  several = cfg.task in ('robustness', 'transfer')
  run = (setup_lib.prepare_without_data if several else setup_lib.prepare)(cfg)
  lines = [f'settings: fine; checkpoint: {run.checkpoint}']
  if not several:
    protocols.check(run)
    lines.append(
      f'data: {len(run.data.train):,} training images, '
      f'{int(np.sum(run.labels >= 0)):,} of them with a label, '
      f'{len(run.data.test):,} test images'
    )
  return [*lines, f'devices: {_devices(run.devices)}']


def _settings(run: run_lib.TrainRun) -> str:
  return (
    f'settings: fine; {run.setup.total_steps:,} steps of '
    f'{run.cfg.batch_size:,} images ({run.cfg.num_epochs:g} epochs)'
  )


def _data(run: run_lib.TrainRun) -> tuple[types.Batch, str]:
  unreadable, begun = run_log.Unreadable(), time.monotonic()
  batch, _ = next(run_lib.input_batches(run, 0, unreadable))
  seconds = time.monotonic() - begun
  beside = ''
  if batch.support is not None:
    beside = f' and {len(batch.support.labels):,} of its support'
  test = 'no' if run.data.test is None else f'{len(run.data.test):,}'
  return batch, (
    f'data: {len(run.data.train):,} training images, '
    f'{int(np.sum(run.labels >= 0)):,} of them with a label, of '
    f'{run.data.num_classes:,} classes; {test} test images; a first batch of '
    f'{len(batch.labels):,}{beside} was there in {seconds:.1f} s, '
    f'{len(unreadable)} of its images unreadable'
  )


def _duplicates(data: sources.Dataset) -> str:
  """Copies, of a data set that is soon read."""
  number = len(data.train)
  total = number + (0 if data.test is None else len(data.test))
  if total > _FEW:
    return (
      f'duplicates: not looked for among {total:,} images, which takes its '
      'time: `semppl-jax duplicates` does'
    )
  test = None if data.test is None else thumbnails.make(data.test)
  pairs = duplicates.find(thumbnails.make(data.train), test)
  if not pairs:
    return f'duplicates: none found among {total:,} images'
  leaks = len({pair.first for pair in pairs if pair.second >= number})
  inside = sum(pair.second < number for pair in pairs)
  line = f'duplicates: {inside:,} pairs of training images'
  if leaks:
    line += (
      f'; {leaks:,} training images have a copy among the test images, '
      'dataset.drop_duplicates=True leaves them out'
    )
  return f'{line} (`semppl-jax duplicates` lists them)'


def _devices(devices: list[jax.Device]) -> str:
  return (
    f'{len(devices)} x {devices[0].device_kind}, {_number(processes.count())}'
  )


def _number(processes: int) -> str:
  return 'one process' if processes == 1 else f'{processes} processes'


def _memory(
  run: run_lib.TrainRun,
  batch: types.Batch,
  teacher: teacher_lib.Teacher | None,
) -> list[str]:
  cfg, number = run.cfg, len(run.devices)
  at_once = cfg.batch_size // (number * cfg.accumulate)
  # All parts of this step's batch are on the devices, and the next batch's.
  images = 2 * _bytes(batch)
  state = (_bytes(_state(run)) + images) / len(
    parallel.local_devices(run.devices)
  )
  activations = int(at_once * floor(run) * _KEPT[cfg.remat])
  need, beside = device_memory.Need(int(state), activations), ''
  if teacher is not None:
    its = teacher.need(run)
    need = device_memory.Need(
      need.state + its.state, need.temporary + its.temporary
    )
    beside = f', {_size(its.total)} the teacher'
  # As large for any batch.
  support = int(support_floor(run) * _KEPT[cfg.remat])
  if support:
    need = need._replace(state=need.state + support)
    beside += f', {_size(support)} the support'
  if scratch := run.setup.method.scratch:
    need = need._replace(state=need.state + scratch.size)
    beside += f', {_size(scratch.size)} the loss of {scratch.images} images'
  line = (
    f'memory: {at_once} images at once on each device take about '
    f'{_size(need.total)}, {_size(state)} of it the state and images that wait'
    f'{beside}'
  )
  there = device_memory.capacity(run.devices[0])
  if there:
    line += f', of {_size(there)}'
    fits = device_memory.largest_batch(need, at_once, there)
    if fits < at_once:
      raise UserError(
        f'{line}: about {fits} images would fit. Use more devices, a larger '
        'accumulate, remat=True, precision=bfloat16 or a smaller batch_size.'
      )
  return [f'devices: {_devices(run.devices)}', line]


def _time(run: run_lib.TrainRun) -> list[str]:
  """An estimate for a small network, one whose pass takes a moment."""
  cfg, number = run.cfg, len(run.devices)
  on_each = cfg.batch_size // number
  if floor(run) * on_each + support_floor(run) > _QUICK:
    return []
  mine = parallel.local_devices(run.devices)[0]
  step = pass_time.OVERHEAD * pass_time.seconds_of_passes(
    cfg, run.facts, on_each, mine
  )
  if run.devices[0].platform == 'cpu':
    step *= number  # they share the cores
  minutes = (step * run.setup.total_steps + pass_time.ELSEWHERE) / 60
  return [
    f'time: about {minutes:.0f} min, {run.setup.total_steps:,} steps of '
    f'{step:.2g} s; compiling and the evaluation at the end are in it'
  ]


def _disk(run: run_lib.TrainRun, workdir: str) -> str:
  one = _bytes(
    state_lib.abstract_state(_state(run), run.setup.method, len(run.devices))
  )
  # A new one is written before the oldest is deleted.
  number = run.cfg.keep_checkpoints + run.cfg.evaluation.keep_best + 1
  need = one * number
  if storage.is_remote(workdir):
    return _scratch(workdir, one, need)
  place = pathlib.Path(os.path.abspath(workdir))
  existing = next(p for p in (place, *place.parents) if p.exists())
  free = shutil.disk_usage(existing).free
  line = (
    f'disk: checkpoints of {_size(one)}, at most {_size(need)} at once, of '
    f'{_size(free)} that are free at {existing}'
  )
  if free < need:
    raise UserError(f'{line}: make room, or choose another --workdir.')
  if not os.access(existing, os.W_OK):
    raise UserError(f'--workdir {workdir}: {existing} cannot be written.')
  return line


def _scratch(workdir: str, one: int, need: int) -> str:
  """Of a bucket: what a checkpoint takes on the disk, on its way there."""
  there = tempfile.gettempdir()
  free = shutil.disk_usage(there).free
  line = (
    f'storage: checkpoints of {_size(one)}, at most {_size(need)} at once in '
    f'{workdir}; one at a time on the disk at {there}, where {_size(free)} are '
    'free'
  )
  if free < one:
    raise UserError(f'{line}: make room, or set TMPDIR to another folder.')
  return line


def _state(run: run_lib.TrainRun) -> Any:
  return jax.eval_shape(lambda: run_lib.initial_state(run))


def _size(number: float) -> str:
  return f'{number / 1e9:.1f} GB' if number > 1e9 else f'{number / 1e6:.1f} MB'


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
