"""Which learning rate suits a run that begins with a checkpoint's weights.

  python -m benchmarks.start_from --workdir=runs/start_from

Digits: from digits.safetensors to the ten digits in the fonts that matplotlib
brings, 8 px, 2 labels per class, by experiments/digits.py with a quarter of its
epochs. Folders: from a run on emoji (which need a font, see there) to textures,
the sets of `benchmarks.folder`, by experiments/folder.py with a quarter of its
steps. Random weights beside it, and the checkpoint's own (rate 0: BatchNorm's
running averages alone move). Scores are test top-1 of kNN, by seed. Resumable,
in one process.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageDraw, ImageFont

from benchmarks import command, drawn_folders, emoji_folder, folder
from experiments import digits
from semppl_jax import pretraining
from semppl_jax.workdir import tables

SEEDS = 2
RATES = (1, 0.3, 0.1, 0.03)  # times the experiment's


def printed_digits(path: str, seed: int = 0) -> None:
  """Writes 1,000 training and 300 test images of printed digits, 8 px.

  White on black, turned, moved and noisy; the fonts of the test images are in
  no training image.
  """
  rng = np.random.default_rng(seed)
  files = list(drawn_folders.font_files().values())
  fonts = rng.permutation(len(files))
  arrays = {}
  for split, count, some in (
    ('train', 1000, fonts[5:]),
    ('test', 300, fonts[:5]),
  ):
    labels = rng.permutation(np.arange(count) % 10)
    images = [_digit(rng, label, files[rng.choice(some)]) for label in labels]
    arrays |= {f'{split}_images': np.stack(images), f'{split}_labels': labels}
  new = f'{path}.new.npz'
  np.savez(new, **arrays)
  os.replace(new, path)


def _digit(rng: np.random.Generator, label: int, file: Any) -> np.ndarray:
  """[8, 8] uint8."""
  large = Image.new('L', (64, 64))
  font = ImageFont.truetype(str(file), int(rng.integers(54, 66)))
  place = tuple(32 + rng.integers(-5, 6, 2))
  ImageDraw.Draw(large).text(place, str(label), 255, font, anchor='mm')
  small = large.rotate(rng.uniform(-15, 15)).resize(
    (8, 8), Image.Resampling.BOX
  )
  noisy = np.asarray(small) + rng.normal(0, 12, (8, 8))
  return np.clip(noisy, 0, 255).astype(np.uint8)


def digits_run(workdir: str, init: str, rate: float, seed: int) -> Any:
  """Settings of a run on printed digits."""
  path = os.path.join(workdir, 'printed_digits.npz')
  if not os.path.exists(path):
    os.makedirs(workdir, exist_ok=True)
    printed_digits(path)
  cfg = digits.get_config()
  cfg.dataset.update(name='arrays', path=path)
  cfg.num_epochs = 15.0
  return _begin(cfg, init, rate, seed)


def folder_run(path: str, init: str, rate: float, seed: int, steps: int) -> Any:
  """Settings of a run on a folder."""
  cfg = folder.settings(path, 'semppl', seed)
  cfg.num_epochs *= steps / folder.STEPS
  return _begin(cfg, init, rate, seed)


def _begin(cfg: Any, init: str, rate: float, seed: int) -> Any:
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices, cfg.progress = 1, False
  cfg.init = init
  cfg.optimizer.learning_rate *= rate
  return cfg


def source(workdir: str) -> str:
  """A run on emoji, which folders begin with."""
  path, run = (os.path.join(workdir, x) for x in ('emoji', 'emoji_run'))
  folder.once(path, emoji_folder.make)
  pretraining.pretrain(folder_run(path, '', 1, 0, folder.STEPS), run)
  return run


def cells() -> Iterator[tuple[str, str, float, int]]:
  """Set, what it begins with, share of the experiment's rate, seed."""
  for data in ('digits', 'folder'):
    for seed in range(SEEDS):
      yield data, '', 1, seed
      for rate in (*RATES, 0):
        yield data, 'checkpoint', rate, seed


def one_run(workdir: str, data: str, init: str, rate: float, seed: int) -> Any:
  """Trains one cell (or finds it finished); its results."""
  if data == 'digits':
    cfg = digits_run(workdir, init and 'digits', rate, seed)
  else:
    path = folder.make_set(workdir, 'textures', 0, 60)
    begin = source(workdir) if init else ''
    cfg = folder_run(path, begin, rate, seed, folder.STEPS // 4)
  name = f'{data}-{init or "random"}-{rate}-{seed}'
  return pretraining.pretrain(cfg, os.path.join(workdir, name))


def summarise(results: dict[tuple[str, str, float, int], Any]) -> str:
  """Test top-1 of kNN by seed, a row for each set, beginning and rate."""
  rows: dict[tuple[str, str, float], list[str]] = {}
  for (*row, _), found in results.items():
    top1 = f'{100 * found["knn_top1"]:.1f}'
    rows.setdefault(tuple(row), []).append(top1)
  return tables.markdown(
    ['images', 'begins with', "times the experiment's rate", 'kNN, by seed'],
    [
      [data, init or 'random weights', f'{rate:g}', ' / '.join(top1)]
      for (data, init, rate), top1 in rows.items()
    ],
  )


def main() -> None:
  """Trains this part's cells, then writes the table of all."""
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', default='runs/start_from')
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  os.makedirs(args.workdir, exist_ok=True)
  results = {}
  for cell in cells():
    results[cell] = one_run(args.workdir, *cell)
    print(*cell, results[cell]['knn_top1'], flush=True)
  print(summarise(results))
  command.finish(args, {str(cell): row for cell, row in results.items()})


if __name__ == '__main__':
  main()
