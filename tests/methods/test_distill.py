"""Distillation: its loss against SimCLRv2's release, and what it learns from.

golden_data/simclr_distill.npz: `add_kd_loss` of the notebook
distillation_self_training of google-research/simclr (TensorFlow 2.21.0).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import methods
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from tests.helpers import golden, tiny

_FACTS = base.RunFacts(3, 40, np.zeros(3, np.float32), 12, 5, int)
_UNLABELLED = {'labels__per_class': 0}


def _loss(num_classes=3, **changes):
  """(student [b, K], teacher [b, K], labels) -> Result, on one device."""
  cfg = tiny.frozen(tiny.make_config('distill', **changes))
  method = methods.build(cfg, _FACTS._replace(num_classes=num_classes))

  def of_images(student, teacher, labels):
    wide = base.BatchWide(None, labels, jnp.arange(len(labels)), jnp.zeros(()))
    inputs = base.Inputs(
      online={'logits': student[None]}, target=None, labels=labels,
      ids=wide.ids, batch=wide, shared=(), keys=None, teacher=teacher[None],
    )  # fmt: skip
    return method.loss(inputs, ())

  def run(student, teacher, labels=None):
    student, teacher = jnp.asarray(student), jnp.asarray(teacher)
    if labels is None:
      labels = jnp.full(len(student), -1)
    mapped = jax.vmap(
      lambda s: of_images(s, teacher, jnp.asarray(labels)),
      axis_name=parallel.AXIS,
    )
    return jax.tree.map(lambda x: x[0], mapped(student[None]))

  return run


@pytest.mark.parametrize('tau', [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('scaled', [True, False])
def test_loss_and_gradient_are_the_releases(tau, scaled):
  file = golden.load('simclr_distill.npz')
  loss = _loss(10, loss__temperature=tau, loss__scaled=scaled, **_UNLABELLED)
  teacher = file['teacher_logits']
  value = lambda student: loss(student, teacher).loss
  found, grad = jax.value_and_grad(value)(jnp.asarray(file['student_logits']))
  by = 1 if scaled else tau**2  # the notebook has tau^2 in it
  np.testing.assert_allclose(found, file[f'T{tau}/loss'] / by, rtol=1e-6)
  wanted = file[f'T{tau}/grad_student'] / by
  np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-6 / by)


def test_a_student_equal_to_its_teacher_has_no_gradient():
  """And the loss is tau^2 times the entropy of the teacher's choice."""
  logits = np.random.RandomState(0).normal(size=(6, 3)).astype(np.float32)
  loss = _loss(loss__temperature=0.5, **_UNLABELLED)
  value = lambda student: loss(student, logits).loss
  found, grad = jax.value_and_grad(value)(jnp.asarray(logits))
  assert np.abs(grad).max() < 1e-7
  p = np.asarray(jax.nn.softmax(logits / 0.5))
  entropy = -np.sum(p * np.log(p), axis=1).mean()
  np.testing.assert_allclose(found, 0.25 * entropy, rtol=1e-5)


def test_nothing_flows_into_the_teacher():
  loss = _loss(**_UNLABELLED)
  student = np.eye(3, dtype=np.float32)
  grad = jax.grad(lambda teacher: loss(student, teacher).loss)(
    jnp.asarray(2 * student)
  )
  np.testing.assert_array_equal(grad, 0)


def test_labels_take_their_share_by_hand():
  """Uniform logits: every cross-entropy is log 3."""
  student = np.array([[0, 0, 0], [0, 0, math.log(2)]], np.float32)
  teacher = np.zeros((2, 3), np.float32)
  for weight in (0.0, 0.25, 1.0):
    loss = _loss(loss__labelled_weight=weight)
    result = loss(student, teacher, [-1, 2])
    # softmax of the second: 1/4, 1/4, 1/2.
    distilled = (math.log(3) + (2 * math.log(4) + math.log(2)) / 3) / 2
    wanted = (1 - weight) * distilled + weight * math.log(2)
    np.testing.assert_allclose(result.loss, wanted, rtol=1e-6)
    np.testing.assert_allclose(
      result.metrics['loss/classifier'], math.log(2), rtol=1e-6
    )


def test_the_teachers_choice_is_the_pseudo_label():
  teacher = np.eye(3, dtype=np.float32)[[2, 0, 1]]
  student = np.eye(3, dtype=np.float32)[[2, 0, 0]]
  result = _loss()(student, teacher, [-1, 1, -1])
  np.testing.assert_array_equal(result.labels, [2, 1, 1])  # 1: the true label
  np.testing.assert_allclose(result.metrics['teacher_agreement'], 2 / 3)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'teacher__checkpoint': ''}, "checkpoint is '', but method 'distill' lea"),
    ({'loss__temperature': 0.0}, 'temperature is 0.0; it must be above 0'),
    ({'loss__labelled_weight': 1.5}, 'labelled_weight is 1.5; it must be from'),
    (
      {'loss__labelled_weight': 0.5} | _UNLABELLED,
      'labelled_weight is 0.5, but no image has a label',
    ),
  ],
)
def test_settings_that_cannot_work(changes, words):
  with pytest.raises(UserError, match=words) as caught:
    tiny.prepare('distill', **changes)
  assert '\n' not in str(caught.value)


def test_a_data_set_without_classes_has_no_student():
  cfg = tiny.frozen(tiny.make_config('distill'))
  with pytest.raises(UserError, match="'synthetic' has no classes, which a"):
    methods.build(cfg, _FACTS._replace(num_classes=0))
