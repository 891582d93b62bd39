"""All that a pickle may name, and what it gets for it."""

from collections.abc import Callable
from typing import Any

from semppl_jax.weights.release_pickle import stand_ins
from semppl_jax.weights.release_pickle.tape import Refused

# Where NumPy has it, and the modules in C that dill before 0.3.5 names instead.
_MULTIARRAY = (
  'numpy.core.multiarray numpy._core.multiarray '
  'numpy.core._multiarray_umath numpy._core._multiarray_umath'
)
_BUILDERS = {
  '_codecs: encode': stand_ins.encode_text,
  '__builtin__ builtins: bytes': stand_ins.no_bytes,
  'numpy: ndarray': stand_ins.plain_array,
  'numpy: dtype': stand_ins.dtype,
  f'{_MULTIARRAY}: _reconstruct': stand_ins.new_array,
  f'{_MULTIARRAY}: scalar': stand_ins.scalar,
  'numpy.core.numeric numpy._core.numeric: _frombuffer': (
    stand_ins.array_from_buffer
  ),
  'dill._dill: _create_array': stand_ins.whole_array,
  'dill._dill: _create_namedtuple': stand_ins.record_of_file,
  'dill._dill: _load_type': stand_ins.type_by_name,
  'dill._dill: _import_module': stand_ins.module_by_name,
  'jax._src.array: _reconstruct_array': stand_ins.whole_array,
  'jax._src.device_array jax.interpreters.xla: reconstruct_device_array': (
    stand_ins.whole_array
  ),
  'haiku._src.data_structures: FlatMapping FlatMap frozendict': (
    stand_ins.as_dict
  ),
  'collections: OrderedDict': stand_ins.as_dict,
  '__builtin__ builtins: dict': stand_ins.as_dict,
}
_OPTIMIZERS = (
  'semppl.utils.optimizers relicv2.utils.optimizers byol.utils.optimizers'
)
# NamedTuples, with their fields in order.
_RECORDS = {
  'semppl.eval_experiment relicv2.eval_experiment byol.eval_experiment: '
  '_EvalExperimentState': (
    'backbone_params classif_params backbone_state backbone_opt_state '
    'classif_opt_state'
  ),
  'byol.byol_experiment: _ByolExperimentState': (
    'online_params target_params online_state target_state opt_state'
  ),
  f'{_OPTIMIZERS}: ScaleByLarsState': 'mu',
  f'{_OPTIMIZERS}: AddWeightDecayState': '',
  'optax._src.transform optax.transforms._accumulation: TraceState': 'trace',
  'optax._src.transform optax.transforms._accumulation: EmaState': 'count ema',
  'optax._src.base optax._src.transform: EmptyState ScaleState IdentityState': (
    ''
  ),
  'optax._src.transform: ScaleByScheduleState': 'count',
  'optax._src.transform: ScaleByAdamState': 'count mu nu',
  'optax._src.wrappers optax.transforms._masking: MaskedState': 'inner_state',
  'optax._src.wrappers optax.transforms._masking: MaskedNode': '',
  'optax._src.combine optax.transforms._combining: '
  'MultiTransformState PartitionState': 'inner_states',
  'optax._src.schedule optax.schedules._inject: InjectHyperparamsState': (
    'count hyperparams inner_state'
  ),
}


def _pairs(key: str) -> list[tuple[str, str]]:
  modules, names = (part.split() for part in key.split(':'))
  return [(module, name) for module in modules for name in names]


def _attribute(spend: stand_ins.Spend, module: Any, name: Any) -> Any:
  """How dill before 0.3.5 names functions written in C."""
  return find(module.name, name)  # nothing else on the stack has a name


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
  pair: builder for key, builder in _BUILDERS.items() for pair in _pairs(key)
} | {
  pair: stand_ins.record(fields.split())
  for key, fields in _RECORDS.items()
  for pair in _pairs(key)
}
_ALLOWED['dill._dill', '_get_attr'] = _attribute


def find(module: Any, name: Any) -> Callable[..., Any]:
  """The stand-in for a name; any other name is refused."""
  if not type(module) is type(name) is str:
    raise TypeError('a name that is no text')
  if stand_in := _ALLOWED.get((module, name)):
    return stand_in
  if name == 'bfloat16':
    raise Refused(f'holds arrays of bfloat16, {stand_ins.READ}: refused.')
  asked = f'{stand_ins.shown(module)}.{stand_ins.shown(name)}'
  raise Refused(f'asks for {asked}: refused, nothing of it was run.')
