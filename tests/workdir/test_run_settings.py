"""Evaluations that take data, labels and crops from a run."""

import json

import pytest

from experiments import digits, eval_knn, eval_linear
from semppl_jax import config, tasks
from semppl_jax.config import eval_config
from semppl_jax.errors import UserError
from semppl_jax.workdir import run_settings


def _of(module, checkpoint, **changes):
  cfg = module.get_config('run')
  cfg.checkpoint = str(checkpoint)
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


@pytest.fixture
def run(tmp_path):
  cfg = digits.get_config()
  cfg.labels.seed = 7
  cfg.dataset.validation = 300
  text = json.dumps(cfg.to_dict())
  (tmp_path / 'config.json').write_text(text)
  return tmp_path, cfg


@pytest.mark.parametrize('module', [eval_knn, eval_linear])
def test_what_is_open_is_the_runs(module, run):
  folder, trained = run
  cfg = run_settings.complete(_of(module, folder, crops__flip=0.25))
  eval_config.validate(cfg, 1)
  assert cfg.dataset.name == 'digits' and cfg.dataset.validation == 300
  assert cfg.labels.per_class == 2 and cfg.labels.seed == 7
  assert cfg.crops.size == trained.views.large_size == 8
  assert cfg.crops.area == trained.views.large_area
  assert cfg.crops.center == 1.0 and cfg.batch_size == 128
  assert cfg.crops.flip == 0.25  # given


def test_other_variants_are_left_alone():
  cfg = eval_knn.get_config('digits_20')
  assert run_settings.complete(cfg) is cfg


def test_a_checkpoint_that_is_no_run(tmp_path):
  with pytest.raises(UserError, match='is not the folder of one') as error:
    tasks.evaluate(_of(eval_knn, tmp_path), str(tmp_path / 'x'))
  assert '--config.batch_size' in str(error.value)


def test_every_setting_that_is_open_is_one_of_a_run(run):
  _, trained = run
  known = dict(config.flat(trained))
  for key in config.open_keys(_of(eval_knn, 'x'), eval_config.default()):
    assert run_settings.CALLED.get(key, key) in known, key
