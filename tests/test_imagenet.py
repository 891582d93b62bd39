"""ImageNet from end to end, on small data in the very formats of the real one.

Pre-training by the config of a released checkpoint, then each evaluation, on 1
and on 4 devices.
"""

import io
import json

import numpy as np
import pytest
import tfds_data
from PIL import Image

from experiments import (
  eval_classifier,
  eval_knn,
  eval_linear,
  eval_semi_supervised,
  imagenet,
)
from semppl_jax import eval_tasks, main, parallel, pretrain, structs
from semppl_jax.data import masks, pipeline

# 24 training images of four classes, 8 of them labelled; one is broken.
CLASSES = (0, 1, 500, 999)
LABELS = [CLASSES[i % 4] for i in range(24)]
LABELLED = range(8, 16)
BROKEN = 20
DEVICES = (1, 4)


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
    log_every_steps=1, checkpoint_every_steps=3,
  )  # fmt: skip
  cfg.dataset.update(path=str(data_dir), image_size=64)
  cfg.encoder.update(name='tiny', projector_hidden=16, embedding_size=8)
  cfg.views.update(
    large_size=32, small_size=24, num_large=2, num_small=1, jitter=0.0,
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


@pytest.fixture(scope='module')
def runs(data_dir, tmp_path_factory):
  """A finished run for each number of devices, and what reached them."""
  folder, seen = tmp_path_factory.mktemp('runs'), {}
  shard = parallel.shard

  def watch(tree, num_devices):
    if isinstance(tree, structs.Batch):
      seen.setdefault(num_devices, []).append(tree)
    return shard(tree, num_devices)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, 'shard', watch)
    results = {
      d: pretrain.pretrain(make_config(data_dir, d), str(folder / str(d)))
      for d in DEVICES
    }
  return folder, results, seen


def metrics(folder, key):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)[key] for line in lines]


def test_pretraining_and_its_results(runs):
  folder, results, _ = runs
  for d in DEVICES:
    result = results[d]
    assert result['step'] == 4 == len(metrics(folder / str(d), 'loss'))
    assert result['num_labels'] == len(LABELLED)
    assert result['unreadable_images'] == 1
    told = (folder / str(d) / 'unreadable.jsonl').read_text().splitlines()
    assert [json.loads(line)['name'] for line in told] == [
      tfds_data.examples('imagenet2012', LABELS)[BROKEN]['file_name']
    ]
    assert 0 <= result['knn_top1'] <= 1
    assert result['linear_all_top1'] is None  # a task of its own at this size


def test_the_number_of_devices_changes_nothing(runs):
  folder, _, seen = runs
  for one, four in zip(seen[1], seen[4], strict=True):
    for a, b in zip(one[:4], four[:4]):
      np.testing.assert_array_equal(a, b)
  for key in ('loss_augm', 'queue_fill', 'embedding_std'):
    one, four = (metrics(folder / str(d), key) for d in DEVICES)
    np.testing.assert_allclose(one, four, rtol=2e-3)


def test_labels_outside_the_subset_never_reach_a_device(runs):
  """Of all that is put on devices, labels are those of SimCLR's list alone."""
  _, _, seen = runs
  batches = seen[1]
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


@pytest.mark.parametrize('task', _TASKS)
def test_each_evaluation(task, data_dir, runs, tmp_path):
  module, variant = _TASKS[task]
  folder, _, _ = runs
  found = {}
  for d in DEVICES:
    cfg = module.get_config(variant)
    cfg.checkpoint = str(folder / '1')
    cfg.update(batch_size=8, num_epochs=1.0, num_devices=d, progress=False)
    cfg.dataset.update(path=str(data_dir), image_size=64)
    cfg.crops.size = 32
    cfg.grid.update(learning_rates=(0.1,), encoder_learning_rates=(0.01,))
    cfg.evaluation.batch_size = 8
    found[d] = eval_tasks.run_task(cfg, str(tmp_path / str(d)))
  one, four = (found[d] for d in DEVICES)
  assert one['num_test'] == 8 and 0 <= one['top1'] <= one['top5'] <= 1
  wanted = 24 if variant == 'imagenet' else len(LABELLED)
  assert one['num_labels'] == wanted
  # All eight classes' names are those of ImageNet.
  classes = json.loads((tmp_path / '1' / 'per_class.json').read_text())
  assert len(classes) == 1000 and classes['n01440764']['images'] == 2
  if task == 'knn':
    assert one['top1'] == four['top1']
  else:
    assert one['loss'] == pytest.approx(four['loss'], rel=2e-3)


def test_10pct_and_a_share_of_labelled_images(data_dir, tmp_path):
  """The other option: so many labelled images in every batch."""
  cfg = make_config(
    data_dir, 1, 'sk_resnet_50_1x_10pct', labels__share=0.5, num_epochs=1.0,
    encoder__selective_kernels=False,
  )  # fmt: skip
  results = pretrain.pretrain(cfg, str(tmp_path))
  assert results['step'] == 2
  fill = metrics(tmp_path, 'queue_fill')
  np.testing.assert_allclose(fill, [6 / 24, 12 / 24])


def test_saliency_masks_join_a_run(data_dir, tmp_path):
  """Masks by id reach the views; without their background a view is grey."""
  cfg = make_config(data_dir, 4, num_epochs=0.5, views__saliency=1.0)
  from semppl_jax import runs as runs_lib

  data = runs_lib.prepare(cfg).data
  layout = masks.Layout(
    'ImageNet', data.fingerprint, len(data.train), shard_size=10, method='none'
  )
  folder = tmp_path / 'masks'
  masks.create(folder, layout)
  nothing = np.zeros((4, 4), bool)
  for shard in range(layout.num_shards):
    masks.write_shard(folder, layout, shard, [nothing] * len(layout.ids(shard)))
  cfg.dataset.masks = str(folder)
  run = runs_lib.prepare(cfg)
  batch, _ = next(iter(runs_lib.input_batches(run, 0)))
  assert batch.masks.shape == (12, 64, 64) and not batch.masks.any()
  results = pretrain.pretrain(cfg, str(tmp_path / 'run'))
  assert results['step'] == 1
  assert metrics(tmp_path / 'run', 'loss')[0] > 0
  cfg.dataset.masks = str(tmp_path)
  with pytest.raises(main.UserError, match='masks'):
    runs_lib.prepare(cfg)


def test_on_corrupt_error_stops_training(data_dir, tmp_path):
  cfg = make_config(data_dir, 1, dataset__on_corrupt='error')
  with pytest.raises(main.UserError, match='JPEG cannot be decoded: '):
    pretrain.pretrain(cfg, str(tmp_path))
  assert pipeline.ON_CORRUPT == ('replace', 'error')
