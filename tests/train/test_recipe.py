"""What experiments/folder.py leaves open is chosen, told, kept and valid."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import digits, folder
from semppl_jax import config, preflight, pretraining
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.train import pass_time, recipe
from semppl_jax.train import step as step_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import lock, plots
from tests.helpers import tiny


def make(path, side=20, colour=True, unlabelled=12, labelled=2):
  """DIR with two classes; returns its path as text."""
  random = np.random.RandomState(0)
  shape = (side, side + 4, 3) if colour else (side, side + 4)

  def save(place, count):
    (path / place).mkdir(parents=True)
    for i in range(count):
      image = random.randint(0, 256, shape).astype(np.uint8)
      Image.fromarray(image).save(path / place / f'{i}.png')

  for part, count in (('train', labelled), ('test', 3)):
    for name in ('cat', 'dog'):
      save(f'{part}/{name}', count)
  save('unlabelled', unlabelled)
  return str(path)


def settings(path, method='semppl', **changes):
  cfg = folder.get_config(method)
  cfg.dataset.path = path
  cfg.num_devices = 1
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


@pytest.fixture
def quick(monkeypatch):
  """A computer whose pass takes a tenth of a second; and no plots."""
  monkeypatch.setattr(pass_time, 'seconds_of_passes', lambda *_: 0.1)
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)


_LOOKS = [
  recipe.Look(images, labelled, 3, side, colour, masks, devices, accelerator)
  for images, labelled, side, colour, masks, devices, accelerator in (
    *itertools.product(
      (16, 520, 100_000), (3,), (6, 28, 400), (False, True), ('',), (1, 8),
      (False, True),
    ),
    (4, 4, 64, True, 'DIR/masks', 1, False),
    (2, 1, 1, True, '', 1, False),
    (2_000_000, 2_000_000, 500, True, '', 8, True),
  )
]  # fmt: skip


@pytest.mark.parametrize('method', folder.METHODS)
@pytest.mark.parametrize('seen', _LOOKS)
def test_what_is_chosen_is_valid(seen, method, quick, monkeypatch):
  monkeypatch.setattr(recipe, 'inspect', lambda *_: seen)
  cfg = recipe.complete(settings('DIR', method), None)
  assert not config.open_keys(cfg)
  config.validate(cfg, seen.devices)
  sizes = cfg.views.small_size, cfg.views.large_size
  assert 6 <= sizes[0] <= sizes[1] and cfg.dataset.image_size >= sizes[1]
  assert cfg.batch_size <= max(seen.images, 2 * seen.devices)
  if method != 'supervised':
    assert cfg.loss.num_negatives < cfg.batch_size
  assert (cfg.views.saliency > 0) == bool(cfg.dataset.masks)
  # Grey images have no hue, and a mirrored sign is another one.
  assert (cfg.views.hue > 0) == (cfg.views.flip > 0) == seen.colour
  assert (cfg.views.grayscale > 0) == (seen.colour and not seen.masks)


@pytest.mark.parametrize('seen', _LOOKS)
def test_a_student_sees_what_its_teacher_was_asked(seen, quick, monkeypatch):
  monkeypatch.setattr(recipe, 'inspect', lambda *_: seen)
  cfg = settings('DIR', 'distill', teacher__checkpoint='TEACHER')
  cfg = recipe.complete(cfg, None)
  assert not config.open_keys(cfg)
  config.validate(cfg, seen.devices)
  assert (cfg.views.num_large, cfg.views.num_small) == (1, 0)
  # By crops and flips alone: no colours, no other background.
  assert cfg.views.jitter == cfg.views.grayscale == cfg.views.saliency == 0
  assert (cfg.views.flip > 0) == seen.colour and not cfg.dataset.masks
  assert cfg.loss.labelled_weight == 0


def test_a_folders_student_needs_a_teacher(quick, monkeypatch):
  monkeypatch.setattr(recipe, 'inspect', lambda *_: _LOOKS[0])
  cfg = recipe.complete(settings('DIR', 'distill'), None)
  with pytest.raises(UserError, match="teacher.checkpoint is ''"):
    config.validate(cfg, 1)


def test_settings_of_another_method_are_refused_first(tmp_path, monkeypatch):
  monkeypatch.setattr(recipe, 'inspect', lambda *_: pytest.fail('looked'))
  cfg = settings(str(tmp_path))
  cfg.method = 'supervised'
  with pytest.raises(UserError, match="but method is 'supervised'"):
    recipe.complete(cfg, None)


def test_images_are_looked_at(tmp_path, quick, capsys):
  devices = jax.devices()[:1]
  for colour, side in ((True, 20), (False, 30)):
    path = make(tmp_path / str(side), side, colour)
    found = recipe.inspect(settings(path), devices)
    assert (found.side, found.colour) == (side, colour)
    assert (found.images, found.labelled, found.classes) == (16, 4, 2)
  cfg = recipe.complete(settings(path), None)
  assert cfg.views.large_size == 30
  said = capsys.readouterr().err
  assert 'Chosen for 16 training images in grey, 30 px, 4 of them' in said
  assert 'views.large_size=30' in said and 'must not be mirrored' in said


def test_what_is_given_stays(tmp_path, quick, capsys):
  path = make(tmp_path / 'images')
  given = {
    'views__large_size': 12, 'labels__per_class': 1, 'batch_size': 6,
    'num_epochs': 7.0, 'views__hue': 0.3,
  }  # fmt: skip
  cfg = recipe.complete(settings(path, **given), None)
  for key, value in given.items():
    assert config.look_up(cfg, key.replace('__', '.')) == value
  assert cfg.labels.fraction == 0  # one way of saying it is enough
  assert cfg.encoder.stem == 'small' and cfg.loss.num_negatives == 5
  assert cfg.negatives.cancel_after_epochs == 1.75
  assert 'hue' not in capsys.readouterr().err
  masks = recipe.complete(settings(path, dataset__masks='elsewhere'), None)
  assert masks.dataset.masks == 'elsewhere' and masks.views.saliency == 0.7
  # Nothing open: nothing happens.
  complete = digits.get_config()
  assert recipe.complete(complete, None) is complete


@pytest.mark.parametrize(
  'minutes, steps', [(0.1, 200), (10, 3923), (1000, 20_000)]
)
def test_epochs_fill_the_minutes(minutes, steps, quick, monkeypatch):
  seen = recipe.Look(520, 40, 8, 64, True, '', 1, False)
  monkeypatch.setattr(recipe, 'inspect', lambda *_: seen)
  cfg = recipe.complete(settings('DIR', minutes=float(minutes)), None)
  # (600 s - 90 s) / (1.3 x 0.1 s)
  assert cfg.num_epochs * 520 / 64 == pytest.approx(steps, rel=0.01)
  phases = cfg.queue.target_query_epochs, cfg.negatives.cancel_after_epochs
  shares = [phase / cfg.num_epochs for phase in phases]
  assert shares == pytest.approx([0.06, 0.25], rel=0.01)
  with pytest.raises(UserError, match='minutes is 0 and num_epochs is open'):
    recipe.complete(settings('DIR', minutes=0.0), None)


def test_masks_of_these_images_are_used(tmp_path, quick, monkeypatch, capsys):
  path = make(tmp_path / 'images')
  (tmp_path / 'images' / 'masks').mkdir()
  opened = []
  monkeypatch.setattr(
    recipe.masks_lib, 'Masks', lambda *arguments: opened.append(arguments)
  )
  cfg = recipe.complete(settings(path), None)
  assert cfg.dataset.masks == f'{path}/masks' and cfg.views.saliency == 0.7
  assert opened[0][0] == cfg.dataset.masks
  monkeypatch.undo()
  monkeypatch.setattr(pass_time, 'seconds_of_passes', lambda *_: 0.1)
  cfg = recipe.complete(settings(path), None)  # an empty folder has none
  assert cfg.dataset.masks == '' and cfg.views.saliency == 0
  assert 'Trained without masks' in capsys.readouterr().err


def test_a_run_keeps_what_was_chosen(tmp_path, quick, monkeypatch):
  path, workdir = make(tmp_path / 'images'), tmp_path / 'run'
  first = recipe.complete(settings(path), str(workdir))
  lock.claim(str(workdir), first.to_dict())
  # The computer has become busy, and more images are there.
  monkeypatch.setattr(pass_time, 'seconds_of_passes', lambda *_: 9.9)
  make(tmp_path / 'images' / 'unlabelled' / 'more')
  again = recipe.complete(settings(path), str(workdir))
  assert again.to_dict() == first.to_dict()
  lock.claim(str(workdir), again.to_dict())
  longer = recipe.complete(settings(path, minutes=30.0), str(workdir))
  with pytest.raises(UserError, match='other settings: minutes'):
    lock.claim(str(workdir), longer.to_dict())


def test_training_and_check_choose(tmp_path, quick, monkeypatch, capsys):
  monkeypatch.setattr(step_lib, 'train_step', tiny.light_step)
  monkeypatch.setattr(parallel, 'some_devices', lambda _: jax.devices()[:1])
  cfg = settings(make(tmp_path / 'images'), num_epochs=2.0, progress=False)
  lines = preflight.check_run(cfg, None)
  assert '4 steps of 8 images' in lines[0]
  results = pretraining.pretrain(cfg, str(tmp_path / 'run'))
  assert results['step'] == 4 and results['test_images'] == 6
  assert results['chance_top1'] == 0.5
  for name in ('baseline_pixels_top1', 'baseline_histogram_top1'):
    assert 0 <= results[name] <= 1
  kept = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert kept['views']['large_size'] == 20 and kept['batch_size'] == 8
  assert pretraining.pretrain(cfg, str(tmp_path / 'run')) == results


@pytest.mark.long
def test_images_without_any_label_are_trained_on(tmp_path, quick, monkeypatch):
  monkeypatch.setattr(step_lib, 'train_step', tiny.light_step)
  make(tmp_path / 'images', unlabelled=12)
  for part in ('train', 'test'):
    shutil.rmtree(tmp_path / 'images' / part)
  cfg = settings(str(tmp_path / 'images'), 'relicv2', num_epochs=1.0)
  results = pretraining.pretrain(cfg, str(tmp_path / 'run'))
  assert results['num_labels'] == 0 and results['step'] == 3
  cfg = settings(str(tmp_path / 'images'), num_epochs=1.0)
  with pytest.raises(UserError, match='semppl-jax select then names images'):
    pretraining.pretrain(cfg, str(tmp_path / 'other'))


def test_baselines_have_a_limit(tmp_path, quick, monkeypatch):
  monkeypatch.setattr(step_lib, 'train_step', tiny.light_step)
  limited = {'num_epochs': 1.0, 'evaluation__baseline_images': 9}
  cfg = settings(make(tmp_path / 'images'), progress=False, **limited)
  results = pretraining.pretrain(cfg, str(tmp_path / 'run'))  # 4 + 6 images
  assert results['baseline_pixels_top1'] is None
  assert results['chance_top1'] == 0.5


def test_the_encoder_is_that_of_init(tmp_path, quick, monkeypatch, capsys):
  seen = recipe.Look(520, 40, 8, 200, True, '', 1, True)
  monkeypatch.setattr(recipe, 'inspect', lambda *_: seen)
  cfg = recipe.complete(settings('DIR'), None)
  assert (cfg.encoder.name, cfg.projector.size) == ('resnet18', 128)
  file = tiny.write_checkpoint(tmp_path / 'x.safetensors', 0)
  cfg = recipe.complete(settings('DIR', init=file), None)
  assert (cfg.encoder.name, cfg.encoder.stem) == (tiny.ENCODER, 'small')
  heads = cfg.projector.hidden, cfg.projector.size, cfg.predictor.hidden
  assert heads == (16, 8, 16)
  assert (
    f'predictor.hidden=16: {file} is a one_block' in capsys.readouterr().err
  )
  given = recipe.complete(settings('DIR', init=file, projector__size=5), None)
  assert given.projector.size == 5
  # An encoder alone: heads of the usual size.
  bare = lambda tree: {m: x for m, x in tree.items() if 'one_block' in m}
  found = load_lib.load_checkpoint(file)
  found = found._replace(params=bare(found.params), state=bare(found.state))
  load_lib.save_safetensors(file, found)
  assert recipe.complete(settings('DIR', init=file), None).projector.size == 128
  # SimCLR's projector is of another kind, and its sizes are not SemPPL's.
  run = tiny.prepare('simclr')
  trees = jax.jit(run.setup.nets.init)(
    jax.random.key(0), np.zeros((2, 8, 8, 3))
  )
  params, state = jax.tree.map(np.asarray, trees)
  load_lib.save_safetensors(file, found._replace(params=params, state=state))
  cfg = recipe.complete(settings('DIR', init=file), None)
  assert (cfg.encoder.name, cfg.projector.size) == (tiny.ENCODER, 128)
  with pytest.raises(UserError, match='init: There is no checkpoint'):
    recipe.complete(settings('DIR', init='nowhere'), None)
