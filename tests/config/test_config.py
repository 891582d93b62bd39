import pytest

from semppl_jax import config
from semppl_jax.config import validation
from semppl_jax.errors import UserError
from semppl_jax.methods import semppl
from semppl_jax.models import encoders, networks
from semppl_jax.train import schedules
from tests.helpers import tiny


def test_choices_are_those_of_the_code_they_choose():
  # models lies above config, and says what it takes to who calls it directly.
  known = validation.CHOICES
  assert known['encoder.stem'] == encoders.STEMS
  assert known['encoder.padding'] == encoders.PADDINGS
  assert known['precision'] == networks.PRECISIONS
  assert known['optimizer.scaling'] == tuple(schedules.SCALINGS)
  assert known['optimizer.warmup_kind'] == tuple(schedules.WARMUPS)


def _valid():
  cfg = config.default()
  cfg.labels.fraction = 0.1
  return cfg


def _with(**changes):
  cfg = _valid()
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


def test_default_is_the_papers_setting_and_valid():
  cfg = _valid()
  config.validate(cfg, num_devices=512)
  assert cfg.queue.capacity == 20 * cfg.batch_size
  assert semppl.semantic_invariance_weight(cfg) == 5.0


@pytest.mark.parametrize(
  'changes, devices, words',
  [
    ({'batch_size': 100}, 8, ('batch_size 100', '8 devices')),
    ({'queue__capacity': 100}, 8, ('queue.capacity 100', '8 devices')),
    ({'batch_size': 1}, 1, ('batch_size is 1', 'at least 2')),
    ({'labels__per_class': 2}, 1, ('labels.per_class is 2', '0.1')),
    ({'labels__fraction': 0.0}, 1, ('semantic term', 'loss.alpha=0')),
    ({'labels__fraction': 1.5}, 1, ('labels.fraction is 1.5', 'from 0 to 1')),
    ({'labels__per_class': -1}, 1, ('labels.per_class is -1', 'at least 0')),
    ({'views__num_large': 0}, 1, ('views.num_large is 0', 'at least 1')),
    ({'loss__temperature': 0.0}, 1, ('loss.temperature is 0.0', 'above 0')),
    (
      {'loss__alpha': float('nan')},
      1,
      ('loss.alpha is nan', 'a finite number'),
    ),
    ({'queue__k': 0}, 1, ('queue.k is 0', 'at least 1')),
    ({'views__large_area': (0.1, 1.5)}, 1, ('(0.1, 1.5)', 'at most 1')),
    ({'views__small_area': (0.2, 0.1)}, 1, ('views.small_area', 'rising')),
    ({'views__aspect': (0.0, 1.0)}, 1, ('views.aspect', 'above 0')),
    ({'views__aspect': (1.0, float('inf'))}, 1, ('views.aspect', 'inf')),
    ({'views__blur_sigma': (0.1,)}, 1, ('views.blur_sigma', '(0.1,)')),
    ({'loss__stop_gradient': 'entrophy'}, 1, ("'entrophy'", "mean 'entropy'")),
    ({'encoder__stem': 'smal'}, 1, ("'smal'", "mean 'small'")),
    ({'optimizer__warmup_kind': 'sav'}, 1, ("'sav'", "mean 'swav'")),
    ({'optimizer__clip': -1.0}, 1, ('optimizer.clip is -1.0', 'at least 0')),
    (
      {'optimizer__start_learning_rate': -0.1},
      1,
      ('optimizer.start_learning_rate is -0.1', 'at least 0'),
    ),
    (
      {'optimizer__final_learning_rate': -0.1},
      1,
      ('optimizer.final_learning_rate is -0.1', 'at least 0'),
    ),
    ({'views__small_blur': 1.5}, 1, ('views.small_blur is 1.5', '0 to 1')),
    ({'views__small_solarize': -0.5}, 1, ('small_solarize is -0.5', '0 to 1')),
    ({'encoder__padding': 'valid'}, 1, ("'valid'", 'same, symmetric')),
    ({'task': 'pretrian'}, 1, ("'pretrian'", "mean 'pretrain'")),
    (
      {'loss__semantic_invariance_weight': -1.0},
      1,
      ('loss.semantic_invariance_weight is -1.0', 'at least 0'),
    ),
  ],
)
def test_refuses_in_one_line_what_cannot_work(changes, devices, words):
  with pytest.raises(UserError) as caught:
    config.validate(_with(**changes), devices)
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message


def test_relicv2_needs_no_labels():
  cfg = _with(
    labels__fraction=0.0,
    loss__alpha=0.0,
    loss__semantic_invariance_weight=0.0,
  )
  config.validate(cfg, 1)
  assert not config.uses_labels(cfg)


def test_share_without_labels_is_refused():
  cfg = _with(
    labels__fraction=0.0,
    labels__share=0.5,
    loss__alpha=0.0,
    loss__semantic_invariance_weight=0.0,
  )
  with pytest.raises(UserError, match='labels.share is 0.5'):
    config.validate(cfg, 1)


@pytest.mark.parametrize(
  'changes, semantic',
  [
    ({}, True),
    ({'loss__alpha': 0.0}, True),  # lambda_s is lambda
    (
      {'loss__alpha': 0.0, 'loss__semantic_invariance_weight': 0.0},
      False,
    ),
    (
      {
        'loss__contrastive_weight': 0.0,
        'loss__semantic_invariance_weight': 0.0,
      },
      False,
    ),
    ({'loss__alpha': 0.0, 'loss__invariance_weight': 0.0}, False),
  ],
)
def test_which_settings_need_labels(changes, semantic):
  assert semppl.uses_semantic_positives(_with(**changes)) is semantic


def test_a_misspelt_key_is_an_error():
  cfg = _valid().lock()
  with pytest.raises(AttributeError):
    cfg.loss.alhpa = 1.0


def test_parts_of_a_batch_and_profiles_are_checked():
  def refused(message, num_devices=2, **changes):
    with pytest.raises(UserError, match=message):
      config.validate(tiny.make_config(**changes), num_devices)

  refused('accumulate 3 times the 2 devices', accumulate=3)
  refused('cancel=label needs', accumulate=2, negatives__cancel='label')
  refused('min_share needs the number', accumulate=2, queue__min_share=0.5)
  refused('balance needs the votes', accumulate=2, queue__balance=0.5)
  refused('profile_steps', profile_steps=(3, 2))
  refused("precision is 'half'", precision='half')
