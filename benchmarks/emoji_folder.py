"""Folders of coloured images in 8 classes, as a user might have: emoji.

  apt-get install fonts-noto-color-emoji
  python -m benchmarks.emoji_folder OUT --seed=0 --labelled=5 --unlabelled=60

Writes OUT/train/CLASS (labelled), OUT/unlabelled and OUT/test/CLASS, JPEG and
PNG files of several sizes, and OUT-truth.csv, the classes of the unlabelled
ones. Test images show emoji that training never shows. Backgrounds are random,
so that their colours tell nothing.
"""

import argparse
import csv
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

FONT = '/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf'
_POINTS = 109  # the one size of its pictures
_SIDE = 136  # of a picture, in pixels
_SIZES = (
  (136, 136), (160, 136), (136, 180), (200, 200), (120, 120), (240, 180),
)  # fmt: skip
_TEST_SHARE = 0.3  # of the pictures of a class


def _flag(country: str) -> str:
  return ''.join(chr(0x1F1E6 + ord(letter) - ord('A')) for letter in country)


_FLAGS = (
  'DE FR IT ES PT NL BE LU CH AT PL CZ SK HU RO BG GR TR RU UA SE NO FI '
  'DK IS IE GB US CA MX BR AR CL PE CO VE CU JM JP CN KR IN PK BD TH VN '
  'MY SG ID PH AU NZ ZA EG NG KE GH MA DZ TN SA IL IR IQ '
)
CLASSES = {
  'animals': (
    '🐀🐁🐂🐃🐄🐅🐆🐇🐈🐉🐊🐋🐌🐍🐎🐏🐐🐑🐒🐓🐔🐕🐖🐗🐘🐙🐚🐛🐜🐝🐞🐟🐠🐡'
    '🐢🐣🐤🐥🐦🐧🐨🐩🐪🐫🐬🦀🦁🦂🦃🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦎🦏🦐🦑🦒🦓🦔🦕🦖'
    '🦗🦘🦙🦚🦛🦜🦝🦞🦟🦡🦢'
  ),
  'food': (
    '🍅🍆🍇🍈🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🍔🍕🍖🍗🍘🍙🍚🍛🍜🍝🍞🍟🍠🍡🍢🍣🍤🍥🍦'
    '🍧🍨🍩🍪🍫🍬🍭🍮🍯🍰🍱🍲🍳🎂🥐🥑🥒🥓🥔🥕🥖🥗🥘🥙🥚🥝🥞🥟🥧🥨🥩🥪🥫🥮'
    '🥯🧀🧁'
  ),
  'faces': ''.join(map(chr, range(0x1F600, 0x1F641)))
  + ('🤐🤑🤒🤓🤔🤕🤗🤠🤡🤢🤣🤤🤥🤧🤨🤩🤪🤫🤬🤭🤮🤯🥰🥱🥳🥴🥵🥶🥺'),
  'vehicles': (
    '🚂🚃🚄🚅🚆🚇🚈🚉🚊🚋🚌🚍🚎🚐🚑🚒🚓🚔🚕🚖🚗🚘🚙🚚🚛🚜🚝🚞🚟🚠🚡🚢🚤🚲'
    '🛴🛵🛶🛸🚀🚁⛵🏍🏎🛥🛩🛳🛺🛻🚨'
  ),
  'flags': [_flag(country) for country in _FLAGS.split()],
  'plants': ('🌰🌱🌲🌳🌴🌵🌷🌸🌹🌺🌻🌼🌽🌾🌿🍀🍁🍂🍃🍄💐🥀🎋🎍🏵🌶💮🎄'),
  'clothes': (
    '👑👒👓👔👕👖👗👘👙👚👛👜👝👞👟👠👡👢🎒🎓🎩🥻🥼🥽🥾🥿🧢🧣🧤🧥🧦🩰🩱🩲'
    '🩳🕶💍🪖'
  ),
  'tools': (
    '🔨🔧🔩🔪🔫🔑🔒🔓🔗🔭🔬🔦⛏⚒🛠🗡⚔⚙🗜⚖🪓🧰🧲🪚🪛🧪🧫🧬🪜🪝🧯🪠🧹🪣📏📐📌📎🖊🖋🖌🖍🔍'
  ),
}


def make(
  out: str | pathlib.Path,
  *,
  seed: int = 0,
  labelled: int = 5,
  unlabelled: int = 60,
  test: int = 20,
) -> list[tuple[str, str]]:
  """Writes a folder; the same one for the same arguments.

  Args:
    out: the folder.
    seed: of all draws.
    labelled: images in each class, with their label.
    unlabelled: images of each class without.
    test: images in each class to test with.

  Returns:
    File and class of each unlabelled image.

  Raises:
    OSError: the font is not installed.
  """
  out = pathlib.Path(out)
  rng, font = np.random.default_rng(seed), ImageFont.truetype(FONT, _POINTS)
  jobs = []  # (folder, class, picture)
  for name, texts in CLASSES.items():
    pictures = [p for p in (_picture(font, t) for t in texts) if p is not None]
    rng.shuffle(pictures)
    cut = max(4, int(len(pictures) * _TEST_SHARE))
    shown, hidden = pictures[cut:], pictures[:cut]
    for folder, count, chosen in (
      ('train', labelled, shown),
      ('unlabelled', unlabelled, shown),
      ('test', test, hidden),
    ):
      jobs += [(folder, name, chosen[i % len(chosen)]) for i in range(count)]
  rng.shuffle(jobs)
  truth = []
  for i, (folder, name, picture) in enumerate(jobs):
    place = out / folder if folder == 'unlabelled' else out / folder / name
    place.mkdir(parents=True, exist_ok=True)
    file = place / f'photo_{i:05d}.{("jpg", "png")[rng.integers(2)]}'
    options = {'quality': 90} if file.suffix == '.jpg' else {}
    _photo(rng, picture).save(file, **options)
    if folder == 'unlabelled':
      truth.append((file.name, name))
  return sorted(truth)


def _picture(font: ImageFont.FreeTypeFont, text: str) -> Image.Image | None:
  """An emoji alone, RGBA; None where the font has no such picture."""
  drawn = Image.new('RGBA', (300, 160), (0, 0, 0, 0))
  ImageDraw.Draw(drawn).text((10, 10), text, font=font, embedded_color=True)
  box = drawn.getbbox()
  if box is None or box[2] - box[0] > 140:
    return None
  drawn = drawn.crop(box)
  picture = Image.new('RGBA', (_SIDE, _SIDE), (0, 0, 0, 0))
  drawn.thumbnail((_SIDE, _SIDE))
  middle = (_SIDE - drawn.width) // 2, (_SIDE - drawn.height) // 2
  picture.paste(drawn, middle, drawn)
  return picture


def _background(rng: np.random.Generator, w: int, h: int) -> Image.Image:
  """One colour, a gradient or blurred squares, with noise."""
  kind, (a, b) = rng.random(), rng.integers(60, 256, (2, 3))
  if kind < 0.3:
    pixels = np.ones((h, w, 3)) * a
  elif kind < 0.7:
    if rng.random() < 0.5:
      along = np.tile(np.linspace(0, 1, w), (h, 1))
    else:
      along = np.tile(np.linspace(0, 1, h)[:, None], (1, w))
    pixels = a * along[..., None] + b * (1 - along[..., None])
  else:
    small = rng.integers(60, 256, (4, 4, 3)).astype(np.uint8)
    large = Image.fromarray(small).resize((w, h), Image.BICUBIC)
    pixels = np.asarray(large, float)
  pixels = pixels + rng.normal(size=(h, w, 3)) * rng.uniform(0, 10)
  pixels = pixels.clip(0, 255).astype(np.uint8)
  return Image.fromarray(pixels).convert('RGBA')


def _photo(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
  """The emoji turned and moved on a background, in another light."""
  w, h = _SIZES[rng.integers(len(_SIZES))]
  ground = _background(rng, w, h)
  size = int(min(w, h) * rng.uniform(0.55, 0.95))
  emoji = picture.resize((size, size), Image.BICUBIC)
  emoji = emoji.rotate(rng.uniform(-25, 25), Image.BICUBIC, expand=True)
  x = (w - emoji.width) // 2 + int(rng.uniform(-0.12, 0.12) * w)
  y = (h - emoji.height) // 2 + int(rng.uniform(-0.12, 0.12) * h)
  ground.paste(emoji, (x, y), emoji)
  image = ground.convert('RGB')
  for enhance in (
    ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast,
  ):  # fmt: skip
    image = enhance(image).enhance(rng.uniform(0.8, 1.2))
  return image


def main() -> None:
  """Makes one folder."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--labelled', type=int, default=5, help='of each class')
  parser.add_argument('--unlabelled', type=int, default=60, help='likewise')
  parser.add_argument('--test', type=int, default=20, help='likewise')
  options = vars(parser.parse_args())
  out = options.pop('out')
  truth = make(out, **options)
  with open(f'{out}-truth.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('file', 'class'), *truth])


if __name__ == '__main__':
  main()
