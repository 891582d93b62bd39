"""The loop: what a run leaves behind, stopping, resuming, refusing."""

import csv
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from semppl_jax import checkpoint, config, load_pretrained, pretraining
from semppl_jax.errors import UserError
from semppl_jax.evaluation import run_network
from semppl_jax.report import predictions
from semppl_jax.tools import convert
from semppl_jax.train import initial_weights, resume
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.train import stop as stop_lib
from semppl_jax.train.watchdog import NotFiniteError
from semppl_jax.workdir import metrics, plots
from tests.helpers import tiny
from tests.resilience import full_disk

# It compiles in half the time.
_FEW_VIEWS = {'views__num_small': 0, 'views__one_pass': True}
_STEPS = 5  # 2 epochs of 40 images in batches of 16
_CLOCKS = ('seconds', 'images_per_second', 'evaluation_seconds')


def _run(workdir, **changes):
  cfg = tiny.make_config(num_devices=1, **changes)
  return pretraining.pretrain(cfg, str(workdir))


def _final_arrays(workdir):
  run = tiny.prepare()
  like = tiny.portable(run)
  saver = checkpoint.Checkpointer(str(workdir), keep=3)
  arrays, _, step = saver.restore(like)
  saver.close()
  return arrays, step


def _without_clocks(rows):
  return [{k: v for k, v in r.items() if k not in _CLOCKS} for r in rows]


@pytest.fixture(scope='module', autouse=True)
def _traced_once():
  """Most runs here have the same settings; tracing is most of their time."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.remember_steps(patch)
    yield


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch):
  """One run draws them: `whole`, which is there before."""
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run: its folder and results."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  return workdir, _run(workdir)


def test_a_run_leaves_all_that_is_promised(whole):
  workdir, results = whole
  assert json.loads((workdir / 'results.json').read_text()) == results
  assert results['step'] == _STEPS
  assert results['num_labels'] == 4 * tiny.NUM_CLASSES
  for key in (
    'pseudo_label_accuracy', 'knn_top1', 'linear_labelled_top1',
    'linear_all_top1', 'classifier_top1',
  ):  # fmt: skip
    assert 0 <= results[key] <= 1, key
  for key in ('seconds', 'images_per_second'):
    assert results[key] > 0
  rows = metrics.read(str(workdir))
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  for row in rows:
    for key in (
      'loss', 'loss/augmentation', 'loss/semantic',
      'invariance/augmentation', 'invariance/semantic',
      'queue_fill', 'vote_share', 'positive_share', 'learning_rate',
    ):  # fmt: skip
      assert np.isfinite(row[key]), key
    assert 0 <= row['pseudo_label_accuracy'] <= 1
  assert rows[-1]['queue_fill'] > rows[0]['queue_fill'] > 0
  for plot in ('losses.png', 'pseudo_labels.png', 'tsne.png'):
    with Image.open(workdir / 'plots' / plot) as image:
      assert min(image.size) > 100
  assert any((workdir / 'tensorboard').iterdir())
  resolved = json.loads((workdir / 'config.json').read_text())
  assert resolved['loss']['num_negatives'] == 4


def test_labels_for_the_rest_are_written_at_the_end(whole, tmp_path, capsys):
  """By the queue that training left; where labels vote, and it is wanted."""
  wanted = {'evaluation__labels_csv': True, 'progress': True}
  run = tiny.prepare(**wanted)
  state = run_network.restore(run, whole[0]).state
  pretraining.finish(run, state, str(tmp_path), resume.History())
  rows = list(csv.DictReader((tmp_path / 'labels.csv').open()))
  assert [bool(row['class']) for row in rows] == [False] * 28 + [True] * 12
  shares = [float(row['share']) for row in rows[:28]]
  assert shares == sorted(shares)
  said = capsys.readouterr().err
  assert '28 images labelled by 12' in said
  summary = json.loads((tmp_path / 'labels.json').read_text())
  right = [
    int(row['pseudo_label']) == int(row['name'].split()[1]) % 3
    for row in rows[:28]
  ]
  assert summary['accuracy'] == np.mean(right)
  assert summary['chosen_by'] == 'queue'
  table = (tmp_path / 'labels.csv').read_text()
  edited = table.replace(f'{rows[0]["name"]},,', f'{rows[0]["name"]},1,', 1)
  (tmp_path / 'labels.csv').write_text(edited)
  pretraining.finish(run, state, str(tmp_path), resume.History())
  assert 'No labels.csv: ' in capsys.readouterr().err
  assert (tmp_path / 'labels.csv').read_text() == edited != table
  (tmp_path / 'labels.csv').unlink()
  nobody = run._replace(labels=np.full(40, -1, np.int32))
  for other in (tiny.prepare(), nobody):
    pretraining.finish(other, state, str(tmp_path), resume.History())
  assert not (tmp_path / 'labels.csv').exists()


def test_a_finished_run_says_so_and_is_left_alone(whole, capsys):
  workdir, results = whole
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert _run(workdir) == results
  assert f'finished, at step {_STEPS}' in capsys.readouterr().err
  assert (workdir / 'metrics.jsonl').read_bytes() == before


class _Killed(Exception):
  """What a kill looks like to the process: the end, at once."""


def _breaks_after(monkeypatch, steps, act):
  """Calls `act` once, when the loop has taken so many steps."""
  original = run_lib.input_batches
  pending = [act]

  def batches(run, start, *args):
    for number, batch in enumerate(original(run, start, *args), start=1):
      yield batch
      if number == steps and pending:
        pending.pop()()

  monkeypatch.setattr(run_lib, 'input_batches', batches)


def _assert_equals_whole(workdir, whole):
  arrays, step = _final_arrays(workdir)
  expected, expected_step = _final_arrays(whole[0])
  assert step == expected_step == _STEPS
  equal = lambda a, b: np.testing.assert_array_equal(a, b, strict=True)
  jax.tree.map(equal, arrays, expected)
  rows = [metrics.read(str(folder)) for folder in (workdir, whole[0])]
  assert _without_clocks(rows[0]) == _without_clocks(rows[1])
  results = [
    json.loads((f / 'results.json').read_text()) for f in (workdir, whole[0])
  ]
  assert _without_clocks(results)[0] == _without_clocks(results)[1]


# Checkpoints are written after steps 3 and 5. Any step could be the last.
@pytest.mark.parametrize('which', ['random', 'last'])
def test_a_killed_run_goes_on_exactly(which, whole, tmp_path, monkeypatch):
  steps = 4 if which == 'last' else int(np.random.default_rng().integers(1, 4))
  print(f'killed after step {steps}')  # shown if the test fails

  def kill():
    raise _Killed

  _breaks_after(monkeypatch, steps, kill)
  with pytest.raises(_Killed):
    _run(tmp_path)
  assert not (tmp_path / 'results.json').exists()
  _run(tmp_path)
  _assert_equals_whole(tmp_path, whole)


def test_a_clock_that_is_set_changes_nothing(whole, tmp_path, monkeypatch):
  """An hour back, a day ahead, and right again, from batch to batch."""
  clock, nanoseconds, batches = time.time, time.time_ns, run_lib.input_batches
  shift = [0]
  monkeypatch.setattr(time, 'time', lambda: clock() + shift[0])
  monkeypatch.setattr(
    time, 'time_ns', lambda: nanoseconds() + shift[0] * 1_000_000_000
  )

  def with_jumps(*args):
    for batch, jump in zip(batches(*args), itertools.cycle([86_400, 0, -3600])):
      shift[0] = jump
      yield batch

  monkeypatch.setattr(run_lib, 'input_batches', with_jumps)
  begun = time.monotonic()
  results = _run(tmp_path)
  took = time.monotonic() - begun
  # The older of two checkpoints that tomorrow made.
  os.utime(tmp_path / 'checkpoints' / '3', (clock() + 86_400,) * 2)
  _assert_equals_whole(tmp_path, whole)
  seconds = [row['seconds'] for row in metrics.read(str(tmp_path))]
  assert seconds == sorted(seconds)
  assert 0 < seconds[0] <= seconds[-1] <= results['seconds'] < took
  assert 0 < results['evaluation_seconds'] < took


def _damage_somewhere(place, seed):
  """Cuts one file of a checkpoint anywhere, or turns one bit of it around."""
  draw = random.Random(seed)
  found = [path for path in place.rglob('*') if path.is_file()]
  path = draw.choice(sorted(p for p in found if p.stat().st_size))
  raw = bytearray(path.read_bytes())
  at = draw.randrange(len(raw))
  if draw.random() < 0.5:
    what, raw = 'cut at', raw[:at]
  else:
    what, raw[at] = 'flipped at', raw[at] ^ 1 << draw.randrange(8)
  path.write_bytes(raw)
  print(f'seed {seed}: {path.relative_to(place)} {what} {at}')


def _goes_on_from_damage(whole, workdir, seed):
  """From step 5, if what is damaged says nothing, else from step 3."""
  shutil.copytree(whole[0], workdir)
  (workdir / 'results.json').unlink()
  _damage_somewhere(workdir / 'checkpoints' / '5', seed)
  _run(workdir)
  _assert_equals_whole(workdir, whole)


def test_a_damaged_checkpoint_changes_nothing(whole, tmp_path):
  seed = random.randrange(10**6)
  _goes_on_from_damage(whole, tmp_path / 'run', seed)


@pytest.mark.long
@pytest.mark.parametrize('number', range(12))
def test_many_damaged_checkpoints_change_nothing(whole, tmp_path, number):
  seed = random.randrange(10**6)
  _goes_on_from_damage(whole, tmp_path / 'run', seed)


@pytest.mark.long
def test_a_run_goes_on_after_a_full_disk(whole, tmp_path, monkeypatch):
  write, left = metrics.MetricsWriter.write, [3]

  def full(writer, step, values):
    left[0] -= 1
    if left[0]:
      return write(writer, step, values)
    room = os.path.getsize(tmp_path / 'metrics.jsonl') + 20
    with full_disk.files_of(room):  # half of the line
      return write(writer, step, values)

  monkeypatch.setattr(metrics.MetricsWriter, 'write', full)
  with pytest.raises(UserError, match='Make room, and the same command'):
    _run(tmp_path)
  assert [row['step'] for row in metrics.read(str(tmp_path))] == [1, 2]
  _run(tmp_path)
  _assert_equals_whole(tmp_path, whole)


@pytest.mark.long
@pytest.mark.parametrize('workers', [1, 2])
def test_a_killed_worker_ends_the_run_which_goes_on(
  tmp_path, monkeypatch, workers
):
  flags.FLAGS.mark_as_parsed()  # as `main` does
  settings = dict(num_epochs=24.0, evaluation__probes=False)  # 60 steps
  _run(tmp_path / 'whole', **settings)

  def kill():
    os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)

  _breaks_after(monkeypatch, 8, kill)
  settings |= dict(dataset__workers=workers)
  with pytest.raises(UserError, match='A worker process .* was killed') as e:
    _run(tmp_path / 'run', **settings)
  assert '\n' not in str(e.value)
  assert checkpoint.steps(str(tmp_path / 'run'))
  _run(tmp_path / 'run', **settings)
  rows = [metrics.read(str(tmp_path / name)) for name in ('run', 'whole')]
  assert len(rows[0]) == 60
  assert _without_clocks(rows[0]) == _without_clocks(rows[1])


@pytest.mark.parametrize(
  'number',
  [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM],
)
def test_a_signal_saves_the_step_and_stops(
  number, whole, tmp_path, monkeypatch
):
  handler = signal.getsignal(number)
  # It comes with the third batch; the second waits on the devices by then.
  _breaks_after(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
  with pytest.raises(stop_lib.Interrupted) as stopped:
    _run(tmp_path)
  assert stopped.value.code == 128 + number
  assert signal.getsignal(number) is handler
  saver = checkpoint.Checkpointer(str(tmp_path), keep=3)
  assert saver.latest_step() == 2
  saver.close()
  _run(tmp_path)
  _assert_equals_whole(tmp_path, whole)


def test_a_second_signal_stops_at_once():
  with stop_lib.StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      signal.sigtimedwait([], 0.01)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  with pytest.raises(NotFiniteError, match=r'at step [2-5]: stopped') as error:
    _run(
      tmp_path,
      optimizer__learning_rate=9e37,
      optimizer__warmup_epochs=0.0,
      checkpoint_every_steps=1,
      **_FEW_VIEWS,
    )
  assert '\n' not in str(error.value)
  step = error.value.step
  saver = checkpoint.Checkpointer(str(tmp_path), keep=3)
  # Not the one of the step before: its update made this loss.
  assert (saver.latest_step() or 0) < step - 1
  saver.close()
  assert not (tmp_path / 'results.json').exists()


def test_another_experiments_folder_is_refused(whole):
  workdir, _ = whole
  before = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
  with pytest.raises(UserError, match='loss.alpha') as error:
    _run(workdir, loss__alpha=0.7)
  assert '0.7' in str(error.value) and str(workdir) in str(error.value)
  assert before == sorted(p.name for p in (workdir / 'checkpoints').iterdir())


def test_cosmetic_settings_may_change(whole):
  workdir, results = whole
  assert _run(workdir, log_every_steps=2) == results
  assert 'log_every_steps' in config.COSMETIC


def test_relicv2_on_a_folder_without_labels(tmp_path):
  random = np.random.RandomState(0)
  images = tmp_path / 'images'
  images.mkdir()
  for i in range(20):
    pixels = random.randint(0, 256, (9 + i % 3, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(images / f'{i:02}.png')
  results = _run(
    tmp_path / 'run',
    dataset__name='folder',
    dataset__path=str(images),
    labels__per_class=0,
    loss__alpha=0.0,
    loss__semantic_invariance_weight=0.0,
    num_epochs=1.0,
    **_FEW_VIEWS,
  )
  assert results['step'] == 1
  for key in (
    'pseudo_label_accuracy', 'knn_top1', 'linear_labelled_top1',
    'linear_all_top1',
  ):  # fmt: skip
    assert results[key] is None, key
  [row] = metrics.read(str(tmp_path / 'run'))
  assert row['pseudo_label_accuracy'] is None
  assert row['queue_fill'] == 0 and row['loss'] > 0


def test_a_data_set_without_any_label_is_refused(tmp_path):
  path = tmp_path / 'data.npz'
  np.savez(
    path,
    train_images=np.zeros((20, 8, 8), np.uint8),
    train_labels=np.full(20, -1),
  )
  with pytest.raises(UserError, match='no labelled training image'):
    _run(tmp_path / 'run', dataset__name='arrays', dataset__path=str(path))
  assert not (tmp_path / 'run').exists()


def test_more_devices_than_there_are(tmp_path):
  with pytest.raises(UserError, match='num_devices is 99, but there are 8'):
    run_lib.prepare(tiny.make_config(num_devices=99))


# -- The network that is evaluated --


def _apart(state, batch, key, *, setup):
  """A step that leaves a target network unlike the online one."""
  new, scalars, labels = tiny.light_step(state, batch, key, setup=setup)
  turned = jax.tree.map(lambda x: -x, new.target_params)
  return new._replace(target_params=turned), scalars, labels


@pytest.mark.long
def test_a_run_that_reports_its_target_network(tmp_path, monkeypatch):
  """So do all that read it; a run that begins with it takes both."""
  monkeypatch.setattr(step_lib, 'train_step', _apart)
  usual = _run(tmp_path / 'online', evaluation__probes=False)
  workdir = tmp_path / 'target'
  found = _run(workdir, evaluation__probes=False, evaluation__network='target')
  assert (usual['network'], found['network']) == ('online', 'target')
  arrays, _ = _final_arrays(workdir)
  model = load_pretrained(workdir)
  jax.tree.map(
    np.testing.assert_array_equal, dict(model.params), arrays.target_params
  )
  settings = json.loads((workdir / 'config.json').read_text())
  network = run_network.restore(run_network.prepare(settings), workdir)
  said = predictions.labelled(network)
  images = np.stack([network.run.data.train[i]['image'] for i in said.rows])
  np.testing.assert_allclose(
    said.embeddings, model.embed(images), rtol=1e-4, atol=1e-5
  )
  online = load_pretrained(workdir, network='online').embed(images)
  assert np.abs(online - said.embeddings).max() > 1e-3
  run = run_lib.prepare(tiny.make_config(init=str(workdir), num_devices=1))
  start = initial_weights.load(run, None)
  for trees, name in ((start.online, 'online'), (start.target, 'target')):
    wanted = getattr(arrays, f'{name}_params')
    jax.tree.map(
      np.testing.assert_array_equal,
      dict(trees[0]),
      {module: wanted[module] for module in trees[0]},
    )
  # A file of the target network alone begins a run as any other does.
  file = tmp_path / 'target.safetensors'
  convert.convert(str(workdir), str(file))
  run = run_lib.prepare(tiny.make_config(init=str(file), num_devices=1))
  start = initial_weights.load(run, None)
  assert start.target is None
  assert start.online[0].keys() == arrays.target_params.keys()
