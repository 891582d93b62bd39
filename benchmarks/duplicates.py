"""Which planted copies are found, false alarms, and what a search costs.

  python -m benchmarks.duplicates
  python -m benchmarks.duplicates --images=100000

The first looks for copies in sets that have none, scikit-learn's digits, emoji
(`benchmarks.emoji_folder`), drawn letters, textures and digits
(`benchmarks.drawn_folders`): what it finds are false alarms. Then it plants 50
copies of each kind among the emoji and the letters. The second searches so many
thumbnails of noise with the spectrum of photographs; none is read.
"""

import collections
import io
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import command, drawn_folders, emoji_folder
from semppl_jax import config
from semppl_jax.data import datasets, duplicates, images, sources, thumbnails

_PLANTED = 50
_BLOCK = 1000


def _recompressed(random: np.random.Generator, image: Image.Image):
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=int(random.integers(30, 80)))
  return Image.fromarray(images.decode(file.getvalue()))


def _resized(random: np.random.Generator, image: Image.Image):
  share = random.uniform(0.4, 1.6)
  width, height = (round(n * share) for n in image.size)
  return image.resize((width, height), Image.Resampling.BICUBIC)


def _cropped(random: np.random.Generator, image: Image.Image):
  """5% of each side is cut off."""
  (width, height), cut = image.size, 0.05
  x, y = round(cut * width), round(cut * height)
  return image.crop((x, y, width - x, height - y))


def _window(random: np.random.Generator, image: Image.Image):
  """95% of both sides, anywhere."""
  (width, height), (x, y) = image.size, random.random(2) * 0.05
  box = x * width, y * height, (x + 0.95) * width, (y + 0.95) * height
  return image.crop(tuple(map(round, box)))


def _flipped(random: np.random.Generator, image: Image.Image):
  return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _all(random: np.random.Generator, image: Image.Image):
  for change in (_flipped, _window, _resized, _recompressed):
    image = change(random, image)
  return image


CHANGES: dict[str, Callable[..., Image.Image]] = {
  'recompressed, quality 30 to 79': _recompressed,
  'resized to 40 to 160%': _resized,
  'cropped by 5% on each side': _cropped,
  'cropped to 95%, anywhere': _window,
  'flipped': _flipped,
  'flipped, cropped to 95%, resized, recompressed': _all,
}


def _load(name: str, path: str = '') -> sources.Dataset:
  cfg = config.default().dataset
  cfg.name, cfg.path = name, path
  return datasets.load(cfg)


def alarms(data: sources.Dataset) -> dict[str, Any]:
  """What is found in a data set without copies, by kind."""
  train, test = (thumbnails.make(part) for part in (data.train, data.test))
  pairs = duplicates.find(train, test)
  return {
    'images': len(data.train) + len(data.test),
    'found': dict(collections.Counter(pair.kind for pair in pairs)),
  }


def planted(data: sources.Dataset) -> dict[str, Any]:
  """Of each kind of change copies that are found, and pairs with others."""
  random = np.random.default_rng(0)
  train = thumbnails.make(data.train)
  number = len(data.train)
  found = {}
  for name, change in CHANGES.items():
    rows = random.permutation(number)[:_PLANTED]
    copies = []
    for row in rows:
      pixels = images.decode(data.train[int(row)]['image'])
      copies.append(np.asarray(change(random, Image.fromarray(pixels))))
    source = sources.Records(np.zeros(len(rows)), copies.__getitem__)
    pairs = [
      (pair.first, pair.second - number)
      for pair in duplicates.find(train, thumbnails.make(source))
      if pair.second >= number
    ]
    hits = {copy for first, copy in pairs if first == rows[copy]}
    found[name] = {
      'planted': len(rows),
      'found': len(hits),
      'others': sum(bool(first != rows[copy]) for first, copy in pairs),
    }
  return found


def noise(count: int) -> thumbnails.Thumbnails:
  """Thumbnails whose amplitudes fall with frequency as 1/f."""
  random, side = np.random.default_rng(0), thumbnails.SIDE
  frequency = np.fft.fftfreq(side) * side
  size = np.maximum(np.hypot(frequency[:, None], frequency), 1)[..., None]
  pixels = np.zeros((count, side, side, 3), np.uint8)
  for start in range(0, count, _BLOCK):
    block = pixels[start : start + _BLOCK]
    drawn = random.standard_normal(block.shape)
    drawn = 0.4 * drawn + drawn.mean(-1, keepdims=True)
    spectrum = np.fft.fft2(drawn, axes=(1, 2)) / size
    spectrum[:, 0, 0] = 0
    drawn = np.fft.ifft2(spectrum, axes=(1, 2)).real
    drawn *= random.uniform(30, 60, (len(block), 1, 1, 1)) / drawn.std()
    drawn += random.uniform(80, 170, (len(block), 1, 1, 1))
    block[:] = drawn.clip(0, 255)
  return thumbnails.Thumbnails(
    np.arange(count, dtype=np.uint64), pixels, np.full(count, 96, np.int32), {}
  )


def cost(count: int) -> dict[str, Any]:
  """CPU and wall seconds of a search, and the peaks of memory in MB."""
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  before = peak()
  made = noise(count)
  with_images, wall, cpu = peak(), time.monotonic(), time.process_time()
  pairs = duplicates.find(made, None, progress=True)
  return {
    'images': count,
    'pairs': len(pairs),
    'cpu_seconds': time.process_time() - cpu,
    'wall_seconds': time.monotonic() - wall,
    'peak_mb_before': before,
    'peak_mb_thumbnails': with_images,
    'peak_mb': peak(),
  }


def main() -> None:
  """Measures and prints."""
  parser = command.parser(__doc__)
  parser.add_argument('--images', type=int, default=0, help='noise to search')
  args = parser.parse_args()
  if args.images:
    found: dict[str, Any] = {'cost': cost(args.images)}
    print(found['cost'])
    command.finish(args, found)
    return
  found = {'alarms': {}, 'planted': {}}
  with tempfile.TemporaryDirectory() as folder:
    emoji = pathlib.Path(folder, 'emoji')
    emoji_folder.make(emoji)
    sets = {'digits': _load('digits'), 'emoji': _load('folder', str(emoji))}
    for kind in ('letters', 'textures', 'digits'):
      path = pathlib.Path(folder, kind)
      drawn_folders.make(kind, path)
      sets[f'drawn {kind}'] = _load('folder', str(path))
    for name, data in sets.items():
      found['alarms'][name] = alarms(data)
      print(name, found['alarms'][name], flush=True)
    for name in ('emoji', 'drawn letters'):
      found['planted'][name] = planted(sets[name])
      for change, counts in found['planted'][name].items():
        print(f'{name}, {change}: {counts}', flush=True)
  command.finish(args, found)


if __name__ == '__main__':
  main()
