"""The table of duplicates, what is told, and what cannot be done."""

import csv

import numpy as np
import pytest
from PIL import Image

import semppl_jax
from semppl_jax.data import sources
from semppl_jax.tools import duplicates
from tests.helpers import photos
from tests.helpers.photos import photo


@pytest.fixture
def folder(tmp_path):
  """Two classes, unlabelled and test images; three copies, one broken file."""
  folder = tmp_path / 'images'
  names = [f'train/{c}/{c}{i}' for c in 'ab' for i in range(3)]
  names += [f'unlabelled/u{i}' for i in range(4)] + ['test/a/t0', 'test/b/t1']
  for i, name in enumerate(names):
    path = folder / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(i)).save(path)
  test = folder / 'test/a/t0.png'
  (folder / 'unlabelled/u0.png').write_bytes(test.read_bytes())
  crop = photos.cropped(photos.flipped(photo(11)))  # of test/b/t1
  (folder / 'train/a/a1.png').write_bytes(photos.recompressed(crop, 80))
  again = photos.resized(photo(3), 60)  # of train/b/b0
  Image.fromarray(again).save(folder / 'unlabelled/u2.png')
  (folder / 'unlabelled/u3.png').write_bytes(b'no image')
  return folder


def _run(folder, *flags):
  flags = ['--dataset=folder', f'--path={folder}', *flags]
  return duplicates.main(flags)


def test_the_table_has_pairs_with_test_images_first(folder, tmp_path, capsys):
  out = tmp_path / 'new' / 'pairs.csv'
  assert _run(folder, f'--out={out}') == 0
  with open(out, newline='') as file:
    head, *rows = csv.reader(file)
  assert head == list(duplicates.COLUMNS)
  assert [row[:5] for row in rows] == [
    ['unlabelled/u0.png', 'unlabelled', 'a/t0.png', 'test', 'same bytes'],
    ['a/a1.png', 'train', 'b/t1.png', 'test', 'mirrored'],
    ['b/b0.png', 'train', 'unlabelled/u2.png', 'unlabelled', 'near'],
  ]
  assert rows[0][5] == '1.0000' and 0.85 <= float(rows[1][5]) < 1
  assert capsys.readouterr().out.splitlines() == [
    '10 training images, 2 test images.',
    'Pairs of a training and a test image: 2 (1 same bytes, 1 mirrored); of 2 '
    'training images.',
    'Pairs of training images: 1 (1 near).',
    'Left out: unlabelled/u3.png (it is no image that can be decoded).',
    f'{out}: 3 pairs.',
  ]


def test_without_a_file_the_first_pairs_are_shown(folder, monkeypatch, capsys):
  monkeypatch.setattr(duplicates, '_SHOWN', 1)
  assert _run(folder, '--least=0.99') == 0
  assert capsys.readouterr().out.splitlines()[-2:] == [
    'unlabelled/u0.png (unlabelled), a/t0.png (test): same bytes, 1.0000',
    '... 2 pairs in all; --out=FILE.csv has them.',
  ]


def test_embeddings_add_pairs_that_pixels_do_not_show():
  model = semppl_jax.load_pretrained('digits')
  digits = sources.Records(
    np.zeros(4),
    lambda i: np.roll(photo(i // 2, 8), i % 2, axis=1),
  )
  noise = sources.Records(np.zeros(2), lambda i: photo(i + 7, 8))
  data = sources.Dataset(digits, noise, 1, ('a',), (8, 8, 3), '')
  assert duplicates.find(data).pairs == []
  found = duplicates.find(data, model, cosine=-1.0).pairs
  # All but the pair of test images.
  assert len(found) == 4 * 3 // 2 + 4 * 2
  assert [pair.second >= 4 for pair in found] == [True] * 8 + [False] * 6
  images = [digits[i]['image'] for i in range(4)]
  images += [noise[i]['image'] for i in range(2)]
  rows = model.embed(np.stack(images))
  rows = rows - rows.mean(0)
  for pair in found:
    a, b = rows[pair.first], rows[pair.second]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert pair.kind == 'embedding'
    assert pair.score == pytest.approx(cosine, abs=1e-3)


def test_a_pair_that_pixels_show_is_there_once():
  model = semppl_jax.load_pretrained('digits')
  train = sources.Records(np.zeros(3), lambda i: photo(i % 2, 8))
  data = sources.Dataset(train, None, 1, ('a',), (8, 8, 3), '')
  (pair,) = duplicates.find(data, model, cosine=0.99).pairs
  assert pair == (0, 2, 'same bytes', 1.0)


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--least=0'], '--least=0.0: it must be above 0'),
    (['--cosine=2'], '--cosine=2.0: it must be above 0, and at most 1'),
    (['--out=pairs.txt'], '--out=pairs.txt: it must be a file that ends in'),
    (['--path=/no/folder'], "dataset.path '/no/folder' is not a folder"),
    (['--checkpoint=/no/run'], '/no/run'),
    (['--path={one}'], '1 image in all: there is nothing to compare it with.'),
    (['--path={bad}'], 'Of 2 images 0 can be read'),
  ],
)
def test_what_cannot_be_done_is_one_line(flags, said, folder, tmp_path, capsys):
  one, bad = tmp_path / 'one', tmp_path / 'bad'
  for place in (one, bad):
    place.mkdir()
  Image.fromarray(photo(0)).save(one / 'a.png')
  for name in 'ab':
    (bad / f'{name}.png').write_bytes(b'')
  flags = [flag.format(one=one, bad=bad) for flag in flags]
  assert _run(folder, *flags) == 2
  lines = capsys.readouterr().err.splitlines()
  lines = [line for line in lines if line.startswith('error: ')]
  assert len(lines) == 1 and said in lines[0]
