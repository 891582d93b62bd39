"""Foreground masks of images, and the tool that makes them of a data set."""

import io
import os
import pathlib
import shutil
import signal
import sys
import types

import numpy as np
import pytest
from PIL import Image

from semppl_jax import config
from semppl_jax.data import datasets, images, masks
from semppl_jax.errors import UserError
from semppl_jax.tools import foregrounds, saliency


def natural(random, shape, *, power, contrast, mean):
  """[h, w, 3] noise with a spectrum of 1 / f ** power, mostly in luminance."""
  height, width = shape
  frequency = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
  )
  frequency[0, 0] = np.inf
  noise = random.normal(size=(2, *frequency.shape, 3))
  spectrum = frequency[..., None] ** -power * (noise[0] + 1j * noise[1])
  waves = np.fft.irfft2(spectrum, s=shape, axes=(0, 1))
  waves /= waves.std()
  return mean + contrast * (0.8 * waves[..., :1] + 0.35 * waves)


def scene(seed, power=1.0, shape=(192, 256)):
  """A textured blob before earth and sky, and its true mask."""
  random = np.random.RandomState(seed)
  shift = lambda: random.choice([-1, 1], 3) * random.uniform(20, 45, 3)
  sky = random.uniform(70, 185, 3)
  rows, columns = np.indices(shape)
  below = rows > shape[0] * random.uniform(0.3, 0.7)
  mean = np.where(below[..., None], sky + shift(), sky)
  image = natural(random, shape, power=power, contrast=15, mean=mean)
  rows = rows - shape[0] * random.uniform(0.4, 0.6)
  columns = columns - shape[1] * random.uniform(0.4, 0.6)
  angle = np.arctan2(rows, columns)
  bumps = sum(
    random.normal() * 0.12 / k * np.cos(k * angle + random.uniform(0, 6))
    for k in range(1, 6)
  )
  radius = min(shape) * random.uniform(0.2, 0.35) * (1 + bumps)
  mask = np.hypot(rows, columns) < radius
  texture = natural(random, shape, power=0.7, contrast=20, mean=sky + shift())
  image = np.where(mask[..., None], texture, image)
  return np.clip(image, 0, 255).astype(np.uint8), mask


def iou(one, other):
  return (one & other).sum() / (one | other).sum()


# Without GrabCut: 0.78 and 0.80; see foregrounds.py for more measurements.
@pytest.mark.parametrize('power, least', [(1.0, 0.88), (2.0, 0.95)])
def test_objects_are_found(power, least):
  scenes = [scene(seed, power) for seed in range(8)]
  found = [foregrounds.foreground(image) for image, _ in scenes]
  every = [iou(mask, true) for mask, (_, true) in zip(found, scenes)]
  assert np.mean(every) > least


def test_path_lengths_by_hand():
  labels = np.array([[0, 1, 2], [0, 1, 2]])
  greys = np.array([0.0, 10, 1])
  colours = np.abs(np.subtract.outer(greys, greys))
  # Neighbours cost what their colours differ by, less 2 that are free.
  apart = foregrounds._path_lengths(labels, colours, np.zeros(3, bool))
  np.testing.assert_array_equal(apart, [[0, 8, 15], [8, 0, 7], [15, 7, 0]])
  # Superpixels at the border are neighbours of each other.
  border = np.array([True, False, True])
  round_it = foregrounds._path_lengths(labels, colours, border)
  np.testing.assert_array_equal(round_it, [[0, 7, 0], [7, 0, 7], [0, 7, 0]])


def test_what_is_not_the_border_stands_out():
  image = np.zeros((128, 192, 3), np.uint8)
  image[:, :96] = (60, 90, 200)
  image[:, 96:] = (80, 160, 60)
  image[48:80, 80:112] = (200, 60, 50)
  contrast = foregrounds._border_contrast(image)
  assert contrast[52:76, 84:108].min() > 0.9
  contrast[48:80, 80:112] = 0
  assert contrast.max() < 0.8


def test_a_mask_is_small_and_has_the_images_aspect():
  large, true = scene(0, shape=(600, 400))
  found = foregrounds.foreground(large)
  assert (found.dtype, found.shape) == (np.dtype(bool), (256, 171))
  assert iou(masks.fit(found, 600, 400), true) > 0.9
  small, true = scene(1, shape=(48, 40))
  found = foregrounds.foreground(small)
  assert found.shape == (48, 40)
  assert iou(found, true) > 0.8


def test_the_same_image_has_the_same_mask():
  cv2 = foregrounds.opencv()
  image, _ = scene(2)
  threads = cv2.getNumThreads()
  first = foregrounds.foreground(image)
  cv2.setRNGSeed(5)
  cv2.setNumThreads(1)
  np.testing.assert_array_equal(foregrounds.foreground(image), first)
  cv2.setNumThreads(3)
  np.testing.assert_array_equal(foregrounds.foreground(image), first)
  cv2.setNumThreads(threads)
  view = image[::-1].copy()[::-1]  # its rows lie in memory from below
  np.testing.assert_array_equal(foregrounds.foreground(view), first)


@pytest.mark.parametrize(
  'image',
  [
    np.full((90, 120, 3), 77, np.uint8),
    np.zeros((64, 64, 3), np.uint8),
    scene(0, shape=(20, 300))[0],
    np.arange(3, dtype=np.uint8).reshape(1, 1, 3),
  ],
  ids=['grey', 'black', 'narrow', 'one pixel'],
)
def test_nothing_to_see_is_no_mask(image):
  assert foregrounds.foreground(image) is None


def test_an_implausible_share_is_no_mask(monkeypatch):
  image, _ = scene(3)
  for rows, there in ((1, False), (20, True), (180, True), (191, False)):
    mask = np.zeros((192, 256), bool)
    mask[:rows] = True
    monkeypatch.setattr(foregrounds, '_grab_cut', lambda *_, m=mask: m)
    assert (foregrounds.foreground(image) is not None) == there


@pytest.mark.parametrize('value', [False, True])
def test_one_sided_masks_pass(value):
  mask = np.full((192, 256), value)
  np.testing.assert_array_equal(
    foregrounds._without_specks(foregrounds._grab_cut(scene(0)[0], mask)), mask
  )


def test_specks_go_and_holes_close():
  mask = np.zeros((100, 100), bool)
  mask[10:70, 10:70] = True
  clean = mask.copy()
  mask[30:38, 30:38] = False
  mask[80:88, 80:88] = True
  found = foregrounds._without_specks(mask)
  assert (found != clean).sum() < 20  # corners are rounded
  mask[75:95, 60:95] = True  # a second object stays
  assert foregrounds._without_specks(mask)[85, 80]


@pytest.mark.parametrize('module', [None, types.ModuleType('cv2')])
def test_opencv_without_saliency_is_one_line(monkeypatch, capsys, module):
  monkeypatch.setitem(sys.modules, 'cv2', module)
  assert saliency.main(['--dataset=digits', '--out=nowhere']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert "pip install 'semppl-jax[saliency]'" in error


def encoded(image, kind='PNG'):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


class Scenes:
  """Ten images: 3 is unreadable, 6 not there, 7 of one colour."""

  def __init__(self, first_id=0):
    self.first_id = first_id

  def __len__(self):
    return 10

  def __getitem__(self, index):
    image = scene(index, shape=(60 + index, 80))[0]
    if index == 6:
      raise images.Unreadable('gone')
    if index == 7:
      image[:] = 9
    data = encoded(image) if index % 2 else image
    data = data[:50] if index == 3 else data
    return {'image': data, 'label': -1, 'id': self.first_id + index}


def make(folder, source):
  saliency.make(source, folder, fingerprint='abc', dataset='scenes', sheet=0)


@pytest.fixture(scope='module')
def short_shards():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(saliency.mask_store, 'shard_size', lambda _: 4)
    yield


@pytest.fixture(scope='module')
def made(tmp_path_factory, short_shards):
  folder = tmp_path_factory.mktemp('scenes') / 'not' / 'there'
  make(folder, Scenes())
  return folder


@pytest.fixture
def copy(made, tmp_path):
  return pathlib.Path(shutil.copytree(made, tmp_path / 'copy'))


def contents(folder):
  opened = masks.Masks(folder, 'abc', 10)
  return [opened.read(i) for i in range(10)]


def test_every_image_gets_its_mask(made):
  assert len(list(made.glob('*.array_record'))) == 3
  for i, found in enumerate(contents(made)):
    if i in (3, 6, 7):
      assert found is None
    else:
      image = scene(i, shape=(60 + i, 80))[0]
      np.testing.assert_array_equal(found, foregrounds.foreground(image))


def test_only_what_is_missing_is_made(copy, capsys):
  seen = []

  class Watched(Scenes):
    def __getitem__(self, index):
      seen.append(index)
      return super().__getitem__(index)

  before = contents(copy)
  masks.shard_path(copy, 1).unlink()
  make(copy, Watched())
  assert set(seen) - {9} == {4, 5, 6, 7}  # and the last one, for its id
  for old, new in zip(before, contents(copy)):
    np.testing.assert_array_equal(old, new)
  shown = capsys.readouterr().out
  assert '10 images: 7 have a mask, 3 have none.' in shown
  assert 'Unreadable in this run: 1 (ids 6).' in shown
  seen.clear()
  make(copy, Watched())
  assert not set(seen) - {9}
  shown = capsys.readouterr().out
  assert '7 have a mask' in shown and 'Unreadable' not in shown


def test_another_method_is_not_mixed_in(copy, monkeypatch):
  monkeypatch.setattr(saliency, 'METHOD', 'another')
  with pytest.raises(UserError, match="'another'"):
    make(copy, Scenes())


def test_images_with_gaps_in_their_numbers_are_refused(tmp_path):
  with pytest.raises(UserError, match='numbered without gaps'):
    make(tmp_path / 'new', Scenes(first_id=1))
  assert not (tmp_path / 'new').exists()


def test_no_images_are_refused(tmp_path):
  with pytest.raises(UserError, match='scenes has no training image'):
    make(tmp_path, [])


@pytest.mark.parametrize(
  'count, rows, columns', [(7, 3, 3), (24, 4, 3), (2, 1, 2), (1, 1, 1)]
)
def test_the_contact_sheet(made, count, rows, columns):
  store = masks.Masks(made, 'abc', 10)
  sheet = np.asarray(saliency.contact_sheet(Scenes(), store, count))
  triple = 3 * (128 + 4) + 8
  assert sheet.shape == (rows * (128 + 14 + 4), columns * triple, 3)
  # The first image: itself, its mask, and itself on grey; its id below.
  first, mask, masked = (sheet[:96, k : k + 128] for k in (0, 132, 264))
  image = Image.fromarray(scene(0, shape=(60, 80))[0])
  wanted = image.resize((128, 96), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(first, wanted)
  inside, outside = (mask == 255).all(-1), (mask == 0).all(-1)
  true = masks.fit(store.read(0), 96, 128)
  assert (inside == true).mean() > 0.95 and (outside == ~true).mean() > 0.95
  # Resizing blurs across the outline.
  assert (np.abs(masked[outside].astype(int) - 128) < 10).mean() > 0.9
  difference = np.abs(masked[inside].astype(int) - first[inside])
  assert (difference < 10).mean() > 0.9
  assert (sheet[97:110, :20] < 100).any()


def test_the_contact_sheet_shows_what_there_is(made):
  store = masks.Masks(made, 'abc', 10)
  sheet = np.asarray(saliency.contact_sheet(Scenes(), store, 10))
  cells = {
    i: sheet[i // 3 * 146 :, i % 3 * 404 :][:146, :404] for i in range(10)
  }
  painted = lambda cell, k: (cell[:60, k * 132 : k * 132 + 128] < 255).any()
  shown = {i: [painted(cell, k) for k in range(3)] for i, cell in cells.items()}
  # The label of an image that cannot be read stands where the image would.
  assert shown[6] == [True, False, False] and (cells[6][14:] == 255).all()
  assert shown[7] == [True, False, False] and (cells[7][14:60, :128] == 9).all()
  assert shown[8] == [True, True, True]


def photos(folder):
  for i in range(10):
    path = folder / 'train' / 'ab'[i // 5] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(scene(i, shape=(60, 80))[0]))
  path.write_bytes(b'no image')
  return folder


def test_the_tool_with_processes(tmp_path, capsys, short_shards):
  folder, out = photos(tmp_path / 'photos'), tmp_path / 'masks'
  arguments = ['--dataset=folder', f'--path={folder}', '--workers=2']
  assert saliency.main([*arguments, f'--out={out}', '--sheet=4']) == 0
  shown = capsys.readouterr().out
  assert '10 images: 9 have a mask, 1 have none.' in shown
  assert '1 (ids 9)' in shown
  assert str(out / 'contact_sheet.png') in shown
  with Image.open(out / 'contact_sheet.png') as sheet:
    assert sheet.size == (3 * 404, 2 * 146)
  cfg = config.default().dataset
  cfg.name, cfg.path = 'folder', str(folder)
  opened = masks.Masks(out, datasets.load(cfg).fingerprint, 10)
  image = scene(5, shape=(60, 80))[0]
  np.testing.assert_array_equal(opened.read(5), foregrounds.foreground(image))


def die(number):
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_is_one_line():
  with pytest.raises(UserError, match='fewer --workers'):
    list(saliency._each(die, range(3), 2))


def test_mistakes_are_one_line(tmp_path, capsys):
  for arguments in (
    ['--dataset=foldr', '--path=x'],
    ['--dataset=folder', f'--path={tmp_path / "none"}'],
    ['--dataset=arrays'],
  ):
    assert saliency.main([*arguments, f'--out={tmp_path / "out"}']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_stopping_says_how_to_go_on(tmp_path, capsys, monkeypatch):
  def stopped(*unused_args, **unused_options):
    raise KeyboardInterrupt

  monkeypatch.setattr(saliency, 'make', stopped)
  folder = photos(tmp_path)
  arguments = ['--dataset=folder', f'--path={folder}', f'--out={tmp_path}']
  assert saliency.main(arguments) == 130
  assert 'the same command goes on' in capsys.readouterr().err
