"""Pickles as DeepMind's pre-training wrote them, without its code or dill.

BYOL's two files are of August 2020, when dill was at 0.3.2: a NamedTuple of
both networks and LARS's state, Haiku's mappings, no device axis. ReLICv2's and
SemPPL's evaluations read dicts with a device axis. NamedTuples come with their
fields, as every dill writes them. The opcodes are those of dill 0.3.2 (`old`)
or of 0.3.5.1, but for the numbers in the memo.
"""

import collections
import io
import pickle
import sys
import types
from typing import Any
from unittest import mock

import jax
import numpy as np
from haiku._src import data_structures

from semppl_jax.models import encoders
from semppl_jax.weights import architecture as architecture_lib
from tests.helpers import golden

Tree = dict[str, dict[str, Any]]
_NAMES = ('_create_namedtuple', '_get_attr', '_import_module')


def _record(module, name, fields=''):
  return collections.namedtuple(name, fields, module=module)


_State = _record(
  'byol.byol_experiment', '_ByolExperimentState',
  'online_params target_params online_state target_state opt_state',
)  # fmt: skip
_Decay = _record('byol.utils.optimizers', 'AddWeightDecayState')
_Lars = _record('byol.utils.optimizers', 'ScaleByLarsState', 'mu')
_Scale = _record('optax._src.transform', 'ScaleState')


def frozendict(tree: Tree) -> Any:
  """Haiku's mapping until August 2020."""
  made = data_structures.frozendict
  return made({module: made(leaves) for module, leaves in tree.items()})


flat_mapping = data_structures.to_immutable_dict  # and after it


def trees(scale: float = 1.0) -> tuple[Tree, Tree]:
  """Tiny parameters and state with all heads, of numbers by the fill rule."""
  sizes = {'projector_hidden': 16, 'embedding_size': 8, 'num_classes': 10}
  expected = architecture_lib.expected(encoders.Architecture('tiny'), sizes)
  shapes = [
    {m: {k: x.shape for k, x in leaves.items()} for m, leaves in tree.items()}
    for tree in expected
  ]
  params, state = golden.params(shapes[0]), golden.state(shapes[1])
  scaled = lambda x: x if x.dtype == np.int32 else x * np.float32(scale)
  return jax.tree.map(scaled, params), jax.tree.map(scaled, state)


def byol(
  online: tuple[Tree, Tree],
  target: tuple[Tree, Tree],
  mapping: Any = frozendict,
) -> dict[str, Any]:
  """What BYOL's Checkpointer saves; the stem's kernel has another name."""
  params, state = ({_byols(m): x for m, x in t.items()} for t in online)
  target = ({_byols(m): x for m, x in t.items()} for t in target)
  target_params, target_state = target
  momentum = {'projector/linear_1': params['projector/linear_1']}
  held = _State(
    online_params=mapping(params),
    target_params=mapping(target_params),
    online_state=mapping(state),
    target_state=mapping(target_state),
    opt_state=[_Decay(), _Lars(mapping(momentum)), _Scale()],
  )
  rng = np.array([1, 2], np.uint32)
  return {'experiment_state': held, 'step': 312_500, 'rng': rng}


def _byols(module: str) -> str:
  return module + '_1' if module.endswith('/~/initial_conv') else module


def relicv2(params: Tree, state: Tree) -> dict[str, Any]:
  """What ReLICv2's evaluation reads: dicts, with a device axis."""
  add = lambda tree: jax.tree.map(lambda x: np.asarray(x)[None], tree)
  held = {'online_params': add(params), 'online_state': add(state)}
  return {'experiment_state': held, 'step': 93_800, 'rng': np.zeros(2, 'u4')}


def dumps(value: Any, *, old: bool = True) -> bytes:
  """The bytes that dill.dump writes at protocol 2."""
  dill = types.ModuleType('dill._dill')
  for name in _NAMES:
    setattr(dill, name, _function(name))
  modules = {'dill': types.ModuleType('dill'), 'dill._dill': dill}
  file = io.BytesIO()
  with mock.patch.dict(sys.modules, modules):
    _Pickler(file, dill, old).dump(value)
  return file.getvalue()


def _function(name):
  def function(*_):
    raise AssertionError('Nothing of a pickle is called.')

  function.__module__, function.__qualname__ = 'dill._dill', name
  return function


class _Pickler(pickle.Pickler):
  """Dill's ways with NamedTuples, and the old one with functions in C."""

  def __init__(self, file, dill, old):
    super().__init__(file, protocol=2)
    self._dill, self._old = dill, old

  def reducer_override(self, value):
    if isinstance(value, type) and hasattr(value, '_fields'):
      fields = value.__qualname__, value._fields, value.__module__
      return self._dill._create_namedtuple, fields
    if isinstance(value, types.BuiltinFunctionType) and self._old:
      return self._dill._get_attr, (value.__self__, value.__name__)
    if isinstance(value, types.ModuleType):
      # NumPy 1's name.
      name = value.__name__.replace('numpy._core', 'numpy.core')
      return self._dill._import_module, (name,)
    return NotImplemented
