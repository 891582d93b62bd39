"""When a run is stopped: what counts as bad, for how long, and who is told."""

import contextlib
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import digits, folder
from semppl_jax import config
from semppl_jax.methods import base, semppl
from semppl_jax.train import watchdog
from semppl_jax.workdir import stop_file

_LIMITS = types.SimpleNamespace(
  patience=3,
  loss_factor=5.0,
  min_spread=0.1,
  chance_factor=1.0,
  chance_patience=9,
  max_label_share=0.9,
  min_marginal_entropy=0.1,
  max_assignment_entropy=0.99,
)
# log 20 is 3.0.
_PROTOTYPES = base.Prototypes(20, ('more of one', 'less of another'))
_HEALTHY = {
  'loss': 1.0,
  'loss/augmentation': 1.0,
  'grad_norm': 2.0,
  'embedding_std': 0.8,
  'assignment_entropy': 1.0,
  'marginal_entropy': 2.9,
  'top_label_share': 0.3,
  'pseudo_label_share': 1.0,
  'queue_fill': 1.0,
}


def _dog(**arguments):
  return watchdog.Watchdog(
    _LIMITS,
    **{'chance': {'loss/augmentation': 2.4}, 'prototypes': _PROTOTYPES}
    | arguments,
  )


def _feed(dog, first, *steps):
  """Gives it steps, from number `first` on; each says how it is unhealthy."""
  for number, changes in enumerate(steps, start=first):
    dog.check(number, _HEALTHY | changes)


@pytest.mark.parametrize('name', ['loss', 'grad_norm'])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_what_is_not_finite_alarms_at_once(name, value):
  for dog in (_dog(), watchdog.Watchdog()):
    with pytest.raises(watchdog.NotFiniteError, match=f'{name} is') as caught:
      _feed(dog, 7, {name: value})
    # The state after step 6 made it, so the one before is the newest good one.
    assert (caught.value.step, caught.value.good) == (7, 5)


_LATE = 100  # long after the start


@pytest.mark.parametrize(
  'bad, words',
  [
    ({'loss': 5.1}, 'above 5 times its usual 1 '),
    ({'embedding_std': 0.09}, 'collapsed'),
    (
      {'marginal_entropy': 0.299},
      'marginal_entropy was below 0.3 .* 0.299.*: one prototype had taken all',
    ),
    (
      {'assignment_entropy': 2.97},
      r'assignment_entropy was above 2.97 .* is 3\).*prototypes were uniform',
    ),
    ({'loss/augmentation': 2.41}, 'could not tell .* by chance it is 2.4'),
    ({'top_label_share': 0.94}, 'pseudo-label had taken over .*94.0%'),
  ],
)
def test_what_was_healthy_alarms_after_its_patience(bad, words):
  dog = _dog(largest_class=0.3, warmup_steps=2)
  # Good after the warm-up, too; a good one starts anew.
  _feed(dog, 1, *[{}] * 8, bad, bad, {}, bad, bad)
  with pytest.raises(watchdog.AlarmError, match=words) as caught:
    _feed(dog, 14, bad)
  alarm = caught.value
  assert not isinstance(alarm, watchdog.NotFiniteError)
  assert (alarm.step, alarm.good) == (14, 10)
  assert 'From step 12 to 14 ' in str(alarm) and '\n' not in str(alarm)


_BAD_STARTS = [
  {'embedding_std': 0.0},
  {'top_label_share': 1.0},
  {'loss/augmentation': 2.5},
  {'marginal_entropy': 0.0},
  {'assignment_entropy': 3.0},
]


@pytest.mark.parametrize('bad', _BAD_STARTS)
def test_a_start_is_no_collapse(bad):
  # Twice the warm-up and 3 times the patience are over at step 109.
  dog = _dog(warmup_steps=50)
  _feed(dog, 1, *[bad] * 90, *[{}] * 3)
  with pytest.raises(watchdog.AlarmError) as caught:  # health came, and went
    _feed(dog, 94, *[bad] * 3)
  assert caught.value.step == 96


@pytest.mark.parametrize('bad', _BAD_STARTS)
def test_health_that_does_not_come_alarms(bad):
  dog = _dog(warmup_steps=10)
  _feed(dog, 1, {}, *[bad] * 27)
  with pytest.raises(watchdog.AlarmError, match='From step 2 to 29') as caught:
    _feed(dog, 29, bad)
  assert (caught.value.step, caught.value.good) == (29, 0)


@pytest.mark.parametrize('bad', _BAD_STARTS)
def test_health_by_chance_in_the_warmup_does_not_count(bad):
  _feed(_dog(warmup_steps=10), 1, *[{}] * 12, *[bad] * 16)


@pytest.mark.parametrize(
  'unknown',
  [
    {'queue_fill': 0.9},
    # No image has a pseudo-label, or all of the batch are labelled.
    {'pseudo_label_share': 0.0, 'top_label_share': 0.0},
  ],
)
def test_what_cannot_be_judged_is_neither_health_nor_its_lack(unknown):
  bad = {'top_label_share': 1.0}
  _feed(_dog(), 1, *[unknown] * 5, *[bad] * 3)
  _feed(_dog(), 1, *[bad | unknown] * 40)


def test_a_few_pseudo_labels_of_one_class_are_not_all():
  few = {'top_label_share': 1.0, 'pseudo_label_share': 0.2}
  _feed(_dog(), 1, *[few] * 40)


def test_a_loss_that_rises_in_the_warmup_is_no_explosion():
  # The invariance of an untrained network is all but perfect.
  rise = [{'loss': 0.01 * 1.2**i} for i in range(30)]
  _feed(_dog(warmup_steps=30), 1, *rise, *[{'loss': 2.0}] * 20)


@pytest.mark.parametrize(
  'fine',
  [
    {'loss': 4.9},
    {'embedding_std': 0.11},
    {'marginal_entropy': 0.3},
    {'assignment_entropy': 2.96},
    {'loss/augmentation': 2.39},
    # Of the way from 0.3 to 1: 0.93.
    {'top_label_share': 0.92},
    {'top_label_share': 1.0, 'queue_fill': 0.99},
  ],
)
def test_what_is_within_its_limits_goes_on(fine):
  _feed(_dog(largest_class=0.3), _LATE, *[{}] * 5, *[fine] * 10)


@pytest.mark.parametrize(
  'off, bad',
  [
    ({'loss_factor': 0.0}, {'loss': 1e9}),
    ({'min_spread': 0.0}, {'embedding_std': 0.0}),
    ({'chance_factor': 0.0}, {'loss/augmentation': 9.0}),
    ({'min_marginal_entropy': 0.0}, {'marginal_entropy': 0.0}),
    ({'max_assignment_entropy': 1.0}, {'assignment_entropy': 3.01}),
    ({'max_label_share': 1.0}, {'top_label_share': 1.0}),
  ],
)
def test_a_limit_can_be_switched_off(off, bad):
  limits = types.SimpleNamespace(**vars(_LIMITS) | off)
  dog = watchdog.Watchdog(
    limits, chance={'loss/augmentation': 2.4}, prototypes=_PROTOTYPES
  )
  _feed(dog, _LATE, *[{}] * 5, *[bad] * 10)


@pytest.mark.parametrize('loss, alarms', [(-1.6, False), (-1.1, True)])
def test_a_loss_below_0_explodes_by_what_is_above_its_lowest(loss, alarms):
  """Usually 0.2 above it, then 0.7 or 1.2: five times are 1.0."""
  dog = watchdog.Watchdog(_LIMITS, watched=['loss'], lowest=-2.3)
  rows = [{'loss': -2.1}] * 10 + [{'loss': loss}] * 10
  if not alarms:
    return _feed(dog, 1, *rows)
  with pytest.raises(watchdog.AlarmError, match='above -2.3, its lowest'):
    return _feed(dog, 1, *rows)


def test_a_data_set_of_one_class_has_one_pseudo_label():
  bad = {'top_label_share': 1.0}
  _feed(_dog(largest_class=1.0), _LATE, *[bad] * 10)


def test_the_usual_loss_is_that_of_the_last_hundred_steps():
  dog = _dog()
  _feed(dog, 1, *[{'loss': 100.0}] * 100, *[{}] * 51)
  with pytest.raises(watchdog.AlarmError, match='usual 1 '):
    _feed(dog, 152, *[{'loss': 6.0}] * 3)


def test_a_loss_that_begins_high_is_not_judged_by_one_step():
  _feed(_dog(), _LATE, {'loss': 0.1}, *[{'loss': 1.0}] * 10)


def test_its_memory_survives_in_json():
  bad = {'loss': 60.0}
  dog = _dog()
  _feed(dog, 1, *[{'loss': 0.1 + i / 3} for i in range(8)], {'loss': 60.0})
  other = _dog(memory=json.loads(json.dumps(dog.memory())))
  assert other.memory() == dog.memory()
  lines = []
  for one in (dog, other):
    with pytest.raises(watchdog.AlarmError) as caught:
      _feed(one, 10, bad, bad)
    lines.append(str(caught.value))
  assert lines[0] == lines[1] and 'From step 9 to 11' in lines[0]


def test_the_memory_of_an_older_version():
  memory = {'losses': [0.01] * 50, 'rows': {'spread': 9}}
  with pytest.raises(watchdog.AlarmError):
    _feed(_dog(memory=memory), _LATE, {'embedding_std': 0.0})
  # Its losses may be those of the warm-up.
  _feed(_dog(memory=memory), _LATE, *[{}] * 10)


def test_a_larger_patience_forgets_no_health():
  dog = _dog(warmup_steps=50)
  _feed(dog, 51, *[{}] * 3)
  limits = types.SimpleNamespace(**vars(_LIMITS) | {'patience': 5})
  memory = {'limits': limits, 'warmup_steps': 50, 'memory': dog.memory()}
  with pytest.raises(watchdog.AlarmError):
    _feed(watchdog.Watchdog(**memory), 54, *[{'embedding_std': 0.0}] * 5)


def test_what_a_run_does_not_train_is_not_watched():
  dog = _dog(watched=('loss',))
  bad = {key: value for each in _BAD_STARTS for key, value in each.items()}
  _feed(dog, 1, *[bad] * 40)


def test_a_method_without_prototypes_tells_nothing_of_them():
  healthy = {k: x for k, x in _HEALTHY.items() if 'entropy' not in k}
  dog = _dog(prototypes=None)
  for step in range(1, 40):
    dog.check(step, healthy)


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[1]',
    '{"step": 1}',
    '{"step": Infinity, "good": 1, "what": ""}',
    '[' * 10**5,
  ],
)
def test_a_damaged_note_of_a_stop_is_none(text, tmp_path):
  alarm = watchdog.AlarmError(8, 6, 'a\nline')
  stop_file.write(tmp_path, stop_file.Stop(alarm.step, alarm.good, alarm.what))
  stop = stop_file.read(tmp_path)
  assert stop == (8, 6, 'a line')
  assert 'suspect' in stop.note(7) and 'suspect' not in stop.note(6)
  (tmp_path / 'stopped.json').write_text(text)
  assert stop_file.read(tmp_path) is None
  stop_file.remove(tmp_path)
  stop_file.remove(tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
@pytest.mark.parametrize('on_device', [False, True])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_named(dtype, on_device, value):
  weights = np.zeros((2, 3), dtype)
  labels = np.full(3, np.iinfo(np.int32).max)
  state = {'net': {'w': weights}, 'labels': labels, 'none': np.zeros((0, 4))}
  watchdog.check_state(4, state)
  weights[1, 2] = value
  if on_device:
    state['net']['w'] = jnp.asarray(weights)
  with pytest.raises(watchdog.NotFiniteError) as caught:
    watchdog.check_state(4, state)
  assert "state['net']['w'] is not finite after step 4" in str(caught.value)
  assert (caught.value.step, caught.value.good) == (4, 3)


@pytest.mark.parametrize(
  'last_good, words', [(8, 'checkpoint is that of step 8.'), (None, 'no good')]
)
def test_the_end_names_the_last_good_checkpoint(last_good, words):
  alarm = watchdog.NotFiniteError(9, 7, 'loss is nan at step 9')
  end = watchdog.stopped(alarm, last_good, config.default())
  assert type(end) is watchdog.NotFiniteError
  assert (end.step, end.good, end.status) == (9, 7, 3)
  assert str(end).startswith('loss is nan at step 9: stopped')
  assert words in str(end) and 'smaller optimizer.learning_rate' in str(end)
  # What is on already is no advice.
  assert 'action=roll_back' in str(end)
  cfg = config.default()
  cfg.watchdog.action = 'roll_back'
  assert 'roll_back' not in str(watchdog.stopped(alarm, last_good, cfg))


def test_one_label_for_all_has_advice_of_its_own():
  cfg = config.default()

  def told():
    advice = semppl.advice(cfg)
    alarm = watchdog.AlarmError(9, 7, 'one label', 'labels', advice)
    return str(watchdog.stopped(alarm, None, cfg))

  ways = 'queue.balance=1', 'labels.share=0.25', 'queue.target_query_epochs=6'
  said = told()
  assert all(way in said for way in ways)
  cfg.queue.update(balance=0.5, target_query_epochs=3.0)
  cfg.labels.share = 0.5
  said = told()
  assert not any(way in said for way in ways)
  assert 'loss.alpha' not in said  # it is 0.2
  assert 'queue.k=5 or queue.min_share=0.5 or a smaller' in said
  cfg.loss.alpha, cfg.accumulate = 1.0, 2
  said = told()
  assert 'loss.alpha=0.2' in said and 'min_share' not in said


def test_a_loss_that_may_still_fall_can_be_given_time():
  for bad in ({'loss/augmentation': 3.0}, {'embedding_std': 0.0}):
    with pytest.raises(watchdog.AlarmError) as caught:
      _feed(_dog(advice=['nothing of the kind']), 1, *[bad] * 40)
    said = str(watchdog.stopped(caught.value, None, config.default()))
    assert ('chance_patience' in said) == ('loss/augmentation' in bad)
    assert 'nothing of the kind' not in said


def test_a_method_without_pseudo_labels_has_advice_for_what_else_collapses():
  watched = [kind for kind in watchdog.WATCHED if kind != 'labels']
  advice = [f'way {number}' for number in range(4)]
  for bad, told in (
    ({'embedding_std': 0.0}, 'way 0 or way 1 or way 2 or a smaller'),
    ({'loss/augmentation': 3.0}, 'way 0 or way 1 or a larger watchdog'),
    ({'assignment_entropy': 3.0}, 'way 0 or way 1 or way 2 or a smaller'),
    ({'marginal_entropy': 0.0}, 'more of one or less of another or a smaller'),
  ):
    with pytest.raises(watchdog.AlarmError) as caught:
      _feed(_dog(advice=advice, watched=watched), 1, *[bad] * 40)
    assert told in str(watchdog.stopped(caught.value, None, config.default()))
  # As assignments are told in a run that trains pseudo-labels, too.
  with pytest.raises(watchdog.AlarmError) as caught:
    _feed(_dog(advice=advice), 1, *[{'assignment_entropy': 3.0}] * 40)
  assert caught.value.advice == tuple(advice)


def test_an_alarm_says_its_kind():
  with pytest.raises(watchdog.AlarmError) as caught:
    _feed(_dog(), _LATE, *[{'top_label_share': 1.0}] * 3)
  assert caught.value.kind == 'labels'


@pytest.mark.parametrize('patience', [9, 45])
def test_a_loss_that_falls_slowly_has_time(patience):
  limits = types.SimpleNamespace(
    **vars(_LIMITS) | {'chance_factor': 0.93, 'chance_patience': patience}
  )
  dog = watchdog.Watchdog(limits, chance={'loss/augmentation': 1.0})
  with pytest.raises(watchdog.AlarmError, match='could not tell') as caught:
    _feed(dog, 1, *[{'loss/augmentation': 0.97}] * 60)
  assert caught.value.step == patience
  # The others wait no longer for it.
  dog = watchdog.Watchdog(limits, chance={'loss/augmentation': 1.0})
  with pytest.raises(watchdog.AlarmError, match='collapsed') as caught:
    _feed(dog, 1, *[{'embedding_std': 0.0, 'loss/augmentation': 0.97}] * 60)
  assert caught.value.step == 9


def test_folders_whose_views_are_hard_have_time():
  """Emoji whose colours change moderately: below 0.93 of chance at step 180."""
  falls = np.interp(range(1, 300), [1, 60, 180, 300], [1, 0.974, 0.931, 0.88])
  for cfg, steps in ((folder.get_config(), 299), (digits.get_config(), 110)):
    dog = watchdog.Watchdog(
      cfg.watchdog, warmup_steps=25, chance={'loss/augmentation': 1.0}
    )
    seen = 0
    with contextlib.suppress(watchdog.AlarmError):
      for seen, loss in enumerate(falls, start=1):
        dog.check(seen, _HEALTHY | {'loss/augmentation': loss})
    assert seen == steps
