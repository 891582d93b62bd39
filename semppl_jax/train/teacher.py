"""Frozen teacher: the trained network that `teacher.checkpoint` names.

It is no part of the train state, whose checkpoints would each repeat it, but an
argument of every step: nothing returns it, and so nothing changes it. When a
run begins, WORKDIR/teacher.safetensors gets a copy, and WORKDIR/teacher.json
says which weights these are; from then on the original is not needed.
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from semppl_jax import config, storage
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.models import encoders, networks
from semppl_jax.train import device_memory, initial_weights
from semppl_jax.train import run as run_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics
from semppl_jax.workdir.names import RESULTS, TEACHER, TEACHER_NOTE

_SETTING = 'teacher.checkpoint'
_GB = 1e9


class Teacher(NamedTuple):
  """A trained network that stays as it is."""

  checkpoint: load_lib.Checkpoint
  output: str  # that the method compares with, see base.FrozenTeacher
  precision: str  # of activations, the run's
  fingerprint: str
  line: str  # what it is
  is_saved: bool  # whether the work directory has it already

  def apply(
    self, params: networks.Tree, state: networks.Tree, images: jax.Array
  ) -> jax.Array:
    """Its output in evaluation mode, of images [.., n, S, S, 3] in [0, 1]."""
    nets = self.checkpoint.network(self.precision)
    if self.output == 'embedding':
      return nets.encode(params, state, images, False)[0]
    return nets.online(params, state, images, False)[0][self.output]

  def on_devices(self, devices: list[jax.Device]) -> networks.Trees:
    """(params, state), leaves [D, ...], of this host's D devices."""
    trees = self.checkpoint.params, self.checkpoint.state
    number = len(parallel.local_devices(devices))
    return parallel.put_sharded(parallel.replicate(trees, number), devices)

  def need(self, run: Any) -> device_memory.Need:
    """Memory on a device: weights, and what its widest layer takes and gives.

    Args:
      run: a `run.TrainRun`.
    """
    trees = self.checkpoint.params, self.checkpoint.state
    size = run.cfg.views.large_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    widest = device_memory.largest_convolution_output(
      self.apply, *trees, image, axis=parallel.AXIS
    )
    at_once = run.cfg.batch_size // (len(run.devices) * run.cfg.accumulate)
    at_once *= run.cfg.views.num_large
    activations = 2 * widest * at_once * jnp.dtype(self.precision).itemsize
    return device_memory.Need(_bytes(trees), activations)


def load(run: Any, workdir: str | None) -> Teacher | None:
  """Reads the teacher of a run; writes nothing.

  All processes of a job call this, and must find the same weights.

  Args:
    run: a `run.TrainRun`.
    workdir: of the run; None: there is none.

  Returns:
    None: the method has no teacher, or the run is finished.

  Raises:
    UserError: one line: a file that cannot be read, a network that is no
      teacher for this method and these classes, others weights than those that
      the folder's run was begun with, or a device without room for both.
  """
  if run.setup.method.teacher is None:
    return None
  is_finished, there, is_saved = processes.broadcast_from_first(
    processes.run_on_all(lambda: _standing(workdir))
  )
  if is_finished:
    return None
  teacher = processes.run_on_all(lambda: _load(run, workdir, there, is_saved))
  initial_weights.check_everywhere(
    _SETTING, run.cfg.teacher.checkpoint, teacher.fingerprint
  )
  return teacher


def remember(workdir: str, teacher: Teacher | None) -> None:
  """Saves a run's teacher, once, in a work directory that it has claimed."""
  if teacher is None or teacher.is_saved or not processes.is_first():
    return
  load_lib.save_safetensors(os.path.join(workdir, TEACHER), teacher.checkpoint)
  said = {'fingerprint': teacher.fingerprint, 'line': teacher.line}
  metrics.write_json(os.path.join(workdir, TEACHER_NOTE), said)


def _standing(workdir: str | None) -> tuple[bool, Any, bool]:
  """Whether the run is finished; what teacher.json says; if all is saved."""
  if workdir is None:
    return False, None, False
  is_finished = storage.exists(os.path.join(workdir, RESULTS))
  there = metrics.read_json(os.path.join(workdir, TEACHER_NOTE))
  has_file = storage.exists(os.path.join(workdir, TEACHER))
  return is_finished, there, bool(there) and has_file


def _load(run: Any, workdir: str | None, there: Any, is_saved: bool) -> Teacher:
  cfg, wanted = run.cfg, run.setup.method.teacher
  then = config.find(there, 'fingerprint')  # None: nothing was begun
  path = cfg.teacher.checkpoint
  if is_saved:
    path = os.path.join(workdir, TEACHER)
  try:
    found = initial_weights.read(path, setting=_SETTING, network=None)
  except CheckpointError as error:
    needs = f' --workdir {workdir} still needs it.' if then else ''
    raise CheckpointError(f'{error}{needs}') from error
  fingerprint = load_lib.digest(found)
  initial_weights.check_as_begun(_SETTING, path, fingerprint, workdir, then)
  check = _check_classifier if wanted.output == 'logits' else _check_embedding
  check(found, path, run)
  line = f'teacher: {path}: {found}, fingerprint {fingerprint}'
  teacher = Teacher(
    found, wanted.output, cfg.precision, fingerprint, line, is_saved
  )
  _check_memory(teacher, path, run)
  return teacher


def _check_classifier(found: load_lib.Checkpoint, path: str, run: Any) -> None:
  """Refuses a teacher of no classes, or of others than the data set's."""
  number = found.num_classes
  wanted, method = run.setup.method.teacher.size, run.cfg.method
  if not number:
    raise UserError(
      f'{_SETTING} is {path!r}, which has no classifier, but method {method!r} '
      'learns its classes: give one that was trained with labels, or take '
      "method 'simreg'."
    )
  of_data = f'dataset {run.cfg.dataset.name!r} {run.cfg.dataset.path}'.rstrip()
  if number != wanted:
    raise UserError(
      f'{_SETTING} is {path!r}, whose classifier has {number:,} classes, but '
      f'{of_data} has {wanted:,}: give a teacher of these classes.'
    )
  names, ours = found.class_names, tuple(run.data.class_names)
  for theirs, own in zip(names, ours, strict=False):
    if theirs != own:
      raise UserError(
        f'{_SETTING} is {path!r}, where a class is called {theirs!r} that is '
        f'{own!r} in {of_data}: give a teacher of these classes.'
      )


def _check_embedding(found: load_lib.Checkpoint, path: str, run: Any) -> None:
  """Refuses a teacher whose embedding has another size than projections."""
  size = encoders.output_size(found.architecture)
  wanted = run.setup.method.teacher.size
  if size != wanted:
    raise UserError(
      f'{_SETTING} is {path!r}, whose embedding has {size:,} numbers, but '
      f'projector.size is {wanted:,}: set --config.projector.size={size}.'
    )


def _check_memory(teacher: Teacher, path: str, run: Any) -> None:
  """Refuses what cannot fit, whatever the student's activations take."""
  there = device_memory.capacity(run.devices[0])
  if not there:
    return
  state = jax.eval_shape(lambda: run_lib.initial_state(run))
  own = _bytes(state) // len(parallel.local_devices(run.devices))
  need = teacher.need(run)
  if need.total + own > device_memory.USABLE * there:
    raise UserError(
      f'{_SETTING} is {path!r}, which does not fit beside the student: '
      f'{need.state / _GB:.1f} GB of weights, {need.temporary / _GB:.1f} GB '
      f"of activations and {own / _GB:.1f} GB of the student's state, of "
      f'{there / _GB:.1f} GB on each device: take a smaller teacher, more '
      'devices, a larger accumulate or a smaller batch_size.'
    )


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
