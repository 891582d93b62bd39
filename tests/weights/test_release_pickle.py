"""Reading checkpoints from strangers, and writing what their readers read."""

import collections
import os
import pathlib
import pickle
import pickletools
import struct
import sys
import tracemalloc
import types

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import load_pickle
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.weights import release_pickle
from semppl_jax.weights.release_pickle import reading, stand_ins, tape
from tests.helpers import golden
from tests.resilience import fuzz_pickles
from tests.resilience.fuzz_pickles import call, fragment, state_of, whole

_TINY = golden.path('release_checkpoint_tiny.pkl')
_PROTOCOLS = (2, 3, 4, 5)
_TEXT = b'X' + struct.pack('<I', 10**6) + b'x' * 10**6
_ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def read(tmp_path):
  """Reads bytes; checks that only values come out."""

  def read(data: bytes):
    path = tmp_path / 'x.pkl'
    path.write_bytes(data)
    with fuzz_pickles.watched() as events:
      result = release_pickle.read(path)
    assert events == [('open', str(path))]
    fuzz_pickles.check_values(result)
    return result

  return read


@pytest.fixture
def refusal(read, tmp_path):
  """The line about a file that is refused, without its name."""

  def refusal(data: bytes) -> str:
    with pytest.raises(CheckpointError) as error:
      read(data)
    text = str(error.value)
    assert text.isprintable()  # in one line, that is
    assert text.startswith(f'{tmp_path}/x.pkl ')
    return text.removeprefix(f'{tmp_path}/x.pkl ')

  return refusal


def assert_same(found, wanted):
  """Bit by bit, with dtypes and shapes; dicts, lists and tuples are walked."""
  if isinstance(wanted, (np.ndarray, np.generic)):
    assert type(found) is np.ndarray
    native = wanted.dtype.newbyteorder('=')
    assert (found.dtype, found.shape) == (native, wanted.shape)
    assert found.tobytes() == wanted.astype(native).tobytes()
    return
  assert type(found) is type(wanted)
  if isinstance(wanted, dict):
    assert list(found) == list(wanted)
    found, wanted = list(found.values()), list(wanted.values())
  if isinstance(wanted, (list, tuple)):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
      assert_same(a, b)
  else:
    assert found == wanted or found != found


def test_golden_checkpoint():
  tree = release_pickle.read(_TINY)
  assert list(tree) == ['experiment_state', 'step', 'rng']
  assert_same(tree['step'], 1000)
  assert_same(tree['rng'], np.zeros(2, np.uint32))
  both = tree['experiment_state']
  shapes = lambda tree: {
    module: {name: leaf.shape[1:] for name, leaf in leaves.items()}
    for module, leaves in tree.items()
  }
  params, state = both['online_params'], both['online_state']
  for tree, wanted in (
    (params, golden.params(shapes(params))),
    (state, golden.state(shapes(state))),
  ):
    for module in tree:
      for name, leaf in tree[module].items():
        # The release saves a device axis.
        assert_same(leaf, np.asarray(wanted[module][name])[None])
  assert {m.split('/')[0] for m in params} == {
    'tiny_res_net', 'projector', 'predictor', 'classifier'
  }  # fmt: skip


@pytest.mark.parametrize('protocol', _PROTOCOLS)
@pytest.mark.parametrize(
  'value',
  [
    None, True, False, 0, 255, 256, 70_000, -1, 2**31, -(2**40), 2**2000, 1.5,
    float('nan'), -0.0, '', 'é\n\0\U0001f600', 'x' * 300, b'', b'\xff\0', (),
    (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,)), [], [1], [[1], {}], {},
    {1: 'a', None: 2, 1.5: 3}, dict.fromkeys(range(3000)), list(range(3000)),
    b'x' * 70_000, 'x' * 70_000,
  ],
  ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_plain_values(read, value, protocol):
  assert_same(read(pickle.dumps(value, protocol)), value)


def _arrays():
  yield from (np.zeros((2, 0), np.float32), np.array(2.5), np.arange(256) > 9)
  yield np.arange(256, dtype=np.uint8)
  yield np.random.default_rng(0).random((3, 50))
  yield np.asfortranarray(_ARRAY)
  yield np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
  yield np.arange(10)[::2]
  yield np.array([np.nan, -0.0, np.inf], np.float32)
  for code in stand_ins.DTYPES:
    for order in '<>=':
      yield np.array([[0, 1], [2, 100]]).astype(order + code)
      yield np.dtype(order + code).type(1)


@pytest.mark.parametrize('protocol', _PROTOCOLS)
def test_arrays_and_scalars(read, protocol):
  arrays = list(_arrays())
  assert_same(read(pickle.dumps(arrays, protocol)), arrays)
  for array in arrays:
    assert_same(read(pickle.dumps(array, protocol)), array)


@pytest.mark.parametrize('protocol', _PROTOCOLS)
def test_a_shared_array_is_one_array(read, protocol):
  array = _ARRAY[:, ::2]
  found = read(pickle.dumps({'a': array, 'b': [array]}, protocol))
  assert found['a'] is found['b'][0]
  assert_same(found['a'], array)


def test_dtype_codes_with_metadata_or_old_states(read):
  """NumPy has had states of 8 and of 9 parts."""
  code = call('numpy dtype', fragment('f4'), fragment(False), fragment(True))
  state = fragment((4, '>', None, None, None, -1, -1, 0, {'a': 1}))
  text = call('_codecs encode', fragment('\0\0\x80?'), fragment('latin-1'))
  scalar = call('numpy.core.multiarray scalar', code + state + b'b', text)
  assert_same(read(whole(scalar)), np.float32(4.6006e-41))


@pytest.mark.parametrize('protocol', _PROTOCOLS)
def test_jax_arrays(read, protocol):
  for array in (jnp.arange(6.0).reshape(2, 3), jnp.zeros((), jnp.int32)):
    assert_same(read(pickle.dumps(array, protocol)), np.asarray(array))


@pytest.mark.parametrize(
  'name',
  [
    'jax._src.array _reconstruct_array',
    'jax._src.device_array reconstruct_device_array',
    'jax.interpreters.xla reconstruct_device_array',
    'dill._dill _create_array',
  ],
)
def test_arrays_in_one_call(read, name):
  extra = fragment({'weak_type': False, 'named_shape': {}})
  data = whole(call(name, *state_of(_ARRAY), extra))
  assert_same(read(data), _ARRAY)


def test_empty_arrays_by_dill(read):
  """It names `bytes` by a call of its own."""
  function, arguments, _ = state_of(_ARRAY)
  none = call('dill._dill _load_type', fragment('bytes')) + b')R'
  code = fragment(np.dtype('f4'))
  state = b'(' + fragment(1) + fragment((0, 4)) + code + b'\x89' + none + b't'
  data = call('dill._dill _create_array', function, arguments, state, b'N')
  assert_same(read(whole(data)), np.zeros((0, 4), np.float32))


@pytest.mark.parametrize('protocol', _PROTOCOLS)
def test_haiku_mappings(read, protocol):
  wanted = {'net/~/conv': {'w': _ARRAY}}
  structures = sys.modules[
    type(hk.data_structures.to_haiku_dict({})).__module__
  ]
  structures = sys.modules['haiku._src.data_structures']
  for mapping in (
    hk.data_structures.to_immutable_dict(wanted),
    hk.data_structures.to_haiku_dict(wanted),
    structures.frozendict(
      {k: structures.frozendict(v) for k, v in wanted.items()}
    ),
  ):
    assert_same(read(pickle.dumps(mapping, protocol)), wanted)


@pytest.mark.parametrize('protocol', _PROTOCOLS)
@pytest.mark.parametrize('package', ['semppl', 'relicv2', 'byol'])
def test_linear_evaluations_of_the_release(
  read, monkeypatch, package, protocol
):
  name = f'{package}.eval_experiment'
  fields = (
    'backbone_params classif_params backbone_state backbone_opt_state '
    'classif_opt_state'
  )
  own = '_EvalExperimentState'
  state = collections.namedtuple(own, fields, module=name)
  module = types.ModuleType(name)
  setattr(module, own, state)
  monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
  monkeypatch.setitem(sys.modules, name, module)
  optimizer = optax.sgd(optax.constant_schedule(0.1), momentum=0.9)
  params = {'linear': {'w': _ARRAY}}
  tree = state(params, params, {}, None, optimizer.init(params))
  found = read(pickle.dumps({'experiment_state': tree}, protocol))
  found = found['experiment_state']
  assert list(found) == fields.split()
  assert_same(found['classif_params'], params)
  assert found['backbone_opt_state'] is None
  trace, count = found['classif_opt_state']
  assert_same(trace, {'trace': {'linear': {'w': np.zeros_like(_ARRAY)}}})
  assert_same(count, {'count': np.zeros((), np.int32)})


@pytest.mark.parametrize(
  'optimizer',
  [
    optax.adam(0.1), optax.masked(optax.trace(0.9), {'w': True}),
    optax.multi_transform({'a': optax.identity()}, {'w': 'a'}),
    optax.chain(optax.ema(0.9), optax.scale(2.0)),
    optax.chain(optax.scale_by_schedule(lambda n: 1.0)),
  ],
)  # fmt: skip
def test_optimizer_states(read, optimizer):
  """NamedTuples become dicts with the same fields."""
  state = optimizer.init({'w': _ARRAY})

  def plain(value):
    if hasattr(value, '_asdict'):
      return {k: plain(v) for k, v in value._asdict().items()}
    if isinstance(value, dict):
      return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
      return tuple(map(plain, value))
    return np.asarray(value) if isinstance(value, jax.Array) else value

  for protocol in _PROTOCOLS:
    assert_same(read(pickle.dumps(state, protocol)), plain(state))


def test_named_tuples_by_dill(read, refusal):
  """Those of `__main__` bring their fields along."""
  make = lambda *args: call(
    'dill._dill _create_namedtuple', *map(fragment, args)
  )
  kind = make('State', ('count', 'mu'), '__main__', (0,))
  data = kind + b'(K\1' + fragment(_ARRAY) + b't\x81'
  assert_same(read(whole(data)), {'count': 1, 'mu': _ARRAY})
  assert 'damaged' in refusal(whole(kind + fragment((1,)) + b'\x81'))
  assert 'keeps a function or a type' in refusal(whole(kind))
  for fields in ('ab', (1, 2), ('a',) * 65, ('a' * 1001,)):
    assert 'damaged' in refusal(whole(make('State', fields, '__main__')))


def _attribute(module, name):
  module = call('dill._dill _import_module', fragment(module))
  return call('dill._dill _get_attr', module, fragment(name))


@pytest.mark.parametrize('package', ['numpy.core', 'numpy._core'])
def test_functions_in_c_by_dill(read, package):
  """Before 0.3.5 it took them from their modules."""
  umath = f'{package}._multiarray_umath'
  text = _attribute('_codecs', 'encode') + b'('
  text += fragment('\0\0\x80?') + fragment('latin1') + b'tR'
  code = fragment(np.dtype('f4'))
  scalar = _attribute(umath, 'scalar') + b'(' + code + text + b'tR'
  assert_same(read(whole(scalar)), np.float32(1))
  array = _attribute(umath, '_reconstruct') + b'('
  array += b'cnumpy\nndarray\n' + fragment((0,)) + text + b'tR('
  array += fragment(1) + fragment((1, 1)) + code + b'\x89' + text + b'tb'
  assert_same(read(whole(array)), np.ones((1, 1), np.float32))


@pytest.mark.parametrize('name', ['os system', 'builtins eval', 'numpy load'])
def test_no_other_attribute_is_taken(refusal, name):
  module, own = name.split()
  wanted = f'asks for {module}.{own}: refused, nothing of it was run.'
  assert refusal(whole(_attribute(module, own))) == wanted
  assert refusal(whole(_attribute(module, own) + b')R')) == wanted


def test_modules_and_their_functions_are_no_values(refusal):
  alone = call('dill._dill _import_module', fragment('os'))
  for opcodes in (alone, _attribute('_codecs', 'encode')):
    for around in (b'%s', b']%sa', b'}X\1\0\0\0a%ss', b'%s\x85'):
      text = refusal(whole(around % opcodes))
      assert 'keeps a function or a type among its values' in text
  for odd in (fragment('os'), fragment([]), alone + b')R', alone + b'}b'):
    text = refusal(whole(call('dill._dill _get_attr', odd, fragment('path'))))
    assert 'refused' in text or 'damaged' in text
  for odd in ([], 1, None, b''):
    module = call('dill._dill _import_module', fragment(odd))
    found = call('dill._dill _get_attr', module, fragment('encode'))
    assert 'damaged' in refusal(whole(found))


def test_ordered_dicts(read):
  wanted = {'b': 1, 'a': _ARRAY}
  for protocol in _PROTOCOLS:
    data = pickle.dumps(collections.OrderedDict(wanted), protocol)
    assert_same(read(data), wanted)
  pairs = fragment([['b', 1], ('a', _ARRAY)])  # as Python 2 writes it
  assert_same(read(whole(call('collections OrderedDict', pairs))), wanted)
  assert_same(read(whole(call('__builtin__ dict'))), {})


def test_opcodes_that_pickle_leaves_out(read):
  """LIST, DICT, DUP, POP, POP_MARK and LONG4 belong to protocol 2 as well."""
  assert_same(read(whole(b'(K\1K\2l')), [1, 2])
  assert_same(read(whole(b'(K\1K\2d')), {1: 2})
  assert_same(read(whole(b'K\1K\x020K\x032\x86\x86')), (1, (3, 3)))
  assert_same(read(whole(b'K\1(K\2K\x031')), 1)
  assert_same(read(whole(b'K\1(0')), 1)
  assert_same(read(whole(b'\x8b\2\0\0\0\xff\xff')), -1)
  assert_same(read(whole(b'\x8d' + struct.pack('<Q', 1) + b'x')), 'x')
  assert_same(read(whole(b'N') + b'what comes after it is not read'), None)


class Exploit:
  """Pickles as a call."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', _PROTOCOLS)
def test_calls_are_refused_by_name(refusal, tmp_path, protocol):
  canary = tmp_path / 'canary'
  for function, arguments, name in (
    (os.system, (f'touch {canary}',), 'posix.system'),
    (eval, (f'open({str(canary)!r}, "w")',), 'eval'),
    (open, (str(canary), 'w'), 'io.open'),
    (np.fromstring, ('1', 'f4'), 'numpy'),
    (np.load, (str(canary),), 'numpy.load'),
    (getattr, (1, 'real'), 'getattr'),
  ):
    for data in (
      Exploit(function, *arguments),
      {'a': [np.zeros(2), os.system]},
    ):
      text = refusal(pickle.dumps(data, protocol))
      assert text.endswith(': refused, nothing of it was run.')
      assert name in text or 'posix.system' in text
  assert not canary.exists()


@pytest.mark.parametrize(
  'name',
  [
    'os system', 'builtins eval', '__builtin__ eval', 'builtins getattr',
    'numpy.core.multiarray fromstring', 'numpy.core.multiarray fromfile',
    'dill._dill _create_type', 'dill._dill _getattribute', 'numpy load',
    'dill._dill _create_function', 'copyreg _reconstructor', 'numpy frombuffer',
    'semppl.eval_experiment EvalExperiment', 'codecs encode', '_codecs decode',
    'numpy ndarray.tofile', 'collections OrderedDict.__init__', ' ', 'os os',
  ],
)  # fmt: skip
def test_names_are_refused_whatever_is_done_with_them(refusal, name):
  module, own = name.split(' ', 1)
  wanted = f'asks for {module}.{own}: refused, nothing of it was run.'
  two = fragment(module) + fragment(own) + b'\x93'  # STACK_GLOBAL
  for head in (b'c%s\n%s\n' % (module.encode(), own.encode()), two):
    for rest in (b'', b')R', b')\x81', b'}b', b'0N'):
      assert refusal(whole(head + rest)) == wanted


def test_a_name_is_shown_in_one_line(refusal):
  odd = fragment('os\n\x1b[31m\u2028') + fragment('é' * 500) + b'\x93'
  text = refusal(whole(odd))
  assert text.startswith(r'asks for os\n\x1b[31m\u2028.\xe9\xe9')
  assert len(text) < 1000


@pytest.mark.parametrize(
  'opcodes, name',
  [
    (b'(ios\nsystem\n', 'INST'),
    (b'(cos\nsystem\nX\0\0\0\0o', 'OBJ'),
    (b'Pid\n', 'PERSID'),
    (b'NQ', 'BINPERSID'),
    (b'\x82\1', 'EXT1'),
    (b'\x83\1\0', 'EXT2'),
    (b'\x84\1\0\0\0', 'EXT4'),
    (b'\x97', 'NEXT_BUFFER'),
    (b'\x98', 'READONLY_BUFFER'),
    (b')}\x92', 'NEWOBJ_EX'),
    (b'\x8f', 'EMPTY_SET'),
    (b'I1\n', 'INT'),
    (b'\xff', '0xff'),
  ],
)
def test_opcodes_are_refused_by_name(refusal, opcodes, name):
  if name == 'OBJ':  # it needs a name on the stack, which comes first
    opcodes = opcodes.replace(b'os\nsystem', b'numpy\ndtype')
  wanted = f'uses opcode {name}: refused, nothing of it was run.'
  assert refusal(whole(opcodes)) == wanted


def test_every_opcode_is_either_handled_or_refused():
  assert set(reading._HANDLERS) | {'STOP'} == tape.OPCODES


def _object_array():
  array = np.zeros(2, object)
  array[:] = [1, 'x']
  return array


@pytest.mark.parametrize(
  'value, words',
  [
    (_object_array(), 'dtype O8'),
    (np.zeros(2, 'f4,i4'), 'dtype V8'),
    (np.zeros(2, 'U3'), 'dtype U3'),
    (np.zeros(2, 'S3'), 'dtype S3'),
    (np.zeros(2, complex), 'dtype c16'),
    (np.zeros(2, 'M8[s]'), 'dtype M8'),
    (np.zeros(2, np.longdouble), 'dtype f16'),
    (np.zeros(2).view(np.recarray), 'numpy.rec'),
    (np.ma.zeros(2), 'numpy.ma'),
    (jnp.zeros(2, jnp.bfloat16), 'holds arrays of bfloat16'),
    ({1, 2}, ''),
    (1j, 'complex'),
    (np.dtype('f4'), 'keeps a function or a type'),
    ([np.dtype('f4')], 'keeps a function or a type'),
    ({'a': np.ndarray}, 'keeps a function or a type'),
    ({'a': (1, (2, np.ndarray))}, 'keeps a function or a type'),
    ({(1, 2): 3}, 'has a tuple for a key'),
    ({b'a': 3}, 'has a bytes for a key'),
    ({2**64: 3}, 'has a key that is too long'),
    ({-(2**64): 3}, 'has a key that is too long'),
    ({'x' * 1001: 3}, 'has a key that is too long'),
    (2**9000, 'has an int of more than 1024 bytes'),
  ],
  ids=lambda value: str(value)[:20],
)
def test_values_that_no_checkpoint_has_are_refused(refusal, value, words):
  for protocol in _PROTOCOLS:
    assert words in refusal(pickle.dumps(value, protocol))


def _state(shape, code='f4', data=bytes(24), order='<', fields=None):
  """An array with a state of one's own."""
  function, arguments, _ = state_of(_ARRAY)
  dtype = call('numpy dtype', fragment(code), b'\x89', b'\x88')
  dtype += fragment((3, order, None, fields, fields, -1, -1, 0)) + b'b'
  data = data if data is None else fragment(data)
  state = b'(' + fragment(1) + fragment(shape) + dtype + b'\x89' + data + b't'
  return whole(function + arguments + b'R' + state + b'b')


@pytest.mark.parametrize(
  'shape, words',
  [
    ((2, 4), 'does not fit its bytes'),
    ((2, 2), 'does not fit its bytes'),
    ((-2, -3), 'does not fit its bytes'),
    ((2**32, 2**32, 6), 'does not fit its bytes'),
    ((2**64 + 6,), 'does not fit its bytes'),
    ((6.0,), 'does not fit its bytes'),
    ((True, 6), 'does not fit its bytes'),
    ([2, 3], 'does not fit its bytes'),
    (6, 'does not fit its bytes'),
    ((1,) * 32 + (6,), 'does not fit its bytes'),
    ((2**4000,) * 9, 'does not fit its bytes'),
  ],
)
def test_shapes_that_lie_are_refused(refusal, read, shape, words):
  assert_same(read(_state((2, 3))), np.zeros((2, 3), np.float32))
  assert words in refusal(_state(shape))


def test_other_states_that_lie_are_refused(refusal):
  assert 'damaged' in refusal(_state((0, 2**62, 2**62), data=b''))
  assert 'plain numbers' in refusal(_state((2, 3), data='x' * 24))
  assert 'plain numbers' in refusal(_state((2, 3), data=[1] * 6))
  assert 'records' in refusal(_state((2, 3), order='x'))
  assert 'records' in refusal(_state((2, 3), fields=('a',)))
  assert 'dtype <f4' in refusal(_state((2, 3), code='<f4'))
  assert 'dtype list' in refusal(_state((2, 3), code=[]))
  twice = _state((2, 3))[2:-1]
  assert 'gives state' in refusal(whole(twice + fragment((1,)) + b'b'))
  function, arguments, state = state_of(_ARRAY)
  copies = function + arguments + b'R2' + state + b'b0'
  assert 'gives state' in refusal(whole(copies + state + b'b'))
  for target in (b'}', b']', b'cnumpy\nndarray\n'):
    assert 'gives state' in refusal(whole(target + b'}b'))


def test_bools_become_valid(read):
  found = read(_state((24,), 'b1', bytes([0, 1, 2, 255] * 6), '|'))
  assert found.view(np.uint8).tolist() == [0, 1, 1, 1] * 6


def test_stand_ins_are_refused_where_others_belong(refusal):
  kind, encode = b'cnumpy\nndarray\n', b'c_codecs\nencode\n'
  arguments, state = state_of(_ARRAY)[1:]
  trace = call('optax._src.transform TraceState', kind, opcode=b'\x81')
  assert 'keeps a function or a type' in refusal(whole(trace))
  for new in (kind, encode):
    data = whole(call('dill._dill _create_array', new, arguments, state, b'N'))
    assert 'makes an array in an unknown way' in refusal(data)
  new = call('numpy.core.multiarray _reconstruct', encode, b')', b'N')
  assert 'an array of an unknown kind' in refusal(whole(new))
  assert 'makes an array in an unknown way' in refusal(whole(kind + b')R'))


def test_arrays_that_are_never_built_are_refused(refusal):
  function, arguments, _ = state_of(_ARRAY)
  new = function + arguments + b'R'
  assert 'keeps a function or a type' in refusal(whole(new))
  assert 'keeps a function or a type' in refusal(whole(b']' + new + b'a'))
  # One copy of it is in a list before the other one gets its state.
  assert 'keeps' in refusal(whole(new + b'q\0]h\0a'))


@pytest.mark.parametrize(
  'data, words',
  [
    (b'', 'is empty'),
    (b'x', 'is no pickle'),
    (b'\x89HDF', 'is no pickle'),
    (b'(lp0\n.', 'is no pickle of protocol 2 to 5'),
    (b'\x80', 'is cut off: 1 bytes or more are missing'),
    (b'\x80\2', 'is cut off'),
    (b'\x80\1N.', 'has protocol 1'),
    (b'\x80\6N.', 'has protocol 6'),
    (b'\x80\2X\5\0\0\0abc.', 'is cut off: 1 bytes or more are missing'),
    (b'\x80\2cos\nsys', 'is cut off in the middle of a name'),
    (b'\x80\2c' + b'a' * 5000, 'a name of more than 1000 characters'),
    (whole(b'X\2\0\0\0\xff\xff'), 'is damaged'),
    (whole(b''), 'is damaged'),
    (whole(b'0'), 'is damaged'),
    (whole(b'N\x86'), 'is damaged'),
    (whole(b'Nt'), 'is damaged'),
    (whole(b'N2ht'), 'is damaged'),
    (whole(b'NNa'), 'is damaged'),
    (whole(b'NNNs'), 'is damaged'),
    (whole(b'}(Nu'), 'is damaged'),
    (whole(b'](K\1K\2u'), 'is damaged'),
    (whole(b'NN\x93'), 'is damaged'),
    (whole(b'N)R'), 'is damaged'),
    (whole(b'cnumpy\ndtype\nNR'), 'is damaged'),
    (whole(call('numpy dtype')), 'is damaged'),
    (whole(call('_codecs encode', fragment('é'), b'N')), 'is damaged'),
    (
      whole(call('_codecs encode', fragment('€'), fragment('latin1'))),
      'is damaged',
    ),
    (
      whole(call('_codecs encode', fragment('e'), fragment('rot13'))),
      'is damaged',
    ),
    (whole(call('dill._dill _load_type', fragment('int'))), 'the type int'),
    (whole(call('optax._src.base EmptyState', b'N')), 'is damaged'),
  ],
)
def test_damaged_files_are_refused(refusal, data, words):
  assert words in refusal(data)


def test_every_truncation_of_a_checkpoint_is_refused(refusal):
  data = fuzz_pickles.small_golden()
  for size in range(2, len(data), 7):
    text = refusal(data[:size])
    assert 'is cut off' in text, (size, text)


def test_files_that_are_none_are_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  os.symlink(tmp_path / 'loop', tmp_path / 'loop')
  for name, words in (
    ('missing', 'does not exist.'),
    ('', 'is a directory.'),
    ('pipe', 'is no file.'),
    ('loop', 'cannot be read: '),
    ('missing/missing', 'does not exist.'),
    ('a\0b', 'is damaged'),
  ):
    with pytest.raises(CheckpointError) as error:
      release_pickle.read(str(tmp_path / name))
    assert words in str(error.value) and str(tmp_path) in str(error.value)
  assert issubclass(CheckpointError, UserError)


@pytest.mark.parametrize(
  'opcodes',
  [
    b'B' + struct.pack('<I', 2**32 - 1),
    b'X' + struct.pack('<I', 2**31),
    b'\x8e' + struct.pack('<Q', 2**60),
    b'\x8d' + struct.pack('<Q', 2**64 - 1),
    b'\x96' + struct.pack('<Q', 2**60),
  ],
)
def test_sizes_that_lie_are_refused_unread(refusal, opcodes):
  tracemalloc.start()
  text = refusal(whole(opcodes + bytes(100)))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert 'is cut off' in text
  assert peak < 1e6


def test_negative_and_huge_ints_are_refused(refusal):
  assert 'an int of more' in refusal(whole(b'\x8b\xff\xff\xff\xff'))
  assert 'an int of more' in refusal(whole(b'\x8b\0\0\0\x40' + bytes(99)))


def test_memo_indices_cost_nothing(read):
  data = whole(
    b'N' + b''.join(b'r\xff\xff\xff' + bytes([i]) for i in range(256))
  )
  assert read(data) is None
  assert_same(read(whole(b'K\1r\xff\xff\xff\xffj\xff\xff\xff\xff\x86')), (1, 1))


@pytest.mark.parametrize(
  'changed', [b'\x80\2K\1', whole(b'h\0N'), whole(b'cos\nsystem\n')]
)
def test_a_file_that_changes_meanwhile_is_refused(
  monkeypatch, tmp_path, changed
):
  path = tmp_path / 'x.pkl'
  path.write_bytes(whole(b'K\1K\2K\3'))
  passes = []

  def begin(file, size):
    passes.append(path.write_bytes(changed) if passes else None)
    return tape.Tape(file, size)

  monkeypatch.setattr(reading, 'Tape', begin)
  with pytest.raises(CheckpointError):
    release_pickle.read(path)
  assert len(passes) == 2


def test_too_little_memory_is_said(monkeypatch, refusal):
  def fail(*_):
    raise MemoryError

  monkeypatch.setitem(reading._HANDLERS, 'NONE', fail)
  assert refusal(whole(b'N')) == 'does not fit into memory.'


def test_what_one_text_is_made_into_is_bounded(refusal, read):
  text = _TEXT + b'q\xf00'
  encode = b'c_codecs\nencode\nh\xf0' + fragment('latin1') + b'\x86R'
  assert read(whole(text + encode)) == b'x' * 10**6
  assert 'expands far beyond' in refusal(whole(text + encode * 10))


def test_what_one_array_is_made_into_is_bounded(refusal, read):
  data = b'B' + struct.pack('<I', 10**6) + bytes(10**6) + b'q\xf00'
  swapped = fragment(np.dtype('>f4')) + b'q\xf10'
  one = b'cnumpy.core.numeric\n_frombuffer\n(h\xf0h\xf1' + fragment((250_000,))
  one += fragment('C') + b'tR'
  assert_same(read(whole(data + swapped + one)), np.zeros(250_000, np.float32))
  assert 'expands far beyond' in refusal(whole(data + swapped + one * 10))


def test_what_one_list_is_made_into_is_bounded(refusal):
  pairs = fragment([[i, None] for i in range(10_000)])
  again = b'ccollections\nOrderedDict\nh\xf0\x85R'
  data = whole(b'(' + pairs + b'q\xf0' + again * 100 + b't')
  assert 'expands far beyond' in refusal(data)


def test_a_long_tuple_is_not_copied_again_and_again(refusal):
  """A state's unused part could be long, and be used a million times."""
  dtype = call('numpy dtype', fragment('f4'), b'\x89', b'\x88')
  state = b'(K\3' + fragment('<') + b'NNN' + b'N' * 100_000 + b'tq\0'
  assert 'damaged' in refusal(whole(dtype + state + b'b' + b'h\0b' * 100_000))


@pytest.mark.parametrize(
  'target, opcode',
  [(b'cnumpy\ndtype\n', b'R'), (call('numpy dtype', fragment('f4')), b'b')],
)
def test_a_text_is_not_taken_for_arguments(refusal, target, opcode):
  data = whole(target, _TEXT, opcode)
  tracemalloc.start()
  assert 'damaged' in refusal(data)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 3e6  # its letters one by one take 8 bytes each


@pytest.mark.parametrize(
  'opcodes',
  [
    b']' * 200_000 + b'a' * 199_999,
    b')' + b'\x85' * 200_000,
    b'(' * 200_000 + b'N' + b't' * 200_000,
    b'cnumpy\nndarray\n' + b'\x85' * 200_000 + b'0N',
    (b'}' + b'N') * 200_000 + b'}' + b's' * 200_000,
    b']q\0h\0a',
    b'}q\0Nh\0s',
    b')q\0' + b'h\0h\0\x86q\0' * 1000,  # 2 ** 1000 empty tuples
  ],
  ids=[
    'lists',
    'tuples',
    'marked',
    'stand-ins',
    'dicts',
    'itself',
    'own',
    'twins',
  ],
)
def test_depth_and_loops_do_not_matter(tmp_path, opcodes):
  path = tmp_path / 'x.pkl'
  path.write_bytes(whole(opcodes))
  result = release_pickle.read(path)
  assert type(result) in (list, tuple, dict, type(None))
  del result  # frees it without recursion


def test_the_number_of_steps_is_bounded(refusal, read, monkeypatch):
  monkeypatch.setattr(tape, 'MAX_STEPS', 100)
  assert read(whole(b'N' * 98)) is None  # and PROTO, and STOP
  assert refusal(whole(b'N' * 99)) == 'takes more than 100 steps: refused.'


def test_only_used_memo_entries_are_kept(tmp_path):
  """The texts of arrays are longer than the arrays, and memoized too."""
  random = np.random.default_rng(0)
  make = lambda size: random.random(size, np.float32)
  sizes = [500_000] * 5 + [3_000_000] + [500_000] * 9
  path = tmp_path / 'x.pkl'
  release_pickle.write(
    path, {str(i): make(size) for i, size in enumerate(sizes)}
  )
  unpickled = pickle.loads(path.read_bytes())
  path.write_bytes(pickle.dumps({'step': 1, 'params': unpickled}, 2))
  del unpickled
  tracemalloc.start()
  found = release_pickle.read(path)
  kept, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  arrays, largest = 4 * sum(sizes), 4 * max(sizes)
  assert len(found['params']) == len(sizes)
  assert kept < 1.01 * arrays
  assert peak < 1.1 * arrays + 3 * largest


def test_write_then_read_is_bitwise(tmp_path):
  path = tmp_path / 'x.pkl'
  arrays = {str(i): array for i, array in enumerate(_arrays())}
  random = np.random.default_rng(0).integers(0, 256, 2_500_000, np.uint8)
  tree = {
    'experiment_state': {'online_params': arrays, 'long': random, 'empty': {}},
    'step': 2**40, 'negative': -(2**31) - 1, 'small': -1, 'on': True,
    'off': None, 'rate': 0.1, 'é\n': 'ü', '': False, 3: 4,
  }  # fmt: skip
  release_pickle.write(path, tree)
  assert_same(release_pickle.read(path), tree)
  assert os.listdir(tmp_path) == ['x.pkl']
  ours = pickle.loads(path.read_bytes())
  np.testing.assert_equal(ours, tree)
  for name, array in ours['experiment_state']['online_params'].items():
    assert array.dtype.str == arrays[name].dtype.newbyteorder('<').str
  modules = {
    arg
    for op, arg, _ in pickletools.genops(path.read_bytes())
    if op.name == 'GLOBAL'
  }
  assert modules == {
    'numpy.core.multiarray _reconstruct', 'numpy ndarray', 'numpy dtype',
    '_codecs encode',
  }  # fmt: skip


def test_the_golden_checkpoint_is_written_as_it_was(tmp_path):
  tree = release_pickle.read(_TINY)
  release_pickle.write(tmp_path / 'x.pkl', tree)
  assert_same(release_pickle.read(tmp_path / 'x.pkl'), tree)


def test_writing_needs_little_memory(tmp_path):
  tree = {str(i): np.full(2_000_000, 200, np.uint8) for i in range(5)}
  tracemalloc.start()
  release_pickle.write(tmp_path / 'x.pkl', tree)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8e6


@pytest.mark.parametrize(
  'leaf', [{1, 2}, [1], (1,), 1j, np.zeros(2, 'U3'), np.array([None]), jnp.ones]
)
def test_what_cannot_be_written_leaves_no_trace(tmp_path, leaf):
  path = tmp_path / 'x.pkl'
  path.write_bytes(b'the one before')
  with pytest.raises(TypeError, match='are not written'):
    release_pickle.write(path, {'a': np.zeros(3), 'b': leaf})
  assert path.read_bytes() == b'the one before'
  assert os.listdir(tmp_path) == ['x.pkl']


def test_where_nothing_can_be_written(tmp_path):
  with pytest.raises(
    CheckpointError, match='missing/x.pkl cannot be written: '
  ):
    release_pickle.write(tmp_path / 'missing' / 'x.pkl', {})


def test_mutated_pickles():
  answers = fuzz_pickles.run(seed=0, count=500)
  assert answers.total() == 500
  assert answers[''] > 10  # some survive, or little of it is tested


@pytest.mark.long
def test_many_mutated_pickles():
  assert fuzz_pickles.run(seed=1, count=10_000).total() == 10_000


def test_mutations_are_the_same_each_time():
  first, second = (list(fuzz_pickles.mutations(7, 20)) for _ in range(2))
  assert first == second
  assert all(isinstance(data, bytes) for data in first)


def test_the_watcher_sees_what_happens(tmp_path):
  """Otherwise all these tests would show nothing."""
  with fuzz_pickles.watched() as events:
    pickle.loads(pickle.dumps(Exploit(os.system, 'true')))
    pathlib.Path(tmp_path, 'x').touch()
  assert {'pickle.find_class', 'os.system', 'open'} <= {e[0] for e in events}


def test_readers_of_the_benchmark_agree(tmp_path):
  path = str(tmp_path / 'x.pkl')
  size = load_pickle.write(path, megabytes=1)
  ours, pythons = (read(path) for read in load_pickle.READERS.values())
  assert_same(ours, pythons)
  leaves = jax.tree.leaves(ours['experiment_state'])
  assert sum(leaf.nbytes for leaf in leaves) == size
  row = {'resident': 1.0, 'traced': 1.5, 'time_ratio': 2}
  assert '| ours | 1.00 | 1.50 | 2.00 |' in load_pickle.table(
    {'readers': {'ours': row}}
  )
