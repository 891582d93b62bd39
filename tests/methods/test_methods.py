"""Which objective a config asks for, and what is refused in a line."""

import types

import pytest

from experiments import digits
from semppl_jax import config, methods
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from semppl_jax.train import run as run_lib
from tests.helpers import tiny


def _refused(cfg, words):
  with pytest.raises(UserError, match=words) as caught:
    config.validate(cfg, 1)
  assert '\n' not in str(caught.value)


def test_an_unknown_method_names_the_nearest():
  with pytest.raises(UserError, match="'semmpl'; known: .* mean 'semppl'"):
    config.default('semmpl')
  cfg = digits.get_config()
  cfg.method = 'byo'
  _refused(cfg, "method is 'byo'; .* did you mean 'byol'")


def test_settings_of_another_method_say_whose_they_are():
  cfg = digits.get_config()
  cfg.method = 'byol'
  _refused(cfg, "loss.alpha is a setting of semppl, but method is 'byol'")
  cfg = digits.get_config('byol')
  cfg.method = 'semppl'
  _refused(cfg, "method is 'semppl', which needs the setting loss.alpha")
  cfg = digits.get_config('byol')
  cfg.update_from_flattened_dict({'queue': {'k': 3}})
  _refused(cfg, 'queue.k is a setting of semppl')
  cfg = digits.get_config()
  cfg.nonsense = 3
  _refused(cfg, 'nonsense is unknown')
  cfg = digits.get_config()
  del cfg.method
  _refused(cfg, 'has no `method`')


def test_a_key_that_was_renamed_says_its_new_name():
  cfg = digits.get_config()
  cfg.encoder.projector_hidden = 256
  _refused(cfg, 'is called projector.hidden and predictor.hidden now')


def test_names_of_settings_on_the_command_line():
  for key, whose in (
    ('loss.alpha', 'of method semppl; this'),
    ('ema.base', 'of method semppl and method byol and method dino'),
    ('crops.size', 'of evaluation; this'),
  ):
    assert f'{key} is a setting {whose} ' in config.why_unknown(key)
  assert "mean 'loss.alpha'" in config.why_unknown('loss.alhpa')


def test_accumulate_is_refused_to_a_method_that_cannot(monkeypatch):
  whole = types.SimpleNamespace(
    default=methods.byol.default,
    RANGES={},
    build=lambda cfg, facts: base.Method(None, None, accumulates=False),
  )
  monkeypatch.setitem(methods.METHODS, 'whole', whole)
  cfg = tiny.frozen(tiny.make_config('whole'))
  assert not methods.build(cfg, None).accumulates
  cfg = tiny.frozen(tiny.make_config('whole', accumulate=2))
  with pytest.raises(UserError, match="accumulate is 2, but method 'whole'"):
    methods.build(cfg, None)


def test_a_method_has_its_own_sections_and_the_engines():
  assert {'loss', 'queue', 'ema'} <= set(config.default())
  byol = config.default('byol')
  assert not {'loss', 'queue'} & set(byol)
  assert (byol.views.num_large, byol.views.num_small) == (2, 0)
  # The engine's own defaults stay as they are.
  assert config.default().views.num_large == 4
  _refused(tiny.make_config('byol', views__num_large=1), 'num_large is 1')


@pytest.mark.parametrize('name', methods.METHODS)
def test_a_target_network_is_evaluated_where_there_is_one(name):
  cfg = tiny.make_config(name, evaluation__network='target')
  has_target = tiny.prepare(name).setup.method.target_views is not None
  if has_target:
    run_lib.prepare(cfg)
    return
  words = f"is 'target', but method '{name}' has no target network: set it to"
  with pytest.raises(UserError, match=words) as caught:
    run_lib.prepare(cfg)
  assert '\n' not in str(caught.value)


def test_an_unknown_network_is_refused():
  cfg = tiny.make_config(evaluation__network='targett')
  _refused(cfg, "evaluation.network is 'targett'; .* did you mean 'target'")
