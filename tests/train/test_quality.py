"""Quality while training: when, what it changes (nothing), what is kept."""

import json

import jax
import numpy as np
import pytest

from semppl_jax import checkpoint, load_pretrained, preflight, pretraining
from semppl_jax.config import upgrade
from semppl_jax.errors import UserError
from semppl_jax.evaluation import quality as quality_lib
from semppl_jax.train import loop, resume
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.workdir import metrics, plots, run_log
from tests.helpers import tiny

_STEPS = 10  # 4 epochs of 40 images in batches of 16
_TOP1 = 'leave_one_out_knn_top1'
_QUALITY = {_TOP1, 'rankme', 'quality_seconds'}
_CLOCKS = (
  'seconds', 'images_per_second', 'evaluation_seconds', 'quality_seconds'
)  # fmt: skip
_MEASURED = {'evaluation__every_epochs': 1.0}  # every other step
_BEST = _MEASURED | {'evaluation__keep_best': True, 'keep_checkpoints': 1}


@pytest.fixture
def light(monkeypatch):
  """Steps that compile at once; their arrays tell of all that went before."""
  monkeypatch.setattr(step_lib, 'train_step', tiny.light_step)
  tiny.remember_steps(monkeypatch)


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch):
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)


@pytest.fixture
def scripted(monkeypatch):
  """Sets what kNN gives at each measurement, by the step."""

  def use(values):
    def measure(self, state):
      return {_TOP1: values[int(state.step[0])], 'rankme': 2.0}

    monkeypatch.setattr(quality_lib.Quality, '__call__', measure)

  return use


def _run(workdir, **changes):
  settings = {'num_devices': 1, 'evaluation__probes': False, 'num_epochs': 4.0}
  return pretraining.pretrain(
    tiny.make_config(**settings | changes), str(workdir)
  )


def _arrays(workdir):
  saver = checkpoint.Checkpointer(str(workdir), keep=3)
  arrays, info, step = saver.restore(tiny.portable(tiny.prepare()))
  saver.close()
  return arrays, info, step


def _rows(workdir):
  return [
    {k: v for k, v in row.items() if k not in _CLOCKS}
    for row in metrics.read(str(workdir))
  ]


def _assert_equal_states(one, other):
  (a, _, step), (b, _, other_step) = _arrays(one), _arrays(other)
  assert step == other_step == _STEPS
  equal = lambda x, y: np.testing.assert_array_equal(x, y, strict=True)
  jax.tree.map(equal, a, b)


def test_it_changes_nothing_and_is_logged(light, tmp_path):
  usual = _run(tmp_path / 'usual', log_every_steps=3)
  measured = _run(tmp_path / 'measured', log_every_steps=3, **_MEASURED)
  _assert_equal_states(tmp_path / 'usual', tmp_path / 'measured')
  rows = {row['step']: row for row in metrics.read(str(tmp_path / 'measured'))}
  assert list(rows) == [2, 3, 4, 6, 8, 9, 10]
  for step, row in rows.items():
    assert _QUALITY & row.keys() == (set() if step % 2 else _QUALITY)
  before = {row['step']: row for row in _rows(tmp_path / 'usual')}
  assert list(before) == [3, 6, 9, 10]
  for step, row in before.items():
    found = rows[step]
    assert row == {k: found[k] for k in row}
  drop = lambda x: {k: v for k, v in x.items() if k not in _CLOCKS}
  assert drop(usual) == drop(measured)


@pytest.mark.long
def test_it_changes_nothing_of_a_real_step(tmp_path):
  """Every bit of all that trains; on two devices, too."""
  _run(tmp_path / 'usual')
  _run(tmp_path / 'measured', **_BEST)
  _assert_equal_states(tmp_path / 'usual', tmp_path / 'measured')
  _run(tmp_path / 'two', num_devices=2, **_MEASURED)
  both = [_rows(tmp_path / name) for name in ('measured', 'two')]
  for one, two in zip(*both, strict=True):
    assert (_TOP1 in one) == (_TOP1 in two) == (one['step'] % 2 == 0)


def test_every_so_many_steps_and_at_the_end():
  quality = loop.Quality(4, dict)
  due = [step for step in range(1, 11) if quality.is_due(step, 10)]
  assert due == [4, 8, 10]


def test_the_best_checkpoint_stays(light, tmp_path, scripted):
  """Of equals the later one; it is saved out of its turn."""
  scripted({2: 0.5, 4: 0.5, 6: 0.2, 8: None, 10: 0.4})
  results = _run(tmp_path, **_BEST)
  assert checkpoint.steps(str(tmp_path)) == [4, 10]
  assert (results['step'], results['best_step']) == (10, 4)
  assert results[f'best_{_TOP1}'] == 0.5
  assert load_pretrained(tmp_path).checkpoint.step == 10  # as ever
  assert load_pretrained(tmp_path, step=4).checkpoint.step == 4


def test_only_the_newest_stay_otherwise(light, tmp_path, scripted):
  scripted({2: 0.2, 4: 0.5, 6: 0.1, 8: 0.1, 10: 0.4})
  results = _run(tmp_path, keep_checkpoints=1, **_MEASURED)
  assert checkpoint.steps(str(tmp_path)) == [10]
  assert 'best_step' not in results


class _Killed(Exception):
  pass


def _killed_at(monkeypatch, steps):
  """The next run ends when it asks for the batch after so many steps."""
  original, pending = run_lib.input_batches, [True]

  def batches(run, start, *arguments):
    for number, batch in enumerate(original(run, start, *arguments), 1 + start):
      yield batch
      if number > steps and pending and pending.pop():
        raise _Killed

  monkeypatch.setattr(run_lib, 'input_batches', batches)


@pytest.mark.parametrize(
  'step', [*(pytest.param(step, marks=pytest.mark.long) for step in (3, 4)), 7]
)
def test_a_killed_run_measures_and_keeps_the_same(
  light, tmp_path, monkeypatch, step
):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  expected = _run(whole, **_BEST)
  _killed_at(monkeypatch, step)
  with pytest.raises(_Killed):
    _run(broken, **_BEST)
  found = _run(broken, **_BEST)
  _assert_equal_states(whole, broken)
  assert _rows(broken) == _rows(whole)
  assert checkpoint.steps(str(broken)) == checkpoint.steps(str(whole))
  best = [_arrays(folder)[1]['best'] for folder in (whole, broken)]
  assert best[0] == best[1] and best[0]['step'] == expected['best_step']
  drop = lambda x: {k: v for k, v in x.items() if k not in _CLOCKS}
  assert drop(found) == drop(expected)


def test_a_run_that_has_begun_may_begin_to_measure(
  light, tmp_path, monkeypatch, scripted
):
  """One of before, too, whose settings and checkpoints do not know of it."""
  scripted({2: 0.9, 4: 0.5, 6: 0.3, 8: 0.3, 10: 0.1})
  _killed_at(monkeypatch, 5)
  original = resume.History._asdict

  def of_before(history):
    return {k: x for k, x in original(history).items() if k != 'best'}

  monkeypatch.setattr(resume.History, '_asdict', of_before)
  with pytest.raises(_Killed):
    _run(tmp_path)
  monkeypatch.setattr(resume.History, '_asdict', original)
  path = tmp_path / 'config.json'
  settings = json.loads(path.read_text())
  for key in ('every_epochs', 'keep_best', 'rank_images'):
    del settings['evaluation'][key]
  path.write_text(json.dumps(settings))
  assert upgrade.upgrade(settings)['evaluation']['keep_best'] is False
  assert _run(tmp_path, **_BEST)['best_step'] == 4
  assert checkpoint.steps(str(tmp_path)) == [4, 10]


def test_a_best_one_that_is_gone_does_not_count(light, tmp_path):
  """As after a roll-back to before a better one, for which it made way."""
  saver = checkpoint.Checkpointer(str(tmp_path), keep=1)
  arrays = {'x': np.zeros(2)}
  best = {'step': 2, 'metric': _TOP1, 'value': 0.5}
  past = resume.History(best=best)
  for step, wanted in ((2, best), (3, None)):
    saver.save(step, arrays, past._asdict())
    found = resume.restore(
      saver, None, like=arrays, from_host=lambda tree: tree
    )[1]
    assert found.best == wanted
  saver.close()


def test_the_bar_goes_on_to_show_it(monkeypatch):
  cfg = tiny.make_config(log_every_steps=1)
  log = run_log.Log(None, cfg, 3, 0, lambda: 1.0, lambda *_: None)
  seen = []
  monkeypatch.setattr(
    log._bar, 'set_postfix', lambda texts, refresh: seen.append(texts)
  )
  for step in (1, 2, 3):
    log.add({'loss': np.ones(1)})
    if step == 2:
      log.attach({_TOP1: 0.875, 'rankme': 12.345, 'quality_seconds': 1.0})
  log.flush()
  texts = {'loss': '1.000', 'kNN': '87.5%', 'RankMe': '12.3'}
  assert seen == [{'loss': '1.000'}, texts, texts]


def test_what_cannot_be_kept_is_refused_before_it_begins(light, tmp_path):
  few = _BEST | {'labels__per_class': 1, 'num_devices': 1}
  for call in (
    lambda: _run(tmp_path / 'run', **few),
    lambda: preflight.check_run(tiny.make_config(**few), None),
  ):
    with pytest.raises(UserError, match='too few labels for kNN'):
      call()
  assert not (tmp_path / 'run').exists()
  with pytest.raises(UserError, match='every_epochs is 0') as error:
    tiny.prepare(evaluation__keep_best=True)
  assert '\n' not in str(error.value)
