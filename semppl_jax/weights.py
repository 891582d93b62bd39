"""Weights from any file: DeepMind's pickles, safetensors, our own runs.

`load_checkpoint` finds out what a file is by looking into it, finds out the
architecture from its tree, and checks every name, shape, dtype and value. Trees
are Haiku's, {module: {name: array}}, under the names of DeepMind's release.
"""

import json
import os
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from semppl_jax import checkpoint, name_matching, pickles, released, trees
from semppl_jax.encoders import Architecture
from semppl_jax.errors import CheckpointError

Tree = Mapping[str, Mapping[str, np.ndarray]]

# How a module's leaves stand in a run's checkpoint.
_RUN_LEAF = re.compile(r"state\.online_(params|state)\['(.+)'\]\['(\w+)'\]")
# Who may hold what: experiment_state's fields, of params and of state.
_FIELDS = {
  'pre-training': (('online_params',), ('online_state',)),
  'linear evaluation': (
    ('backbone_params', 'classif_params'),
    ('backbone_state',),
  ),
}


class Checkpoint(NamedTuple):
  """A trained network: what `networks.build`'s functions take.

  str() of it says in a line what it is.
  """

  params: Tree  # float32 NumPy arrays, without device axis
  state: Tree  # BatchNorm's running averages; counters are int32
  architecture: Architecture
  step: int | None  # of its training; None: the file does not say
  kind: str  # pre-training, linear evaluation, run
  mapping: Mapping[str, str]  # their names -> ours, if names were matched

  def __str__(self) -> str:
    has = {module.split('/')[0] for module in self.params}
    heads = ', '.join(
      f'{head} {"yes" if head in has else "no"}' for head in trees.HEADS
    )
    step = 'unknown' if self.step is None else f'{self.step:,}'
    return f'{self.architecture}, step {step}, {heads} ({self.kind})'


class _Found(NamedTuple):
  """What a file holds, before it is checked."""

  params: dict[str, dict[str, np.ndarray]]
  state: dict[str, dict[str, np.ndarray]]
  step: int | None
  kind: str
  padding: str | None = None


def load_checkpoint(
  path: str | os.PathLike,
  *,
  step: int | None = None,
  padding: str | None = None,
  mapping: str | os.PathLike | None = None,
) -> Checkpoint:
  """Reads a checkpoint of whatever kind, and checks all of it.

  Args:
    path: a pickle of DeepMind's release (pre-training or linear evaluation), a
      safetensors file of ours, the folder of a run of ours, or the name of a
      file in `released.folders`.
    step: which checkpoint of a run; None: the newest.
    padding: of strided convolutions, 'same' or 'symmetric'. No tree shows it;
      None: as the file says, or else 'same', as the release pads.
    mapping: a JSON file {their module: our module} for a checkpoint with
      selective kernels whose names cannot be matched without it.

  Returns:
    A Checkpoint.

  Raises:
    CheckpointError: one line that says what is wrong. No file makes it run
      code of the file's.
  """
  path = released.find(path)
  try:
    found = _read(path, step)
    return _check(found, padding, mapping)
  except CheckpointError as error:
    text = str(error)
    if str(path) in text:
      raise
    raise CheckpointError(f'{path}: {text}') from error


def save_safetensors(path: str | os.PathLike, weights: Checkpoint) -> None:
  """Writes a file that `load_checkpoint` and safetensors' own readers read.

  Tensors are named params/MODULE/NAME and state/MODULE/NAME; the metadata has
  the architecture and the step.
  """
  named = {
    f'{kind}/{module}/{name}': np.asarray(leaf, order='C')
    for kind, tree in (('params', weights.params), ('state', weights.state))
    for module, leaves in tree.items()
    for name, leaf in leaves.items()
  }
  metadata = {
    'format': 'semppl_jax 1',
    'architecture': json.dumps(weights.architecture._asdict()),
    'step': json.dumps(weights.step),
    'kind': weights.kind,
  }
  part = f'{path}.{os.getpid()}.part'
  safetensors_numpy.save_file(named, part, metadata)
  os.chmod(part, 0o644)  # the library lets nobody else read it
  os.replace(part, path)


def save_release(path: str | os.PathLike, weights: Checkpoint) -> None:
  """Writes DeepMind's pretrain.pkl, which its own evaluation code reads.

  Leaves get the leading device axis that the release takes off again.
  """
  add_axis = lambda tree: {
    module: {name: np.asarray(leaf)[None] for name, leaf in leaves.items()}
    for module, leaves in tree.items()
  }
  experiment_state = {
    'online_params': add_axis(weights.params),
    'online_state': add_axis(weights.state),
  }
  content = {
    'experiment_state': experiment_state,
    'step': weights.step or 0,
    'rng': np.zeros(2, np.uint32),
  }
  pickles.write(path, content)


def digest(weights: Checkpoint) -> str:
  """A short number for these very weights, whatever file they came from."""
  crc = 0
  for tree in (weights.params, weights.state):
    for module in sorted(tree):
      for name in sorted(tree[module]):
        leaf = np.asarray(tree[module][name], order='C')
        crc = zlib.crc32(f'{module}/{name}{leaf.shape}'.encode(), crc)
        crc = zlib.crc32(leaf.reshape(-1).view(np.uint8), crc)
  return f'{crc:08x}'


def _read(path: pathlib.Path, step: int | None) -> _Found:
  if path.is_dir():
    return _read_run(path, step)
  try:
    with path.open('rb') as file:
      head = file.read(9)
  except OSError as error:
    raise CheckpointError(f'cannot be read: {error.strerror}.') from error
  if not head:
    raise CheckpointError('is empty.')
  if head[:1] == b'\x80':
    return _read_pickle(path)
  if head[8:] == b'{':
    return _read_safetensors(path)
  raise CheckpointError(
    "is neither a pickle of DeepMind's release nor a safetensors file."
  )


def _read_pickle(path: pathlib.Path) -> _Found:
  content = pickles.read(path)
  if not isinstance(content, dict):
    raise CheckpointError(f'holds a {type(content).__name__}, not a dict.')
  for key in ('experiment_state', 'step'):
    if key not in content:
      raise CheckpointError(f'has no {key!r}.')
  held = content['experiment_state']
  if not isinstance(held, dict):
    raise CheckpointError(f'experiment_state is a {type(held).__name__}.')
  for kind, (params, state) in _FIELDS.items():
    if all(name in held for name in params + state):
      return _Found(
        params=_join(held, params),
        state=_join(held, state),
        step=trees.whole_number(content['step'], 'step'),
        kind=kind,
      )
  raise CheckpointError(
    'experiment_state has neither online_params and online_state nor '
    'backbone_params, classif_params and backbone_state.'
  )


def _join(held: dict[str, Any], fields: tuple[str, ...]) -> Any:
  joined: dict[str, Any] = {}
  for field in fields:
    tree = trees.two_level(held[field], field)
    if field == 'classif_params':  # its one layer has Haiku's default name
      tree = {m.replace('linear', 'classifier'): x for m, x in tree.items()}
    joined |= tree
  return trees.without_device_axis(joined)


def _read_safetensors(path: pathlib.Path) -> _Found:
  found: dict[str, dict] = {'params': {}, 'state': {}}
  try:
    with safetensors.safe_open(path, 'np') as file:
      metadata = file.metadata() or {}
      for name in file.keys():  # noqa: SIM118, it is no mapping
        kind, _, rest = name.partition('/')
        module, _, leaf = rest.rpartition('/')
        if kind not in found or not module:
          raise CheckpointError(
            f'holds a tensor {name[:100]!r}; names are params/MODULE/NAME and '
            'state/MODULE/NAME.'
          )
        found[kind].setdefault(module, {})[leaf] = file.get_tensor(name)
    padding = json.loads(metadata.get('architecture', '{}')).get('padding')
    step = json.loads(metadata.get('step', 'null'))
  except CheckpointError:
    raise
  except Exception as error:  # the library's own errors have several bases
    reason = (str(error).splitlines() or [''])[0]
    raise CheckpointError(
      f'is no whole safetensors file: {reason[:200]}'
    ) from error
  step = None if step is None else trees.whole_number(step, 'step')
  kind = metadata.get('kind', 'safetensors')
  return _Found(found['params'], found['state'], step, kind, padding)


def _read_run(path: pathlib.Path, step: int | None) -> _Found:
  steps = checkpoint.steps(str(path))
  if not steps and not (path / 'config.json').exists():
    raise CheckpointError(
      'is a directory, and no run of ours: give a file or a --workdir.'
    )
  if not steps or (step is not None and step not in steps):
    which = '' if step is None else f' of step {step}'
    raise CheckpointError(f'the run there has no checkpoint{which} yet.')
  step = steps[-1] if step is None else step
  leaves = checkpoint.read(str(path), step, ('state.online_',))
  found: dict[str, dict] = {'params': {}, 'state': {}}
  for name, leaf in leaves.items():
    kind, module, own = _RUN_LEAF.fullmatch(name).groups()
    found[kind].setdefault(module, {})[own] = leaf
  try:
    settings = json.loads((path / 'config.json').read_text(encoding='utf-8'))
    # An evaluation's encoder is that of the checkpoint that it began with.
    padding = settings.get('weights', settings['encoder']).get('padding')
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise CheckpointError(f'{path / "config.json"} cannot be read.') from error
  return _Found(found['params'], found['state'], step, 'run', padding)


def _check(
  found: _Found,
  padding: str | None,
  mapping_file: str | os.PathLike | None,
) -> Checkpoint:
  """Names, shapes, dtypes, values; and names that are not the release's."""
  params, state = found.params, found.state
  trees.check_arrays(params)
  trees.check_arrays(state)
  architecture = trees.architecture(params)
  architecture = architecture._replace(
    padding=padding or found.padding or architecture.padding
  )
  expected = trees.expected(architecture, trees.head_sizes(params))
  mapping: dict[str, str] = {}
  if architecture.selective_kernels and set(params) != set(expected.params):
    theirs = trees.shapes(trees.encoder_part(params))
    ours = trees.shapes(trees.encoder_part(expected.params))
    mapping = (
      name_matching.match(theirs, ours)
      if mapping_file is None
      else name_matching.from_file(mapping_file, theirs, ours)
    )
    params = trees.rename(params, mapping)
    state = trees.rename(state, mapping)
  params = trees.check_fits(params, expected.params)
  state = trees.check_fits(state, expected.state)
  return Checkpoint(
    params, state, architecture, found.step, found.kind, mapping
  )
