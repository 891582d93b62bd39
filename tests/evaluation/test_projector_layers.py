"""Classifiers on a layer of the projector: fine-tuned, saved, read, exported.

As SimCLRv2 and PAWS fine-tune; on the encoder: test_classifier_step and
test_protocols. Layers themselves: test_heads.
"""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import semppl_jax
from semppl_jax import errors, types
from semppl_jax.config import eval_config
from semppl_jax.data import pipeline
from semppl_jax.distributed import parallel
from semppl_jax.evaluation import classifier_step, protocols
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.models import heads, networks
from semppl_jax.tools import convert
from semppl_jax.train import initial_weights
from semppl_jax.train import stop as stop_lib
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import files as files_lib
from semppl_jax.weights import haiku_trees
from semppl_jax.weights import load as load_lib
from tests.helpers import deepmind_files, golden, tiny

CLASSES, BATCH = 3, 8


def make_config(**changes):
  """Fine-tuning from the first layer on: 40 images of noise, 8 x 8."""
  cfg = eval_config.default()
  cfg.task = 'semi_supervised'
  cfg.progress = False
  cfg.log_every_steps = 1
  cfg.batch_size, cfg.num_epochs, cfg.num_devices = BATCH, 1.0, 1
  cfg.dataset.update(name='synthetic', num_examples=40, image_size=8)
  cfg.dataset.num_classes = CLASSES
  cfg.crops.update(size=8, center=1.0)
  cfg.evaluation.batch_size = 16
  cfg.classifier.update(on='projector/1', init='zeros')
  cfg.optimizer.update(
    name='lars', learning_rate=0.1, encoder_learning_rate=0.1,
    scaling='sqrt', nesterov=False, trust_coefficient=0.1,
  )  # fmt: skip
  cfg.grid.update(learning_rates=(), encoder_learning_rates=())
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


@pytest.fixture(scope='module')
def byols(tmp_path_factory):
  """A file with BYOL's projector of two layers."""
  path = tmp_path_factory.mktemp('byol') / 'byol.safetensors'
  return tiny.write_checkpoint(path, CLASSES)


@pytest.fixture(scope='module')
def simclrs(tmp_path_factory):
  """A file with SimCLR's projector of three layers, and no classifier."""
  nets = networks.build(
    encoder=tiny.ENCODER, stem='small', heads=heads.SimCLRProjector(3, 12, 6)
  )
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  trees = jax.eval_shape(nets.init, jax.random.key(0), images)
  shapes = [
    {m: {k: x.shape for k, x in leaves.items()} for m, leaves in tree.items()}
    for tree in trees
  ]
  params, state = golden.params(shapes[0]), golden.state(shapes[1])
  path = str(tmp_path_factory.mktemp('simclr') / 'simclr.safetensors')
  contents = files_lib.Contents(params, state, 5, 'safetensors')
  files_lib.write_safetensors(path, contents)
  return path


@pytest.fixture(scope='module')
def tuned(simclrs, tmp_path_factory):
  """A finished fine-tuning of the SimCLR file: config, folder, results."""
  workdir = tmp_path_factory.mktemp('tuned')
  cfg = make_config(checkpoint=simclrs)
  return cfg, workdir, protocols.run_task(cfg, str(workdir))


def lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def images_of(cfg):
  """The test images as the network sees them, and their labels."""
  run = setup_lib.prepare(cfg)
  test = run.data.test
  pixels = np.stack([test[i]['image'] for i in range(len(test))])
  return pixels, test.labels


def logits_of(checkpoint, pixels):
  online = jax.jit(checkpoint.network().online, static_argnums=3)
  images = pixels.astype(np.float32) / 255
  outputs, _ = online(checkpoint.params, checkpoint.state, images, False)
  return np.asarray(outputs['logits'])


# -- The update --


def first(cfg, **options):
  """Settings and first state of fine-tuning, as `fit` makes them."""
  checkpoint = load_lib.load_checkpoint(cfg.checkpoint)
  nets = setup_lib.networks_of(cfg, checkpoint)
  rates = {'learning_rate': 0.1, 'encoder_learning_rate': 0.1} | options
  hparams = classifier_step.Hyperparameters(
    tiny.frozen(cfg), nets.features, total_steps=4, warmup_steps=0, **rates
  )
  params, state = map(nets.features_tree, (checkpoint.params, checkpoint.state))
  size = params['projector/linear_0']['w'].shape[1]
  return hparams, classifier_step.init(
    hparams, params, state, embedding_size=size, num_classes=CLASSES
  )


def steps(hparams, state, number):
  """The states after each step on one device, and their metrics."""
  step = functools.partial(classifier_step.train_step, hparams=hparams)
  mapped = tiny.map_step(step, 1)
  state = parallel.put_sharded(parallel.replicate(state, 1), jax.devices()[:1])
  images = np.random.RandomState(0).uniform(size=(BATCH, 8, 8, 3)).astype('f4')
  batch = types.Batch(images, np.arange(BATCH) % CLASSES, np.arange(BATCH))
  found = []
  for _ in range(number):
    state, metrics = mapped(state, parallel.shard(batch, 1), jax.random.key(0))
    metrics = {k: float(v[0]) for k, v in metrics.items()}
    found.append((classifier_step.to_host(state), metrics))
  return found


def moved(before, after):
  """Modules with a leaf that changed."""
  return {
    module
    for module, leaves in before.items()
    if any(np.any(x != after[module][k]) for k, x in leaves.items())
  }


def test_from_zero_and_what_learns(simclrs):
  """The first loss is log K; from the second step on all below learns."""
  hparams, start = first(make_config(checkpoint=simclrs, crops__augment=False))
  projector = {m for m in start.online_params if m.startswith('projector/')}
  assert projector == {'projector/linear_0', 'projector/batch_norm_0'}
  assert not np.any(start.online_params['classifier']['w'])
  (one, metrics), (two, _) = steps(hparams, start, 2)
  assert metrics['loss'] == pytest.approx(np.log(CLASSES), rel=1e-6)
  assert metrics['learning_rate'] == pytest.approx(0.1 * BATCH**0.5)
  # Behind a classifier of zeros there is no gradient.
  assert moved(start.online_params, one.online_params) == {'classifier'}
  assert moved(one.online_params, two.online_params) == set(start.online_params)
  assert moved(one.online_state, two.online_state) == set(start.online_state)


def test_a_frozen_projector_stays_and_its_averages_move(simclrs):
  """As SimCLRv2's TF1 code: its BatchNorm sees the batch all the same."""
  cfg = make_config(
    checkpoint=simclrs, classifier__freeze_projector=True, crops__augment=False
  )
  hparams, start = first(cfg)
  *_, (last, _) = steps(hparams, start, 3)
  still = {m for m in start.online_params if m.startswith('projector/')}
  assert len(still) == 2
  everything = set(start.online_params)
  assert moved(start.online_params, last.online_params) == everything - still
  assert moved(start.online_state, last.online_state) == set(start.online_state)
  trained = jax.tree.leaves(last.opt_state)
  assert len(trained) == len(
    jax.tree.leaves({m: start.online_params[m] for m in everything - still})
  )


def test_lars_by_hand_each_part_with_its_rate(simclrs):
  """Weights move by their own length; the classifier by plain momentum."""
  cfg = make_config(checkpoint=simclrs, crops__augment=False)
  cfg.classifier.init = 'truncated_normal'
  rates = {'learning_rate': 0.2, 'encoder_learning_rate': 0.05}
  hparams, start = first(cfg, **rates)
  *states, _ = (state for state, _ in steps(hparams, start, 3))
  one, two = states
  # A weight of the projector: trust_coefficient |w| times its rate.
  name = 'projector/linear_0'
  before, after = (s.online_params[name]['w'] for s in (start, one))
  share = BATCH**0.5  # step 0 of a cosine
  assert np.linalg.norm(after - before) == pytest.approx(
    0.1 * np.linalg.norm(before) * 0.05 * share, rel=1e-4
  )
  # The bias of the classifier: m = 0.9 m + rate g, b -= m.
  grads = [_bias_gradient(hparams, s) for s in (start, one)]
  shares = [share * 0.5 * (1 + np.cos(np.pi * i / 4)) for i in (0, 1)]
  trace, b = 0.0, start.online_params['classifier']['b']
  for grad, now, state in zip(grads, shares, (one, two)):
    trace = 0.9 * trace + 0.2 * now * grad
    b = b - trace
    found = state.online_params['classifier']['b']
    np.testing.assert_allclose(found, b, rtol=1e-3, atol=1e-6)


def _bias_gradient(hparams, state):
  images = np.random.RandomState(0).uniform(size=(BATCH, 8, 8, 3)).astype('f4')
  forward = parallel.map_step(
    lambda state, images, _: (
      state, hparams.encode(
        state.online_params, state.online_state, images, True
      )[0],
    ), jax.devices()[:1], donate=False,
  )  # fmt: skip
  placed = parallel.put_sharded(parallel.replicate(state, 1), jax.devices()[:1])
  _, features = forward(placed, images[None], jax.random.key(0))
  scores = classifier_step.logits(state.online_params, np.asarray(features[0]))
  p = np.asarray(jax.nn.softmax(scores))
  return (p - np.eye(CLASSES)[np.arange(BATCH) % CLASSES]).mean(0)


# -- From end to end --


def test_the_result_says_where_the_classifier_is(tuned, simclrs):
  cfg, workdir, results = tuned
  assert results['classifier_on'] == 'projector/1'
  assert lines(workdir)[0]['loss'] == pytest.approx(np.log(CLASSES), rel=1e-6)
  found = load_lib.load_checkpoint(workdir)
  assert 'projector yes, predictor no, classifier on projector/1' in str(found)
  below = haiku_trees.encoder_part(load_lib.load_checkpoint(simclrs).params)
  assert set(found.params) == set(below) | {
    'projector/linear_0', 'projector/batch_norm_0', 'classifier'
  }  # fmt: skip
  assert found.params['classifier']['w'].shape == (12, CLASSES)
  assert found.network().features_tree(found.params).keys() == (
    set(found.params) - {'classifier'}
  )
  # What it says again is what the evaluation measured.
  pixels, labels = images_of(cfg)
  logits = logits_of(found, pixels)
  assert np.ptp(logits) > 0.01
  assert np.mean(logits.argmax(1) == labels) == results['top1']
  losses = (
    np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
  )
  assert losses.mean() == pytest.approx(results['loss'], rel=1e-5)
  again = make_config(task='classifier', checkpoint=str(workdir))
  again.classifier.on = 'encoder'  # of one that is trained
  evaluated = protocols.run_task(again, str(workdir / 'again'))
  assert evaluated['loss'] == pytest.approx(results['loss'], rel=1e-6)


def test_it_predicts_and_is_exported_like_any_other(tuned, tmp_path):
  cfg, workdir, _ = tuned
  pixels, _ = images_of(cfg)
  found = load_lib.load_checkpoint(workdir)
  wanted = logits_of(found, pixels)
  path = tmp_path / 'x.safetensors'
  convert.convert(str(workdir), str(path))
  again = load_lib.load_checkpoint(path)
  assert again.classifier_on == 'projector/1'
  assert load_lib.digest(again) == load_lib.digest(found)
  for place in (workdir, path):
    model = semppl_jax.load_pretrained(place)
    assert model.num_classes == CLASSES and model.image_size == 8
    np.testing.assert_allclose(model.logits(pixels), wanted, atol=1e-5)
    np.testing.assert_array_equal(model.predict(pixels), wanted.argmax(1))
    names = [model.class_names[i] for i in wanted.argmax(1)]
    assert model.predict_names(pixels) == names
  pickle = tmp_path / 'x.pkl'
  with pytest.raises(errors.CheckpointError, match='on projector/1') as error:
    convert.convert(str(workdir), str(pickle))
  assert '\n' not in str(error.value) and '.safetensors' in str(error.value)
  assert not pickle.exists()


def test_it_is_fine_tuned_again_and_has_no_projection(tuned, tmp_path):
  _, workdir, _ = tuned
  cfg = make_config(checkpoint=str(workdir))
  results = protocols.run_task(cfg, str(tmp_path / 'again'))
  assert results['classifier_on'] == 'projector/1'
  one, other = map(load_lib.load_checkpoint, (workdir, tmp_path / 'again'))
  assert set(one.params) == set(other.params)
  cfg.classifier.on = 'encoder'
  protocols.run_task(cfg, str(tmp_path / 'encoder'))
  found = load_lib.load_checkpoint(tmp_path / 'encoder')
  assert found.classifier_on == 'encoder'
  assert 'projector no' in str(found)
  knn = make_config(task='knn', checkpoint=str(workdir))
  knn.classifier.on = 'encoder'
  protocols.run_task(knn, str(tmp_path / 'knn'))
  knn.knn.of = 'projection'
  with pytest.raises(
    errors.CheckpointError, match='no layers after projector/1'
  ):
    protocols.run_task(knn, str(tmp_path / 'none'))


def test_training_begins_with_its_encoder_and_not_its_classifier(tuned):
  """SimCLR's first layer is as wide as the encoder: shapes would not tell."""
  _, workdir, _ = tuned
  run = tiny.prepare('simclr', init=str(workdir), encoder__stem='small')
  start = initial_weights.load(run, None)
  assert 'takes encoder; random: projector' in start.line
  assert {haiku_trees.root(m) for m in start.online[0]} == {'one_block_res_net'}
  found = load_lib.load_checkpoint(workdir)
  wide = np.zeros((16, tiny.NUM_CLASSES), np.float32)
  params = {**found.params, 'classifier': {'w': wide, 'b': wide[0]}}
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  like = jax.eval_shape(run.setup.nets.init, jax.random.key(0), images)
  take = functools.partial(
    initial_weights.take, like=like, cfg=run.cfg, class_names=(),
    target_tree=None,
  )  # fmt: skip
  fitting = take(found._replace(params=params)).line
  assert 'classifier (it is on projector/1 there' in fitting
  fitting = take(found._replace(params=params, classifier_on='encoder')).line
  assert 'takes encoder, classifier' in fitting


@pytest.mark.parametrize(
  'name, number',
  [
    ('release', 1),
    pytest.param('byol', 2, marks=pytest.mark.long),
    pytest.param('relicv2', 1, marks=pytest.mark.long),
  ],
)
def test_deepminds_files(name, number, tmp_path):
  """SemPPL's, BYOL's and ReLICv2's projector has two layers."""
  path = golden.path('release_checkpoint_tiny.pkl')
  if name != 'release':
    online = deepmind_files.trees()
    content = (
      deepmind_files.relicv2(*online) if name == 'relicv2'
      else deepmind_files.byol(online, online)
    )  # fmt: skip
    path = tmp_path / 'x.pkl'
    path.write_bytes(deepmind_files.dumps(content))
  on = f'projector/{number}'
  cfg = make_config(checkpoint=str(path), classifier__on=on, num_epochs=0.2)
  workdir = tmp_path / 'run'
  results = protocols.run_task(cfg, str(workdir))
  assert results['steps'] == 1 and results['classifier_on'] == on
  begun, found = map(load_lib.load_checkpoint, (path, workdir))
  modules = {m for m in found.params if m.startswith('projector/')}
  wanted = ['projector/linear', 'projector/batch_norm', 'projector/linear_1']
  assert modules == set(wanted[: number + 1])
  last = wanted[0] if number == 1 else wanted[-1]
  size = begun.params[last]['w'].shape[1]
  assert found.params['classifier']['w'].shape == (size, CLASSES)
  pixels, _ = images_of(cfg)
  # Fine-tuned by one step from zero, all below is the file's.
  if number == 2:
    nets = begun.network()
    trees = map(nets.target_tree, (begun.params, found.state))
    images = pixels.astype(np.float32) / 255
    outputs, _ = jax.jit(nets.target, static_argnums=3)(*trees, images, False)
    wanted = classifier_step.logits(found.params, outputs['projection'])
    np.testing.assert_allclose(logits_of(found, pixels), wanted, atol=1e-5)


def test_an_interrupted_one_goes_on_exactly(tuned, tmp_path, monkeypatch):
  cfg, whole, _ = tuned
  original = pipeline.batches

  def batches(*args, **kwargs):
    for i, item in enumerate(original(*args, **kwargs)):
      if i == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      yield item

  monkeypatch.setattr(pipeline, 'batches', batches)
  with pytest.raises(stop_lib.Interrupted):
    protocols.run_task(cfg, str(tmp_path))
  assert len(lines(tmp_path)) == 2
  monkeypatch.setattr(pipeline, 'batches', original)
  protocols.run_task(cfg, str(tmp_path))
  one, other = map(load_lib.load_checkpoint, (whole, tmp_path))
  assert load_lib.digest(one) == load_lib.digest(other)


def test_the_number_of_devices_changes_nothing(tuned, tmp_path):
  cfg, whole, _ = tuned
  cfg = cfg.copy_and_resolve_references()
  cfg.num_devices = 4
  protocols.run_task(cfg, str(tmp_path))
  losses = ([row['loss'] for row in lines(x)] for x in (whole, tmp_path))
  np.testing.assert_allclose(*losses, rtol=1e-4)


def test_linear_evaluation_of_a_layer(byols, tmp_path):
  """Nothing below the classifier moves; cached features are the same."""
  found = {}
  for features in ('online', 'cached'):
    cfg = make_config(
      task='linear', checkpoint=byols, features=features,
      crops__augment=False, optimizer__name='sgd', classifier__on='projector/2',
    )  # fmt: skip
    found[features] = protocols.run_task(cfg, str(tmp_path / features))
    last = load_lib.load_checkpoint(tmp_path / features)
    begun = load_lib.load_checkpoint(byols)
    for module in set(last.params) - {'classifier'}:
      for name, x in last.params[module].items():
        np.testing.assert_array_equal(x, begun.params[module][name])
    assert last.params['classifier']['w'].shape == (8, CLASSES)
  assert found['online']['loss'] == pytest.approx(found['cached']['loss'], 1e-5)


# -- What cannot work, and what was before --


@pytest.mark.parametrize(
  'on, words',
  [
    ('projector/4', 'has encoder, projector/1, projector/2, projector/3'),
    ('projector/0', "classifier.on is 'projector/0', which "),
    ('', "classifier.on is '', which "),
    ('predictor', 'has encoder, projector/1'),
  ],
)
def test_a_layer_that_is_not_there(on, words, simclrs, tmp_path):
  cfg = make_config(checkpoint=simclrs, classifier__on=on)
  with pytest.raises(errors.UserError) as error:
    protocols.run_task(cfg, str(tmp_path / 'work'))
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'work').exists()


def test_a_checkpoint_without_a_projector(byols, tmp_path):
  found = load_lib.load_checkpoint(byols)
  bare = found._replace(
    params=haiku_trees.encoder_part(found.params),
    state=haiku_trees.encoder_part(found.state),
  )
  path = str(tmp_path / 'bare.safetensors')
  load_lib.save_safetensors(path, bare)
  with pytest.raises(errors.UserError) as error:
    protocols.run_task(make_config(checkpoint=path), str(tmp_path / 'work'))
  assert f'{path} does not have; it has encoder.' in str(error.value)


def test_files_that_say_what_is_not_so(tuned, tmp_path):
  _, workdir, _ = tuned
  found, path = load_lib.load_checkpoint(workdir), tmp_path / 'x.safetensors'
  for on, words in (
    ('projector/2', "is on 'projector/2', but has encoder, projector/1"),
    ('encoder', 'surplus: projector/batch_norm_0/offset'),
    ('x\n', "is on 'x"),
    (3, 'its classifier_on is no text'),
  ):
    load_lib.save_safetensors(path, found._replace(classifier_on=on))
    with pytest.raises(errors.CheckpointError) as error:
      load_lib.load_checkpoint(path)
    assert words in str(error.value) and '\n' not in str(error.value)
  # Layers after the classifier's are not to be there.
  whole = {**found.params, 'projector/linear_1': {'w': np.zeros((12, 6), 'f4')}}
  load_lib.save_safetensors(path, found._replace(params=whole))
  with pytest.raises(errors.CheckpointError, match='projector/linear_1'):
    load_lib.load_checkpoint(path)


def test_a_projector_that_ends_is_told_from_one_that_was_cut():
  """SimCLR's last layer has no ReLU; BatchNorm's offset shows which it is."""
  for layers, on in ((1, 'projector/1'), (2, 'projector/1')):
    projector = heads.SimCLRProjector(layers, 5, 4)
    nets = networks.build(encoder='tiny', heads=projector)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params, _ = jax.eval_shape(nets.init, jax.random.key(0), images)
    assert len(architecture_lib.layers(params)) == layers + 1
    cut = {m: x for m, x in params.items() if not m.endswith('_1') or '~' in m}
    for tree in (params, cut):
      sizes = architecture_lib.head_sizes(tree, on)
      expected = architecture_lib.expected(
        architecture_lib.architecture(tree), sizes
      )
      assert set(expected.params) == set(cut)
      norm = expected.params['projector/batch_norm_0']
      assert ('offset' in norm) == (layers == 2)


_NEW = (
  'classifier', 'optimizer.name', 'optimizer.scaling',
  'optimizer.trust_coefficient', 'weights.classifier_on',
)  # fmt: skip


def test_an_evaluation_of_the_version_before_goes_on(
  byols, tmp_path, monkeypatch
):
  """Its config.json lacks today's settings; its optimiser's state fits."""
  cfg = make_config(checkpoint=byols)
  cfg.classifier.update(on='encoder', init='truncated_normal')
  cfg.optimizer.update(eval_config.default().optimizer)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  protocols.run_task(cfg, str(whole))
  original = pipeline.batches

  def batches(*args, **kwargs):
    for i, item in enumerate(original(*args, **kwargs)):
      if i == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      yield item

  monkeypatch.setattr(pipeline, 'batches', batches)
  with pytest.raises(stop_lib.Interrupted):
    protocols.run_task(cfg, str(parts))
  monkeypatch.setattr(pipeline, 'batches', original)
  file = parts / 'config.json'
  settings = json.loads(file.read_text())
  for key in _NEW:
    section, _, name = key.rpartition('.')
    del (settings[section] if section else settings)[name]
  file.write_text(json.dumps(settings))
  (parts / 'data.json').unlink()
  before = load_lib.load_checkpoint(parts)
  assert before.classifier_on == 'encoder' and before.step == 2
  protocols.run_task(cfg, str(parts))
  one, other = map(load_lib.load_checkpoint, (whole, parts))
  assert load_lib.digest(one) == load_lib.digest(other)
  cfg.classifier.on = 'projector/1'
  with pytest.raises(
    errors.UserError, match='classifier.on is .encoder. there'
  ):
    protocols.run_task(cfg, str(parts))
