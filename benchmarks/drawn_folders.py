"""Folders of drawn images: letters, digits, textures, characters.

  python -m benchmarks.drawn_folders letters OUT --seed=0 --unlabelled=60
  python -m benchmarks.drawn_folders characters OUT --seed=0 --labelled=162 \
    --unlabelled=0 --test=33

Writes OUT/train/CLASS (labelled), OUT/unlabelled and OUT/test/CLASS, PNG files.
letters: ten letters, grey, 40 px, turned, moved and noisy, in the fonts that
matplotlib brings; the fonts of the test images are in no other. digits:
scikit-learn's handwritten ones, enlarged to 28 px. textures: eight kinds of
pattern in random colours, so that colours tell nothing, 48 px. characters: 62
classes, A to Z, a to z and 0 to 9, bright on dark and grey, 24 px,
moved, turned, resized and noisy; all fonts in all splits. Some classes look
alike (O, o, 0; l, I, 1; letters whose two cases differ in size alone), so that
nothing tells all of them apart. The second command makes 10,044 training images
with their label, which benchmarks.methods hides, and 2,046 test images.
"""

import argparse
import pathlib
import string
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from semppl_jax.errors import UserError

LETTERS = 'ABDEGKMRSX'
# Folder of a class -> its character. Some file systems take A and a for one.
CHARACTERS = {
  f'{kind}_{character}': character
  for kind, characters in (
    ('upper', string.ascii_uppercase),
    ('lower', string.ascii_lowercase),
    ('digit', string.digits),
  )
  for character in characters
}
_FONTS = (
  'DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSans-Oblique', 'DejaVuSansMono',
  'DejaVuSansMono-BoldOblique', 'DejaVuSerif', 'DejaVuSerif-Bold',
  'DejaVuSerif-Italic', 'STIXGeneral', 'STIXGeneralBol', 'STIXGeneralItalic',
  'cmr10', 'cmss10', 'cmtt10', 'cmb10', 'cmti10',
)  # fmt: skip
TEXTURES = (
  'stripes', 'checks', 'dots', 'rings', 'noise', 'clouds', 'gradient', 'grid',
)  # fmt: skip
_SIDE = 48  # of a texture, in pixels
_SMALL = 24  # of a character
_BRIGHT, _DARK = 150, 60  # its ink, at least, and its paper

# Split ('train', 'unlabelled' or 'test'), class, image.
Images = Iterator[tuple[str, str, Image.Image]]


def _font_files() -> dict[str, pathlib.Path]:
  import matplotlib

  folder = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf')
  return {name: folder / f'{name}.ttf' for name in _FONTS}


def missing_fonts() -> list[str]:
  """Fonts that the installed matplotlib has not: 3.10's cmti10.

  Others in their place would be another data set.
  """
  return [name for name, file in _font_files().items() if not file.exists()]


def font_files() -> dict[str, pathlib.Path]:
  """Where the fonts lie, by name.

  Raises:
    UserError: one is missing.
  """
  if missing := missing_fonts():
    raise UserError(
      f'images are drawn in {", ".join(missing)}, which this matplotlib does '
      'not bring; 3.11 does.'
    )
  return _font_files()


def _letters(rng: np.random.Generator, counts: dict[str, int]) -> Images:
  files = font_files()
  names = rng.permutation(_FONTS)
  fonts = {'test': names[:5], 'train': names[5:], 'unlabelled': names[5:]}
  for split, count in counts.items():
    for letter in LETTERS:
      for _ in range(count):
        name = rng.choice(fonts[split])
        size = int(rng.integers(20, 32))
        font = ImageFont.truetype(str(files[name]), size)
        yield split, letter, _letter(rng, letter, font)


def _letter(
  rng: np.random.Generator, letter: str, font: ImageFont.FreeTypeFont
) -> Image.Image:
  ink, paper = rng.integers(0, 90), rng.integers(150, 256)
  if rng.random() < 0.3:
    ink, paper = paper, ink
  image = Image.new('L', (40, 40), int(paper))
  place = 20 + rng.uniform(-4, 4, 2)
  ImageDraw.Draw(image).text(
    tuple(place), letter, font=font, fill=int(ink), anchor='mm'
  )
  image = image.rotate(
    rng.uniform(-15, 15), Image.BICUBIC, fillcolor=int(paper)
  )
  pixels = np.asarray(image, np.float32) + rng.normal(0, 12, (40, 40))
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _digits(rng: np.random.Generator, counts: dict[str, int]) -> Images:
  from sklearn import datasets

  found = datasets.load_digits()
  for digit in range(10):
    rows = rng.permutation(np.flatnonzero(found.target == digit))
    for split, count in counts.items():
      chosen, rows = rows[:count], rows[count:]
      for row in chosen:
        pixels = np.rint(found.images[row] * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((28, 28), Image.BICUBIC)
        yield split, str(digit), image


def _textures(rng: np.random.Generator, counts: dict[str, int]) -> Images:
  for split, count in counts.items():
    for name in TEXTURES:
      for _ in range(count):
        yield split, name, _texture(rng, name)


def _texture(rng: np.random.Generator, name: str) -> Image.Image:
  """Two random colours, mixed by a pattern in [0, 1], and noise."""
  y, x = np.mgrid[:_SIDE, :_SIDE] - rng.uniform(0, _SIDE, 2)[:, None, None]
  turn = rng.uniform(0, np.pi)
  u = x * np.cos(turn) + y * np.sin(turn)
  v = y * np.cos(turn) - x * np.sin(turn)
  period = rng.uniform(6, 14)
  wave = lambda t: np.sin(2 * np.pi * t / period)
  coarse = rng.normal(size=(int(_SIDE / period) + 2,) * 2).astype(np.float32)
  pattern = {
    'stripes': lambda: wave(u) > 0,
    'checks': lambda: wave(u) * wave(v) > 0,
    'dots': lambda: wave(u) + wave(v) > 1,
    'rings': lambda: wave(np.hypot(x, y)) > 0,
    'noise': lambda: rng.random((_SIDE, _SIDE)) > 0.5,
    'clouds': lambda: _enlarged(coarse) > 0,
    'gradient': lambda: (u - u.min()) / np.ptp(u),
    'grid': lambda: np.maximum(wave(u), wave(v)) > 0.8,
  }[name]()
  colours = rng.uniform(0, 255, (2, 3))
  mix = np.asarray(pattern, np.float32)[..., None]
  pixels = colours[0] * mix + colours[1] * (1 - mix)
  pixels += rng.normal(0, 15, pixels.shape)
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _enlarged(values: np.ndarray) -> np.ndarray:
  image = Image.fromarray(values)
  return np.asarray(image.resize((_SIDE,) * 2, Image.BICUBIC))


def _characters(rng: np.random.Generator, counts: dict[str, int]) -> Images:
  files = [str(file) for file in font_files().values()]
  fonts = [
    [ImageFont.truetype(file, size) for size in range(13, 20)] for file in files
  ]
  for split, count in counts.items():
    for name, character in CHARACTERS.items():
      for _ in range(count):
        sizes = fonts[rng.integers(len(fonts))]
        font = sizes[rng.integers(len(sizes))]
        yield split, name, _character(rng, character, font)


def _character(
  rng: np.random.Generator, character: str, font: ImageFont.FreeTypeFont
) -> Image.Image:
  """Bright on dark, in greys that tell nothing about the class."""
  ink, paper = rng.uniform(_BRIGHT, 255), rng.uniform(0, _DARK)
  shape = Image.new('L', (_SMALL, _SMALL), 0)
  place = _SMALL / 2 + rng.uniform(-2, 2, 2)
  ImageDraw.Draw(shape).text(
    tuple(place), character, font=font, fill=255, anchor='mm'
  )
  shape = shape.rotate(rng.uniform(-15, 15), Image.BICUBIC)
  mix = np.asarray(shape, np.float32) / 255
  pixels = ink * mix + paper * (1 - mix)
  pixels += rng.normal(0, 12, pixels.shape)
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


KINDS: dict[str, Callable[..., Images]] = {
  'letters': _letters,
  'digits': _digits,
  'textures': _textures,
  'characters': _characters,
}


def make(
  kind: str,
  out: str | pathlib.Path,
  *,
  seed: int = 0,
  labelled: int = 5,
  unlabelled: int = 60,
  test: int = 20,
) -> None:
  """Writes a folder; the same one for the same arguments.

  Args:
    kind: a key of KINDS.
    out: the folder.
    seed: of all draws.
    labelled: images in each class, with their label.
    unlabelled: images of each class without.
    test: images in each class to test with.
  """
  rng = np.random.default_rng(seed)
  counts = {'train': labelled, 'unlabelled': unlabelled, 'test': test}
  made = list(KINDS[kind](rng, counts))
  # Names tell nothing about classes.
  for number, place in enumerate(rng.permutation(len(made))):
    split, name, image = made[place]
    folder = pathlib.Path(out, split, '' if split == 'unlabelled' else name)
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f'image_{number:05d}.png')


def main() -> None:
  """Writes one folder."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('KIND', choices=KINDS)
  parser.add_argument('OUT')
  for name, default in (
    ('seed', 0), ('labelled', 5), ('unlabelled', 60), ('test', 20),
  ):  # fmt: skip
    parser.add_argument(f'--{name}', type=int, default=default)
  options = vars(parser.parse_args())
  make(options.pop('KIND'), options.pop('OUT'), **options)


if __name__ == '__main__':
  main()
