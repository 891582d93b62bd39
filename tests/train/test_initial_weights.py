"""A run that begins with a checkpoint: what it takes, and what it needs it for.

The checkpoint of most tests is of `tiny.write_checkpoint`: all modules of
tiny's SemPPL, with a classifier of three classes.
"""

import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from experiments import digits
from semppl_jax import checkpoint, preflight, pretraining
from semppl_jax.config.upgrade import upgrade
from semppl_jax.errors import UserError
from semppl_jax.models.encoders import Architecture
from semppl_jax.report import run_files, settings
from semppl_jax.train import initial_weights, resume
from semppl_jax.train import run as run_lib
from semppl_jax.train import step as step_lib
from semppl_jax.weights import haiku_trees
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics, plots
from tests.helpers import golden, tiny

_ENCODER = 'one_block_res_net'


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'begin.safetensors'
  return tiny.write_checkpoint(path, tiny.NUM_CLASSES)


def _take(found, run, **changes):
  """What a run takes of a checkpoint; `changes` are of its settings."""
  cfg = ml_collections.ConfigDict(run.cfg)
  cfg.init = 'FILE'
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
  like = jax.eval_shape(run.setup.nets.init, jax.random.key(0), images)
  has_target = run.setup.method.target_views is not None
  target_tree = run.setup.nets.target_tree if has_target else None
  names = run.data.class_names
  return initial_weights.take(found, like, cfg, names, target_tree)


def _roots(tree):
  return {haiku_trees.root(module) for module in tree}


def _assert_equal(tree, wanted):
  equal = lambda a, b: np.testing.assert_array_equal(a, b, strict=True)
  jax.tree.map(equal, dict(tree), dict(wanted))


def _with_target(found):
  """The checkpoint with a target network unlike the online one."""
  half = lambda tree: {
    module: {name: leaf / np.float32(2) for name, leaf in leaves.items()}
    for module, leaves in tree.items()
    if haiku_trees.root(module) in (_ENCODER, 'projector')
  }
  params, state = half(found.params), found.state
  state = {
    module: x for module, x in state.items() if 'predictor' not in module
  }
  return found._replace(target=(params, state))


# -- What is taken --


@pytest.mark.parametrize(
  'method, words',
  [
    (
      'semppl',
      'takes encoder, projector, predictor, classifier; target network: a copy',
    ),
    ('byol', 'takes encoder, projector, predictor, classifier; target'),
    (
      'supervised',
      'takes encoder, classifier; left: projector (this run has none), '
      'predictor (this run has none)',
    ),
  ],
)
def test_the_digits_for_every_method(method, words):
  cfg = digits.get_config(method)
  cfg.init, cfg.num_devices = 'digits', 1
  run = run_lib.prepare(cfg)
  start = initial_weights.load(run, None)
  assert words in start.line and start.fingerprint in start.line
  assert 'init: digits: digits 1x, small stem, step 703' in start.line
  found = load_lib.load_checkpoint('digits')
  assert start.fingerprint == load_lib.digest(found)
  state = state_of(run, start)
  ours = set(state.online_params)
  assert ours == {m for m in found.params if m in ours}
  _assert_equal(state.online_params, {m: found.params[m] for m in ours})


def state_of(run, start=None):
  """The state before the first step, without device axis."""
  state = run_lib.initial_state(run, start)
  return jax.tree.map(lambda x: np.asarray(x)[0], state)


def test_the_first_state_is_the_files_and_all_else_is_new(file):
  run = tiny.prepare(init=file)
  start = initial_weights.load(run, None)
  state, fresh = state_of(run, start), state_of(run)
  found = load_lib.load_checkpoint(file)
  _assert_equal(state.online_params, found.params)
  _assert_equal(state.online_state, found.state)
  for target, online in (
    (state.target_params, found.params),
    (state.target_state, found.state),
  ):
    assert _roots(target) == {_ENCODER, 'projector'}
    _assert_equal(target, {module: online[module] for module in target})
  nothing = {'online_params': {}, 'online_state': {}}
  nothing |= {'target_params': {}, 'target_state': {}}
  _assert_equal(
    state._replace(**nothing)._asdict(), fresh._replace(**nothing)._asdict()
  )
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype.name), tree)
  assert kinds(state) == kinds(fresh)


def test_heads_that_do_not_fit_are_random(file):
  """Another number of classes, another width; and both are told."""
  found = load_lib.load_checkpoint(file)
  run = tiny.prepare(dataset__num_classes=5, projector__hidden=24)
  start = _take(found, run)
  assert _roots(start.online[0]) == {_ENCODER, 'predictor'}
  assert (
    'takes encoder, predictor; random: projector (projector/linear/w is '
    '(16, 16) there and (16, 24) here), classifier (classifier/w is (16, 3) '
    'there and (16, 5) here); target network: a copy' in start.line
  )
  state, fresh = state_of(run, start), state_of(run)
  for module, leaves in state.online_params.items():
    is_taken = haiku_trees.root(module) in (_ENCODER, 'predictor')
    wanted = found.params if is_taken else fresh.online_params
    _assert_equal(leaves, wanted[module])
  _assert_equal(
    state.target_params['projector/linear'],
    fresh.target_params['projector/linear'],
  )


def test_heads_that_are_not_there_are_random(file):
  found = load_lib.load_checkpoint(file)
  bare = lambda tree: {m: x for m, x in tree.items() if _ENCODER in m}
  found = found._replace(params=bare(found.params), state=bare(found.state))
  start = _take(found, tiny.prepare())
  none = 'projector (the checkpoint has none), predictor (the checkpoint has'
  assert f'takes encoder; random: {none}' in start.line


def test_only_what_init_modules_names(file):
  found = load_lib.load_checkpoint(file)
  run = tiny.prepare()
  start = _take(found, run, init_modules='encoder, projector')
  assert _roots(start.online[0]) == _roots(start.online[1])
  assert _roots(start.online[0]) == {_ENCODER, 'projector'}
  assert 'random: predictor (init_modules does not name it)' in start.line
  # A head of another encoder's has the shape, too.
  start = _take(
    found._replace(architecture=Architecture('resnet18')),
    run,
    init_modules='classifier',
  )
  assert _roots(start.online[0]) == {'classifier'}


@pytest.mark.parametrize(
  'modules, words',
  [
    ('encoder,classifier', 'has no classifier that fits: classifier/w is '),
    ('encoder,predicter', "no module of this run; .* mean 'predictor'"),
    ('all,encoder', "'all' stands alone"),
  ],
)
def test_named_modules_must_fit(modules, words, file):
  found = load_lib.load_checkpoint(file)
  run = tiny.prepare(dataset__num_classes=5)
  with pytest.raises(UserError, match=words):
    _take(found, run, init_modules=modules)
  with pytest.raises(UserError, match="'predictor' is no module of this run"):
    _take(found, tiny.prepare('supervised'), init_modules='predictor')


def test_classes_of_other_names_are_left_unless_named(file):
  found = load_lib.load_checkpoint(file)
  run = tiny.prepare()
  same = found._replace(class_names=run.data.class_names)
  assert 'classifier' in _roots(_take(same, run).online[0])
  other = found._replace(class_names=('a', 'b', 'c'))
  start = _take(other, run)
  assert 'classifier' not in _roots(start.online[0])
  assert 'random: classifier (of other classes)' in start.line
  start = _take(other, run, init_modules='classifier')
  assert _roots(start.online[0]) == {'classifier'}


# -- Other encoders --


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {'width': 2},
      'is a one_block 2x, small stem, but the encoder is a one_block 1x, '
      'small stem: set --config.encoder.width=2.',
    ),
    (
      {'encoder': 'resnet50', 'stem': 'imagenet', 'selective_kernels': True},
      'is a ResNet-50 1x with selective kernels, but the encoder is a '
      'one_block 1x, small stem: set --config.encoder.name=resnet50 '
      '--config.encoder.stem=imagenet --config.encoder.selective_kernels=True.',
    ),
    ({'padding': 'symmetric'}, 'set --config.encoder.padding=symmetric.'),
  ],
)
def test_another_encoder_is_refused_by_name(changes, words, file):
  found = load_lib.load_checkpoint(file)
  architecture = found.architecture._replace(**changes)
  found = found._replace(architecture=architecture, says_padding=True)
  with pytest.raises(UserError) as error:
    _take(found, tiny.prepare())
  assert words in str(error.value) and '\n' not in str(error.value)


def test_a_released_file_does_not_say_its_padding():
  found = load_lib.load_checkpoint(golden.path('release_checkpoint_tiny.pkl'))
  assert not found.says_padding
  changes = {
    'encoder__name': 'tiny', 'encoder__stem': 'imagenet',
    'encoder__padding': 'symmetric',
  }  # fmt: skip
  run = tiny.prepare(**changes)
  start = _take(found, run)
  assert 'padding is symmetric here and not known there' in start.line
  assert 'tiny_res_net' in _roots(start.online[0])
  with pytest.raises(UserError, match='encoder.padding=same'):
    _take(found._replace(says_padding=True), run)


def test_other_batch_norm_is_told(file):
  found = load_lib.load_checkpoint(file)
  assert 'bn_' not in _take(found, tiny.prepare()).line
  line = _take(found._replace(bn_eps=1e-3), tiny.prepare()).line
  assert 'encoder.bn_eps is 0.001 there and 1e-05 here' in line


# -- The target network --


def test_the_target_is_the_files_where_it_has_one(file):
  found = _with_target(load_lib.load_checkpoint(file))
  run = tiny.prepare()
  start = _take(found, run)
  assert "target network: the checkpoint's" in start.line
  state = state_of(run, start)
  _assert_equal(state.online_params, found.params)
  _assert_equal(state.target_params, found.target[0])
  _assert_equal(state.target_state, found.target[1])
  # What is not taken of the online network is a copy.
  assert 'target network yes' in start.line
  start = _take(found, run, init_modules='encoder')
  state = state_of(run, start)
  assert _roots(start.target[0]) == {_ENCODER}
  projector = 'projector/linear'
  _assert_equal(state.target_params[projector], state.online_params[projector])
  start = _take(found, run, init_modules='classifier')
  assert 'target network: a copy' in start.line
  # And a run without one has none.
  start = _take(found, tiny.prepare('supervised'))
  assert start.target is None and 'target network:' not in start.line


def test_a_target_with_heads_that_no_target_has(file):
  """BYOL's files: predictor and classifier are in both networks."""
  found = load_lib.load_checkpoint(file)
  found = found._replace(target=(found.params, found.state))
  run = tiny.prepare()
  start = _take(found, run)
  assert _roots(start.target[0]) == {_ENCODER, 'projector'}
  assert 'target network: the checkpoint' in start.line
  start = _take(found, run, init_modules='predictor,classifier')
  assert 'target network: a copy' in start.line


def test_the_fingerprint_is_of_both_networks(file):
  found = load_lib.load_checkpoint(file)
  run = tiny.prepare()
  one = _take(_with_target(found), run).fingerprint
  assert one.startswith(_take(found, run).fingerprint)
  params, state = _with_target(found).target
  changed = params | {f'{_ENCODER}/~/initial_conv': {'w': np.zeros(3)}}
  two = _take(found._replace(target=(changed, state)), run).fingerprint
  assert one != two


# -- Runs --


@pytest.fixture
def light(monkeypatch):
  """A step that is compiled at once; online and target come apart."""

  def step(state, batch, key, *, setup):
    new, scalars, labels = tiny.light_step(state, batch, key, setup=setup)
    half = jax.tree.map(lambda x: x / 2, new.target_params)
    return new._replace(target_params=half), scalars, labels

  monkeypatch.setattr(step_lib, 'train_step', step)
  tiny.remember_steps(monkeypatch)
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)


def _config(init, **changes):
  changes = {'init': str(init), 'evaluation__probes': False} | changes
  return tiny.make_config(num_devices=1, **changes)


def _arrays(workdir):
  saver = checkpoint.Checkpointer(str(workdir), keep=3)
  arrays, _, step = saver.restore(tiny.portable(tiny.prepare()))
  saver.close()
  return arrays, step


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


def test_a_run_begins_with_anothers_networks(light, tmp_path):
  """Also with its target network; neither has the classifier's shape."""
  first = tmp_path / 'first'
  pretraining.pretrain(tiny.make_config(num_devices=1), str(first))
  arrays, step = _arrays(first)
  assert step == 5
  run = run_lib.prepare(_config(first))
  state = state_of(run, initial_weights.load(run, None))
  for name in (
    'online_params',
    'online_state',
    'target_params',
    'target_state',
  ):
    _assert_equal(getattr(state, name), getattr(arrays, name))
  equal = jax.tree.map(
    lambda a, b: np.array_equal(a, b), dict(state.target_params),
    {m: state.online_params[m] for m in state.target_params},
  )  # fmt: skip
  assert not any(jax.tree.leaves(equal))
  assert load_lib.load_checkpoint(first).target is None  # nobody asked


@pytest.mark.long
def test_after_its_first_checkpoint_it_does_not_need_the_file(
  light, file, tmp_path, monkeypatch
):
  copy = tmp_path / 'begin.safetensors'
  shutil.copy(file, copy)
  cfg, whole, broken = _config(copy), tmp_path / 'whole', tmp_path / 'broken'
  results = pretraining.pretrain(cfg, str(whole))
  with monkeypatch.context() as patch:
    _stops_after(patch, 4)
    with pytest.raises(_Killed):
      pretraining.pretrain(cfg, str(broken))
  assert checkpoint.steps(str(broken)) == [3]
  copy.unlink()
  assert all('init' not in x for x in preflight.check_run(cfg, str(broken)))
  pretraining.pretrain(cfg, str(broken))
  jax.tree.map(np.testing.assert_array_equal, _arrays(broken), _arrays(whole))
  losses = [[r['loss'] for r in metrics.read(str(x))] for x in (broken, whole)]
  assert losses[0] == losses[1]
  # A finished run is not touched, whatever is left of it.
  shutil.rmtree(whole / 'checkpoints')
  assert pretraining.pretrain(cfg, str(whole)) == results
  with pytest.raises(UserError, match='init is .*begin.* there and .*other'):
    pretraining.pretrain(_config(tmp_path / 'other'), str(broken))


def test_until_then_the_file_must_be_what_it_was(
  light, file, tmp_path, monkeypatch
):
  copy, workdir = tmp_path / 'begin.safetensors', tmp_path / 'run'
  shutil.copy(file, copy)
  cfg = _config(copy)
  with monkeypatch.context() as patch:
    _stops_after(patch, 2)
    with pytest.raises(_Killed):
      pretraining.pretrain(cfg, str(workdir))
  assert not checkpoint.steps(str(workdir))
  copy.unlink()
  gone = 'init: There is no checkpoint .* --workdir .*/run still needs it'
  with pytest.raises(UserError, match=gone):
    pretraining.pretrain(cfg, str(workdir))
  found = load_lib.load_checkpoint(file)
  moved = {m: dict(leaves) for m, leaves in found.params.items()}
  moved['classifier']['b'] = moved['classifier']['b'] + np.float32(1)
  load_lib.save_safetensors(copy, found._replace(params=moved))
  other = r'other weights \(\w+\) than those that --workdir .*/run was begun'
  for attempt in (pretraining.pretrain, preflight.check_run):
    with pytest.raises(UserError, match=other):
      attempt(cfg, str(workdir))
  load_lib.save_safetensors(copy, found)  # the same weights in another file
  pretraining.pretrain(cfg, str(workdir))
  whole = tmp_path / 'whole'
  pretraining.pretrain(cfg, str(whole))
  jax.tree.map(np.testing.assert_array_equal, _arrays(workdir), _arrays(whole))


def test_what_cannot_work_leaves_no_folder(tmp_path):
  workdir = tmp_path / 'run'
  with pytest.raises(UserError, match='init: There is no checkpoint'):
    pretraining.pretrain(_config(tmp_path / 'none'), str(workdir))
  assert not workdir.exists()


def test_a_state_from_before_the_first_checkpoint_has_the_weights(
  file, tmp_path
):
  """As where the watchdog takes a resumed run back to its beginning."""
  run = run_lib.prepare(_config(file))
  found = load_lib.load_checkpoint(file)
  saver = checkpoint.Checkpointer(str(tmp_path), keep=1)
  state, past = pretraining.restore_or_init(run, str(tmp_path), saver)
  saver.close()
  assert past == resume.History()
  first = jax.tree.map(lambda x: np.asarray(x)[0], state.online_params)
  _assert_equal(first, found.params)


def test_a_check_and_the_report_tell_it(light, file, tmp_path, capsys):
  cfg, workdir = _config(file), tmp_path / 'run'
  lines = preflight.check_run(cfg, str(workdir))
  [line] = [x for x in lines if x.startswith('init: ')]
  assert 'takes encoder, projector, predictor, classifier' in line
  assert not workdir.exists()
  pretraining.pretrain(cfg, str(workdir))
  assert line in capsys.readouterr().err
  said = json.loads((workdir / 'init.json').read_text())
  assert said['line'] == line and said['fingerprint'] in line
  [files] = run_files.read([str(workdir)])
  assert files.init == line
  assert line in str(settings.of_one(files))
  again = preflight.check_run(cfg, str(workdir))
  assert not [x for x in again if x.startswith('init: ')]


def test_processes_must_find_the_same_weights(file, monkeypatch):
  run = run_lib.prepare(_config(file))

  def two(value):
    return [value, 'abc'] if isinstance(value, str) else [value]

  monkeypatch.setattr(initial_weights.processes, 'allgather_json', two)
  with pytest.raises(
    UserError, match=r'in process 1 \(abc\) than in process 0'
  ):
    initial_weights.load(run, None)


def test_a_start_that_says_nothing_is_refused(file, tmp_path):
  (tmp_path / 'init.json').write_text('[1]')
  run = run_lib.prepare(_config(file))
  with pytest.raises(UserError, match='does not say which weights'):
    initial_weights.load(run, str(tmp_path))


# -- Settings --


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'init_modules': 'encoder'}, "is 'encoder', but init is empty"),
    ({'init': 'x', 'init_modules': ''}, "init_modules is ''; it must be all"),
    ({'init': 'x', 'init_modules': 'encoder,,x'}, 'it must be all'),
  ],
)
def test_settings_that_cannot_work(changes, words):
  with pytest.raises(UserError, match=words):
    tiny.prepare(**changes)


def test_a_run_of_before_began_with_random_weights():
  now = json.loads(tiny.make_config().to_json())
  before = {k: x for k, x in now.items() if not k.startswith('init')}
  assert upgrade(before) == now


def test_a_file_of_the_target_network_alone_will_do(file, tmp_path):
  path = tmp_path / 'target.safetensors'
  found = load_lib.load_checkpoint(file)
  load_lib.save_safetensors(path, found._replace(weights_of='target'))
  assert initial_weights.read(str(path)).weights_of == 'target'
