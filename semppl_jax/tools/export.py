"""Weights for PyTorch, with the network's code beside them.

  semppl-jax export CHECKPOINT FOLDER

FOLDER gets weights.safetensors, a state dict in torchvision's and timm's
names, resnet.py, the network in PyTorch, and settings.json, which resnet.py's
`load` reads. Neither torch nor torchvision is needed to write them.
"""

import argparse
import sys

from semppl_jax import model as model_lib
from semppl_jax import storage
from semppl_jax.tools import command
from semppl_jax.weights import files as files_lib
from semppl_jax.weights import pytorch


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='semppl-jax export',
    description="Weights for PyTorch, with the network's code beside them.",
  )
  parser.add_argument('CHECKPOINT', help="a run's folder, a file or a name")
  parser.add_argument('FOLDER', help='to be made')
  parser.add_argument('--step', type=int, help='which checkpoint of a run')
  parser.add_argument(
    '--network', choices=files_lib.NETWORKS, help='of what has both'
  )
  options = parser.parse_args(arguments)

  def work():
    model = model_lib.load_pretrained(
      options.CHECKPOINT, step=options.step, network=options.network
    )
    folder = storage.on_disk(options.FOLDER, 'FOLDER').expanduser()
    seen = model.image_size, model.center
    pytorch.export(model.checkpoint, folder, seen)
    print(f'{options.CHECKPOINT}: {model.checkpoint}')
    print(
      f'Written: {folder}. In PyTorch, from that folder: import resnet; '
      "model = resnet.load('.')"
    )

  return command.status(work)


if __name__ == '__main__':
  sys.exit(main())
