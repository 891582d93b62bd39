"""Linear evaluation with features computed once, against anew every step.

  python -m benchmarks.cached_features --encoder=resnet18 --size=64

Random weights on noise: only the time counts. Both train the same classifier on
crops of the middle (the release's protocol with crops.augment=False), one after
the other in one process, compilation and the pass over the test images
included. Prints a table; --json=FILE writes the numbers.
"""

import json
import pathlib
import tempfile

import jax
from absl import app, flags, logging

from semppl_jax.config import eval_config
from semppl_jax.evaluation import protocols
from semppl_jax.models import encoders, networks
from semppl_jax.weights import load as load_lib

_ENCODER = flags.DEFINE_string('encoder', 'resnet18', 'A plain encoder.')
_SIZE = flags.DEFINE_integer('size', 64, 'Pixels.')
_IMAGES = flags.DEFINE_integer('images', 512, 'Training images.')
_EPOCHS = flags.DEFINE_integer('epochs', 10, 'Epochs of training.')
_JSON = flags.DEFINE_string('json', None, 'File for the numbers.')


def random_checkpoint(path: str) -> None:
  """Writes an untrained encoder."""
  architecture = encoders.Architecture(_ENCODER.value)
  nets = networks.build(**architecture._asdict())
  shape = (8, _SIZE.value, _SIZE.value, 3)
  images = jax.random.uniform(jax.random.key(1), shape)
  trees = jax.jit(nets.init)(jax.random.key(0), images)
  params, state = jax.tree.map(jax.device_get, trees)
  found = load_lib.Checkpoint(params, state, architecture, 0, 'random', {})
  load_lib.save_safetensors(path, found)


def seconds(features: str, checkpoint: str, workdir: str) -> dict[str, float]:
  """One linear evaluation: its seconds in all, and its top-1."""
  cfg = eval_config.default()
  cfg.checkpoint, cfg.features = checkpoint, features
  cfg.batch_size, cfg.num_epochs = 64, float(_EPOCHS.value)
  cfg.progress = False
  cfg.dataset.update(
    name='synthetic', num_examples=_IMAGES.value, image_size=_SIZE.value
  )
  cfg.crops.update(size=_SIZE.value, augment=False)
  results = protocols.run_task(cfg, workdir)
  return {'seconds': results['seconds'], 'loss': results['loss']}


def main(unused_argv: list[str]) -> None:
  """Runs both and prints the table."""
  logging.set_verbosity(logging.WARNING)
  with tempfile.TemporaryDirectory() as folder:
    checkpoint = str(pathlib.Path(folder, 'x.safetensors'))
    random_checkpoint(checkpoint)
    found = {
      name: seconds(name, checkpoint, str(pathlib.Path(folder, name)))
      for name in ('online', 'cached')
    }
  ratio = found['online']['seconds'] / found['cached']['seconds']
  device = jax.devices()[0].device_kind
  print(f'{_ENCODER.value}, {_IMAGES.value} images of {_SIZE.value} px, ')
  print(f'{_EPOCHS.value} epochs, {jax.device_count()} x {device}\n')
  print('| features | seconds | test loss |')
  print('| --- | --- | --- |')
  for name, row in found.items():
    print(f'| {name} | {row["seconds"]:.1f} | {row["loss"]:.4f} |')
  print(f'\nCached is {ratio:.1f} times as fast.')
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(
      json.dumps(found | {'ratio': ratio}, indent=2) + '\n'
    )


if __name__ == '__main__':
  app.run(main)
