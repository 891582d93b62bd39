"""How fast `Model.embed` is, and whether images of any size cost it a compiler.

  python -m benchmarks.embed --images=1000

Writes a folder of drawn photographs of mixed sizes, JPEGs and PNGs in turn, and
embeds it with the digits model that comes along and with an untrained ResNet-18
that sees 64 pixels: once to compile, then `--rounds` times for the clock. A
second model of the same kind embeds as many images of one size: it must compile
as many programs.
"""

import argparse
import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

import semppl_jax
from benchmarks import command, synthetic_photos, turns
from semppl_jax.models import encoders, networks
from semppl_jax.weights import load as load_lib

_DRAWN = 20  # photographs that the images are cut from
_SIDES = 80, 370  # of the images, in pixels
_MODELS = {
  'digits': lambda: semppl_jax.load_pretrained('digits'),
  'ResNet-18, 64 px': lambda: untrained('resnet18', 64),
}


def untrained(encoder: str, size: int) -> semppl_jax.Model:
  """A model with random weights."""
  architecture = encoders.Architecture(encoder)
  nets = networks.build(**architecture._asdict())
  images = np.zeros((1, size, size, 3), np.float32)
  trees = jax.jit(nets.init)(jax.random.key(0), images)
  params, state = jax.tree.map(np.asarray, trees)
  found = load_lib.Checkpoint(params, state, architecture, 0, 'random')
  return semppl_jax.Model(found, image_size=size)


def write(folder: pathlib.Path, count: int) -> None:
  """Files of mixed sizes, every second one a PNG."""
  drawn = [
    Image.open(io.BytesIO(file)) for file in synthetic_photos.photos(_DRAWN)
  ]
  random = np.random.default_rng(0)
  for i in range(count):
    sides = random.integers(*_SIDES, 2)
    left, top = random.integers(0, 370 - sides + 1)
    part = drawn[i % _DRAWN].crop((left, top, left + sides[0], top + sides[1]))
    ending = 'png' if i % 2 else 'jpg'
    part.save(folder / f'{i:06}.{ending}', quality=90)


def measure(
  make: Callable[[], semppl_jax.Model],
  folder: pathlib.Path,
  count: int,
  rounds: int,
  heard: turns.Compilations,
) -> dict[str, Any]:
  """Seconds and compiled programs of one model.

  Args:
    make: a new model, for which nothing is compiled yet.
    folder: with images.
    count: how many there are.
    rounds: how often it is embedded for the clock.
    heard: counts compilations.
  """
  model = make()
  begun, before = time.perf_counter(), len(heard.seconds)
  model.embed(folder)
  first, mixed = time.perf_counter() - begun, len(heard.seconds) - before
  seconds = []
  for _ in range(rounds):
    begun = time.perf_counter()
    model.embed(folder)
    seconds.append(time.perf_counter() - begun)
  again = len(heard.seconds) - before - mixed
  model, before = make(), len(heard.seconds)
  model.embed(np.zeros((count, 100, 100, 3), np.uint8))
  return {
    'first_seconds': first,
    'seconds': seconds,
    'compiled': {
      'mixed sizes': mixed,
      'mixed sizes, again': again,
      'one size': len(heard.seconds) - before,
    },
  }


def show(found: dict[str, Any], count: int) -> str:
  """The table."""
  lines = [
    '| model | images/s | range | first pass, s | programs compiled: mixed '
    'sizes | again | one size |',
    '| --- ' * 7 + '|',
  ]
  for name, row in found.items():
    rates = [count / seconds for seconds in row['seconds']]
    middle = statistics.median(rates)
    cells = [
      name,
      f'{middle:.0f}',
      f'{min(rates):.0f} to {max(rates):.0f}',
      f'{row["first_seconds"]:.1f}',
      *map(str, row['compiled'].values()),
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main(arguments: list[str] | None = None) -> None:
  """Measures both models and prints the table."""
  parser = command.parser(__doc__)
  parser.add_argument('--images', type=_at_least_one, default=1000)
  parser.add_argument('--rounds', type=_at_least_one, default=3)
  args = parser.parse_args(arguments)
  heard = turns.Compilations()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    command.say(f'Writing {args.images} images ...')
    write(folder, args.images)
    found = {
      model: measure(make, folder, args.images, args.rounds, heard)
      for model, make in _MODELS.items()
    }
  device = jax.devices()[0].device_kind
  print(f'{args.images} files, {jax.device_count()} x {device}\n')
  print(show(found, args.images))
  command.finish(args, found)


def _at_least_one(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is below 1')
  return number


if __name__ == '__main__':
  main()
