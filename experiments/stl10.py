"""SemPPL on STL-10, for one GPU: 5,000 labelled images, 100,000 without.

ResNet-18, images of 96 pixels. STL-10 is made for this: its unlabelled split
joins training, and --config.labels.per_class=N leaves N of its 500 labels per
class. Settings are ours, carried over from ImageNet where nothing forbids it.

Data: `tfds build stl10 --data_dir=DIR --file_format=array_record`.
Run: python -m semppl_jax.main --config=experiments/stl10.py \
  --config.dataset.path=DIR --workdir=runs/stl10
B = 256, 100 epochs of 105,000 images, 41,015 steps, one device. Not run on
STL-10 or a GPU: it runs in the tests for a few steps, on images in its format.
Score and cost: not known; the paper has none for it.
"""

from semppl_jax import config


def get_config():
  """Our setting for STL-10."""
  cfg = config.default()
  cfg.batch_size = 256
  cfg.num_epochs = 100.0
  cfg.dataset.update(name='tfds:stl10', image_size=96)
  cfg.labels.fraction = 1.0
  cfg.encoder.name = 'resnet18'
  cfg.projector.update(hidden=1024, size=128)
  cfg.predictor.hidden = 1024
  cfg.views.update(large_size=96, small_size=48)
  # 5,000 of 105,000 images have labels: about 12 in a batch.
  cfg.queue.capacity = 256
  cfg.optimizer.update(learning_rate=0.6, weight_decay=1e-5)
  return cfg
