"""PAWS's projector and predictor against its release's numbers.

golden_data/paws_parts.npz, head/: `fc` and `pred` of init_model of
facebookresearch/suncet at 731547d (src/paws_train.py), for `x`, 8 units, 2 of
the predictor.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.models import heads
from semppl_jax.weights import architecture
from tests.helpers import golden

_BN = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}
_HEAD = heads.PAWSHead(8, 8, 2)
_MODULES = {
  'projector/linear': 'fc.fc1',
  'projector/batch_norm': 'fc.bn1',
  'projector/linear_1': 'fc.fc2',
  'projector/batch_norm_1': 'fc.bn2',
  'projector/linear_2': 'fc.fc3',
  'predictor/batch_norm': 'pred.bn1',
  'predictor/linear': 'pred.fc1',
  'predictor/batch_norm_1': 'pred.bn2',
  'predictor/linear_1': 'pred.fc2',
}


@pytest.fixture(scope='module')
def release():
  """Their file; our params; our state before any pass, and after theirs."""
  file = golden.load('paws_parts.npz')
  params, before, after = {}, {}, {}
  for ours, theirs in _MODULES.items():
    weight, bias = (file[f'head/{theirs}.{x}'] for x in ('weight', 'bias'))
    if 'linear' in ours:
      params[ours] = {'w': weight.T, 'b': bias}
      continue
    params[ours] = {'scale': weight[None], 'offset': bias[None]}
    for moment in ('mean', 'var'):
      average = file[f'head/after/{theirs}.running_{moment}'][None]
      rest = {'hidden': np.zeros_like(average), 'counter': np.int32(0)}
      name = f'{ours}/~/{moment}_ema'
      before[name] = rest | {'average': np.zeros_like(average)}
      after[name] = rest | {'average': average}
  return file, params, before, after


def _transformed(is_training, head=_HEAD, is_online=True):
  forward = functools.partial(
    head, is_training=is_training, is_online=is_online, bn=_BN
  )
  return hk.transform_with_state(forward)


def test_in_training_it_is_the_releases(release):
  file, params, state, _ = release
  outputs, moved = _transformed(True).apply(params, state, None, file['head/x'])
  close = {'rtol': 1e-4, 'atol': 1e-4}
  np.testing.assert_allclose(
    outputs['projection'], file['head/train_h'], **close
  )
  np.testing.assert_allclose(
    outputs['prediction'], file['head/train_z'], **close
  )
  # Their averages begin at mean 0 and variance 1, ours without bias; theirs of
  # variances are those of samples.
  number = len(file['head/x'])
  for ours, theirs in _MODULES.items():
    if 'linear' in ours:
      continue
    for moment, begin, by in (('mean', 0, 1), ('var', 0.9, number / 11)):
      found = moved[f'{ours}/~/{moment}_ema']['hidden'][0] * by + begin
      wanted = file[f'head/after/{theirs}.running_{moment}']
      np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_in_evaluation_it_is_the_releases(release):
  file, params, _, state = release
  outputs, _ = _transformed(False).apply(params, state, None, file['head/x'])
  np.testing.assert_allclose(
    outputs['prediction'], file['head/eval_z'], rtol=1e-5, atol=1e-5
  )


def test_the_predictor_is_the_online_networks_alone():
  transformed = _transformed(True, is_online=False)
  made, _ = transformed.init(jax.random.key(0), jnp.ones((3, 8)))
  assert {module.split('/')[0] for module in made} == {'projector'}


@pytest.mark.parametrize('number', [1, 2, 3])
def test_a_middle_layer_needs_no_later_one(number, release):
  """Whose network is known from the layers up to it."""
  file, params, before, _ = release
  layer = heads.ProjectorLayer(_HEAD, number)
  transformed = _transformed(True, layer)
  made, _ = transformed.init(jax.random.key(0), file['head/x'])
  kept = {module: params[module] for module in made}
  assert len(kept) == {1: 2, 2: 4, 3: 5}[number]
  assert architecture.layers(kept)[-1] == f'projector/{number}'
  sizes = architecture.head_sizes(kept, f'projector/{number}')
  x, given = file['head/x'], (kept, before, None, file['head/x'])
  found = transformed.apply(*given)[0]['hidden']
  again = _transformed(True, sizes['heads']).apply(*given)[0]['hidden']
  np.testing.assert_array_equal(found, again)
  if number == 3:
    return np.testing.assert_allclose(
      found, file['head/train_h'], rtol=1e-4, atol=1e-4
    )
  for j in range(number):
    name = '_1' if j else ''
    x = x @ params[f'projector/linear{name}']['w']
    norm = params[f'projector/batch_norm{name}']
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    x = np.maximum(x * norm['scale'] + norm['offset'], 0)
  return np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-4)


def test_layers_begin_as_torchs():
  params, _ = _transformed(True, heads.PAWSHead(400, 100, 25)).init(
    jax.random.key(0), jnp.ones((3, 100))
  )
  for module, inputs in (
    ('projector/linear', 100),
    ('projector/linear_1', 400),
    ('predictor/linear_1', 25),
  ):
    for leaf in params[module].values():
      largest = np.abs(leaf).max()
      assert 0.9 * inputs**-0.5 < largest <= inputs**-0.5
