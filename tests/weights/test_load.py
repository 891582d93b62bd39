"""Checkpoints from anywhere: what they are, whether whole, round trips."""

import copy
import dataclasses
import json
import pathlib
import pickle
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

from semppl_jax import checkpoint as checkpoint_lib
from semppl_jax import errors
from semppl_jax.evaluation import classifier_step
from semppl_jax.models import encoders, networks
from semppl_jax.models import heads as heads_lib
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import haiku_trees
from semppl_jax.weights import load as load_lib
from tests.helpers import golden, tiny

TINY = golden.path('release_checkpoint_tiny.pkl')


@pytest.fixture(scope='module')
def loaded():
  return load_lib.load_checkpoint(TINY)


@pytest.fixture
def content(loaded):
  """What the tiny file holds, as plain containers, without device axis."""
  own = lambda tree: {m: dict(leaves) for m, leaves in tree.items()}
  params, state = own(loaded.params), own(loaded.state)
  held = {'online_params': params, 'online_state': state}
  return {'experiment_state': held, 'step': 1000, 'rng': np.zeros(2, np.uint32)}


def write(folder, content, name='file.pkl'):
  path = folder / name
  path.write_bytes(pickle.dumps(content, protocol=2))
  return path


def refused(path, *words, **options):
  with pytest.raises(errors.CheckpointError) as error:
    load_lib.load_checkpoint(path, **options)
  text = str(error.value)
  assert '\n' not in text and str(path) in text, text
  for word in words:
    assert word in text, text


def assert_same_weights(found, wanted):
  for kind in ('params', 'state'):
    one, other = getattr(found, kind), getattr(wanted, kind)
    assert {m: set(x) for m, x in one.items()} == {
      m: set(x) for m, x in other.items()
    }
    for module, leaves in one.items():
      for name, leaf in leaves.items():
        want = np.asarray(other[module][name])
        assert (leaf.dtype, leaf.shape) == (want.dtype, want.shape)
        assert leaf.tobytes() == want.tobytes(), (module, name)
  assert found.architecture == wanted.architecture
  assert found.step == wanted.step


# -- What DeepMind's release wrote --


def test_the_releases_tiny_file_reproduces_its_embedding(loaded):
  assert loaded.architecture == encoders.Architecture('tiny')
  assert loaded.step == 1000 and loaded.kind == 'pre-training'
  assert str(loaded) == (
    'tiny 1x, step 1,000, projector yes, predictor yes, classifier yes '
    '(pre-training)'
  )
  wanted = golden.load('release_checkpoint_tiny_expected.npz')
  nets = loaded.network()
  embedding, _ = jax.jit(nets.encode, static_argnums=3)(
    loaded.params, loaded.state, wanted['input'], False
  )
  np.testing.assert_allclose(
    embedding, wanted['embedding'], atol=2e-5, rtol=1e-5
  )
  leaves = jax.tree.leaves((loaded.params, loaded.state))
  assert all(isinstance(x, np.ndarray) for x in leaves)
  assert loaded.params['tiny_res_net/~/initial_conv']['w'].ndim == 4


def test_the_releases_linear_evaluation_file():
  """Its classifier gives the release's logits, losses and hits."""
  found = load_lib.load_checkpoint(golden.path('release_linear_eval.pkl'))
  assert found.kind == 'linear evaluation' and found.step == 6
  # Its own classifier has replaced the one of pre-training (10 classes).
  assert found.params['classifier']['w'].shape == (8, 5)
  wanted = golden.load('release_linear_eval.npz')
  random = np.random.RandomState(0)
  images = np.round(random.uniform(size=(48, 32, 32, 3)).astype('f4') * 255)
  pixels = (images[:16] / 255).astype(np.float32)
  nets = found.network()
  embedding, _ = jax.jit(nets.encode, static_argnums=3)(
    found.params, found.state, pixels, False
  )
  logits = classifier_step.logits(found.params, embedding)
  np.testing.assert_allclose(
    logits, wanted['frozen/logits'], atol=2e-5, rtol=1e-5
  )


def _add_axis(tree, number):
  return jax.tree.map(lambda x: np.stack([np.asarray(x)] * number), tree)


@pytest.mark.parametrize('number', [0, 1, 8])
def test_with_and_without_device_axis(number, content, loaded, tmp_path):
  if number:
    held = content['experiment_state']
    content['experiment_state'] = _add_axis(held, number)
  content['step'] = np.full([number], 1000) if number else 1000
  found = load_lib.load_checkpoint(write(tmp_path, content))
  assert_same_weights(found, loaded)


def test_leaves_of_jax_and_other_containers(content, loaded, tmp_path):
  """jax.Array leaves; FlatMapping-like and further fields are ignored."""
  held = content['experiment_state']
  held['online_params'] = jax.tree.map(jnp.asarray, held['online_params'])
  held['opt_state'] = {'mu': np.zeros(3)}
  found = load_lib.load_checkpoint(write(tmp_path, content))
  assert_same_weights(found, loaded)


def test_heads_may_be_missing(content, loaded, tmp_path):
  held = content['experiment_state']
  for tree in held.values():
    for module in list(tree):
      if module.split('/')[0] in haiku_trees.HEADS:
        del tree[module]
  found = load_lib.load_checkpoint(write(tmp_path, content))
  assert 'projector no, predictor no, classifier no' in str(found)
  nets = found.network()
  assert set(found.params) < set(loaded.params) and nets


# -- What is wrong --


def test_files_that_are_no_checkpoint(tmp_path):
  file = tmp_path / 'x.pkl'
  file.write_bytes(b'')
  refused(file, 'is empty')
  file.write_bytes(b'PK\x03\x04 a zip')
  refused(file, 'neither a pickle', 'safetensors')
  file.write_bytes(pathlib.Path(TINY).read_bytes()[:5000])
  refused(file, 'cut off')
  refused(tmp_path, 'is a directory')
  refused(tmp_path / 'none.pkl', 'There is no checkpoint')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{}')
  refused(tmp_path / 'run', 'no checkpoint yet')


@pytest.mark.parametrize(
  'save, file',
  [
    (load_lib.save_safetensors, 'x.safetensors'),
    (load_lib.save_release, 'x.pkl'),
  ],
)
def test_class_names_travel(save, file, loaded, tmp_path):
  names = tuple(f'class {i} ü' for i in range(10))
  save(tmp_path / file, loaded._replace(class_names=names))
  assert load_lib.load_checkpoint(tmp_path / file).class_names == names
  save(tmp_path / file, loaded)
  assert load_lib.load_checkpoint(tmp_path / file).class_names == ()
  save(tmp_path / file, loaded._replace(class_names=names[:3]))
  refused(tmp_path / file, 'names 3 classes, but its classifier has 10')


def test_files_of_pytorch_are_named(tmp_path):
  """A zip, and what it was before PyTorch 1.6."""
  file = tmp_path / 'model.pt'
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('model/data.pkl', pickle.dumps({}))
    archive.writestr('model/data/0', bytes(64))
  refused(file, 'is a file of PyTorch')
  with file.open('wb') as legacy:
    for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}, {}):
      pickle.dump(part, legacy, protocol=2)
  refused(file, 'is a file of PyTorch')
  with zipfile.ZipFile(file, 'w') as archive:  # another zip
    archive.writestr('readme.txt', 'nothing')
  refused(file, 'neither a pickle')


@pytest.mark.parametrize(
  'value, words',
  [
    ([1], 'holds a list'),
    ({'step': 3}, "has no 'experiment_state'"),
    ({'experiment_state': {}}, "has no 'step'"),
    ({'experiment_state': 3, 'step': 3}, 'experiment_state is a int'),
    ({'experiment_state': {}, 'step': 3}, 'neither online_params'),
  ],
)
def test_pickles_without_what_is_needed(value, words, tmp_path):
  refused(write(tmp_path, value), words)


@pytest.mark.parametrize('step', [-1, 'x', None, True, 1.5, np.zeros(3)])
def test_a_step_that_is_none(step, content, tmp_path):
  content['step'] = step
  refused(write(tmp_path, content), 'step is no whole number')


CONV = 'tiny_res_net/~/initial_conv'


def _lose_module(params, state):
  del params[CONV]


def _lose_block(params, state):
  del params['tiny_res_net/~/block_group_1/~/block_0/~/conv_0']


def _lose_leaf(params, state):
  del params['projector/linear']['b']


def _lose_state(params, state):
  del state['tiny_res_net/~/initial_batchnorm/~/var_ema']


def _add_module(params, state):
  params['tiny_res_net/~/final_conv'] = {'w': np.zeros((1, 1, 8, 8), 'f4')}


def _add_root(params, state):
  params['decoder/linear'] = {'w': np.zeros((8, 8), np.float32)}


def _other_shape(params, state):
  name = 'tiny_res_net/~/block_group_0/~/block_0/~/conv_0'
  params[name]['w'] = np.zeros((3, 3, 64, 9), np.float32)


def _nan(params, state):
  params[CONV]['w'] = params[CONV]['w'] + np.float32(np.nan)


def _infinite(params, state):
  module = state['tiny_res_net/~/initial_batchnorm/~/var_ema']
  module['average'] = module['average'] / np.float32(0)


def _wide(params, state):
  params[CONV]['w'] = params[CONV]['w'].astype(np.float64)


def _no_dict(params, state):
  params[CONV] = np.zeros(3, np.float32)


def _lose_projector(params, state):
  for tree in (params, state):
    for module in list(tree):
      if module.startswith('projector'):
        del tree[module]


def _scalar(params, state):
  params['projector/linear']['w'] = np.zeros((), np.float32)


def _head_without_state(params, state):
  for module in list(state):
    if module.startswith('projector'):
      del state[module]


def _negative_variance(params, state):
  module = state['tiny_res_net/~/initial_batchnorm/~/var_ema']
  module['average'] = -module['average']


def _no_array(params, state):
  params[CONV]['w'] = [1.0]


def _half_axis(params, state):
  params[CONV]['w'] = params[CONV]['w'][None]
  params['classifier']['b'] = np.float32(0)


def _evil_name(params, state):
  params['tiny_res_net/\n\x1b[2J'] = {'w': np.zeros(3, np.float32)}


@pytest.mark.filterwarnings('ignore:divide by zero')
@pytest.mark.parametrize(
  'break_it, words',
  [
    (_lose_module, (f'{CONV}/w is missing',)),
    (_lose_block, ('missing: tiny_res_net', 'block_group_1')),
    (_lose_leaf, ('missing: projector/linear/b',)),
    (_lose_state, ('missing: tiny_res_net', 'var_ema')),
    (_add_module, ('surplus: tiny_res_net/~/final_conv',)),
    (_add_root, ('surplus: decoder/linear',)),
    (_lose_projector, ('missing: projector',)),
    (_other_shape, ('(3, 3, 64, 9)', 'expected (3, 3, 64, 8)', 'conv_0/w')),
    (_nan, (f'{CONV}/w has NaN',)),
    (_infinite, ('var_ema/average has NaN or infinite',)),
    (_wide, ('float64', 'expected float32')),
    (_no_dict, ('is a ndarray, not a dict',)),
    (_no_array, ('is a list, not an array',)),
    (_scalar, ('has shape', 'expected')),
    (_head_without_state, ('missing: projector/batch_norm',)),
    (_negative_variance, ('var_ema/average is a variance and below 0',)),
    (_half_axis, ('has no device axis',)),
    (_evil_name, ('surplus: tiny_res_net/??[2J',)),
  ],
)
def test_what_does_not_fit_is_named(break_it, words, content, tmp_path):
  held = content['experiment_state']
  break_it(held['online_params'], held['online_state'])
  refused(write(tmp_path, content), *words)


def test_shared_parts_cannot_expand(content, tmp_path):
  """A module of many names, a leaf of many modules: refused by their number."""
  held = content['experiment_state']
  held['online_params'] = dict.fromkeys(map(str, range(30_000)), {})
  refused(write(tmp_path, content), 'has 30,000 entries')
  leaves = dict.fromkeys(map(str, range(100)), np.zeros(1, np.float32))
  held['online_params'] = dict.fromkeys(map(str, range(1000)), leaves)
  refused(write(tmp_path, content), 'has 100 entries')


def test_the_nearest_encoder_is_named(content, tmp_path):
  held = content['experiment_state']
  for key, tree in held.items():
    held[key] = {m.replace('tiny_', 'tony_'): x for m, x in tree.items()}
  refused(write(tmp_path, content), "did you mean 'tiny_res_net'?")


# -- Round trips --


@pytest.mark.parametrize('ending', ['pkl', 'safetensors'])
def test_round_trip_is_bitwise(ending, loaded, tmp_path):
  path = tmp_path / f'file.{ending}'
  save = {
    'pkl': load_lib.save_release, 'safetensors': load_lib.save_safetensors
  }[ending]  # fmt: skip
  save(path, loaded)
  found = load_lib.load_checkpoint(path)
  assert_same_weights(found, loaded)
  assert load_lib.digest(found) == load_lib.digest(loaded)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_releases_format_is_the_releases(loaded, tmp_path):
  """Plain pickle reads what DeepMind's dill.load would: arrays and dicts.

  Every leaf has the leading device axis that the release takes off.
  """
  path = tmp_path / 'pretrain.pkl'
  load_lib.save_release(path, loaded)
  with path.open('rb') as file:
    found = pickle.load(file)
  assert found['step'] == 1000
  held = found['experiment_state']
  assert set(held) == {'online_params', 'online_state'}
  for name, tree in (('params', loaded.params), ('state', loaded.state)):
    first = jax.tree.map(lambda x: x[0], held[f'online_{name}'])
    jax.tree.map(np.testing.assert_array_equal, first, dict(tree))
  assert b'numpy._core' not in path.read_bytes()  # which numpy 1.2x lacks


@pytest.fixture(scope='module')
def a_run(tmp_path_factory):
  """A run's folder with a checkpoint of step 0, without any training."""
  workdir = tmp_path_factory.mktemp('run')
  run = tiny.prepare()
  state = tiny.portable(run)
  saver = checkpoint_lib.Checkpointer(str(workdir), keep=2)
  saver.save(0, state, {'elapsed_seconds': 0})
  later = state._replace(
    online_params=jax.tree.map(lambda x: x + 1, state.online_params)
  )
  saver.save(7, later, {'elapsed_seconds': 0})
  saver.close()
  (workdir / 'config.json').write_text(json.dumps(run.cfg.to_dict()))
  return workdir, state


@pytest.mark.parametrize('ending', ['pkl', 'safetensors'])
def test_run_to_file_and_back(ending, a_run, tmp_path):
  workdir, state = a_run
  found = load_lib.load_checkpoint(workdir, step=0)
  assert found.architecture == encoders.Architecture(tiny.ENCODER, 1, 'small')
  assert found.kind == 'run' and found.step == 0
  jax.tree.map(
    np.testing.assert_array_equal, dict(found.params), state.online_params
  )
  jax.tree.map(
    np.testing.assert_array_equal, dict(found.state), state.online_state
  )
  path = tmp_path / f'file.{ending}'
  save = {
    'pkl': load_lib.save_release, 'safetensors': load_lib.save_safetensors
  }[ending]  # fmt: skip
  save(path, found)
  assert_same_weights(load_lib.load_checkpoint(path), found)


def test_the_newest_checkpoint_of_a_run_counts(a_run):
  workdir, state = a_run
  newest = load_lib.load_checkpoint(workdir)
  assert newest.step == 7
  b = newest.params['classifier']['b']
  np.testing.assert_array_equal(b, state.online_params['classifier']['b'] + 1)
  refused(workdir, 'no checkpoint of step 3', step=3)


def test_damaged_runs(a_run, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(a_run[0], broken)
  (broken / 'checkpoints' / '7' / 'info' / 'metadata').write_text('{')
  refused(broken, 'damaged')
  (broken / 'config.json').write_text('{')
  refused(broken, 'config.json cannot be read as JSON', step=0)


def test_safetensors_from_elsewhere(loaded, tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors_numpy.save_file({'layer.weight': np.zeros(3, 'f4')}, path)
  refused(path, "'layer.weight'", 'params/MODULE/NAME')
  load_lib.save_safetensors(path, loaded)
  whole = path.read_bytes()
  for cut in (9, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:cut])
    refused(path, 'no whole safetensors file')


def test_every_length_of_a_safetensors_header(loaded, tmp_path, monkeypatch):
  """One in 32 begins with the byte that a pickle begins with."""
  path = tmp_path / 'x.safetensors'
  seen = set()
  for pad in range(0, 260, 4):
    kind = 'run' + ' ' * pad
    load_lib.save_safetensors(path, loaded._replace(kind=kind))
    seen.add(path.read_bytes()[0])
    assert load_lib.digest(load_lib.load_checkpoint(path)) == load_lib.digest(
      loaded
    )
  assert 0x80 in seen


@pytest.mark.parametrize(
  'key, value, words',
  [
    ('settings', '{"padding": 5}', 'padding is none of same, symmetric'),
    ('settings', '{"padding": ["same"]}', 'padding is none of'),
    ('settings', '{"padding": {}}', 'padding is none of'),
    ('settings', '{"encoder": "vit"}', 'encoder is none of'),
    ('settings', '{"encoder": "resnet50"}', 'but its tree is a tiny 1x'),
    ('settings', '{"bn_eps": "x"}', 'bn_eps is no number'),
    ('settings', '{"bn_eps": NaN}', 'bn_eps is no number'),
    ('settings', '"x"', 'settings are not named values'),
    ('settings', '[' * 100_000, 'settings cannot be read as JSON'),
    ('settings', '{', 'settings cannot be read as JSON'),
    ('step', '-1', 'step is no whole number'),
    ('step', '"x"', 'step is no whole number'),
    ('step', '', 'step cannot be read as JSON'),
  ],
)
def test_odd_metadata(key, value, words, loaded, tmp_path):
  path = tmp_path / 'x.safetensors'
  load_lib.save_safetensors(path, loaded)
  with safetensors.safe_open(path, 'np') as file:
    metadata = file.metadata() | {key: value}
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  safetensors_numpy.save_file(tensors, path, metadata)
  refused(path, words)


def test_an_odd_kind_is_not_shown(loaded, tmp_path):
  path = tmp_path / 'x.safetensors'
  load_lib.save_safetensors(path, loaded._replace(kind='\x1b[2J\n'))
  assert str(load_lib.load_checkpoint(path)).endswith('(safetensors)')


def test_the_epsilon_of_training_is_kept(a_run, tmp_path):
  """A tree does not show it: the config and the metadata do."""
  folder = tmp_path / 'run'
  shutil.copytree(a_run[0], folder)
  config = json.loads((folder / 'config.json').read_text())
  config['encoder'].update(bn_eps=0.5, bn_decay=0.7)
  (folder / 'config.json').write_text(json.dumps(config))
  found = load_lib.load_checkpoint(folder)
  assert (found.bn_eps, found.bn_decay) == (0.5, 0.7)
  for name, save in (
    ('x.pkl', load_lib.save_release),
    ('x.safetensors', load_lib.save_safetensors),
  ):
    save(tmp_path / name, found)
    again = load_lib.load_checkpoint(tmp_path / name)
    assert (again.bn_eps, again.bn_decay) == (0.5, 0.7)
    assert again.architecture == found.architecture
  images = jnp.ones((1, 8, 8, 3)) / 3
  embed = lambda c: c.network().encode(c.params, c.state, images, False)[0]
  usual = again._replace(bn_eps=1e-5)
  assert np.abs(embed(again) - embed(usual)).max() > 1e-3
  for odd in ('[]', '{"encoder": 3}', '{"encoder": {"padding": []}}', '{'):
    (folder / 'config.json').write_text(odd)
    refused(folder, 'its ' if odd != '[]' else 'holds no settings')


def test_arguments_that_do_not_apply(tmp_path):
  path = golden.path('release_checkpoint_tiny.pkl')
  refused(path, 'no step 5 to choose', step=5)
  refused(path, 'whose names are known', mapping=tmp_path / 'none.json')


def test_a_target_that_cannot_be_written(loaded, tmp_path):
  for save in (load_lib.save_safetensors, load_lib.save_release):
    with pytest.raises(errors.CheckpointError, match='cannot be written'):
      save(tmp_path / 'none' / 'x', loaded)
    (tmp_path / 'folder').mkdir(exist_ok=True)
    with pytest.raises(errors.CheckpointError, match='cannot be written'):
      save(tmp_path / 'folder', loaded)
  assert [p.name for p in tmp_path.iterdir()] == ['folder']  # no parts left


def test_padding_is_kept_and_can_be_said(loaded, tmp_path):
  other = loaded.architecture._replace(padding='symmetric')
  path = tmp_path / 'x.safetensors'
  load_lib.save_safetensors(path, loaded._replace(architecture=other))
  assert load_lib.load_checkpoint(path).architecture == other
  said = load_lib.load_checkpoint(path, padding='same')
  assert said.architecture.padding == 'same'
  assert load_lib.load_checkpoint(TINY).architecture.padding == 'same'


def test_another_weight_is_another_digest(loaded):
  params = copy.deepcopy(dict(loaded.params))
  params['classifier']['b'][3] += 1
  changed = loaded._replace(params=params)
  assert load_lib.digest(changed) != load_lib.digest(loaded)


# -- The released architectures, from synthetic files of the same format --


def synthetic(architecture):
  """Zeros in the shape of a released checkpoint."""
  sizes = {'projector_hidden': 16, 'embedding_size': 8, 'num_classes': 10}
  expected = architecture_lib.expected(architecture, sizes)
  zeros = lambda tree: {
    m: {k: np.zeros((1, *x.shape), x.dtype) for k, x in leaves.items()}
    for m, leaves in tree.items()
  }
  params, state = zeros(expected.params), zeros(expected.state)
  held = {'online_params': params, 'online_state': state}
  return {'experiment_state': held, 'step': 93_800, 'rng': np.zeros(2, 'u4')}


def test_a_resnet_50_of_the_released_format(tmp_path):
  architecture = encoders.Architecture('resnet50')
  path = write(tmp_path, synthetic(architecture))
  found = load_lib.load_checkpoint(path)
  assert found.architecture == architecture
  assert str(found).startswith('ResNet-50 1x, step 93,800, projector yes')
  assert haiku_trees.size(haiku_trees.encoder_part(found.params)) == 23_508_032


@pytest.mark.long
@pytest.mark.parametrize('encoder', ['resnet50', 'resnet200'])
def test_twice_as_wide(encoder, tmp_path):
  architecture = encoders.Architecture(encoder, width=2)
  path = write(tmp_path, synthetic(architecture))
  found = load_lib.load_checkpoint(path)
  path.unlink()  # of gigabytes
  assert found.architecture == architecture
  size = {'resnet50': 93_907_072, 'resnet200': 250_128_512}[encoder]
  assert haiku_trees.size(haiku_trees.encoder_part(found.params)) == size


def _renamed(content, rename):
  held = content['experiment_state']
  for key, tree in held.items():
    held[key] = {rename(m): x for m, x in tree.items()}
  return content


def _without_hints(module):
  """Shortcuts are numbered like other convolutions: nobody can tell which."""
  module = module.replace('shortcut_conv', 'conv_5')
  return module.replace('shortcut_batchnorm', 'batchnorm_5')


def test_selective_kernels_of_other_names(tmp_path):
  """By structure where it tells; else refused, unless a mapping file says."""
  architecture = encoders.Architecture('resnet50', selective_kernels=True)
  own = write(tmp_path, synthetic(architecture), 'own.pkl')
  found = load_lib.load_checkpoint(own)
  assert found.architecture == architecture and not found.mapping
  theirs = _renamed(
    synthetic(architecture),
    lambda m: m.replace('sk_res_net50', 'backbone/~/net'),
  )
  other = load_lib.load_checkpoint(write(tmp_path, theirs))
  assert other.architecture == architecture
  assert set(other.params) == set(found.params)
  assert set(other.state) == set(found.state)
  assert other.mapping['backbone/~/net/~/initial_conv_0'] == (
    'sk_res_net50/~/initial_conv_0'
  )
  hidden = write(tmp_path, _renamed(synthetic(architecture), _without_hints))
  refused(hidden, 'mapping')
  mapping = {
    _without_hints(module): module
    for module in haiku_trees.encoder_part(found.params)
  }
  file = tmp_path / 'mapping.json'
  file.write_text(json.dumps(mapping))
  mapped = load_lib.load_checkpoint(hidden, mapping=file)
  assert set(mapped.params) == set(found.params)


# -- The target network, and what the file says of the padding --

_TARGET = ('tiny_res_net', 'projector')


def _read_as(contents, monkeypatch):
  monkeypatch.setattr(load_lib.files_lib, 'read', lambda *_: contents)
  return load_lib.load_checkpoint(TINY)


def test_a_target_network_is_checked_as_the_online_one_is(loaded, monkeypatch):
  whole = load_lib._contents(loaded)
  keep = lambda tree: {
    m: x for m, x in tree.items() if m.split('/')[0] in _TARGET
  }
  params, state = keep(loaded.params), keep(loaded.state)
  found = _read_as(whole._replace(target=(params, state)), monkeypatch)
  assert set(found.target[0]) == set(params) < set(loaded.params)
  assert set(found.target[1]) == set(state)
  assert _read_as(whole, monkeypatch).target is None
  infinite = params | {CONV: {'w': params[CONV]['w'] + np.float32(np.inf)}}
  lacking = {m: x for m, x in params.items() if m != CONV}
  for bad, words in (
    ((infinite, state), 'target network: .* infinite'),
    ((lacking, state), 'target network: missing: .*initial_conv'),
    ((params, params), 'target network: missing'),
  ):
    with pytest.raises(errors.CheckpointError, match=words):
      _read_as(whole._replace(target=bad), monkeypatch)


def test_whether_the_padding_is_known(loaded, tmp_path):
  assert not loaded.says_padding
  assert load_lib.load_checkpoint(TINY, padding='same').says_padding
  file = tmp_path / 'x.safetensors'
  load_lib.save_safetensors(file, loaded)
  assert load_lib.load_checkpoint(file).says_padding


_SWAV = heads_lib.PrototypeHead(
  layers=2, hidden=8, size=4, num_prototypes=7
)  # w, biases
_MIRA = heads_lib.PrototypeHead(
  layers=3, hidden=8, size=4, num_prototypes=7, hidden_bias=False,
  weight_norm=True,
)  # fmt: skip
_DINO = heads_lib.PrototypeHead(
  layers=3, hidden=8, size=4, num_prototypes=7, activation='gelu',
  weight_norm=True, batch_norm=False,
)  # fmt: skip
_DAINO = dataclasses.replace(_DINO, batch_norm=True, scale_trained=True)


@pytest.mark.parametrize('head', [_SWAV, _MIRA, _DINO, _DAINO])
def test_a_head_with_prototypes_shows_what_it_is(head):
  nets = networks.build(encoder=tiny.ENCODER, stem='small', heads=head)
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  shapes = jax.eval_shape(nets.init, jax.random.key(0), images)
  params, state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  found = architecture_lib.head_sizes(params)
  assert found == {'heads': head, 'num_classes': 0}
  assert architecture_lib.layers(params) == ['encoder']
  held = load_lib.Checkpoint(
    params, state, encoders.Architecture(tiny.ENCODER, stem='small'),
    step=1, kind='safetensors',
  )  # fmt: skip
  assert 'projector yes, predictor no, prototypes yes' in str(held)
  outputs, _ = jax.eval_shape(
    lambda *args: held.network().online(*args, False), params, state, images
  )
  assert outputs['scores'].shape == (2, 7)


# -- Which of both networks --


@pytest.fixture(scope='module')
def a_run_of_both(a_run, tmp_path_factory):
  """A run's folder whose networks differ; `a_run`, reporting the target's."""
  workdir = tmp_path_factory.mktemp('both') / 'run'
  shutil.copytree(a_run[0], workdir)
  settings = json.loads((workdir / 'config.json').read_text())
  settings['evaluation']['network'] = 'target'
  (workdir / 'config.json').write_text(json.dumps(settings))
  return workdir, a_run[1].target_params


def _same(tree, wanted):
  jax.tree.map(np.testing.assert_array_equal, dict(tree), dict(wanted))


def test_a_runs_target_network_where_it_is_asked_for(a_run):
  """Its newest checkpoint has 1 added to every weight of the online one."""
  workdir, state = a_run
  found = load_lib.load_checkpoint(workdir, network='target')
  _same(found.params, state.target_params)
  _same(found.state, state.target_state)
  assert found.weights_of == 'target' and found.target is None
  assert 'predictor no, classifier no, of the target network' in str(found)
  images = np.ones((2, 8, 8, 3), np.float32)
  nets = found.network()
  embedding, _ = nets.encode(found.params, found.state, images, False)
  assert embedding.shape == (2, 16)
  assert (
    'projection' in nets.target(found.params, found.state, images, False)[0]
  )
  for network in (None, 'online'):
    online = load_lib.load_checkpoint(workdir, network=network)
    assert online.weights_of == 'online' and 'predictor yes' in str(online)
    assert load_lib.digest(online) != load_lib.digest(found)


def test_a_run_may_say_that_its_target_network_counts(a_run_of_both):
  workdir, target = a_run_of_both
  found = load_lib.load_checkpoint(workdir)
  _same(found.params, target)
  assert found.weights_of == 'target'
  online = load_lib.load_checkpoint(workdir, network='online')
  assert online.weights_of == 'online' and online.target is None
  both = load_lib.load_checkpoint(workdir, network='online', target=True)
  _same(both.target[0], target)
  assert set(both.params) > set(target)


_ANY = {'network': 'online', 'or_other': True}


@pytest.mark.parametrize('ending', ['pkl', 'safetensors'])
def test_a_file_of_a_target_network_says_so(ending, a_run_of_both, tmp_path):
  found = load_lib.load_checkpoint(a_run_of_both[0])
  path = tmp_path / f'file.{ending}'
  save = {
    'pkl': load_lib.save_release, 'safetensors': load_lib.save_safetensors
  }[ending]  # fmt: skip
  save(path, found)
  for chosen in ({}, {'network': 'target'}, _ANY):
    there = load_lib.load_checkpoint(path, **chosen)
    assert_same_weights(there, found)
    assert there.weights_of == 'target'
  words = "target network alone, but network is 'online': set it to target."
  refused(path, words, network='online')


def test_both_networks_of_a_pickle(content, loaded, tmp_path):
  held = content['experiment_state']
  for kind in ('params', 'state'):
    held[f'target_{kind}'] = {
      module: dict(leaves)
      for module, leaves in held[f'online_{kind}'].items()
      if haiku_trees.root(module) in _TARGET
    }
  held['target_params'][CONV]['w'] = held['target_params'][CONV]['w'] / 2
  path = write(tmp_path, content)
  assert_same_weights(load_lib.load_checkpoint(path), loaded)
  found = load_lib.load_checkpoint(path, network='target')
  assert found.weights_of == 'target'
  np.testing.assert_array_equal(
    found.params[CONV]['w'] * 2, loaded.params[CONV]['w']
  )


def test_a_network_that_is_not_there(loaded, tmp_path):
  words = ("online network alone, but network is 'target': set it to online.",)
  refused(pathlib.Path(TINY), *words, network='target')
  file = tmp_path / 'file.safetensors'
  load_lib.save_safetensors(file, loaded)
  refused(file, *words, network='target')
  run = tiny.prepare('supervised')
  saver = checkpoint_lib.Checkpointer(str(tmp_path / 'run'), keep=1)
  saver.save(0, tiny.portable(run), {'elapsed_seconds': 0})
  saver.close()
  config = tmp_path / 'run' / 'config.json'
  config.write_text(json.dumps(run.cfg.to_dict()))
  refused(tmp_path / 'run', *words, network='target')
  assert load_lib.load_checkpoint(tmp_path / 'run').weights_of == 'online'
  with pytest.raises(errors.UserError, match="network is 'both'; known: onl"):
    load_lib.load_checkpoint(TINY, network='both')
  settings = run.cfg.to_dict()
  settings['evaluation']['network'] = 'both'
  config.write_text(json.dumps(settings))
  refused(tmp_path / 'run', 'its network is none of online, target')
