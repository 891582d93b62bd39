"""Every config file: valid, and special cases differ in what they say."""

import functools
import importlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import (
  cifar10,
  cifar100_suave,
  digits,
  digits_contrastive,
  digits_relicv2,
  digits_supervised,
  eval_classifier,
  eval_knn,
  eval_linear,
  eval_semi_supervised,
  folder,
  imagenet,
  imagenet_byol,
  imagenet_daino,
  imagenet_dino,
  imagenet_distill,
  imagenet_mean_shift,
  imagenet_mira,
  imagenet_paws,
  imagenet_simclr,
  imagenet_suave,
  imagenet_swav,
  stl10,
)
from semppl_jax import config, pretraining
from semppl_jax.config import eval_config
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.methods import semppl
from semppl_jax.train import run as run_lib
from semppl_jax.train import schedules, teacher
from semppl_jax.train import step as step_lib
from semppl_jax.train import support as support_lib
from semppl_jax.weights import releases
from tests.helpers import tfds_data, tiny

_FOLDER = pathlib.Path(digits.__file__).parent


@pytest.mark.parametrize(
  'name', sorted(p.stem for p in _FOLDER.glob('*.py') if p.stem[0] != '_')
)
def test_every_experiment_is_valid_on_1_and_8_devices(name):
  cfg = importlib.import_module(f'experiments.{name}').get_config()
  validate = config.validate
  if cfg.task in eval_config.TASKS + eval_config.TABLES:
    cfg.checkpoint, validate = 'some/file', eval_config.validate
  if 'teacher' in cfg:
    cfg.teacher.checkpoint = 'some/file'
  if config.open_keys(cfg):
    return  # test_recipe completes it
  for num_devices in (1, 8):
    validate(cfg, num_devices)


_EVALUATIONS = {
  'linear': eval_linear,
  'semi_supervised': eval_semi_supervised,
  'knn': eval_knn,
  'classifier': eval_classifier,
}


@pytest.mark.parametrize('task', _EVALUATIONS)
def test_variants_of_evaluations(task):
  module = _EVALUATIONS[task]
  assert set(_EVALUATIONS) == set(eval_config.TASKS)
  for variant, labels in (
    ('imagenet_1pct', (0, 'imagenet2012_subset/1pct')),
    ('imagenet_10pct', (0, 'imagenet2012_subset/10pct')),
    ('imagenet', (0, '')),
    ('digits_20', (2, '')),
    ('digits', (0, '')),
  ):
    cfg = module.get_config(variant)
    assert cfg.task == task
    assert (cfg.labels.per_class, cfg.labels.subset) == labels
  with pytest.raises(ValueError, match="'mnist'; known: imagenet, "):
    module.get_config('mnist')


@pytest.mark.parametrize('labels, epochs', [('1pct', 60), ('10pct', 30)])
def test_fine_tuning_is_simclrv2s(labels, epochs):
  """Its README's commands."""
  cfg = eval_semi_supervised.get_config(f'simclrv2_{labels}')
  cfg.checkpoint = 'some/file'
  eval_config.validate(cfg, 8)
  assert cfg.labels.subset == f'imagenet2012_subset/{labels}'
  assert (cfg.batch_size, cfg.num_epochs) == (1024, epochs)
  assert (cfg.classifier.on, cfg.classifier.init) == ('projector/1', 'zeros')
  assert not cfg.grid.learning_rates
  optimizer = cfg.optimizer
  assert optimizer.name == 'lars' and not optimizer.warmup_epochs
  rates = optimizer.learning_rate, optimizer.encoder_learning_rate
  scaled = [x * schedules.SCALINGS[optimizer.scaling](1024) for x in rates]
  assert scaled == [0.16, 0.16]


def test_linear_evaluation_is_the_releases_protocol():
  """Its configs/eval.py and its dataset.py."""
  cfg = eval_linear.get_config()
  assert (cfg.batch_size, cfg.num_epochs) == (1024, 100)
  optimizer = cfg.optimizer
  assert (optimizer.learning_rate, optimizer.warmup_epochs) == (0.3, 0)
  assert optimizer.momentum == 0.9 and optimizer.nesterov
  crops = cfg.crops
  assert crops.size == 224 and crops.center == 224 / (224 + 32)
  assert crops.area == (0.08, 1.0) and crops.aspect == (3 / 4, 4 / 3)
  assert crops.flip == 0.5 and crops.augment and cfg.features == 'online'


def _differences(one, other):
  one, other = (
    dict(config.flat(module.get_config())) for module in (one, other)
  )
  return {key for key in one if one[key] != other[key]}


def test_special_cases_differ_in_the_loss_alone():
  assert _differences(digits, digits_relicv2) <= {
    'loss.alpha', 'loss.semantic_invariance_weight',
    'negatives.cancel',  # by pseudo-labels
  }  # fmt: skip
  cfg = digits_relicv2.get_config()
  assert not semppl.uses_semantic_positives(cfg)
  assert _differences(digits_relicv2, digits_contrastive) == {
    'loss.invariance_weight'
  }
  assert semppl.uses_semantic_positives(digits.get_config())


def test_objectives_on_the_digits_share_what_is_the_engines():
  names = ('semppl', 'byol', 'simclr', 'dino', 'mira', 'supervised')
  flat = {m: dict(config.flat(digits.get_config(m))) for m in names}
  for method in names[1:]:
    shared = flat[method].keys() & flat['semppl'].keys()
    differing = {k for k in shared if flat[method][k] != flat['semppl'][k]}
    allowed = {'method'}
    if method == 'byol':  # two views, and so twice the epochs
      allowed |= {'views.num_small', 'num_epochs'}
    if method == 'simclr':  # two views in one pass, stronger colours
      differing -= {key for key in differing if key.startswith('views.')}
      allowed |= {'batch_size', 'loss.temperature', 'negatives.cancel'}
      allowed |= {'optimizer.rate_in_momentum'}  # of LARS, not of AdamW
    if method in ('dino', 'mira'):
      allowed |= {'loss.temperature', 'evaluation.network'}
      allowed |= {'optimizer.learning_rate'}
      allowed |= {'views.small_blur', 'views.small_solarize'}
    if method == 'dino':
      allowed |= {'views.one_pass', 'views.heads_joint'}
      allowed |= {'encoder.zero_init_residual'}  # of blocks that digits lack
    if method == 'supervised':  # as many steps, of labelled images alone
      allowed |= {'batch_size', 'num_epochs', 'labels.share'}
    assert differing == allowed
  with pytest.raises(ValueError, match="'byo'.* mean 'byol'"):
    digits.get_config('byo')


def test_students_of_the_digits_see_one_view_and_have_a_teacher():
  for method in ('distill', 'simreg'):
    cfg = digits.get_config(method)
    assert (cfg.views.num_large, cfg.views.num_small) == (1, 0)
    assert cfg.views.jitter == 0 and cfg.optimizer.scaling == 'linear'
    # The model that comes along fits.
    run = run_lib.prepare(cfg)
    assert teacher.load(run, None).checkpoint.step == 703


def test_supervised_has_no_other_term():
  cfg = digits_supervised.get_config()
  assert cfg.method == 'supervised' and cfg.labels.share == 1
  assert not {'loss', 'queue', 'ema', 'classifier'} & set(cfg)


def test_a_folders_rivals_differ_in_their_terms_alone():
  flat = lambda method: dict(config.flat(folder.get_config(method)))
  ours, relicv2, supervised = map(flat, folder.METHODS)
  assert {key for key in ours if ours[key] != relicv2[key]} == {
    'loss.alpha', 'loss.semantic_invariance_weight', 'negatives.cancel',
  }  # fmt: skip
  shared = ours.keys() & supervised.keys()
  differing = {key for key in shared if ours[key] != supervised[key]}
  assert not any(key.startswith(('encoder', 'optimizer')) for key in differing)
  assert {key for key in differing if key.startswith('views')} == {
    'views.num_small'
  }
  assert not semppl.uses_semantic_positives(folder.get_config('relicv2'))
  assert supervised['method'] == 'supervised'
  assert supervised['labels.share'] == 1
  with pytest.raises(ValueError, match="did you mean 'relicv2'"):
    folder.get_config('relic')


def test_imagenet_has_the_papers_setting():
  for variant in imagenet.VARIANTS:
    cfg = imagenet.get_config(variant)
    assert cfg.optimizer.name == 'lars' and cfg.dataset.name == 'imagenet2012'
    assert cfg.batch_size == 4096 and cfg.queue.capacity == 81_920
    for num_devices in (1, 8, 256):
      config.validate(cfg, num_devices)
  steps = schedules.to_steps(300, num_examples=1_281_167, batch_size=4096)
  assert steps == 93_835  # as its lab note says; the paper: 93.8k
  with pytest.raises(ValueError, match="did you mean 'resnet_50_2x_1pct'"):
    imagenet.get_config('resnet_50_2x_1')


@pytest.mark.parametrize('module', [imagenet_byol, imagenet_simclr])
def test_imagenet_of_other_methods_is_valid_at_full_size(module):
  for variant in getattr(module, 'VARIANTS', ()) or module.PRESETS:
    cfg = module.get_config(variant)
    assert cfg.optimizer.name == 'lars' and cfg.dataset.name == 'imagenet2012'
    assert cfg.batch_size == 4096 and not config.uses_labels(cfg)
    assert (cfg.views.num_large, cfg.views.num_small) == (2, 0)
    assert cfg.views.large_area == (0.08, 1.0)
    for num_devices in (1, 8, 256):
      config.validate(cfg, num_devices)
  with pytest.raises(ValueError, match='Unknown variant .*; known: '):
    module.get_config('resnet_50')


def test_swavs_settings_are_its_releases():
  for variant in imagenet_swav.VARIANTS:
    cfg = imagenet_swav.get_config(variant)
    small = variant.startswith('bs256')
    assert cfg.num_epochs == int(variant.removeprefix('bs256_'))
    assert (cfg.batch_size, cfg.queue.capacity) == (
      (256, 3840) if small else (4096, 0)
    )
    assert not config.uses_labels(cfg)
    assert not cfg.encoder.zero_init_residual
    for num_devices in (1, 8, 256):
      config.validate(cfg, num_devices)
    opt = cfg.optimizer
    rate = functools.partial(
      schedules.learning_rate,
      base=opt.learning_rate, batch_size=cfg.batch_size, total_steps=100,
      warmup_steps=int(opt.warmup_epochs), start=opt.start_learning_rate,
      final=opt.final_learning_rate, warmup_kind=opt.warmup_kind,
    )  # fmt: skip
    found = [rate(step) for step in (0, 9, 10, 100)]
    if small:
      found[1:3] = []
    wanted = (0.6, 6e-4) if small else (0.3, 4.8, 4.8, 0.0048)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
  with pytest.raises(ValueError, match='Unknown variant .*; known: '):
    imagenet_swav.get_config('300')
  steps = schedules.to_steps(400, num_examples=1_281_167, batch_size=256)
  assert steps == 2_001_823  # as its lab note says


def test_imagenet_of_methods_with_prototypes_is_as_published():
  found = {}
  for name, cfg in (
    *((v, imagenet_dino.get_config(v)) for v in imagenet_dino.VARIANTS),
    ('mira', imagenet_mira.get_config()),
  ):
    for num_devices in (1, 8):
      config.validate(cfg, num_devices)
    optimizer = cfg.optimizer
    peak = optimizer.learning_rate * cfg.batch_size / 256
    found[name] = (
      schedules.to_steps(
        cfg.num_epochs, num_examples=1_281_167, batch_size=cfg.batch_size
      ),
      optimizer.name, round(peak, 4), optimizer.clip, cfg.views.num_small,
      cfg.prototypes.number, cfg.evaluation.network,
    )  # fmt: skip
    # MIRA's own code has 0 there, DINO's torchvision's default.
    assert cfg.encoder.zero_init_residual == (name == 'mira')
    assert not config.uses_labels(cfg)
  assert found == {  # as their lab notes say
    'resnet_50': (251_209, 'lars', 4.7812, 0.0, 6, 60_000, 'target'),
    'readme_100': (250_227, 'sgd_l2', 0.06, 3.0, 8, 65_536, 'target'),
    'mira': (125_113, 'lars', 4.8, 0.0, 6, 3_000, 'target'),
  }
  with pytest.raises(ValueError, match="did you mean 'readme_100'"):
    imagenet_dino.get_config('readme')


def test_imagenet_by_mean_shift_is_as_published():
  for variant in imagenet_mean_shift.VARIANTS:
    cfg = imagenet_mean_shift.get_config(variant)
    for num_devices in (1, 8):
      config.validate(cfg, num_devices)
    labelled = variant != 'msf'
    assert config.uses_labels(cfg) == labelled
    assert (cfg.memory.k, cfg.memory.capacity) == (
      10 if labelled else 5,
      128_000,
    )
    assert cfg.loss.same_label == labelled
    kinds = {'msf': 'none', 'cmsf_10pct': 'vote', 'cmsf_10pct_head': 'head'}
    assert cfg.loss.pseudo_labels == kinds[variant]
    assert cfg.loss.min_confidence == 0.85
    assert _steps(cfg) == 1_000_911  # as its lab note says
    for step in (0, 1_000_000):
      rate = schedules.ema_rate(
        step, base=cfg.ema.base, total_steps=1_000_911,
        constant=cfg.ema.constant,
      )  # fmt: skip
      np.testing.assert_allclose(rate, 0.99, rtol=1e-6)
  with pytest.raises(ValueError, match="did you mean 'cmsf_10pct'"):
    imagenet_mean_shift.get_config('cmsf_10')


def test_mean_shift_on_the_digits_votes_as_semppl_does():
  cfg, semppls = digits.get_config('mean_shift'), digits.get_config()
  for key in ('capacity', 'k', 'min_share', 'balance'):
    assert cfg.queue[key] == semppls.queue[key]
  byols = digits.get_config('byol')
  assert cfg.num_epochs == byols.num_epochs
  for key in ('num_large', 'num_small', 'large_size', 'large_area'):
    assert cfg.views[key] == byols.views[key]
  assert cfg.batch_size == semppls.batch_size
  for key in ('projector', 'predictor', 'encoder', 'labels'):
    assert cfg[key] == semppls[key]
  assert cfg.memory.capacity < 1500
  free = digits.get_config('mean_shift')
  free.loss.update(same_label=False, pseudo_labels='none')
  config.validate(free, 8)


def _steps(cfg, images=1_281_167):
  return schedules.to_steps(
    cfg.num_epochs, num_examples=images, batch_size=cfg.batch_size
  )


@pytest.mark.parametrize('labels', ['1pct', '10pct'])
def test_imagenet_with_labels_beside_the_batch_is_as_published(labels):
  suave = imagenet_suave.get_config(labels)
  tuned = imagenet_suave.get_config(f'finetune_{labels}')
  daino = imagenet_daino.get_config(labels)
  for cfg in (suave, tuned, daino):
    for num_devices in (1, 8):
      config.validate(cfg, num_devices)
    assert cfg.labels.subset == f'imagenet2012_subset/{labels}'
    assert cfg.prototypes.number == 0 and cfg.views.num_large == 2
  assert (suave.batch_size, suave.support.images) == (256, 128)
  assert (daino.batch_size, daino.support.images) == (1024, 512)
  assert suave.views.num_small == daino.views.num_small == 8
  assert suave.init_modules == daino.init_modules == 'encoder'
  assert suave.queue.capacity == 3840 and not suave.queue.start_epoch
  # As their lab notes say.
  assert (_steps(suave), _steps(daino)) == (500_455, 75_068)
  few = labels == '1pct'
  assert tuned.num_epochs == (3 if few else 5)
  assert tuned.loss.smoothing == (0.01 if few else 0.001)
  rates = tuned.optimizer.learning_rate, tuned.optimizer.final_learning_rate
  np.testing.assert_allclose(rates, (0.02, 2e-4) if few else (0.03, 3e-4))
  assert tuned.views.num_small == tuned.views.jitter == 0
  assert tuned.init_modules == 'all'


@pytest.mark.parametrize('variant', imagenet_paws.VARIANTS)
def test_pawss_settings_are_its_releases(variant):
  """Its configs/paws/imgnt_train.yaml, over its 64 devices."""
  cfg = imagenet_paws.get_config(variant)
  for num_devices in (1, 8, 64):
    config.validate(cfg, num_devices)
  labels, _, epochs = variant.partition('_')
  assert cfg.labels.subset == f'imagenet2012_subset/{labels}'
  assert cfg.num_epochs == int(epochs or 100)
  wanted = {100: 31_278, 200: 62_556, 300: 93_835}  # as its lab note says
  assert _steps(cfg) == wanted[cfg.num_epochs]
  assert cfg.batch_size == 64 * 64 and config.support_size(cfg) == 64 * 15 * 7
  assert (cfg.views.num_large, cfg.views.num_small) == (2, 6)
  # Labelled images are augmented as large views are.
  views = support_lib.view_settings(cfg)
  for key in set(cfg.views) - {'num_large', 'num_small'}:
    own = cfg.views[key] if key != 'saliency' else 0.0
    assert views[key] == own, key
  opt = cfg.optimizer
  rates = [
    16 * rate
    for rate in (
      opt.start_learning_rate, opt.learning_rate, opt.final_learning_rate,
    )
  ]  # fmt: skip
  np.testing.assert_allclose(rates, [0.3, 6.4, 0.064])
  assert (opt.name, opt.rate_in_momentum) == ('lars', True)
  if variant == '10pct':
    with pytest.raises(ValueError, match="did you mean '10pct_300'"):
      imagenet_paws.get_config('10pc_300')


def test_digits_show_paws_every_label():
  cfg = digits.get_config('paws')
  for num_devices in (1, 2, 4):
    config.validate(cfg, num_devices)
  assert config.support_size(cfg) == 20


def test_unknown_variants_of_suave_name_the_nearest():
  for module, variant, nearest in (
    (imagenet_suave, 'finetune_1pc', 'finetune_1pct'),
    (imagenet_daino, '10pc', '10pct'),
    (cifar100_suave, 'swaw', 'swav'),
  ):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
      module.get_config(variant)


def test_cifar_100_without_labels_comes_before():
  with_labels = cifar100_suave.get_config()
  before = cifar100_suave.get_config('swav')
  for num_devices in (1, 8):
    config.validate(before, num_devices)
  assert not config.uses_labels(before)
  for key in ('name', 'stem', 'width', 'padding'):
    assert with_labels.encoder[key] == before.encoder[key]
  # As its lab note says.
  assert (_steps(before, 50_000), _steps(with_labels, 50_000)) == (
    39_062, 19_531,
  )  # fmt: skip


def test_imagenets_students():
  found = {}
  for variant in imagenet_distill.VARIANTS:
    cfg = imagenet_distill.get_config(variant)
    encoder = cfg.encoder
    found[variant] = (
      encoder.name, encoder.width, encoder.selective_kernels,
      cfg.loss.temperature,
    )  # fmt: skip
    assert cfg.batch_size == 4096 and not config.uses_labels(cfg)
    assert (cfg.views.num_large, cfg.views.large_area) == (1, (0.08, 1.0))
    with pytest.raises(UserError, match=r'checkpoint is .., but method'):
      config.validate(cfg, 8)
  assert found == {
    'resnet_50_1x': ('resnet50', 1, False, 1.0),
    'sk_resnet_50_2x': ('resnet50', 2, True, 1.0),
    'sk_resnet_152_3x': ('resnet152', 3, True, 0.1),  # itself
  }
  with pytest.raises(ValueError, match='Unknown variant .*; known: '):
    imagenet_distill.get_config('resnet_50')
  steps = schedules.to_steps(400, num_examples=1_281_167, batch_size=4096)
  assert steps == 125_113  # as its lab note says


def test_simclrs_networks_are_its_releases():
  nets = {}
  for variant in imagenet_simclr.VARIANTS:
    cfg = imagenet_simclr.get_config(variant)
    assert cfg.encoder.padding == 'symmetric'
    encoder = cfg.encoder
    nets[variant] = encoder.name, encoder.width, encoder.selective_kernels
    rate = cfg.optimizer.learning_rate, cfg.optimizer.warmup_epochs
    short = variant == 'readme_100'
    assert rate == ((0.075, 10) if short else (0.1, 40))
    assert cfg.num_epochs == (100 if short else 800)
  assert nets == {
    'resnet_50_1x': ('resnet50', 1, False),
    'sk_resnet_50_1x': ('resnet50', 1, True),
    'sk_resnet_50_2x': ('resnet50', 2, True),
    'sk_resnet_152_3x': ('resnet152', 3, True),
    'readme_100': ('resnet50', 1, False),
  }


def test_one_variant_for_each_of_semppls_released_checkpoints():
  found = set()
  for variant in imagenet.VARIANTS:
    cfg = imagenet.get_config(variant)
    labels = cfg.labels.subset.removeprefix('imagenet2012_subset/')
    net = cfg.encoder
    found.add((net.name, net.width, net.selective_kernels, labels))
  wanted = {
    (
      entry['encoder'], entry['width'], entry['selective_kernels'],
      entry['labels'].replace('%', 'pct'),
    )
    for entry in releases.manifest()
    if entry['method'] == 'semppl'
  }  # fmt: skip
  assert found == wanted and len(found) == 14


@pytest.mark.parametrize(
  'name, splits, module, changes',
  [
    ('cifar10', {'train': range(10), 'test': range(4)}, cifar10, {}),
    (
      'stl10',
      {'train': range(10), 'test': range(4), 'unlabelled': [-1] * 20},
      stl10,
      {'views.large_size': 32, 'views.small_size': 24},
    ),
  ],
)
@pytest.mark.long
def test_one_gpu_experiments_run_on_images_in_their_format(
  name, splits, module, changes, tmp_path
):
  examples = {
    split: tfds_data.examples(name, labels, split=split)
    for split, labels in splits.items()
  }
  tfds_data.write(tmp_path, name, examples)
  cfg = module.get_config()
  cfg.update(batch_size=12, num_epochs=2.0, num_devices=2, progress=False)
  cfg.dataset.path = str(tmp_path)
  cfg.encoder.name = 'tiny'
  cfg.projector.hidden = 16
  cfg.update_from_flattened_dict(changes)
  results = pretraining.pretrain(cfg, str(tmp_path / 'run'))
  total = sum(len(x) for k, x in splits.items() if k != 'test')
  assert results['step'] == 2 * total // 12
  assert results['num_labels'] == 10


@pytest.mark.long
def test_imagenets_step_runs_on_synthetic_batches():
  """ResNet-50, LARS, its schedule and all views, at tiny sizes."""
  cfg = imagenet.get_config('resnet_50_1x_10pct')
  cfg.labels.subset = ''
  cfg.update(batch_size=12, num_epochs=2.0, num_devices=2)
  cfg.dataset.update(name='synthetic', num_examples=24, image_size=40)
  cfg.labels.fraction = 0.5
  cfg.views.update(large_size=32, small_size=32, num_large=2, num_small=1)
  cfg.queue.capacity = 20 * 12
  cfg.optimizer.warmup_epochs = 0.5
  cfg.projector.hidden = 32
  run = run_lib.prepare(cfg)
  step = functools.partial(step_lib.train_step, setup=run.setup)
  batches = [batch for batch, _ in run_lib.input_batches(run, 0)]
  assert len(batches) == run.setup.total_steps == 4
  state = tiny.first_state(run, 2)
  params = parallel.unreplicate(state.online_params)
  state, seen = tiny.run_steps(tiny.map_step(step, 2), state, batches, 2)
  assert all(np.isfinite(s['loss'][0]) for s, _ in seen)
  assert state.memory.count[0] == sum((b.labels >= 0).sum() for b in batches)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b[0]).max(), params, state.online_params
  )
  assert all(np.isfinite(x) for x in jax.tree.leaves(moved))
  assert moved['res_net50/~/initial_conv']['w'] > 0


@pytest.mark.long
def test_digits_for_every_number_of_devices():
  """In a process of its own, which compiles as users' runs do."""
  environment = os.environ | {
    'XLA_FLAGS': '',
    'PYTHONPATH': str(_FOLDER.parent),
  }
  done = subprocess.run(
    [sys.executable, '-m', 'tests.helpers.digits_on_devices'],
    env=environment,
    cwd=_FOLDER.parent,
  )
  assert done.returncode == 0
