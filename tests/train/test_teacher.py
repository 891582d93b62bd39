"""The frozen teacher: what it sees and says, where it lies, what is refused.

The checkpoint of most tests is of `tiny.write_checkpoint`: tiny's encoder with
all heads of SemPPL's, and a classifier of three classes.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import preflight, pretraining
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.report import page
from semppl_jax.train import device_memory, initial_weights, passes
from semppl_jax.train import run as run_lib
from semppl_jax.train import teacher as teacher_lib
from semppl_jax.weights import haiku_trees
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics, plots
from tests.helpers import tiny

_EMBEDDING = 16  # of tiny's encoder


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'teacher.safetensors'
  return tiny.write_checkpoint(path, tiny.NUM_CLASSES)


def _config(method, path, **changes):
  cfg = tiny.make_config(method, num_devices=1, **changes)
  cfg.teacher.checkpoint = str(path)
  cfg.evaluation.probes = False
  if method == 'simreg':
    cfg.projector.size = changes.get('projector__size', _EMBEDDING)
  return cfg


def _load(method, path, workdir=None, **changes):
  run = run_lib.prepare(_config(method, path, **changes))
  return teacher_lib.load(run, workdir)


def _without(found, *heads):
  """A checkpoint without some heads."""
  left = lambda tree: {
    module: x
    for module, x in tree.items()
    if haiku_trees.root(module) not in heads
  }
  return found._replace(params=left(found.params), state=left(found.state))


# -- What it says --


@pytest.mark.parametrize('method', ['distill', 'simreg'])
def test_it_says_what_the_checkpoint_says_of_the_students_views(method, file):
  """In evaluation mode, of the very crops that the student sees."""
  run = run_lib.prepare(_config(method, file, batch_size=4))
  teacher = teacher_lib.load(run, None)
  setup = run.setup._replace(teacher=teacher.apply)
  batch = tiny.make_batch([-1] * 4)

  def forward():
    keys = passes.step_keys(jax.random.key(0), jnp.int32(0), (1, 4))
    first = jax.tree.map(lambda x: x[0], keys)
    views = passes.make_views(batch, first, setup)
    groups = setup.method.online_views(views)
    trees = teacher.checkpoint.params, teacher.checkpoint.state
    return groups, passes.forward_teacher(trees, groups, setup)

  mapped = jax.vmap(forward, axis_size=1, axis_name=parallel.AXIS)
  (views,), found = jax.tree.map(lambda x: x[0], mapped())
  nets, held = teacher.checkpoint.network(), teacher.checkpoint
  for view, output in zip(views, found, strict=True):
    outputs, _ = nets.online(held.params, held.state, view, False)
    name = {'distill': 'logits', 'simreg': 'embedding'}[method]
    np.testing.assert_allclose(output, outputs[name], rtol=1e-5, atol=1e-6)


def test_a_teacher_needs_no_projector(file, tmp_path):
  """As one has none that was fine-tuned."""
  found = load_lib.load_checkpoint(file)
  path = tmp_path / 'tuned.safetensors'
  load_lib.save_safetensors(path, _without(found, 'projector', 'predictor'))
  images = jnp.asarray(np.random.RandomState(0).rand(3, 8, 8, 3), jnp.float32)
  logits = []
  for one in (file, path):
    teacher = _load('distill', one)
    held = teacher.checkpoint
    logits.append(teacher.apply(held.params, held.state, images))
  np.testing.assert_array_equal(*logits)


def test_it_computes_in_the_precision_of_the_run(file):
  images = jnp.asarray(np.random.RandomState(0).rand(3, 8, 8, 3), jnp.float32)
  found = {}
  for precision in ('float32', 'bfloat16'):
    teacher = _load('simreg', file, precision=precision)
    held = teacher.checkpoint
    found[precision] = teacher.apply(held.params, held.state, images)
  assert found['bfloat16'].dtype == jnp.float32
  low, high = found['bfloat16'], found['float32']
  assert 0 < np.abs(low - high).max() < 0.05 * np.abs(high).max()


# -- What is refused --


@pytest.mark.parametrize(
  'method, classes, changes, words',
  [
    ('distill', 0, {}, "has no classifier, but method 'distill' learns its"),
    (
      'distill',
      5,
      {},
      "whose classifier has 5 classes, but dataset 'synthetic' has 3: give",
    ),
    (
      'simreg',
      0,
      {'projector__size': 8},
      'embedding has 16 numbers, but projector.size is 8: set --config.projec',
    ),
  ],
)
def test_networks_that_are_no_teacher(
  method, classes, changes, words, tmp_path
):
  path = tiny.write_checkpoint(tmp_path / 'x.safetensors', classes)
  workdir = tmp_path / 'run'
  with pytest.raises(UserError, match=words) as caught:
    pretraining.pretrain(_config(method, path, **changes), str(workdir))
  assert '\n' not in str(caught.value)
  assert not workdir.exists()
  with pytest.raises(UserError, match=words):
    preflight.check_run(_config(method, path, **changes), None)


def test_classes_of_other_names(file, tmp_path):
  found, path = load_lib.load_checkpoint(file), tmp_path / 'x.safetensors'
  names = run_lib.prepare(_config('distill', file)).data.class_names
  load_lib.save_safetensors(path, found._replace(class_names=names))
  assert _load('distill', path)
  other = (names[0], names[2], names[1])
  load_lib.save_safetensors(path, found._replace(class_names=other))
  with pytest.raises(UserError, match="a class is called '2' that is '1' in"):
    _load('distill', path)


def test_a_file_that_is_not_there(tmp_path):
  words = 'teacher.checkpoint: There is no checkpoint'
  with pytest.raises(UserError, match=words):
    _load('simreg', tmp_path / 'none')


def test_a_teacher_that_does_not_fit_beside_the_student(file, monkeypatch):
  run = run_lib.prepare(_config('distill', file))
  teacher = teacher_lib.load(run, None)
  need = teacher.need(run)
  weights = sum(
    x.nbytes
    for x in jax.tree.leaves(
      (teacher.checkpoint.params, teacher.checkpoint.state)
    )
  )
  assert need.state == weights and need.temporary > 0
  whole = []
  monkeypatch.setattr(device_memory, 'capacity', lambda _: whole[-1])
  student = jax.eval_shape(lambda: run_lib.initial_state(run))
  own = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(student))
  whole.append((own + need.total) / device_memory.USABLE + 10)
  assert teacher_lib.load(run, None)
  whole.append((own + need.total) / device_memory.USABLE - 10)
  words = 'does not fit beside the student: .* GB of weights, .* smaller teach'
  with pytest.raises(UserError, match=words) as caught:
    teacher_lib.load(run, None)
  assert '\n' not in str(caught.value)


def test_processes_must_find_the_same_teacher(file, monkeypatch):
  run = run_lib.prepare(_config('distill', file))

  def two(value):
    return [value, 'abc'] if isinstance(value, str) else [value]

  monkeypatch.setattr(initial_weights.processes, 'allgather_json', two)
  with pytest.raises(UserError, match=r'teacher.* in process 1 \(abc\) than'):
    teacher_lib.load(run, None)


# -- Runs --


@pytest.fixture(scope='module')
def run(file, tmp_path_factory):
  """A folder of a distillation whose teacher's file is gone since its start."""
  folder = tmp_path_factory.mktemp('distill')
  shutil.copy(file, folder / 'big.safetensors')
  cfg = _config('distill', folder / 'big.safetensors', labels__per_class=0)
  cfg.checkpoint_every_steps = 2
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, 'plots', lambda *_, **__: None)
    _stops_after(patch, 3)
    with pytest.raises(_Killed):
      pretraining.pretrain(cfg, str(folder / 'run'))
  (folder / 'big.safetensors').unlink()
  return folder / 'run', cfg


class _Killed(Exception):
  """The end, at once."""


def _stops_after(monkeypatch, steps):
  original = run_lib.input_batches

  def batches(run, start, *args):
    for number, batch in enumerate(original(run, start, *args), start=1):
      yield batch
      if number == steps:
        raise _Killed

  monkeypatch.setattr(run_lib, 'input_batches', batches)


def _copy(run, tmp_path):
  shutil.copytree(run[0], tmp_path / 'run')
  return tmp_path / 'run', run[1]


def test_a_run_keeps_its_teacher_and_changes_nothing_of_it(
  run, file, tmp_path, monkeypatch, capsys
):
  """Bit for bit; and its checkpoints do not repeat it."""
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)
  workdir, cfg = _copy(run, tmp_path)
  wanted = load_lib.digest(load_lib.load_checkpoint(file))
  kept = workdir / 'teacher.safetensors'
  assert load_lib.digest(load_lib.load_checkpoint(kept)) == wanted
  before = kept.read_bytes()
  lines = preflight.check_run(cfg, str(workdir))
  [line] = [x for x in lines if x.startswith('teacher: ')]
  assert wanted in line
  [memory] = [x for x in lines if x.startswith('memory: ')]
  assert ' MB the teacher' in memory
  on_devices = []
  original = teacher_lib.Teacher.on_devices

  def remembered(self, devices):
    on_devices.append(original(self, devices))
    return on_devices[-1]

  monkeypatch.setattr(teacher_lib.Teacher, 'on_devices', remembered)
  results = pretraining.pretrain(cfg, str(workdir))
  assert results['step'] == 5 and results['num_labels'] == 0
  assert line in capsys.readouterr().err
  assert kept.read_bytes() == before
  said = json.loads((workdir / 'teacher.json').read_text())
  assert said['fingerprint'] == wanted
  [trees] = on_devices
  held = load_lib.load_checkpoint(file)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x[0], y, strict=True),
    tuple(map(dict, trees)),
    (dict(held.params), dict(held.state)),
  )
  rows = metrics.read(str(workdir))
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  for row in rows:
    assert np.isfinite(row['loss/distillation'])
    assert 'loss/classifier' not in row
    # Against the truth, which the host alone knows: of the teacher.
    assert 0 <= row['pseudo_label_accuracy'] <= 1
  student = load_lib.load_checkpoint(workdir)
  assert 'projector no, predictor no, classifier yes' in str(student)
  # A finished run needs no teacher any more.
  kept.unlink()
  assert pretraining.pretrain(cfg, str(workdir)) == results
  text = page.write([str(workdir)], str(tmp_path / 'page.html'))
  with open(text) as report:
    assert 'Distillation: a student' in report.read()


def test_another_teacher_in_the_folder_is_refused(run, file, tmp_path):
  workdir, cfg = _copy(run, tmp_path)
  other = load_lib.load_checkpoint(file)
  moved = {m: dict(leaves) for m, leaves in other.params.items()}
  moved['classifier']['b'] = moved['classifier']['b'] + np.float32(1)
  kept = workdir / 'teacher.safetensors'
  load_lib.save_safetensors(kept, other._replace(params=moved))
  words = r'teacher.safetensors.*, which has other weights \(\w+\) than those'
  with pytest.raises(UserError, match=words):
    pretraining.pretrain(cfg, str(workdir))
  # Without it, the original, which must be what it was.
  kept.unlink()
  with pytest.raises(UserError, match='There is no .*run still needs it'):
    pretraining.pretrain(cfg, str(workdir))
  load_lib.save_safetensors(
    cfg.teacher.checkpoint, other._replace(params=moved)
  )
  with pytest.raises(UserError, match='big.safetensors.*, which has other wei'):
    pretraining.pretrain(cfg, str(workdir))


@pytest.mark.long
def test_a_student_of_another_encoder_by_features(file, tmp_path, monkeypatch):
  """Smaller or larger; a run that begins anew from its student."""
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)
  cfg = _config('simreg', file, encoder__name='tiny')
  results = pretraining.pretrain(cfg, str(tmp_path / 'run'))
  assert results['step'] == 5 and 0 <= results['knn_top1'] <= 1
  student = load_lib.load_checkpoint(tmp_path / 'run')
  assert student.architecture.encoder == 'tiny'
  assert 'projector yes, predictor no, classifier yes' in str(student)
  images = jnp.zeros((2, 8, 8, 3))
  outputs, _ = student.network().online(
    student.params, student.state, images, False
  )
  assert outputs['projection'].shape == (2, _EMBEDDING)
  path = tmp_path / 'student.safetensors'
  load_lib.save_safetensors(path, student)
  again = load_lib.load_checkpoint(path)
  assert load_lib.digest(again) == load_lib.digest(student)
