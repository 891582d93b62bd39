"""BYOL's and ReLICv2's released files, synthesised in their very format."""

import gzip
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import semppl_jax
from semppl_jax import errors
from semppl_jax.models import encoders
from semppl_jax.tools import convert
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import haiku_trees, releases
from semppl_jax.weights import load as load_lib
from tests.helpers import deepmind_files, golden

TINY = encoders.Architecture('tiny')


@pytest.fixture(scope='module')
def online():
  return deepmind_files.trees()


@pytest.fixture(scope='module')
def target():
  return deepmind_files.trees(0.5)


def write(folder, content, name='pretrain.pkl', **options):
  path = folder / name
  path.write_bytes(deepmind_files.dumps(content, **options))
  return path


def refused(path, *words):
  with pytest.raises(errors.CheckpointError) as error:
    load_lib.load_checkpoint(path)
  text = str(error.value)
  assert '\n' not in text and str(path) in text, text
  for word in words:
    assert word in text, text


def assert_same(found, wanted):
  """Names, dtypes, shapes and bits."""
  assert {m: set(x) for m, x in found.items()} == {
    m: set(x) for m, x in wanted.items()
  }
  for module, leaves in wanted.items():
    for name, leaf in leaves.items():
      own = found[module][name]
      assert (own.dtype, own.shape) == (leaf.dtype, np.shape(leaf))
      assert own.tobytes() == np.asarray(leaf).tobytes(), (module, name)


# -- BYOL --


@pytest.mark.parametrize('old', [True, False])
@pytest.mark.parametrize('mapping', ['frozendict', 'flat_mapping'])
def test_byols_file_has_both_networks(mapping, old, online, target, tmp_path):
  mapping = getattr(deepmind_files, mapping)
  content = deepmind_files.byol(online, target, mapping)
  found = load_lib.load_checkpoint(write(tmp_path, content, old=old))
  assert_same(found.params, online[0])
  assert_same(found.state, online[1])
  assert_same(found.target[0], target[0])
  assert_same(found.target[1], target[1])
  assert found.architecture == TINY and found.kind == 'pre-training'
  assert (found.bn_eps, found.bn_decay) == (1e-5, 0.9)  # of byol/configs
  assert str(found) == (
    'tiny 1x, step 312,500, projector yes, predictor yes, classifier yes, '
    'target network yes (pre-training)'
  )


def test_byols_names_in_the_file_are_its_own(online, target):
  """The synthesised file asks for what dill 0.3.2 and BYOL's code name."""
  data = deepmind_files.dumps(deepmind_files.byol(online, target))
  for name in (
    b'tiny_res_net/~/initial_conv_1', b'byol.byol_experiment',
    b'_ByolExperimentState', b'cdill._dill\n_get_attr\n',
    b'numpy.core._multiarray_umath', b'frozendict', b'ScaleByLarsState',
  ):  # fmt: skip
    assert name in data
  assert b'/~/initial_convq' not in data and b'multiarray\n' not in data


@pytest.mark.parametrize('name', ['pretrain', 'uc', 'x.safetensors', '1 (2).x'])
@pytest.mark.parametrize('whose', ['byol', 'relicv2'])
def test_a_files_name_does_not_matter(whose, name, online, target, tmp_path):
  content = (
    deepmind_files.byol(online, target)
    if whose == 'byol'
    else deepmind_files.relicv2(*online)
  )
  found = load_lib.load_checkpoint(write(tmp_path, content, name))
  assert_same(found.params, online[0])
  assert (found.target is None) == (whose == 'relicv2')


def test_a_resnet_50_of_byols(tmp_path):
  """Names and shapes of DeepMind's own encoder; zeros."""
  with gzip.open(golden.path('release_trees.json.gz')) as file:
    tree = json.load(file)['archs']['ResNet50_w1']
  zeros = lambda kind: {
    module: {
      name: np.zeros(shape, 'i4' if name == 'counter' else 'f4')
      for name, shape in leaves.items()
    }
    for module, leaves in tree[kind].items()
  }
  content = deepmind_files.byol(
    (zeros('params') | _head(), zeros('state') | _head_state()),
    (zeros('params'), zeros('state')),
  )
  found = load_lib.load_checkpoint(write(tmp_path, content))
  assert found.architecture == encoders.Architecture('resnet50')
  assert 'res_net50/~/initial_conv' in found.params
  assert 'res_net50/~/initial_conv_1' not in found.params
  assert haiku_trees.size(haiku_trees.encoder_part(found.params)) == 23_508_032
  assert haiku_trees.size(found.target[0]) == 23_508_032


def _head():
  return {
    'projector/linear': {
      'w': np.zeros((2048, 4), 'f4'), 'b': np.zeros(4, 'f4'),
    },
    'projector/batch_norm': {
      'scale': np.zeros((1, 4), 'f4'), 'offset': np.zeros((1, 4), 'f4'),
    },
    'projector/linear_1': {'w': np.zeros((4, 2), 'f4')},
  }  # fmt: skip


def _head_state():
  return {
    f'projector/batch_norm/~/{kind}_ema': {
      'average': np.zeros((1, 4), 'f4'), 'hidden': np.zeros((1, 4), 'f4'),
      'counter': np.zeros((), 'i4'),
    }
    for kind in ('mean', 'var')
  }  # fmt: skip


def test_byols_online_network_embeds(online, target, tmp_path):
  path = write(tmp_path, deepmind_files.byol(online, target))
  model = semppl_jax.load_pretrained(path, image_size=32)
  assert model.num_classes == 10
  images = np.random.RandomState(0).randint(0, 256, (3, 40, 48, 3), np.uint8)
  found = model.embed(images)
  seen = model.preprocess(images)
  encode = model.checkpoint.network().encode
  wanted, other = (
    encode(*trees, jnp.asarray(seen), False)[0] for trees in (online, target)
  )
  np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-5)
  assert np.abs(found - other).max() > 1e-2
  # ImageNet's crop and size are BYOL's and ReLICv2's, too.
  usual = semppl_jax.load_pretrained(path)
  assert (usual.image_size, usual.center) == (224, 0.875)


@pytest.mark.parametrize('ending', ['safetensors', 'pkl'])
def test_conversion_keeps_the_online_network(ending, online, target, tmp_path):
  source = write(tmp_path, deepmind_files.byol(online, target))
  end = tmp_path / f'x.{ending}'
  before = convert.convert(str(source), str(end))
  after = load_lib.load_checkpoint(end)
  assert_same(after.params, online[0])
  assert_same(after.state, online[1])
  assert load_lib.digest(before) == load_lib.digest(after)
  assert after.target is None and after.step == 312_500
  assert 'target network' not in str(after)


def test_targets_that_do_not_fit_are_refused(online, target, tmp_path):
  path = lambda target: write(tmp_path, deepmind_files.byol(online, target))
  conv = 'tiny_res_net/~/initial_conv'

  def changed(value):
    params = target[0] | {conv: {'w': np.float32(value)}}
    return path((params, target[1]))

  refused(changed(target[0][conv]['w'] * np.nan), 'target network:', 'NaN')
  refused(
    changed(np.zeros((7, 7, 3, 128))),
    f'target network: {conv}/w has shape (7, 7, 3, 128)',
  )
  wider = lambda tree: {m.replace('tiny', 'tony'): x for m, x in tree.items()}
  refused(path(tuple(map(wider, target))), 'target network: missing: tiny_res')
  without = {m: x for m, x in target[1].items() if 'projector' not in m}
  refused(path((target[0], without)), 'target network: missing: projector')


def test_half_a_network_is_refused(online, target, tmp_path):
  """Two stems; and a state without the online network's."""
  both = online[0] | {
    'tiny_res_net/~/initial_conv_0': online[0]['tiny_res_net/~/initial_conv']
  }
  content = deepmind_files.byol((both, online[1]), target)
  refused(write(tmp_path, content), 'initial_conv')
  held = deepmind_files.byol(online, target)
  held['experiment_state'] = {
    k: v for k, v in held['experiment_state']._asdict().items() if k[0] != 'o'
  }
  refused(write(tmp_path, held), 'neither online_params')


def test_a_target_without_its_state_is_left_out(online, target, tmp_path):
  held = deepmind_files.byol(online, target)
  fields = held['experiment_state']._asdict()
  del fields['target_state']
  held['experiment_state'] = fields
  assert load_lib.load_checkpoint(write(tmp_path, held)).target is None


def test_three_stems_of_selective_kernels_keep_their_names(tmp_path):
  """One of theirs is an initial_conv_1, too; in any order."""
  architecture = encoders.Architecture('resnet50', selective_kernels=True)
  expected = architecture_lib.expected(architecture, {})
  zeros = lambda tree: {
    m: {k: np.zeros(x.shape, x.dtype) for k, x in leaves.items()}
    for m, leaves in haiku_trees.encoder_part(tree).items()
  }
  content = deepmind_files.relicv2(*map(zeros, expected))
  held, second = content['experiment_state'], 'sk_res_net50/~/initial_conv_1'
  params = held['online_params']
  held['online_params'] = {second: params.pop(second), **params}
  found = load_lib.load_checkpoint(write(tmp_path, content))
  assert found.architecture == architecture and not found.mapping


# -- ReLICv2 --


@pytest.mark.parametrize('leaves', [np.asarray, jnp.asarray])
def test_relicv2s_file(leaves, online, tmp_path):
  """Leaves of NumPy, and of JAX as plain pickle has them."""
  content = deepmind_files.relicv2(*online)
  held = content['experiment_state']
  content['experiment_state'] = jax.tree.map(leaves, held)
  path = tmp_path / 'x'
  path.write_bytes(pickle.dumps(content, 2))
  found = load_lib.load_checkpoint(path)
  assert_same(found.params, online[0])
  assert_same(found.state, online[1])
  assert found.target is None and found.kind == 'pre-training'


_ROWS = [row for row in releases.manifest() if row['method'] != 'semppl']
_DEEP = ('resnet152', 'resnet200')


@pytest.mark.parametrize(
  'row',
  [
    pytest.param(row, marks=[pytest.mark.long] * (row['encoder'] in _DEEP))
    for row in _ROWS
  ],
  ids=lambda row: row['file'],
)
def test_every_released_encoder_is_recognised(row):
  """By its tree alone; nothing of a number is stored."""
  wanted = encoders.Architecture(row['encoder'], row['width'])
  expected = architecture_lib.expected(wanted, {})
  empty = lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape)
  params, state = (
    jax.tree.map(empty, haiku_trees.encoder_part(tree)) for tree in expected
  )
  assert architecture_lib.architecture(params) == wanted
  fitting = architecture_lib.check_fits(params, state, expected)
  assert haiku_trees.size(fitting.params) == row['encoder_parameters']


def test_a_drives_web_page_is_named(tmp_path):
  path = tmp_path / 'view'
  path.write_text('<!DOCTYPE html><html>Virus scan warning')
  refused(path, 'is a web page, not the checkpoint')
