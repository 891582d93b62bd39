"""ImageNet from end to end, on small data in the very formats of the real one.

Pre-training by the config of a released checkpoint, then each evaluation, on 4
devices; the long tests compare them with 1.
"""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import (
  eval_classifier,
  eval_knn,
  eval_linear,
  eval_semi_supervised,
  imagenet,
)
from semppl_jax import errors, pretraining, types
from semppl_jax.augment import views
from semppl_jax.data import masks
from semppl_jax.distributed import parallel
from semppl_jax.evaluation import protocols
from semppl_jax.tools import mask_store
from semppl_jax.train import run as runs_lib
from tests.helpers import tfds_data, tiny

# 24 training images of four classes, 8 of them labelled; one is broken.
CLASSES = (0, 1, 500, 999)
LABELS = [CLASSES[i % 4] for i in range(24)]
LABELLED = range(8, 16)
BROKEN = 20


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  name = 'imagenet2012'
  train = tfds_data.examples(name, LABELS)
  whole = train[BROKEN]['image']
  train[BROKEN]['image'] = whole[: len(whole) // 2]
  # As in ImageNet: a grey one, a CMYK one, a PNG under a JPEG's name.
  for place, (kind, mode) in enumerate(
    (('JPEG', 'L'), ('JPEG', 'CMYK'), ('PNG', 'RGB'))
  ):
    image = Image.open(io.BytesIO(train[place]['image'])).convert(mode)
    image.save(file := io.BytesIO(), kind)
    train[place]['image'] = file.getvalue()
  splits = {
    'train': train,
    'validation': tfds_data.examples(name, CLASSES * 2, 1, 'validation'),
  }
  tfds_data.write(folder, name, splits, shards=3)
  for share in ('1pct', '10pct'):
    subset = f'imagenet2012_subset/{share}'
    tfds_data.write(folder, subset, {'train': [train[i] for i in LABELLED]})
  return folder


def make_config(data_dir, num_devices, variant='resnet_50_1x_1pct', **changes):
  cfg = imagenet.get_config(variant)
  cfg.update(
    batch_size=12, num_epochs=2.0, num_devices=num_devices, progress=False,
    log_every_steps=1, checkpoint_every_steps=50,
  )  # fmt: skip
  cfg.dataset.update(path=str(data_dir), image_size=64)
  cfg.encoder.update(name=tiny.ENCODER, stem='small')
  cfg.projector.update(hidden=16, size=8)
  cfg.predictor.hidden = 16
  cfg.views.update(
    large_size=16, small_size=12, num_large=2, num_small=1, jitter=0.0,
    grayscale=0.0, solarize=(0.0, 0.0),
  )  # compiles much faster  # fmt: skip
  cfg.loss.num_negatives = 4
  cfg.queue.capacity = 24
  cfg.optimizer.warmup_epochs = 0.5
  cfg.evaluation.batch_size = 8
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


def train(data_dir, folder, devices):
  """A finished run for each number of devices, and what reached them."""
  seen = {}
  shard = parallel.shard

  def watch(tree, num_devices, parts=1):
    if isinstance(tree, types.Batch):
      seen.setdefault(num_devices, []).append(tree)
    return shard(tree, num_devices, parts)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, 'shard', watch)
    results = {
      d: pretraining.pretrain(make_config(data_dir, d), str(folder / str(d)))
      for d in devices
    }
  return results, seen


@pytest.mark.parametrize(
  'devices', [(4,), pytest.param((1, 4), marks=pytest.mark.long)]
)
def test_from_pretraining_to_each_evaluation(
  devices, data_dir, tmp_path, subtests
):
  """One test, for the run that all of it is about takes a minute."""
  results, seen = train(data_dir, tmp_path, devices)
  with subtests.test('pre-training'):
    check_results(results, tmp_path)
  if len(devices) > 1:
    with subtests.test('devices'):
      check_devices(seen, tmp_path)
  with subtests.test('labels'):
    check_labels(seen[devices[0]])
  for task in _TASKS:
    with subtests.test(task):
      check_evaluation(task, data_dir, tmp_path, devices)


def metrics(folder, key):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)[key] for line in lines]


def check_results(results, folder):
  for d, result in results.items():
    assert result['step'] == 4 == len(metrics(folder / str(d), 'loss'))
    assert result['num_labels'] == len(LABELLED)
    assert result['unreadable_images'] == 1
    told = (folder / str(d) / 'unreadable.jsonl').read_text().splitlines()
    assert [json.loads(line)['name'] for line in told] == [
      tfds_data.examples('imagenet2012', LABELS)[BROKEN]['file_name']
    ]
    assert 0 <= result['knn_top1'] <= 1
    assert result['linear_all_top1'] is None  # a task of its own at this size


def check_devices(seen, folder):
  """Their number changes nothing."""
  for one, four in zip(seen[1], seen[4], strict=True):
    for a, b in zip(one[:4], four[:4]):
      np.testing.assert_array_equal(a, b)
  for key in ('loss/augmentation', 'queue_fill', 'embedding_std'):
    one, four = (metrics(folder / str(d), key) for d in (1, 4))
    np.testing.assert_allclose(one, four, rtol=2e-3)


def check_labels(batches):
  """Of all that is put on devices, labels are those of SimCLR's list alone."""
  ids = np.concatenate([batch.ids for batch in batches])
  labels = np.concatenate([batch.labels for batch in batches])
  assert len(ids) == 48 and len(set(ids)) == 23  # every image but the broken
  labelled = {i: y for i, y in zip(ids, labels) if y >= 0}
  assert len(labelled) == len(LABELLED)
  assert sorted(labelled.values()) == sorted(LABELS[i] for i in LABELLED)
  assert all(y == labelled.get(i, -1) for i, y in zip(ids, labels))
  assert all(isinstance(x, (np.ndarray, type(None))) for x in batches[0])


_TASKS = {
  'linear': (eval_linear, 'imagenet'),
  'semi_supervised': (eval_semi_supervised, 'imagenet_1pct'),
  'knn': (eval_knn, 'imagenet_10pct'),
  'classifier': (eval_classifier, 'imagenet'),
}


def check_evaluation(task, data_dir, folder, devices):
  module, variant = _TASKS[task]
  workdir = folder / task
  found = {}
  for d in devices:
    cfg = module.get_config(variant)
    cfg.checkpoint = str(folder / str(devices[0]))
    cfg.update(batch_size=8, num_epochs=1.0, num_devices=d, progress=False)
    cfg.dataset.update(path=str(data_dir), image_size=64)
    cfg.crops.size = 16
    cfg.grid.update(learning_rates=(0.1,), encoder_learning_rates=(0.01,))
    cfg.evaluation.batch_size = 8
    found[d] = protocols.run_task(cfg, str(workdir / str(d)))
  one, *others = found.values()
  assert one['num_test'] == 8 and 0 <= one['top1'] <= one['top5'] <= 1
  wanted = 24 if variant == 'imagenet' else len(LABELLED)
  assert one['num_labels'] == wanted
  # All eight classes' names are those of ImageNet.
  file = workdir / str(devices[0]) / 'per_class.json'
  classes = json.loads(file.read_text())
  assert len(classes) == 1000 and classes['n01440764']['images'] == 2
  for other in others:
    if task == 'knn':
      assert one['top1'] == other['top1']
    else:
      assert one['loss'] == pytest.approx(other['loss'], rel=2e-3)


def with_masks(data_dir, folder):
  """The options: masks of nothing, and half of a batch is labelled."""
  cfg = make_config(
    data_dir, 4, 'resnet_50_4x_10pct', num_epochs=1.0, views__saliency=1.0,
    labels__share=0.5, encoder__width=1,
  )  # fmt: skip
  data = runs_lib.prepare(cfg).data
  layout = masks.Layout(
    'ImageNet', data.fingerprint, len(data.train), shard_size=10, method='none'
  )
  mask_store.create(folder, layout)
  nothing = np.zeros((4, 4), bool)
  for shard in range(layout.num_shards):
    mask_store.write_shard(
      folder, layout, shard, [nothing] * len(layout.ids(shard))
    )
  cfg.dataset.masks = str(folder)
  return cfg


def test_saliency_masks_reach_the_views_by_id(data_dir, tmp_path):
  cfg = with_masks(data_dir, tmp_path / 'masks')
  run = runs_lib.prepare(cfg)
  batch, _ = next(iter(runs_lib.input_batches(run, 0)))
  assert batch.masks.shape == (12, 64, 64) and not batch.masks.any()
  keys = jax.random.split(jax.random.key(0), 12)
  large, _ = views.make_views(
    keys, batch.images, run.cfg.views, batch.sizes, batch.masks
  )
  np.testing.assert_allclose(large, 0.5, atol=1e-5)  # nothing is foreground
  cfg.dataset.masks = str(tmp_path)
  with pytest.raises(errors.UserError, match='masks'):
    runs_lib.prepare(cfg)


@pytest.mark.long
def test_training_with_masks_and_a_share_of_labelled_images(
  data_dir, tmp_path, monkeypatch
):
  cfg = with_masks(data_dir, tmp_path / 'masks')
  made = views.make_views
  seen = []

  def watch(keys, images, cfg, sizes, masks, precision):
    seen.append((sizes.shape, masks.shape))
    return made(keys, images, cfg, sizes, masks, precision)

  monkeypatch.setattr(views, 'make_views', watch)
  results = pretraining.pretrain(cfg, str(tmp_path / 'run'))
  assert results['step'] == 2
  assert seen and set(seen) == {((3, 2), (3, 64, 64))}  # on each of 4 devices
  fill = metrics(tmp_path / 'run', 'queue_fill')
  np.testing.assert_allclose(fill, [6 / 24, 12 / 24])


def test_on_corrupt_error_stops_training(data_dir, tmp_path):
  cfg = make_config(data_dir, 1, dataset__on_corrupt='error')
  with pytest.raises(errors.UserError, match='JPEG cannot be decoded: '):
    pretraining.pretrain(cfg, str(tmp_path))
