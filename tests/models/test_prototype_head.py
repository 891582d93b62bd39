"""Projector and prototypes against DINO's release, and what is asked of them.

golden_data/dino_head.npz: vision_transformer.DINOHead of facebookresearch/dino
(7c446df), 3 layers, d 4, K 7, with and without BatchNorm, in training mode;
gradients of sum(y upstream).
"""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.models import heads
from tests.helpers import golden

_BN = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}
_DINO = heads.PrototypeHead(
  layers=3, hidden=8, size=4, num_prototypes=7, activation='gelu',
  weight_norm=True, scale_trained=True, init='normal',
)  # fmt: skip


def _transform(head, **bn):
  return hk.transform_with_state(
    lambda x, is_training=True: head(x, is_training, True, _BN | bn)
  )


def _ours(file, kind, what):
  """torch's arrays of a kind of head under our names, [in, out]."""
  linears, norms = {'plain': ((0, 2, 4), ()), 'bn': ((0, 3, 6), (1, 4))}[kind]
  read = lambda name: file[f'{kind}_{what}_{name}']
  suffix = lambda i: f'_{i}' if i else ''
  tree = {
    f'projector/linear{suffix(i)}': {
      'w': read(f'mlp.{j}.weight').T,
      'b': read(f'mlp.{j}.bias'),
    }
    for i, j in enumerate(linears)
  }
  tree |= {
    f'projector/batch_norm{suffix(i)}': {
      'scale': read(f'mlp.{j}.weight')[None],
      'offset': read(f'mlp.{j}.bias')[None],
    }
    for i, j in enumerate(norms)
  }
  tree['prototypes'] = {
    'v': read('last_layer.weight_v'),
    'g': read('last_layer.weight_g')[:, 0],
  }
  return tree


@pytest.mark.parametrize('kind', ['plain', 'bn'])
def test_values_and_gradients_are_dinos(kind):
  file = golden.load('dino_head.npz')
  head = _transform(dataclasses.replace(_DINO, batch_norm=kind == 'bn'))
  params, state = head.init(jax.random.key(0), file['x'])
  theirs = _ours(file, kind, 'param')
  assert jax.tree.map(np.shape, dict(params)) == jax.tree.map(np.shape, theirs)

  def scores(params, x):
    return head.apply(params, state, None, x)[0]['scores']

  np.testing.assert_allclose(
    scores(theirs, file['x']), file[f'{kind}_y'], rtol=1e-5, atol=1e-5
  )
  product = lambda *args: jnp.sum(scores(*args) * file['upstream'])
  grads, of_x = jax.grad(product, argnums=(0, 1))(theirs, file['x'])
  np.testing.assert_allclose(of_x, file[f'{kind}_grad_x'], rtol=1e-5, atol=1e-5)
  wanted = _ours(file, kind, 'grad')
  for module, leaves in wanted.items():
    for name, leaf in leaves.items():
      np.testing.assert_allclose(
        grads[module][name], leaf, rtol=1e-5, atol=1e-5, err_msg=module
      )


def _outputs(head, params=None):
  x = np.random.RandomState(0).standard_normal((2, 5, 6)).astype(np.float32)
  transformed = _transform(head, views=True)
  made, state = transformed.init(jax.random.key(0), x)
  return transformed.apply(params or made, state, None, x)[0], made


def test_unit_rows_and_cosines():
  outputs, params = _outputs(dataclasses.replace(_DINO, scale_trained=False))
  assert set(params['prototypes']) == {'v'}
  assert outputs['projection'].shape == (2, 5, 4)
  assert outputs['scores'].shape == (2, 5, 7)
  lengths = np.linalg.norm(outputs['projection'], axis=-1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-5)
  v = params['prototypes']['v']
  unit = v / np.linalg.norm(v, axis=1, keepdims=True)
  np.testing.assert_allclose(
    outputs['scores'], outputs['projection'] @ unit.T, rtol=1e-5, atol=1e-6
  )


def test_the_length_of_normed_prototypes_changes_no_score():
  head = dataclasses.replace(_DINO, scale_trained=False)
  outputs, params = _outputs(head)
  longer = params | {'prototypes': {'v': 7 * params['prototypes']['v']}}
  scaled, _ = _outputs(head, longer)
  np.testing.assert_allclose(
    scaled['scores'], outputs['scores'], rtol=1e-5, atol=1e-6
  )


def test_plain_prototypes_are_their_weights():
  head = heads.PrototypeHead(layers=2, hidden=8, size=4, num_prototypes=7)
  outputs, params = _outputs(head)
  w = params['prototypes']['w']  # [K, d]
  np.testing.assert_allclose(
    outputs['scores'], outputs['projection'] @ w.T, rtol=1e-5, atol=1e-6
  )


def test_initial_weights_are_torchs_or_normal():
  swav = heads.PrototypeHead(layers=2, hidden=400, size=100, num_prototypes=50)
  _, params = _outputs(swav)
  for module, inputs in (
    ('projector/linear', 6), ('projector/linear_1', 400), ('prototypes', 100),
  ):  # fmt: skip
    for leaf in params[module].values():
      limit = inputs**-0.5
      assert 0.9 * limit < np.abs(leaf).max() <= limit, module
      np.testing.assert_allclose(np.std(leaf), limit / 3**0.5, rtol=0.15)
  dino = dataclasses.replace(swav, init='normal', weight_norm=True)
  _, params = _outputs(dino)
  for module in ('projector/linear', 'projector/linear_1'):
    np.testing.assert_allclose(np.std(params[module]['w']), 0.02, rtol=0.1)
    np.testing.assert_array_equal(params[module]['b'], 0)
  assert 0.09 < np.abs(params['prototypes']['v']).max() <= 0.1


def test_which_layers_have_a_bias():
  mira = heads.PrototypeHead(
    layers=3, hidden=8, size=4, num_prototypes=7, hidden_bias=False,
    weight_norm=True,
  )  # fmt: skip
  _, params = _outputs(mira)
  have = [
    'b' in params[f'projector/linear{suffix}'] for suffix in ('', '_1', '_2')
  ]
  assert have == [False, False, True]
