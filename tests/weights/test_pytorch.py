"""Weights for PyTorch: names, files, and the same numbers from torch."""

import importlib.util
import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import semppl_jax
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.models import encoders, heads, networks
from semppl_jax.tools import export
from semppl_jax.weights import load as load_lib
from semppl_jax.weights import pytorch

# Groups of one block and of two, so that all kinds of block are there.
SMALL = {
  'resnet50': encoders.Encoder('res_net50', (1, 2), (64, 128), True, (1, 2), 8),
  'resnet18': encoders.Encoder('res_net18', (1, 2), (16, 32), False, (1, 2), 8),
}


@pytest.fixture
def small(monkeypatch):
  for name, encoder in SMALL.items():
    monkeypatch.setitem(encoders.ENCODERS, name, encoder)
  networks.build.cache_clear()  # it knows the encoder by its name only
  yield
  networks.build.cache_clear()


def _checkpoint(architecture, some_heads=None):
  """Of random weights and averages, so that nothing is 0 or 1."""
  nets = networks.build(
    **architecture._asdict(), heads=some_heads, num_classes=7,
    projector_hidden=24, embedding_size=16, cross_replica=False,
  )  # fmt: skip
  trees = jax.jit(nets.init)(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
  random = np.random.RandomState(0)

  def moved(module, name, value):
    value = np.asarray(value)
    if name == 'counter':
      return value
    noise = random.uniform(-0.1, 0.1, value.shape).astype(np.float32)
    return value + noise

  trees = (hk.data_structures.map(moved, tree) for tree in trees)
  return load_lib.Checkpoint(*trees, architecture, step=0)


def _names(module, parameters=('weight',)):
  return {f'{module}.{name}' for name in parameters}


def test_names_are_torchvisions():
  shapes = jax.eval_shape(
    networks.build(encoder='resnet50', num_classes=1000).init,
    jax.random.key(0), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
  )  # fmt: skip
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  found = load_lib.Checkpoint(*zeros, encoders.Architecture('resnet50'), 0)
  arrays = pytorch.state_dict(found)
  norm = (
    'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked',
  )  # fmt: skip
  wanted = _names('conv1') | _names('bn1', norm)
  wanted |= _names('fc', ('weight', 'bias'))
  for group, count in enumerate((3, 4, 6, 3), 1):
    for block in range(count):
      inside = f'layer{group}.{block}'
      for layer in (1, 2, 3):
        wanted |= _names(f'{inside}.conv{layer}')
        wanted |= _names(f'{inside}.bn{layer}', norm)
    wanted |= _names(f'layer{group}.0.downsample.0')
    wanted |= _names(f'layer{group}.0.downsample.1', norm)
  assert {n for n in arrays if not n.startswith('projector.')} == wanted
  assert arrays['conv1.weight'].shape == (64, 3, 7, 7)
  assert arrays['layer4.2.conv3.weight'].shape == (2048, 512, 1, 1)
  assert arrays['fc.weight'].shape == (1000, 2048)
  assert arrays['layer2.0.bn1.num_batches_tracked'].dtype == np.int64
  assert {a.dtype for n, a in arrays.items() if 'num_b' not in n} == {
    np.dtype('float32')
  }


def test_a_convolution_is_turned_and_a_norm_keeps_its_numbers():
  found = semppl_jax.load_checkpoint('digits')
  arrays = pytorch.state_dict(found)
  block = 'digits_res_net/~/block_group_1/~/block_0/~/'
  ours = found.params[f'{block}shortcut_conv']['w']
  theirs = arrays['layer2.0.downsample.0.weight']
  assert theirs[5, 3, 0, 0] == ours[0, 0, 3, 5]
  average = found.state[f'{block}batchnorm_1/~/var_ema']['average']
  assert arrays['layer2.0.bn2.running_var'].tolist() == average.ravel().tolist()


@pytest.fixture(scope='module')
def resnet():
  """A ResNet-50 with a classifier, of random numbers."""
  shapes = jax.eval_shape(
    networks.build(
      encoder='resnet50', padding='symmetric', num_classes=10,
      heads=heads.no_heads,
    ).init,
    jax.random.key(0), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
  )  # fmt: skip
  random = np.random.RandomState(0)
  draw = lambda x: random.uniform(0.5, 1, x.shape).astype(x.dtype)
  architecture = encoders.Architecture('resnet50', padding='symmetric')
  trees = jax.tree.map(draw, shapes)
  return load_lib.Checkpoint(*trees, architecture, step=0)


def test_from_torchvision_and_back(resnet, tmp_path):
  arrays = pytorch.state_dict(resnet)
  arrays |= {'projector.0.weight': np.zeros((2, 2048))}
  found = pytorch.from_torchvision(arrays)
  assert found.architecture == resnet.architecture and found.num_classes == 10
  assert found.params.keys() == resnet.params.keys()
  jax.tree.map(np.testing.assert_array_equal, found.params, dict(resnet.params))
  assert found.state.keys() == resnet.state.keys()
  for module, leaves in found.state.items():
    average = resnet.state[module]['average']
    np.testing.assert_array_equal(leaves['average'], average)
    # What the average is of in the next step of a training.
    np.testing.assert_allclose(
      leaves['hidden'] / (1 - 0.9 ** leaves['counter']), average, rtol=1e-6
    )
  load_lib.save_safetensors(tmp_path / 'a.safetensors', found)
  again = load_lib.load_checkpoint(tmp_path / 'a.safetensors')
  assert load_lib.digest(again) == load_lib.digest(found)
  assert again.architecture.padding == 'symmetric'


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'layer1.0.downsample.0.weight': None}, 'missing: layer1.0.downsample.0.'),
    ({'layer4.3.conv1.weight': 0.0}, 'surplus for a ResNet-50 1x.*: layer4.3.'),
    ({'bn1.bias': np.zeros(63)}, 'offset has shape .*63.*; expected .*64'),
    ({'bn1.running_var': np.full(64, -1.0)}, 'initial_batchnorm.*var_ema'),
    ({'fc.bias': None}, 'surplus .*: fc.weight'),
  ],
)
def test_a_state_dict_of_another_network(changes, words, resnet):
  arrays = pytorch.state_dict(resnet) | changes
  arrays = {name: x for name, x in arrays.items() if x is not None}
  with pytest.raises(CheckpointError, match=words) as error:
    pytorch.from_torchvision(arrays)
  assert '\n' not in str(error.value)


def test_the_command_writes_what_load_reads(tmp_path, capsys):
  folder = tmp_path / 'a' / 'out'
  assert export.main(['digits', str(folder)]) == 0
  assert "resnet.load('.')" in capsys.readouterr().out
  names = {path.name for path in folder.iterdir()}
  assert names == {'weights.safetensors', 'settings.json', 'resnet.py'}
  settings = json.loads((folder / 'settings.json').read_text())
  assert settings['image_size'] == 8 and settings['center'] == 1.0
  assert settings['network']['num_classes'] == 10
  assert (folder / 'resnet.py').read_text() == pytorch.NETWORK.read_text()


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
  (tmp_path / 'resnet.py').write_text('mine')
  assert export.main(['digits', str(tmp_path)]) == 2
  shown = capsys.readouterr().err
  assert shown.count('\n') == 1 and 'is there already' in shown
  assert (tmp_path / 'resnet.py').read_text() == 'mine'
  assert len(list(tmp_path.iterdir())) == 1
  assert export.main(['digits', str(tmp_path / 'resnet.py')]) == 2
  assert 'is a file: name a new folder' in capsys.readouterr().err
  assert export.main(['digit', str(tmp_path / 'x')]) == 2
  assert not (tmp_path / 'x').exists()


def _loaded(folder):
  pytest.importorskip('torch')
  spec = importlib.util.spec_from_file_location('resnet', folder / 'resnet.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.load(folder)


ARCHITECTURES = [
  encoders.Architecture('digits', stem='small'),
  encoders.Architecture('resnet18'),
  encoders.Architecture('resnet18', padding='symmetric'),
  encoders.Architecture('resnet50', width=2),
  encoders.Architecture('resnet50', stem='small', padding='symmetric'),
  encoders.Architecture('resnet50', selective_kernels=True),
  encoders.Architecture(
    'resnet50', width=2, selective_kernels=True, padding='symmetric'
  ),
]


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
def test_torch_gives_the_same(architecture, small, tmp_path):
  torch = pytest.importorskip('torch')
  found = _checkpoint(architecture)
  pytorch.export(found, tmp_path / 'out', (32, 1.0))
  model = _loaded(tmp_path / 'out')
  for size in (32, 37):  # even and odd: other sides are padded
    images = np.random.RandomState(1).uniform(size=(2, size, size, 3))
    ours, _ = jax.jit(
      lambda images: found.network().online(
        found.params, found.state, images, False
      )
    )(images.astype(np.float32))
    channels_first = torch.tensor(
      images.transpose(0, 3, 1, 2), dtype=torch.float32
    )
    with torch.no_grad():
      theirs = {
        'embedding': model(channels_first),
        'logits': model.logits(channels_first),
        'projection': model.project(channels_first),
      }
    for name, value in theirs.items():
      scale = np.abs(ours[name]).max()
      assert scale > 0.01
      np.testing.assert_allclose(
        value.numpy(), ours[name], rtol=0, atol=1e-5 * scale, err_msg=name
      )


HEADS = {
  'simclr': heads.SimCLRProjector(3, 24, 16),
  'paws': heads.PAWSHead(24, 16, 8),
  'simreg': heads.SimRegProjector(24, 16),
  'swav': heads.PrototypeHead(2, 24, 16, 5),
  'dino': heads.PrototypeHead(
    3, 24, 16, 5, batch_norm=False, activation='gelu', weight_norm=True
  ),
}


@pytest.mark.parametrize('name', HEADS)
def test_projectors_of_all_objectives(name, tmp_path):
  torch = pytest.importorskip('torch')
  architecture = encoders.Architecture('digits', stem='small')
  found = _checkpoint(architecture, HEADS[name])
  pytorch.export(found, tmp_path / 'out', (8, 1.0))
  model = _loaded(tmp_path / 'out')
  images = np.random.RandomState(1).uniform(size=(2, 8, 8, 3))
  ours, _ = found.network().online(
    found.params, found.state, images.astype(np.float32), False
  )
  channels_first = torch.tensor(
    images.transpose(0, 3, 1, 2), dtype=torch.float32
  )
  with torch.no_grad():
    theirs = model.project(channels_first).numpy()
  if 'prototypes' in found.params:  # ours are unit rows there
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
  ours = ours['projection']
  assert 0.01 < np.abs(ours).max() < 100
  np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_photographs_as_load_pretrained_sees_them(tmp_path):
  torch = pytest.importorskip('torch')
  model = semppl_jax.load_pretrained('digits')
  photographs = np.random.RandomState(2).randint(0, 256, (3, 40, 50, 3))
  photographs = photographs.astype(np.uint8)
  pytorch.export(model.checkpoint, tmp_path / 'out', (8, 1.0))
  seen = torch.tensor(model.preprocess(photographs).transpose(0, 3, 1, 2))
  with torch.no_grad():
    theirs = _loaded(tmp_path / 'out')(seen).numpy()
  np.testing.assert_allclose(
    theirs, model.embed(photographs), rtol=0, atol=1e-4
  )


def test_export_refuses_a_folder_with_weights(tmp_path):
  found = semppl_jax.load_checkpoint('digits')
  pytorch.export(found, tmp_path, (8, 1.0))
  with pytest.raises(UserError, match='is there already'):
    pytorch.export(found, tmp_path, (8, 1.0))
