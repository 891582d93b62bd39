"""Every config file: valid, and special cases differ in what they say."""

import functools
import importlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import (
  digits,
  digits_contrastive,
  digits_relicv2,
  digits_supervised,
  eval_classifier,
  eval_knn,
  eval_linear,
  eval_semi_supervised,
  imagenet_resnet50,
)
from semppl_jax import config, eval_config, parallel, pretrain_step, runs
from tests import tiny

_FOLDER = pathlib.Path(digits.__file__).parent


@pytest.mark.parametrize(
  'name', sorted(p.stem for p in _FOLDER.glob('*.py') if p.stem[0] != '_')
)
def test_every_experiment_is_valid_on_1_and_8_devices(name):
  cfg = importlib.import_module(f'experiments.{name}').get_config()
  validate = config.validate
  if cfg.task in eval_config.TASKS:
    cfg.checkpoint, validate = 'some/file', eval_config.validate
  for num_devices in (1, 8):
    validate(cfg, num_devices)


_EVALUATIONS = {
  'linear': eval_linear,
  'semi_supervised': eval_semi_supervised,
  'knn': eval_knn,
  'classifier': eval_classifier,
}


@pytest.mark.parametrize('task', _EVALUATIONS)
def test_variants_of_evaluations(task):
  module = _EVALUATIONS[task]
  assert set(_EVALUATIONS) == set(eval_config.TASKS)
  for variant, labels in (
    ('imagenet_1pct', (0, 0.01)),
    ('imagenet_10pct', (0, 0.1)),
    ('imagenet', (0, 0.0)),
    ('digits_20', (2, 0.0)),
    ('digits', (0, 0.0)),
  ):
    cfg = module.get_config(variant)
    assert cfg.task == task
    assert (cfg.labels.per_class, cfg.labels.fraction) == labels
  with pytest.raises(ValueError, match="'mnist'; known: imagenet, "):
    module.get_config('mnist')


def test_linear_evaluation_is_the_releases_protocol():
  """Its configs/eval.py and its dataset.py."""
  cfg = eval_linear.get_config()
  assert (cfg.batch_size, cfg.num_epochs) == (1024, 100)
  optimizer = cfg.optimizer
  assert (optimizer.learning_rate, optimizer.warmup_epochs) == (0.3, 0)
  assert optimizer.momentum == 0.9 and optimizer.nesterov
  crops = cfg.crops
  assert crops.size == 224 and crops.center == 224 / (224 + 32)
  assert crops.area == (0.08, 1.0) and crops.aspect == (3 / 4, 4 / 3)
  assert crops.flip == 0.5 and crops.augment and cfg.features == 'online'


def _differences(one, other):
  one, other = (
    dict(_flat(module.get_config().to_dict())) for module in (one, other)
  )
  return {key for key in one if one[key] != other[key]}


def _flat(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def test_special_cases_differ_in_the_loss_alone():
  assert _differences(digits, digits_relicv2) <= {
    'loss.alpha', 'loss.semantic_invariance_weight',
  }  # fmt: skip
  cfg = digits_relicv2.get_config()
  assert not config.uses_semantic_positives(cfg)
  assert _differences(digits_relicv2, digits_contrastive) == {
    'loss.invariance_weight'
  }
  assert config.uses_semantic_positives(digits.get_config())


def test_supervised_has_the_same_labels_and_no_other_term():
  cfg = digits_supervised.get_config()
  assert cfg.labels.per_class == digits.get_config().labels.per_class
  assert cfg.labels.share == 1 and not cfg.classifier.detached
  loss = cfg.loss
  assert loss.contrastive_weight == loss.invariance_weight == 0
  assert config.semantic_invariance_weight(cfg) == 0


def test_imagenet_has_the_papers_setting():
  for variant, fraction in (('1pct', 0.01), ('10pct', 0.1)):
    cfg = imagenet_resnet50.get_config(variant)
    assert cfg.labels.fraction == fraction
    assert cfg.optimizer.name == 'lars'
    assert cfg.batch_size == 4096 and cfg.queue.capacity == 81_920
    steps = 300 * 1_281_167 // 4096
    assert abs(steps - 93_800) < 100


@pytest.mark.long
def test_imagenets_step_runs_on_synthetic_batches():
  """ResNet-50, LARS, its schedule and all views, at tiny sizes."""
  cfg = imagenet_resnet50.get_config('10pct')
  cfg.update(batch_size=12, num_epochs=2.0, num_devices=2)
  cfg.dataset.update(name='synthetic', num_examples=24, image_size=40)
  cfg.labels.fraction = 0.5
  cfg.views.update(large_size=32, small_size=32, num_large=2, num_small=1)
  cfg.queue.capacity = 20 * 12
  cfg.optimizer.warmup_epochs = 0.5
  cfg.encoder.projector_hidden = 32
  run = runs.prepare(cfg)
  step = functools.partial(pretrain_step.train_step, setup=run.setup)
  batches = [batch for batch, _ in runs.input_batches(run, 0)]
  assert len(batches) == run.setup.total_steps == 4
  state = tiny.first_state(run, 2)
  params = parallel.first(state.online_params)
  state, seen = tiny.run_steps(tiny.map_step(step, 2), state, batches, 2)
  assert all(np.isfinite(s['loss'][0]) for s, _ in seen)
  assert state.queue.count[0] == sum((b.labels >= 0).sum() for b in batches)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b[0]).max(), params, state.online_params
  )
  assert all(np.isfinite(x) for x in jax.tree.leaves(moved))
  assert moved['res_net50/~/initial_conv']['w'] > 0


@pytest.mark.long
def test_digits_for_every_number_of_devices():
  """In a process of its own, which compiles as users' runs do."""
  environment = os.environ | {
    'XLA_FLAGS': '',
    'PYTHONPATH': str(_FOLDER.parent),
  }
  done = subprocess.run(
    [sys.executable, str(_FOLDER.parent / 'tests' / 'digits_on_devices.py')],
    env=environment,
    cwd=_FOLDER.parent,
  )
  assert done.returncode == 0
