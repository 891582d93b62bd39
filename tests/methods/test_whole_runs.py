"""BYOL and SimCLR from end to end: what SemPPL's runs can do, theirs can."""

import jax
import numpy as np
import pytest

import semppl_jax
from experiments import eval_knn
from semppl_jax import preflight, pretraining
from semppl_jax.config.upgrade import upgrade
from semppl_jax.errors import CheckpointError
from semppl_jax.evaluation import run_network
from semppl_jax.report import page
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import config_file, metrics
from tests.helpers import tiny

_HEADS = {
  'byol': 'projector yes, predictor yes, classifier yes',
  'simclr': 'projector yes, predictor no, classifier yes',
}


def _config(name):
  return tiny.make_config(name, num_devices=2, checkpoint_every_steps=2)


@pytest.fixture(
  scope='module',
  params=[pytest.param('byol', marks=pytest.mark.long), 'simclr'],
)
def run(request, tmp_path_factory):
  """(method, folder, results) of a run of 5 steps."""
  workdir = tmp_path_factory.mktemp(request.param)
  results = pretraining.pretrain(_config(request.param), str(workdir))
  return request.param, workdir, results


def test_it_ends_with_scores(run):
  name, workdir, results = run
  assert results['step'] == 5 and 0 <= results['knn_top1'] <= 1
  rows = metrics.read(str(workdir))
  watched = {'byol': 'loss/regression', 'simclr': 'loss/contrastive'}[name]
  for row in rows:
    assert np.isfinite([row[watched], row['embedding_std']]).all()
  begun = run_network.prepare(config_file.read(workdir))
  chance = begun.setup.method.chance  # by which the watchdog goes
  assert set(chance) == ({watched} if name == 'simclr' else set())


def test_its_network_is_at_hand_in_python(run):
  name, workdir, _ = run
  model = semppl_jax.load_pretrained(workdir)
  assert _HEADS[name] in str(model.checkpoint)
  images = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3), np.uint8)
  assert model.embed(images).shape == (3, model.embedding_size)
  assert model.predict(images).shape == (3,)
  nets, held = model.checkpoint.network(), model.checkpoint
  outputs, _ = jax.jit(nets.online, static_argnums=3)(
    held.params, held.state, model.preprocess(images), False
  )
  assert outputs['projection'].shape == (3, 8)
  assert ('prediction' in outputs) == (name == 'byol')


@pytest.mark.parametrize('ending', ['safetensors', 'pkl'])
def test_it_becomes_a_file_and_comes_back(run, ending, tmp_path):
  ours, path = load_lib.load_checkpoint(run[1]), tmp_path / f'file.{ending}'
  save = {
    'safetensors': load_lib.save_safetensors, 'pkl': load_lib.save_release,
  }[ending]  # fmt: skip
  save(path, ours)
  found = load_lib.load_checkpoint(path)
  assert load_lib.digest(found) == load_lib.digest(ours)


def test_a_part_of_a_head_that_is_missing_is_named(run, tmp_path):
  name, workdir, _ = run
  held, path = load_lib.load_checkpoint(workdir), tmp_path / 'file.safetensors'
  norm = 'projector/batch_norm' + ('_0' if name == 'simclr' else '')
  params = {k: leaves for k, leaves in held.params.items() if k != norm}
  load_lib.save_safetensors(path, held._replace(params=params))
  with pytest.raises(CheckpointError, match=f'missing: {norm}'):
    load_lib.load_checkpoint(path)


def test_its_neighbours_are_found_in_any_output_it_has(run, tmp_path):
  name, workdir, _ = run
  cfg = eval_knn.get_config('run')
  cfg.checkpoint, cfg.progress = str(workdir), False
  outputs = ['embedding', 'projection', 'prediction']
  for of in outputs[: 3 if name == 'byol' else 2]:
    cfg.knn.of = of
    found = _evaluate(cfg, tmp_path / of)
    assert 0 <= found['top1'] <= 1
  if name == 'simclr':
    cfg.knn.of = 'prediction'
    with pytest.raises(CheckpointError, match='has no predictor, but knn.of'):
      _evaluate(cfg, tmp_path / 'prediction')


def _evaluate(cfg, workdir):
  return semppl_jax.evaluate(cfg, str(workdir))


def test_it_is_reported_and_looked_at_before(run, tmp_path):
  name, workdir, _ = run
  path = page.write([str(workdir)], str(tmp_path / 'page.html'))
  with open(path) as file:
    text = file.read()
  assert 'Labelled neighbour' in text and 'settings of another' not in text
  about = {'byol': 'BYOL: Bootstrap', 'simclr': 'SimCLR, as in'}[name]
  assert f'. {about}' in text
  assert ('other view found, all images' in text) == (name == 'simclr')
  lines = preflight.check_run(_config(name), str(tmp_path / 'new'))
  assert any(line.startswith('memory: 8 images at once') for line in lines)


@pytest.mark.long
@pytest.mark.parametrize(
  'name, network',
  [
    ('swav', 'online'),
    ('dino', 'target'),
    ('mira', 'target'),
    ('suave', 'online'),
    ('daino', 'target'),
  ],
)
def test_methods_with_prototypes_end_as_their_network(name, network, tmp_path):
  workdir = tmp_path / 'run'
  results = pretraining.pretrain(_config(name), str(workdir))
  assert results['step'] == 5 and results['network'] == network
  model = semppl_jax.load_pretrained(workdir)
  held = model.checkpoint
  assert 'projector yes, predictor no, prototypes yes' in str(held)
  assert held.weights_of == network
  # What the file's heads are is seen from their weights.
  images = np.random.RandomState(0).rand(3, 8, 8, 3).astype(np.float32)
  begun = run_network.prepare(config_file.read(workdir)).setup.nets
  found, wanted = (
    jax.jit(getattr(nets, network), static_argnums=3)(
      held.params, held.state, images, False
    )[0]
    for nets in (held.network(), begun)
  )
  np.testing.assert_allclose(found['scores'], wanted['scores'], atol=1e-6)
  file = tmp_path / 'file.safetensors'
  load_lib.save_safetensors(file, held)
  again = load_lib.load_checkpoint(file)
  assert load_lib.digest(again) == load_lib.digest(held)
  rows = metrics.read(str(workdir))
  for key in ('loss/swapped', 'assignment_entropy', 'marginal_entropy'):
    assert all(0 < row[key] < 10 for row in rows)
  path = page.write([str(workdir)], str(tmp_path / 'page.html'))
  with open(path) as opened:
    text = opened.read()
  assert 'entropy of their mean' in text and 'most frequent prototype' in text


def test_settings_of_the_version_before_lack_only_what_changes_nothing():
  settings = _config('byol').to_dict()
  for key in (
    'scaling', 'rate_in_momentum', 'clip', 'warmup_kind',
    'start_learning_rate', 'final_learning_rate',
  ):  # fmt: skip
    del settings['optimizer'][key]
  for key in (
    'brightness_mode', 'small_blur', 'small_solarize', 'heads_joint',
  ):  # fmt: skip
    del settings['views'][key]
  del settings['encoder']['zero_init_residual']
  for key in ('min_marginal_entropy', 'max_assignment_entropy'):
    del settings['watchdog'][key]
  assert upgrade(settings) == _config('byol').to_dict()
