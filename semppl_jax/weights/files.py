"""Files with weights, to be checked by others: what they hold, as they say it.

Three kinds: pickles of DeepMind's releases (SemPPL, ReLICv2, BYOL), safetensors
files of ours, and the folders of our runs. Trees are Haiku's,
{module: {name: array}}.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from semppl_jax import checkpoint, storage
from semppl_jax.errors import CheckpointError
from semppl_jax.models import encoders
from semppl_jax.storage import objects
from semppl_jax.utils import files
from semppl_jax.utils.text import first_line
from semppl_jax.weights import haiku_trees, release_pickle
from semppl_jax.workdir import stop_file

# How a module's leaves stand in a run's checkpoint.
_RUN_LEAF = re.compile(
  r"state\.(online|target)_(params|state)\['(.+)'\]\['(\w+)'\]"
)
# Who may hold what: experiment_state's fields, of params and of state.
_FIELDS = {
  'pre-training': (('online_params',), ('online_state',)),
  'linear evaluation': (
    ('backbone_params', 'classif_params'),
    ('backbone_state',),
  ),
}
_TARGET = ('target_params', 'target_state')  # beside pre-training's fields
KINDS = (*_FIELDS, 'run')
NETWORKS = ('online', 'target')
# Methods whose prototypes are their classifier, see their `predict`.
BY_PROTOTYPES = ('suave', 'daino')
_OURS = 'semppl_jax'  # our settings in a pickle
_STEM = re.compile(r'[^/]+/~/initial_conv(_\d+)?')
# How torch.save began until PyTorch 1.6: its magic number, pickled.
_PYTORCH = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9'


class Settings(NamedTuple):
  """What no tree shows. None: the file does not say."""

  encoder: str | None = None
  padding: str | None = None
  bn_eps: float | None = None
  bn_decay: float | None = None
  image_size: int | None = None  # what it was trained to see, in pixels
  center: float | None = None  # side of that / shorter side of an image
  classifier_on: str | None = None  # see architecture.layers
  # One of NETWORKS: whose weights a file holds; where it holds both, those that
  # are evaluated unless another is asked for
  network: str | None = None
  # What divides the scores of prototypes that are the classifier, the first of
  # them the classes; None: they are not, or there are none
  prototype_temperature: float | None = None


class Contents(NamedTuple):
  """What a file holds, unchecked but for the types."""

  params: haiku_trees.Tree
  state: haiku_trees.Tree
  step: int | None
  kind: str  # one of KINDS, or safetensors
  settings: Settings = Settings()
  note: str = ''  # what a reader should know besides
  class_names: tuple[str, ...] = ()  # of the classifier; empty: not said
  # (params, state) of the target network, if the file has it
  target: tuple[haiku_trees.Tree, haiku_trees.Tree] | None = None


def read(
  path: pathlib.Path,
  step: int | None,
  target: bool = False,
  network: str | None = None,
) -> Contents:
  """Finds out what kind a file is by looking into it, and reads it.

  Args:
    path: a file, or the folder of a run; on the disk, or in a bucket.
    step: which checkpoint of a run; None: the newest, of a run that an alarm
      stopped the newest good one.
    target: a run's target network is read, too.
    network: which one, of what holds both, see `load.load_checkpoint`. Settings
      say which one it is then: not this one, where there is one only.

  Raises:
    CheckpointError: one line.
  """
  if path.is_dir():
    return _read_run(path, step, target, network)
  if step is not None:
    raise CheckpointError(f'is a file: there is no step {step} to choose.')
  if storage.is_remote(path):
    with tempfile.TemporaryDirectory(prefix='semppl_jax_') as folder:
      copy = pathlib.Path(folder, path.name)
      objects.get(path, copy)
      return read(copy, step, target, network)
  try:
    with path.open('rb') as file:
      head, size = file.read(9), os.fstat(file.fileno()).st_size
  except OSError as error:
    raise CheckpointError(f'cannot be read: {error.strerror}.') from error
  if not head:
    raise CheckpointError('is empty.')
  # First: the length that a safetensors file begins with may look like a
  # pickle's first byte; what a pickle begins with is no length.
  if head[8:] == b'{' and int.from_bytes(head[:8], 'little') < 2**32:
    return _of_one_network(_read_safetensors(path))
  if _is_of_pytorch(path, head):
    raise CheckpointError(
      'is a file of PyTorch, which is not read: this package reads pickles of '
      "DeepMind's release, safetensors files that it wrote and its own runs."
    )
  if head[:1] == b'\x80':
    return _choose(_read_pickle(path), network)
  if head.lstrip()[:1] == b'<':  # what a drive answers to curl
    raise CheckpointError(
      'is a web page, not the checkpoint: download the address in a browser.'
    )
  raise CheckpointError(
    "is neither a pickle of DeepMind's release (of protocol 2 to 5) nor a "
    f'safetensors file ({size:,} bytes).'
  )


def _choose(found: Contents, network: str | None) -> Contents:
  """The network that is asked for, of a file that may hold both."""
  if found.target is None:
    return _of_one_network(found)
  wanted = network or found.settings.network or 'online'
  found = found._replace(settings=found.settings._replace(network=wanted))
  if wanted == 'online':
    return found
  params, state = found.target
  return found._replace(params=params, state=state)


def _of_one_network(found: Contents) -> Contents:
  """Says which one it is."""
  there = found.settings.network or 'online'
  return found._replace(settings=found.settings._replace(network=there))


def _is_of_pytorch(path: pathlib.Path, head: bytes) -> bool:
  """Whether torch.save wrote it: a zip with a data.pkl, or before 1.6 pickles.

  These begin with a magic number as a pickle of its own.
  """
  if head[:2] == b'PK':
    with (
      contextlib.suppress(OSError, zipfile.BadZipFile),
      zipfile.ZipFile(path) as archive,
    ):
      return any(name.endswith('/data.pkl') for name in archive.namelist())
  return head == _PYTORCH[: len(head)]


def write_safetensors(path: str | os.PathLike, contents: Contents) -> None:
  """Writes tensors params/MODULE/NAME and state/MODULE/NAME, and metadata.

  Raises:
    CheckpointError: it cannot be written.
  """
  named = {
    f'{kind}/{module}/{name}': np.asarray(leaf, order='C')
    for kind, tree in (('params', contents.params), ('state', contents.state))
    for module, leaves in tree.items()
    for name, leaf in leaves.items()
  }
  metadata = {
    'format': 'semppl_jax 1',
    'settings': json.dumps(contents.settings._asdict()),
    'step': json.dumps(contents.step),
    'kind': contents.kind,
    'class_names': json.dumps(contents.class_names),
  }
  try:
    with files.atomic(path) as part:
      safetensors_numpy.save_file(named, part, metadata)
      part.chmod(0o644)  # the library lets nobody else read it
  except (OSError, safetensors.SafetensorError) as error:
    raise CheckpointError(f'{path} cannot be written: {error}') from error


def write_release(path: str | os.PathLike, contents: Contents) -> None:
  """Writes DeepMind's pretrain.pkl, which its own evaluation code reads.

  Leaves get the leading device axis that the release takes off again.

  Raises:
    CheckpointError: it cannot be written, or has a classifier on a layer of the
      projector, which that code does not know.
  """
  classifier_on = contents.settings.classifier_on
  if classifier_on not in (None, 'encoder'):
    raise CheckpointError(
      f"{path} cannot be written: DeepMind's code has no classifier on "
      f'{classifier_on}; choose a .safetensors file.'
    )

  def add_axis(tree):
    return {
      module: {name: np.asarray(leaf)[None] for name, leaf in leaves.items()}
      for module, leaves in tree.items()
    }

  experiment_state = {
    'online_params': add_axis(contents.params),
    'online_state': add_axis(contents.state),
  }
  whole = {
    'experiment_state': experiment_state,
    'step': contents.step or 0,
    'rng': np.zeros(2, np.uint32),
    # The release looks at no other key.
    _OURS: contents.settings._asdict()
    | {'class_names': json.dumps(contents.class_names)},
  }
  release_pickle.write(path, whole)


def _read_pickle(path: pathlib.Path) -> Contents:
  content = release_pickle.read(path)
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
      ours = content.get(_OURS, {})
      has_target = kind == 'pre-training' and all(
        name in held for name in _TARGET
      )
      return Contents(
        params=_join(held, params),
        state=_join(held, state),
        step=haiku_trees.whole_number(content['step'], 'step'),
        kind=kind,
        settings=_settings(ours),
        class_names=_class_names(ours.get('class_names')),
        target=(
          tuple(_join(held, (x,)) for x in _TARGET) if has_target else None
        ),
      )
  raise CheckpointError(
    'experiment_state has neither online_params and online_state nor '
    'backbone_params, classif_params and backbone_state.'
  )


def _join(held: dict[str, Any], fields: tuple[str, ...]) -> haiku_trees.Tree:
  joined: haiku_trees.Tree = {}
  for field in fields:
    tree = haiku_trees.two_level(held[field], field)
    if field == 'classif_params':  # its one layer has Haiku's default name
      tree = {m.replace('linear', 'classifier'): x for m, x in tree.items()}
    joined |= tree
  return haiku_trees.without_device_axis(_usual_stem(joined))


def _usual_stem(tree: haiku_trees.Tree) -> haiku_trees.Tree:
  """BYOL's files call the one kernel of the stem initial_conv_1.

  Their encoder was Haiku's ResNet with the first convolution replaced, and
  Haiku counts modules when they are made.
  """
  stems = [module for module in tree if _STEM.fullmatch(module)]
  if len(stems) != 1 or not stems[0].endswith('/~/initial_conv_1'):
    return tree  # stems of selective kernels have three
  return {
    module.removesuffix('_1') if module == stems[0] else module: leaves
    for module, leaves in tree.items()
  }


def _read_safetensors(path: pathlib.Path) -> Contents:
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
  except CheckpointError:
    raise
  except Exception as error:  # the library's own errors have several bases
    reason = first_line(error)
    raise CheckpointError(
      f'is no whole safetensors file: {reason[:200]}'
    ) from error
  step = _json(metadata.get('step', 'null'), 'step')
  kind = metadata.get('kind')
  return Contents(
    found['params'],
    found['state'],
    None if step is None else haiku_trees.whole_number(step, 'step'),
    kind if kind in KINDS else 'safetensors',
    _settings(_json(metadata.get('settings', '{}'), 'settings')),
    class_names=_class_names(metadata.get('class_names')),
  )


def _read_run(
  path: pathlib.Path, step: int | None, target: bool, network: str | None
) -> Contents:
  steps = checkpoint.steps(str(path))
  if not steps and not (path / 'config.json').exists():
    raise CheckpointError(
      'is a directory, and no run of ours: give a file or a --workdir.'
    )
  if not steps or (step is not None and step not in steps):
    which = '' if step is None else f' of step {step}'
    raise CheckpointError(f'the run there has no checkpoint{which} yet.')
  stop = stop_file.read(path)
  if step is None:
    good = [n for n in steps if not stop or n <= stop.good]
    if not good:
      raise CheckpointError(
        f'the run there was {stop}, and has no good checkpoint ({stop.what}): '
        f'`step` chooses one all the same, of {steps}.'
      )
    step = good[-1]
  settings = _run_settings(path / 'config.json')
  takes_target = target or 'target' in (network, settings.network)
  wanted = ('state.online_', 'state.target_')[: 1 + takes_target]
  leaves = checkpoint.read(str(path), step, wanted)
  trees: dict[str, dict[str, dict]] = {
    whose: {'params': {}, 'state': {}} for whose in NETWORKS
  }
  for name, leaf in leaves.items():
    whose, kind, module, own = _RUN_LEAF.fullmatch(name).groups()
    trees[whose][kind].setdefault(module, {})[own] = leaf
  note = stop.note(step) if stop else ''
  online, of_target = (tuple(x.values()) for x in trees.values())
  found = Contents(
    *online, step, 'run', settings, note, _names_of_run(path),
    of_target if of_target[0] else None,
  )  # fmt: skip
  found = _choose(found, network)
  return found if target else found._replace(target=None)


def _names_of_run(path: pathlib.Path) -> tuple[str, ...]:
  """What data.json says (see `run_data`); older runs have none."""
  try:
    text = (path / 'data.json').read_text(encoding='utf-8')
  except storage.StorageError:
    raise
  except (OSError, ValueError):
    return ()
  found = _json(text, 'data.json')
  named = found.get('class_names') if isinstance(found, dict) else None
  return _class_names(json.dumps(named))


def _class_names(text: Any) -> tuple[str, ...]:
  """The names in a JSON list; empty: nothing is said."""
  if text is None:
    return ()
  found = _json(text, 'class_names') if isinstance(text, str) else text
  listed = isinstance(found, list) and all(isinstance(x, str) for x in found)
  if not listed and found is not None:
    raise CheckpointError('its class names are no list of names.')
  return tuple(found or ())


def _run_settings(path: pathlib.Path) -> Settings:
  try:
    text = path.read_text(encoding='utf-8')
  except storage.StorageError:
    raise
  except (OSError, ValueError) as error:
    raise CheckpointError(f'{path} cannot be read.') from error
  config = _json(text, 'config.json')
  if not isinstance(config, dict):
    raise CheckpointError(f'{path} holds no settings.')
  # An evaluation's encoder is that of the checkpoint that it began with.
  found = config.get('weights', config.get('encoder'))
  if isinstance(found, dict):
    found = {k: v for k, v in found.items() if k in Settings._fields}
    # Of pre-training, or of an evaluation.
    for key, section, name in (
      ('image_size', 'views', 'large_size'),
      ('center', 'evaluation', 'center'),
      ('image_size', 'crops', 'size'),
      ('center', 'crops', 'center'),
    ):
      if isinstance(config.get(section), dict) and name in config[section]:
        found[key] = config[section][name]
    if 'weights' not in config and isinstance(config.get('evaluation'), dict):
      found['network'] = config['evaluation'].get('network')
    # Of the run's own classifier, not of the one that it began with.
    own = config.get('classifier')
    found['classifier_on'] = own.get('on') if isinstance(own, dict) else None
    found['prototype_temperature'] = None
    if 'weights' not in config and config.get('method') in BY_PROTOTYPES:
      loss = config.get('loss')
      if isinstance(loss, dict):
        found['prototype_temperature'] = loss.get('temperature')
  return _settings(found)


def _settings(found: Any) -> Settings:
  """Checks what a file says; other keys do not count."""
  if not isinstance(found, Mapping):
    raise CheckpointError('its settings are not named values.')
  said = Settings(**{k: found.get(k) for k in Settings._fields})
  for key, known in (
    ('encoder', encoders.ENCODERS),
    ('padding', encoders.PADDINGS),
    ('network', NETWORKS),
  ):
    value = getattr(said, key)
    if value is not None and not (isinstance(value, str) and value in known):
      raise CheckpointError(f'its {key} is none of {", ".join(known)}.')
  for key in ('bn_eps', 'bn_decay'):
    value = getattr(said, key)
    if value is None:
      continue
    if type(value) not in (int, float) or not 0 <= value < math.inf:
      raise CheckpointError(f'its {key} is no number of at least 0.')
  tau = said.prototype_temperature
  if tau is not None and not (type(tau) in (int, float) and 0 < tau < math.inf):
    raise CheckpointError('its prototype_temperature is no number above 0.')
  if not isinstance(said.classifier_on, (str, type(None))):
    raise CheckpointError('its classifier_on is no text.')
  size, center = said.image_size, said.center
  if size is not None and not (type(size) is int and 1 <= size <= 10_000):
    raise CheckpointError('its image_size is no number of pixels.')
  if center is not None and not (
    type(center) in (int, float) and 0 < center <= 1
  ):
    raise CheckpointError('its center is no share from 0 to 1.')
  return said


def _json(text: str, what: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise CheckpointError(f'its {what} cannot be read as JSON.') from error
