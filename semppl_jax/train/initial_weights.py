"""Initial weights: those of the checkpoint that `init` names, for a new run.

Names and shapes decide what is taken. The encoder must fit; a head that does
not is random, unless `init_modules` names it, which is an error then. A target
network has the checkpoint's weights, or else copies of the online network's.
The file is read until the run has a checkpoint of its own; WORKDIR/init.json
says which weights they were.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax import checkpoint, config, storage
from semppl_jax.distributed import processes
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.models import encoders
from semppl_jax.utils.text import nearest_name
from semppl_jax.weights import haiku_trees
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics
from semppl_jax.workdir.names import INIT, RESULTS

ALL = 'all'  # init_modules: whatever fits
_ENCODER = 'encoder'
_ORDER = (_ENCODER, *haiku_trees.HEADS)

Trees = tuple[haiku_trees.Tree, haiku_trees.Tree]  # of params and of state
_Shapes = dict[str, tuple[int, ...]]  # by MODULE/NAME


class Start(NamedTuple):
  """What the networks begin with in place of random weights."""

  online: Trees  # the modules that are taken, no others
  target: Trees | None  # likewise, of the target network; None: copies
  fingerprint: str  # of the checkpoint
  line: str  # what it is, and what of it is taken

  def replace(
    self,
    online: Trees,
    target_tree: Callable[[haiku_trees.Tree], haiku_trees.Tree],
  ) -> tuple[Trees, Trees]:
    """The trees of both networks with these weights.

    Args:
      online: random ones.
      target_tree: see `networks.Networks`.

    Returns:
      (params, state) of the online network and of the target network.
    """
    params, state = map(_replaced, online, self.online)
    target = target_tree(params), target_tree(state)
    if self.target is not None:
      target = tuple(map(_replaced, target, self.target))
    return (params, state), target


def load(run: Any, workdir: str | None) -> Start | None:
  """Reads what a run begins with; writes nothing.

  All processes of a job call this, and must find the same weights.

  Args:
    run: a `run.TrainRun`.
    workdir: of the run; None: there is none.

  Returns:
    None: random weights, or the run has a checkpoint and needs no others.

  Raises:
    UserError: one line: a file that cannot be read, weights that do not fit, or
      others than those that the folder's run was begun with.
  """
  if not run.cfg.init:
    return None
  is_begun, there = processes.broadcast_from_first(
    processes.run_on_all(lambda: _standing(workdir))
  )
  if is_begun:
    return None
  start = processes.run_on_all(lambda: _load(run, workdir, there))
  check_everywhere('init', run.cfg.init, start.fingerprint)
  return start


def read(
  path: str,
  target: bool = False,
  setting: str = 'init',
  network: str | None = 'online',
) -> load_lib.Checkpoint:
  """The checkpoint that a setting names, see `load_checkpoint`.

  A file of the other network alone will do.

  Raises:
    CheckpointError: its line, with the setting in front.
  """
  try:
    return load_lib.load_checkpoint(
      path, target=target, network=network, or_other=True
    )
  except CheckpointError as error:
    raise CheckpointError(f'{setting}: {error}') from error


def check_everywhere(setting: str, path: str, fingerprint: str) -> None:
  """Refuses weights that are not the same in all processes of the job."""
  every = processes.allgather_json(fingerprint)
  for number, theirs in enumerate(every):
    if theirs != every[0]:
      raise UserError(
        f'{setting} is {path!r}, which has other weights in process '
        f'{number} ({theirs}) than in process 0 ({every[0]}): give all '
        'processes the same file.'
      )


def check_as_begun(
  setting: str, path: str, fingerprint: str, workdir: str | None, then: Any
) -> None:
  """Refuses others than those that a folder's run was begun with.

  Args:
    setting: that names the weights.
    path: its value, or where they lie instead.
    fingerprint: of the weights that are there now.
    workdir: of the run.
    then: the fingerprint that the folder notes; None: nothing was begun.
  """
  if then not in (None, fingerprint):
    raise UserError(
      f'{setting} is {path!r}, which has other weights ({fingerprint}) than '
      f'those that --workdir {workdir} was begun with ({then}): bring them '
      'back, or choose another --workdir.'
    )


def remember(workdir: str, start: Start | None) -> None:
  """Notes what a run begins with, in a work directory that it has claimed."""
  if start is not None and processes.is_first():
    said = {'fingerprint': start.fingerprint, 'line': start.line}
    metrics.write_json(os.path.join(workdir, INIT), said)


def _standing(workdir: str | None) -> tuple[bool, Any]:
  """Whether a folder's run needs no weights any more; what init.json says."""
  if workdir is None:
    return False, None
  is_finished = storage.exists(os.path.join(workdir, RESULTS))
  path = os.path.join(workdir, INIT)
  there = metrics.read_json(path)
  if not isinstance(there, dict | None):
    raise UserError(
      f'{path} does not say which weights the run was begun with: choose '
      'another --workdir.'
    )
  return is_finished or bool(checkpoint.steps(workdir)), there


def _load(run: Any, workdir: str | None, there: Any) -> Start:
  cfg, setup = run.cfg, run.setup
  has_target = setup.method.target_views is not None
  then = config.find(there, 'fingerprint')  # None: nothing was begun
  try:
    found = read(cfg.init, has_target)
  except CheckpointError as error:
    needs = f' --workdir {workdir} still needs it.' if then else ''
    raise CheckpointError(f'{error}{needs}') from error
  size = cfg.views.large_size
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  like = jax.eval_shape(setup.nets.init, jax.random.key(0), images)
  target_tree = setup.nets.target_tree if has_target else None
  start = take(found, like, cfg, run.data.class_names, target_tree)
  check_as_begun('init', cfg.init, start.fingerprint, workdir, then)
  return start


def take(
  found: load_lib.Checkpoint,
  like: Trees,
  cfg: ml_collections.ConfigDict,
  class_names: Iterable[str],
  target_tree: Callable[[haiku_trees.Tree], haiku_trees.Tree] | None,
) -> Start:
  """Chooses the modules of a checkpoint that a run's networks take.

  Args:
    found: the checkpoint.
    like: (params, state) of the online network, or their shapes.
    cfg: init, init_modules and the encoder of the run.
    class_names: of the run's data. A classifier of classes that are called
      otherwise is left, unless it is named.
    target_tree: see `networks.Networks`; None: the run has no target network.

  Raises:
    UserError: another encoder, or a named module that does not fit.
  """
  theirs, ours = _parts((found.params, found.state)), _parts(like)
  named = [] if cfg.init_modules == ALL else _names(cfg.init_modules, ours)
  needed = named or [_ENCODER]
  if _ENCODER in needed:
    _check_architecture(found, cfg)
  reasons = {}
  for part in sorted(theirs.keys() | ours.keys(), key=_place):
    reason = _misfit(theirs.get(part), ours.get(part))
    if part == 'classifier' and not reason and found.classifier_on != _ENCODER:
      reason = f'it is on {found.classifier_on} there, and on the encoder here'
    if part in needed and reason:
      raise UserError(f'init {cfg.init!r} has no {part} that fits: {reason}.')
    if named and part not in named:
      reason = 'init_modules does not name it'
    if not named and part == 'classifier' and not reason:
      reason = _other_classes(found.class_names, tuple(class_names))
    reasons[part] = reason
  taken = {part for part, reason in reasons.items() if not reason}
  pick = lambda trees: tuple(
    {module: x for module, x in tree.items() if _part(module) in taken}
    for tree in trees
  )
  target = None
  if target_tree and found.target:
    target = tuple(map(target_tree, pick(found.target)))
  fingerprint = _fingerprint(found)
  line = f'init: {cfg.init}: {found}, fingerprint {fingerprint}; '
  line += '; '.join(_told(reasons, ours))
  if target_tree:
    is_there = target is not None and target[0]
    whose = "the checkpoint's" if is_there else 'a copy of the online one'
    line += f'; target network: {whose}'
  line += ''.join(f'; {note}' for note in _notes(found, cfg))
  return Start(pick((found.params, found.state)), target, fingerprint, line)


def _replaced(
  tree: haiku_trees.Tree, taken: haiku_trees.Tree
) -> haiku_trees.Tree:
  return {module: taken.get(module, x) for module, x in tree.items()}


def _part(module: str) -> str:
  """What `init_modules` calls it: 'encoder', 'projector', ..."""
  root = haiku_trees.root(module)
  known = {row.module for row in encoders.ENCODERS.values()}
  return _ENCODER if root.removeprefix('sk_') in known else root


def _place(part: str) -> tuple[int, str]:
  known = part in _ORDER
  return _ORDER.index(part) if known else len(_ORDER), part


def _parts(trees: Trees) -> dict[str, _Shapes]:
  found: dict[str, _Shapes] = {}
  for tree in trees:
    for module, leaves in tree.items():
      shapes = found.setdefault(_part(module), {})
      shapes |= {f'{module}/{n}': tuple(x.shape) for n, x in leaves.items()}
  return found


def _names(text: str, ours: Iterable[str]) -> list[str]:
  names = [name.strip() for name in text.split(',')]
  if ALL in names:
    raise UserError(
      f'init_modules is {text!r}, but {ALL!r} stands alone: leave the others '
      'out, or it.'
    )
  known = sorted(ours, key=_place)
  for name in names:
    if name not in known:
      raise UserError(
        f'init_modules is {text!r}, but {name!r} is no module of this run; '
        f'known: {ALL}, {", ".join(known)}{nearest_name(name, known)}'
      )
  return names


def _check_architecture(
  found: load_lib.Checkpoint, cfg: ml_collections.ConfigDict
) -> None:
  names = ('name', 'width', 'stem', 'selective_kernels', 'padding')
  ours = encoders.Architecture(*(cfg.encoder[name] for name in names))
  theirs = found.architecture
  if not found.says_padding:
    theirs = theirs._replace(padding=ours.padding)
  wanted = [
    f'--config.encoder.{name}={value}'
    for name, value, own in zip(names, theirs, ours, strict=True)
    if value != own
  ]
  if wanted:
    raise UserError(
      f'init {cfg.init!r} is a {theirs}, but the encoder is a {ours}: set '
      f'{" ".join(wanted)}.'
    )


def _misfit(theirs: _Shapes | None, ours: _Shapes | None) -> str:
  """Why a module cannot be taken; '': it can."""
  if theirs is None:
    return 'the checkpoint has none'
  if ours is None:
    return 'this run has none'
  # Kernels first: they say most.
  for name in sorted(theirs | ours, key=lambda n: (not n.endswith('/w'), n)):
    shapes = [side.get(name) for side in (theirs, ours)]
    if shapes[0] != shapes[1]:
      there, here = (
        'absent' if shape is None else haiku_trees.shape_text(shape)
        for shape in shapes
      )
      return f'{name} is {there} there and {here} here'
  return ''


def _other_classes(theirs: Sequence[str], ours: Sequence[str]) -> str:
  """A reason if both are known and not the same."""
  return 'of other classes' if theirs and ours and theirs != ours else ''


def _told(reasons: dict[str, str], ours: Iterable[str]) -> Iterable[str]:
  yield 'takes ' + ', '.join(part for part, why in reasons.items() if not why)
  for word, is_ours in (('random: ', True), ('left: ', False)):
    parts = [
      f'{part} ({why})'
      for part, why in reasons.items()
      if why and (part in ours) == is_ours
    ]
    if parts:
      yield word + ', '.join(parts)


def _notes(
  found: load_lib.Checkpoint, cfg: ml_collections.ConfigDict
) -> Iterable[str]:
  """What the weights were trained with and the run does otherwise."""
  for name in ('bn_eps', 'bn_decay'):
    value, own = getattr(found, name), cfg.encoder[name]
    if value != own:
      yield f'encoder.{name} is {value:g} there and {own:g} here'
  own = cfg.encoder.padding
  if not found.says_padding and found.architecture.padding != own:
    yield f'encoder.padding is {own} here and not known there'


def _fingerprint(found: load_lib.Checkpoint) -> str:
  """Of the weights of both networks."""
  of_online = load_lib.digest(found)
  if found.target is None:
    return of_online
  params, state = found.target
  of_target = load_lib.digest(found._replace(params=params, state=state))
  return f'{of_online}-{of_target}'
