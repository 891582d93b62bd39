"""SemPPL on CIFAR-10 with 25 labels per class, for one GPU.

ResNet-18 with a small stem, images of 32 pixels. Settings are ours, carried
over from ImageNet where nothing forbids it; views of 32 and 16 pixels, no blur
(there is little to blur), a queue of about 20 batches' labels.

Data: `tfds build cifar10 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/cifar10.py \
  --config.dataset.path=DIR --workdir=runs/cifar10
B = 512, 200 epochs, 19,531 steps, one device. Not run on CIFAR-10 or a GPU: it
runs in the tests for a few steps, on images in its format. Score and cost: not
known; the paper has none for it.
"""

from semppl_jax import config


def get_config():
  """Our setting for CIFAR-10."""
  cfg = config.default()
  cfg.batch_size = 512
  cfg.num_epochs = 200.0
  cfg.dataset.update(name='tfds:cifar10', image_size=32)
  cfg.labels.per_class = 25
  cfg.encoder.update(name='resnet18', stem='small')
  cfg.projector.update(hidden=1024, size=128)
  cfg.predictor.hidden = 1024
  cfg.views.update(
    large_size=32,
    small_size=16,
    large_area=(0.2, 1.0),
    small_area=(0.08, 0.2),
    blur=(0.0, 0.0),
  )
  # 250 of 50,000 images have labels: about 2.6 in a batch.
  cfg.queue.capacity = 64
  cfg.optimizer.update(learning_rate=0.6, weight_decay=1e-5)
  cfg.evaluation.center = 1.0
  return cfg
