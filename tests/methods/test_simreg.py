"""SimReg against its authors' code.

golden_data/simreg.npz: SimReg.forward and get_mlp of UCDvision/simreg (torch
2.13.0), with encoders that give their input.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import methods
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from tests.helpers import golden, tiny

_BN = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}


def _build(**changes):
  return methods.build(tiny.frozen(tiny.make_config('simreg', **changes)), None)


def _apply(method, params, embedding):
  def heads(x):
    return method.heads(x, True, True, _BN | {'eps': 1e-5})

  transformed = hk.without_apply_rng(hk.transform_with_state(heads))
  _, state = transformed.init(jax.random.key(0), embedding)
  return transformed.apply(params, state, embedding)[0]


def _loss(method, projection, teacher):
  inputs = base.Inputs(
    online={'projection': projection[None]}, target=None, labels=None,
    ids=None, batch=None, shared=(), keys=None, teacher=teacher[None],
  )  # fmt: skip
  return method.loss(inputs, ()).loss


def _params(file):
  linear = lambda i: {'w': file[f'w{i}'].T, 'b': file[f'b{i}']}
  norm = lambda i: {
    'scale': file[f'gamma{i}'][None],
    'offset': file[f'beta{i}'][None],
  }
  return {
    'projector/linear': linear(0),
    'projector/batch_norm': norm(1),
    'projector/linear_1': linear(3),
    'projector/linear_2': linear(4),
    'projector/batch_norm_1': norm(5),
    'projector/linear_3': linear(7),
  }


def test_projector_loss_and_gradient_are_the_authors():
  file = golden.load('simreg.npz')
  method = _build(projector__hidden=0, projector__size=6)
  forward = functools.partial(_apply, method, _params(file))
  student, teacher = (jnp.asarray(file[k]) for k in ('student', 'teacher'))
  close = {'rtol': 1e-5, 'atol': 1e-6}
  projection = forward(student)['projection']
  np.testing.assert_allclose(projection, file['prediction'], **close)
  value = lambda x: _loss(method, forward(x)['projection'], teacher)
  found, grad = jax.value_and_grad(value)(student)
  np.testing.assert_allclose(found, file['loss'], **close)
  np.testing.assert_allclose(grad, file['grad_student'], **close)


def test_by_hand():
  """Equal directions 0, orthogonal 2, opposite 4, whatever the lengths."""
  method = _build()
  student = jnp.array([[2.0, 0], [0, 3], [-1, 0]])
  teacher = jnp.array([[1.0, 0], [5, 0], [4, 0]])
  for i, wanted in enumerate((0, 2, 4)):
    one = slice(i, i + 1)
    found = _loss(method, student[one], teacher[one])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
  grad = jax.grad(lambda x: _loss(method, x, teacher[:1]))(teacher[:1])
  np.testing.assert_allclose(grad, 0, atol=1e-7)  # a student like its teacher


def test_a_run_needs_a_teacher():
  with pytest.raises(UserError, match="but method 'simreg' learns from a te"):
    tiny.prepare('simreg', teacher__checkpoint='')
