"""Going back after an alarm: other batches, other keys, three times at most."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import semppl_jax
from semppl_jax import checkpoint, pretraining
from semppl_jax.errors import CheckpointError
from semppl_jax.evaluation import run_network
from semppl_jax.report import run_files
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train.watchdog import AlarmError, NotFiniteError
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics, plots
from tests.helpers import tiny

_STEPS = 5  # 2 epochs of 40 images in batches of 16
_CLOCKS = ('seconds', 'images_per_second', 'evaluation_seconds')
_BACK = {'watchdog__action': 'roll_back', 'checkpoint_every_steps': 1}


@pytest.fixture(autouse=True)
def _light(monkeypatch):
  monkeypatch.setattr(step_lib, 'train_step', tiny.light_step)
  tiny.remember_steps(monkeypatch)
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)


def _run(workdir, **changes):
  cfg = tiny.make_config(num_devices=1, evaluation__probes=False, **changes)
  return pretraining.pretrain(cfg, str(workdir))


def _mark(ids):
  """A number that tells batches apart."""
  return int(np.sum(np.asarray(ids) * np.arange(1, len(ids) + 1)))


def _marks(count):
  """Those of the run's first batches, in order."""
  run = tiny.prepare(num_epochs=20.0)
  batches = run_lib.input_batches(run, 0)
  return [_mark(next(batches)[0].ids) for _ in range(count)]


def _poison(monkeypatch, marks):
  """Steps on these batches have a NaN in their loss and in what they learn."""
  original = step_lib.train_step

  def step(state, batch, key, *, setup):
    state, scalars, labels = original(state, batch, key, setup=setup)
    mark = jnp.sum(batch.ids * jnp.arange(1, len(batch.ids) + 1))
    bad = jnp.isin(mark, jnp.asarray(marks))
    spoil = lambda x: jnp.where(bad, jnp.nan, x)
    params = jax.tree.map(spoil, state.online_params)
    scalars['loss'] = spoil(scalars['loss'])
    return state._replace(online_params=params), scalars, labels

  monkeypatch.setattr(step_lib, 'train_step', step)


def _asked_for(monkeypatch, act=lambda position: None):
  """Notes the data positions of the batches that the loop takes."""
  original, taken = run_lib.input_batches, []

  def batches(run, start, tell, skipped):
    first = start + skipped
    for position, batch in enumerate(
      original(run, start, tell, skipped), start=first
    ):
      taken.append(position)
      act(position)
      yield batch

  monkeypatch.setattr(run_lib, 'input_batches', batches)
  return taken


def _outcome(workdir):
  """Arrays of the last checkpoint, and what was logged and found."""
  saver = checkpoint.Checkpointer(str(workdir), keep=3)
  arrays, info, step = saver.restore(tiny.portable(tiny.prepare()))
  saver.close()
  rows = metrics.read(str(workdir))
  results = json.loads((workdir / 'results.json').read_text())
  for row in (*rows, results, info):
    for clock in _CLOCKS:
      row.pop(clock, None)
  return arrays, (step, info, rows, results)


def test_goes_back_without_the_bad_batches(tmp_path, monkeypatch):
  marks = _marks(9)
  assert len(set(marks)) == 9
  # Alarm at step 4: step 3 made its loss, so step 2 is the last good one.
  _poison(monkeypatch, [marks[3]])
  taken = _asked_for(monkeypatch)
  results = _run(tmp_path, **_BACK)
  assert (results['step'], results['rollbacks']) == (_STEPS, 1)
  assert taken == [0, 1, 2, 3, 4] + [4, 5, 6]
  rows = metrics.read(str(tmp_path))
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  assert all(np.isfinite(row['loss']) for row in rows)
  line = (tmp_path / 'rollbacks.jsonl').read_text()
  assert json.loads(line) == {
    'step': 4,
    'back_to': 2,
    'what': 'loss is nan at step 4',
  }


class _Killed(Exception):
  pass


def test_a_run_killed_after_going_back_ends_the_same(tmp_path, monkeypatch):
  marks = _marks(9)
  # The second one comes after one good step only: back to step 2 again.
  _poison(monkeypatch, [marks[3], marks[5]])
  changes = _BACK | {'num_epochs': 2.8}  # 7 steps
  taken = _asked_for(monkeypatch)
  whole = tmp_path / 'whole'
  assert _run(whole, **changes)['rollbacks'] == 2
  assert taken == [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 8, 9, 10]

  seen = []

  def kill(position):
    seen.append(position)
    # In the first try; after the second roll-back, before it is saved.
    if len(seen) in (4, 13):
      raise _Killed

  _asked_for(monkeypatch, kill)
  broken = tmp_path / 'broken'
  for _ in range(2):
    with pytest.raises(_Killed):
      _run(broken, **changes)
  _run(broken, **changes)
  arrays, others = _outcome(broken)
  expected, expected_others = _outcome(whole)
  jax.tree.map(np.testing.assert_array_equal, arrays, expected)
  assert others == expected_others


def test_goes_back_three_times_and_stops(tmp_path, monkeypatch):
  _poison(monkeypatch, _marks(30)[1:])  # all but the first
  with pytest.raises(NotFiniteError, match='at step 1: stopped; ') as caught:
    _run(tmp_path, **_BACK)
  assert caught.value.status == 3
  assert 'there is no good checkpoint yet' in str(caught.value)
  lines = (tmp_path / 'rollbacks.jsonl').read_text().splitlines()
  assert [json.loads(line)['back_to'] for line in lines] == [0, 0, 0]
  assert not (tmp_path / 'results.json').exists()


def test_what_is_only_suspect_stays_on_disk(tmp_path):
  # Every spread is below 20. The start is over at step 5: twice the one step of
  # the warm-up and three times the patience.
  changes = {
    'num_epochs': 4.0,  # 10 steps
    'watchdog__min_spread': 20.0,
    'watchdog__patience': 1,
    'checkpoint_every_steps': 1,
    'keep_checkpoints': 9,
  }
  with pytest.raises(AlarmError, match='From step 1 to 5 .*no good') as caught:
    _run(tmp_path, **changes)
  assert caught.value.step == 5
  assert checkpoint.steps(str(tmp_path)) == [1, 2, 3, 4]
  with pytest.raises(CheckpointError, match='step 5, and has no good'):
    load_lib.load_checkpoint(tmp_path)
  assert load_lib.load_checkpoint(tmp_path, step=3).step == 3
  # The same command says so again, at once.
  with pytest.raises(AlarmError, match='From step 1 to 5 '):
    _run(tmp_path, **changes)
  # And who thinks otherwise goes on.
  assert _run(tmp_path, **changes | {'watchdog__min_spread': 0.0})['step'] == 10
  assert load_lib.load_checkpoint(tmp_path).step == 10


def test_readers_take_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
  def step(state, batch, key, *, setup):
    state, scalars, labels = tiny.light_step(state, batch, key, setup=setup)
    scalars['embedding_std'] = jnp.where(state.step < 6, 1.0, 0.0)
    return state, scalars, labels

  monkeypatch.setattr(step_lib, 'train_step', step)
  patient = {'watchdog__patience': 3, 'num_epochs': 4.0}
  with pytest.raises(AlarmError, match='From step 6 to 8 .* step 4'):
    _run(tmp_path, **patient, checkpoint_every_steps=1, keep_checkpoints=9)
  assert checkpoint.steps(str(tmp_path))[-1] == 7
  said = 'stopped by an alarm at step 8'
  found = load_lib.load_checkpoint(tmp_path)
  assert found.step == 4 and said in str(found)
  semppl_jax.load_pretrained(tmp_path)
  assert said in capsys.readouterr().err
  [files] = run_files.read([str(tmp_path)])
  assert said in str(files.stop)
  prepared = run_network.prepare(files.config)
  assert run_network.restore(prepared, files.folder).step == 4


def test_no_state_that_is_not_finite_is_saved(tmp_path, monkeypatch):
  original = step_lib.train_step

  def step(state, batch, key, *, setup):
    state, scalars, labels = original(state, batch, key, setup=setup)
    spoil = lambda x: jnp.where(state.step == 2, jnp.inf, x)
    # What no loss depends on in the next step.
    others = jax.tree.map(spoil, state.target_state)
    return state._replace(target_state=others), scalars, labels

  monkeypatch.setattr(step_lib, 'train_step', step)
  with pytest.raises(NotFiniteError, match='target_state.* after step 2'):
    _run(tmp_path, checkpoint_every_steps=1)
  assert checkpoint.steps(str(tmp_path)) == [1]


def test_another_try_has_other_keys(monkeypatch, tmp_path):
  keys = []

  def noted(state, batch, key, *, setup):
    jax.debug.callback(
      lambda k, s: keys.append((int(s), k.tolist())),
      jax.random.key_data(key),
      state.step,
    )
    return tiny.light_step(state, batch, key, setup=setup)

  monkeypatch.setattr(step_lib, 'train_step', noted)
  _poison(monkeypatch, [_marks(3)[2]])
  _run(tmp_path, **_BACK)
  jax.effects_barrier()
  # Steps 1 to 4 and again 2 to 5; callbacks may come late, in any order.
  assert sorted(step for step, _ in keys) == [0, 1, 1, 2, 2, 3, 4]
  assert len({tuple(key) for _, key in keys}) == 2
