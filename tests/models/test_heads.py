"""SimCLR's projector against its release's numbers.

golden_data/simclr_head.npz: ProjectionHead of google-research/simclr
(tf2/model.py), 3 layers, for `h`; selectorJ is h_J. The other heads are in
test_networks.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.losses import contrastive
from semppl_jax.models import heads, multicrop, networks
from tests.helpers import golden

_BN = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}


def _forward(x, is_training, views=False):
  mlp = heads.SimCLRMLP((8, 8, 5), _BN | {'views': views}, 'projector')
  return mlp(x, is_training)


def _apply(params, state, x, is_training, views=False):
  forward = functools.partial(_forward, is_training=is_training, views=views)
  return hk.transform_with_state(forward).apply(params, state, None, x)


@pytest.fixture(scope='module')
def release():
  """Their file; our params; our state before any pass, and after theirs."""
  file = golden.load('simclr_head.npz')
  params, before, after = {}, {}, {}
  for j in range(3):
    norm = f'projector/batch_norm_{j}'
    params[f'projector/linear_{j}'] = {'w': file[f'nl_{j}/w']}
    params[norm] = {
      leaf: file[f'nl_{j}/{leaf}'][None]
      for leaf in ('scale', 'offset')
      if f'nl_{j}/{leaf}' in file
    }
    for moment in ('mean', 'var'):
      average = file[f'after/nl_{j}/{moment}'][None]
      rest = {'hidden': np.zeros_like(average), 'counter': np.int32(0)}
      name = f'{norm}/~/{moment}_ema'
      before[name] = rest | {'average': np.zeros_like(average)}
      after[name] = rest | {'average': average}
  return file, params, before, after


def test_every_layer_in_training_is_the_releases(release):
  file, params, state, _ = release
  outputs, moved = _apply(params, state, file['h'], True)
  assert len(outputs) == 4
  for j, h in enumerate(outputs):
    wanted = file[f'train/selector{j}']
    np.testing.assert_allclose(h, wanted, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    outputs[-1], file['train/projection'], rtol=1e-5, atol=1e-5
  )
  # Their averages begin at mean 0 and variance 1, ours without bias.
  for j in range(3):
    for moment, begin in (('mean', 0.0), ('var', 0.9)):
      found = moved[f'projector/batch_norm_{j}/~/{moment}_ema']['hidden'][0]
      wanted = file[f'after/nl_{j}/{moment}']
      np.testing.assert_allclose(found + begin, wanted, rtol=1e-5, atol=1e-6)


def test_every_layer_in_evaluation_is_the_releases(release):
  file, params, _, state = release
  outputs, _ = _apply(params, state, file['h'], False)
  for j, h in enumerate(outputs):
    wanted = file[f'eval/selector{j}']
    np.testing.assert_allclose(h, wanted, rtol=1e-5, atol=1e-5)


def test_loss_through_it_and_its_gradient_are_the_releases(release):
  file, params, state, _ = release

  def loss(h):
    outputs, _ = _apply(params, state, h, True)
    z = multicrop.l2_normalize(outputs[-1]).reshape(2, 6, -1)
    losses, _ = contrastive.nt_xent(z, z, jnp.arange(6), temperature=0.1)
    return losses.mean(axis=1).sum()

  value, grads = jax.value_and_grad(loss)(file['h'])
  np.testing.assert_allclose(value, file['train/nt_xent_T0.1'], rtol=1e-5)
  wanted = file['train/grad_h']
  np.testing.assert_allclose(grads, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('number', [1, 2, 3])
def test_a_middle_layer_is_the_releases_and_needs_no_later_one(
  number, mode, release
):
  """`ft_proj_selector`, from a tree that has the layers up to it alone."""
  file, *trees = release
  layer = heads.ProjectorLayer(heads.SimCLRProjector(3, 0, 5), number)

  def forward(x, is_training):
    return layer(x, is_training, True, _BN)['hidden']

  params, before, after = (
    {m: x for m, x in tree.items() if int(m.split('/')[1][-1]) < number}
    for tree in trees
  )
  transformed = hk.transform_with_state(forward)
  made, _ = transformed.init(jax.random.key(0), file['h'], True)
  assert set(made) == set(params) and len(params) == 2 * number
  state = before if mode == 'train' else after
  is_training = mode == 'train'
  found, _ = transformed.apply(params, state, None, file['h'], is_training)
  wanted = file[f'{mode}/selector{number}']
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_layers_of_byols_projector_by_hand():
  """The first: Linear, BatchNorm of the batch, ReLU; the second: projection."""
  random = np.random.RandomState(0)
  draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
  x, w, b, last = draw(6, 4), draw(4, 3), draw(3), draw(3, 2)
  scale, offset = draw(1, 3), draw(1, 3)
  params = {
    'projector/linear': {'w': w, 'b': b},
    'projector/batch_norm': {'scale': scale, 'offset': offset},
    'projector/linear_1': {'w': last},
  }
  hidden = x @ w + b
  hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
  hidden = np.maximum(hidden * scale + offset, 0)
  assert hidden.min() == 0 < hidden.max()
  for number, modules, wanted in ((1, 2, hidden), (2, 3, hidden @ last)):
    layer = heads.ProjectorLayer(heads.ProjectorPredictor(3, 2, 7), number)
    forward = hk.transform_with_state(
      lambda x, layer=layer: layer(x, True, True, _BN)['hidden']
    )
    fresh, state = forward.init(jax.random.key(0), x)
    assert set(fresh) == set(list(params)[:modules])
    found, _ = forward.apply(params, state, None, x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
  'projector, sizes',
  [
    (heads.SimCLRProjector(3, 0, 4), [(8, 8), (8, 8), (8, 4)]),
    (heads.SimCLRProjector(2, 6, 4), [(8, 6), (6, 4)]),
    (heads.SimCLRProjector(1, 6, 4), [(8, 4)]),
  ],
)
def test_layers_are_as_many_as_are_asked_for(projector, sizes):
  nets = networks.build(encoder='tiny', heads=projector)
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  params, state = jax.eval_shape(nets.init, jax.random.key(0), images)
  found = {
    module: {name: leaf.shape for name, leaf in leaves.items()}
    for module, leaves in params.items()
    if module.startswith('projector/')
  }
  wanted = {}
  for j, (size_in, size) in enumerate(sizes):
    wanted[f'projector/linear_{j}'] = {'w': (size_in, size)}
    wanted[f'projector/batch_norm_{j}'] = {'scale': (1, size)}
    if j < len(sizes) - 1:
      wanted[f'projector/batch_norm_{j}']['offset'] = (1, size)
  assert found == wanted
  # No predictor: the target network, if one asks for it, has it all.
  assert nets.target_tree(params).keys() == params.keys()


def test_weights_begin_small():
  mlp = hk.transform_with_state(lambda x: _forward(x, True))
  params, _ = mlp.init(jax.random.key(0), jnp.zeros((2, 400)))
  assert np.std(params['projector/linear_0']['w']) == pytest.approx(0.01, 0.05)


def test_views_with_statistics_of_their_own(release):
  """Views that go through together; without offset, too."""
  file, params, state, _ = release
  views = file['h'].reshape(2, 6, 8)
  together, _ = _apply(params, state, views, True, views=True)
  for v in range(2):
    alone, _ = _apply(params, state, views[v], True)
    np.testing.assert_allclose(together[-1][v], alone[-1], atol=1e-5)


def test_bfloat16_reaches_it():
  build = functools.partial(
    networks.build, encoder='tiny', cross_replica=False,
    heads=heads.SimCLRProjector(2, 6, 4),
  )  # fmt: skip
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  for precision, low in (('bfloat16', 2), ('float32', 0)):
    nets = build(precision=precision)
    trees = jax.eval_shape(nets.init, jax.random.key(0), images)
    jaxpr = jax.make_jaxpr(
      functools.partial(nets.online, is_training=True)
    )(*trees, images)  # fmt: skip
    products = [
      eqn for eqn in jaxpr.eqns if eqn.primitive.name == 'dot_general'
    ]
    narrow = [e for e in products if e.invars[0].aval.dtype == jnp.bfloat16]
    assert len(narrow) == low
    assert {x.dtype for x in jaxpr.out_avals} <= {
      jnp.dtype('float32'), jnp.dtype('int32'),
    }  # fmt: skip
