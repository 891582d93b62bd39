"""Decoding: as the release decodes; what is damaged, odd or huge."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from semppl_jax.data import images
from tests.helpers import golden

_FILES = golden.FOLDER / 'jpeg'
EVAL = golden.load('eval_crops.npz')


def encode(pixels, kind='JPEG', mode=None, **kwargs):
  file = io.BytesIO()
  image = Image.fromarray(pixels)
  (image.convert(mode) if mode else image).save(file, kind, **kwargs)
  return file.getvalue()


def smooth(height, width):
  """A picture that JPEG hardly changes."""
  down, across = np.mgrid[:height, :width]
  red, green = 200 * down / height, 200 * across / width
  return np.stack([red, green, 255 - red], -1).astype(np.uint8)


# -- against the release --


@pytest.mark.parametrize('name', sorted(p.name for p in _FILES.iterdir()))
def test_eval_crop_from_the_file_is_the_releases(name):
  """From JPEG bytes to the network's input.

  TensorFlow decodes the crop alone, which changes what colours at its border
  are smoothed with: of a 64 x 64 image a few pixels differ, of others none.
  """
  image = images.decode((_FILES / name).read_bytes())
  found = images.center_crop(image, size=224, share=0.875)
  assert found.shape == (224, 224, 3) and found.dtype == np.float32
  every = EVAL['every']  # rows and columns that the golden file keeps
  difference = np.abs(found[every][:, every] - EVAL[f'{name}|image'])
  if name == 'img_w64_h64.jpg':
    assert difference.mean() < 1e-3 and np.mean(difference > 5e-3) < 0.02
  elif name == 'img_w200_h500.jpg':
    assert difference.mean() < 2e-4 and difference.max() < 0.01
  else:
    assert difference.max() < 1e-3
  np.testing.assert_allclose(
    found.mean((0, 1)), EVAL[f'{name}|mean'], atol=5e-4
  )


def test_png_under_a_jpegs_name_is_read_for_what_it_is():
  """The release stops at such a file; tfds rewrites the one in ImageNet."""
  data = encode(smooth(80, 96), 'PNG')
  np.testing.assert_array_equal(images.decode(data), smooth(80, 96))


@pytest.mark.parametrize('name', ['img_w64_h64.jpg', 'img_w640_h427.jpg'])
def test_center_crop_equals_the_releases_of_its_own_crop(name):
  """From the release's decoded crop; noise around it must not be seen."""
  height, width = EVAL[f'{name}|shape']
  top, left, side, _ = EVAL[f'{name}|window']
  noise = np.random.RandomState(0).randint(0, 256, (height, width, 3))
  image = noise.astype(np.uint8)
  image[top : top + side, left : left + side] = EVAL[f'{name}|crop']
  found = images.center_crop(image, size=224, share=0.875)
  every = EVAL['every']
  np.testing.assert_allclose(
    found[every][:, every], EVAL[f'{name}|image'], atol=1.5e-3
  )


def test_every_window_of_the_release():
  """Found from the pixels: the first and last that are seen."""
  names = [key.split('|')[0] for key in EVAL if key.endswith('|window')]
  assert len(names) >= 5
  for name in names:
    height, width = EVAL[f'{name}|shape']
    top, left, side, _ = EVAL[f'{name}|window']
    inside = np.zeros((height, width, 3), np.uint8)
    inside[top : top + side, left : left + side] = 255
    crop = lambda image: images.center_crop(image, size=32, share=0.875)
    assert crop(inside).min() > 1 - 1e-6, name
    assert crop(255 - inside).max() < 1e-6, name


@pytest.mark.parametrize(
  'shape, size', [((20, 30), 16), ((7, 5), 9), ((1, 3), 4)]
)
def test_center_crop_equals_jaxs_resize(shape, size):
  import jax

  image = np.random.RandomState(1).randint(0, 256, (*shape, 3)).astype(np.uint8)
  side = min(shape)
  top, left = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
  cut = image[top : top + side, left : left + side] / np.float32(255)
  wanted = jax.image.resize(cut, (size, size, 3), 'cubic', antialias=False)
  found = images.center_crop(image, size=size, share=1.0)
  np.testing.assert_allclose(found, np.clip(wanted, 0, 1), atol=2e-6)


def test_center_crop_of_the_right_size_is_the_image():
  image = np.random.RandomState(2).randint(0, 256, (8, 8, 3)).astype(np.uint8)
  found = images.center_crop(image, size=8, share=1.0)
  np.testing.assert_array_equal(found, image / np.float32(255))


# -- of any size --


@pytest.mark.parametrize(
  'height, width, expected',
  [
    (375, 500, (375, 500)),  # ImageNet's usual: as it is
    (512, 512, (512, 512)),
    (427, 640, (321, 480)),  # 6/8, by the decoder
    (1000, 750, (500, 375)),  # 4/8
    (900, 1366, (337, 512)),  # 2/8 is too little, 3/8 a pixel too much
    (4, 1024, (2, 512)),
    (1, 1, (1, 1)),
    (1, 700, (1, 438)),
  ],
)
def test_large_jpegs_are_shrunk(height, width, expected):
  data = encode(smooth(height, width), quality=95)
  found = images.load(data, 512)
  assert found.shape == (*expected, 3)
  if min(expected) > 8:
    wanted = smooth(*expected).astype(int)
    assert np.abs(found - wanted).max() < 16


def test_a_large_png_is_shrunk_to_the_very_side():
  found = images.load(encode(smooth(600, 900), 'PNG'), 300)
  assert found.shape == (200, 300, 3)
  assert np.abs(found - smooth(200, 300).astype(int)).max() < 6


def test_shrinking_smooths():
  """A fine checkerboard becomes grey, not a coarser one."""
  board = np.indices((64, 64)).sum(0) % 2 * 255
  data = encode(board.astype(np.uint8), 'PNG')
  assert images.load(data, 16).std() < 2


def test_20_megapixels():
  data = encode(smooth(4000, 5000))
  assert images.load(data, 512).shape == (410, 512, 3)
  assert images.decode(data).shape == (4000, 5000, 3)


# -- odd and damaged --


def test_16_bits_palette_grey_cmyk_and_transparency():
  deep = images.decode(encode(np.full((12, 9), 0x80FF, np.uint16), 'PNG'))
  np.testing.assert_array_equal(deep, np.full((12, 9, 3), 128))
  red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (12, 9, 3))
  for kind, mode in (('PNG', 'P'), ('PNG', 'RGBA'), ('GIF', 'P')):
    np.testing.assert_array_equal(images.decode(encode(red, kind, mode)), red)
  cmyk = images.decode(encode(red, mode='CMYK', quality=95))
  np.testing.assert_allclose(cmyk.astype(int), red, atol=6)
  grey = images.decode(encode(np.full((5, 4), 77, np.uint8)))
  np.testing.assert_array_equal(grey, np.full((5, 4, 3), 77))


# Of Pillow's modes: a pixel in it, and in RGB; None: refused. LAB is read or
# refused as Pillow's version has it.
_MODES = {
  '1': (1, (255, 255, 255)),
  'L': (77, (77, 77, 77)),
  'LA': ((77, 9), (77, 77, 77)),
  'La': ((77, 255), (77, 77, 77)),
  'P': (3, (10, 20, 30)),
  'PA': ((3, 9), (10, 20, 30)),
  'RGB': ((1, 2, 3), (1, 2, 3)),
  'RGBA': ((1, 2, 3, 9), (1, 2, 3)),
  'RGBX': ((1, 2, 3, 9), (1, 2, 3)),
  'RGBa': ((1, 2, 3, 255), (1, 2, 3)),
  'CMYK': ((0, 255, 255, 0), (255, 0, 0)),
  'YCbCr': ((77, 128, 128), (77, 77, 77)),
  'HSV': ((0, 255, 200), (200, 0, 0)),
  'I;16': (0x80FF, (128, 128, 128)),
  'I;16L': (0x80FF, (128, 128, 128)),
  'I;16B': (0x80FF, (128, 128, 128)),
  'I;16N': (0x80FF, (128, 128, 128)),
  'I': (0x80FF, None),
  'F': (0.5, None),
}


def of_mode(mode):
  picture = Image.new(mode, (3, 2))
  if mode in ('P', 'PA'):
    picture.putpalette([0] * 9 + [10, 20, 30])
  if mode.startswith('I;16'):  # Pillow puts no pixel into some of them
    order = '>' if mode == 'I;16B' else '<'
    pixels = np.full(6, _MODES[mode][0], f'{order}u2').tobytes()
    return Image.frombytes(mode, (3, 2), pixels)
  for place in np.ndindex(3, 2):
    picture.putpixel(place, _MODES[mode][0])
  return picture


@pytest.mark.parametrize('mode', _MODES)
def test_pictures_of_every_mode(mode):
  rgb = _MODES[mode][1]
  if rgb is None:
    with pytest.raises(images.Unreadable, match=mode):
      images.from_pil(of_mode(mode))
    return
  found = images.from_pil(of_mode(mode))
  assert found.shape == (2, 3, 3) and found.dtype == np.uint8
  np.testing.assert_array_equal(found, np.broadcast_to(rgb, (2, 3, 3)))


@pytest.mark.parametrize(
  'kind, mode',
  [('PNG', m) for m in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16')]
  + [('TIFF', m) for m in ('L', 'CMYK', 'I;16', 'I;16B', 'RGBX')],
)
def test_a_file_is_what_its_picture_is(kind, mode):
  file = io.BytesIO()
  of_mode(mode).save(file, kind)
  found = images.decode(file.getvalue())
  np.testing.assert_array_equal(found, images.from_pil(of_mode(mode)))
  np.testing.assert_array_equal(found, images.from_pil(Image.open(file)))


def test_a_palettes_transparency_is_dropped_without_a_word():
  file = io.BytesIO()
  of_mode('P').save(file, 'PNG', transparency=bytes([0, 0, 0, 9]))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = images.decode(file.getvalue())
  np.testing.assert_array_equal(found[0, 0], _MODES['P'][1])


def test_orientation_in_exif_is_ignored():
  """As in the release: training and test images are seen as they are stored."""
  exif = Image.Exif()
  exif[274] = 6
  data = encode(smooth(20, 40), exif=exif)
  assert images.decode(data).shape == (20, 40, 3)


def test_junk_that_libjpeg_only_warns_of_is_read():
  """ImageNet has such files; TensorFlow reads them."""
  data = encode(smooth(40, 40))
  cut = data.index(b'\xff\xda')
  junk = data[:cut] + b'\x12\x34\x56' + data[cut:]
  np.testing.assert_array_equal(
    images.decode(junk).shape, images.decode(data).shape
  )


GOOD = {
  kind: encode(
    np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8), kind
  )
  for kind in ('JPEG', 'PNG')
}


@pytest.mark.parametrize('kind', GOOD)
@pytest.mark.parametrize('keep', [2, 30, 0.5, 0.95])
def test_truncated(kind, keep):
  data = GOOD[kind]
  cut = data[: keep if keep > 1 else int(keep * len(data))]
  with pytest.raises(images.Unreadable) as e:
    images.decode(cut)
  assert str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
  'data', [b'', b'hello', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', bytes(1000)]
)
def test_what_is_no_image(data):
  with pytest.raises(images.Unreadable) as e:
    images.decode(data)
  assert '0x' not in str(e.value)


def test_float_images_are_refused():
  file = io.BytesIO()
  Image.fromarray(np.zeros((9, 9), np.float32)).save(file, 'TIFF')
  with pytest.raises(images.Unreadable, match='mode F is neither'):
    images.decode(file.getvalue())


def test_a_small_file_that_claims_a_huge_size():
  data = bytearray(encode(np.zeros((8, 8, 3), np.uint8)))
  at = data.index(b'\xff\xc0') + 5  # height and width of the frame header
  data[at : at + 4] = b'\xff\xdc\xff\xdc'
  with pytest.raises(images.Unreadable, match='65500 x 65500 .* more than'):
    images.decode(bytes(data))
  png = bytearray(encode(np.zeros((8, 8, 3), np.uint8), 'PNG'))
  png[16:24] = (60_000).to_bytes(4, 'big') * 2
  import zlib

  png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, 'big')
  with pytest.raises(
    images.Unreadable, match='60000 x 60000|3600000000 pixels'
  ):
    images.decode(bytes(png))


def test_random_damage_is_read_or_refused():
  """Never another exception, whatever byte is wrong."""
  random = np.random.RandomState(0)
  refused = 0
  for i in range(300):
    data = bytearray(GOOD['JPEG' if i % 2 else 'PNG'])
    for at in random.randint(0, len(data), 1 + i % 5):
      data[at] = random.randint(256)
    try:
      found = images.load(bytes(data), 16)
      assert found.dtype == np.uint8 and max(found.shape[:2]) <= 16
    except images.Unreadable:
      refused += 1
  assert 50 < refused < 300
