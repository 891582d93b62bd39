"""Embeddings of many images: their order, their names, going on."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

import semppl_jax
from semppl_jax.data import python_objects, sources
from semppl_jax.errors import UserError
from semppl_jax.tools import embed, kept_features


@pytest.fixture(scope='module')
def model():
  return semppl_jax.load_pretrained('digits')


@pytest.fixture
def folder(tmp_path):
  """Seven images, and one file that is none, in the middle."""
  folder = tmp_path / 'images'
  folder.mkdir()
  for i in range(7):
    pixels = np.random.RandomState(i).randint(0, 256, (9 + i, 8, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{i}.png')
  (folder / '3.png').write_bytes(b'no image')
  return folder


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(kept_features, 'PART', 2)


def _csv(path):
  with open(path, newline='') as file:
    head, *rows = csv.reader(file)
  return head, [row[0] for row in rows], np.array([r[1:] for r in rows], float)


def test_rows_are_the_models_and_unreadable_ones_are_left_out(
  model, folder, tmp_path, small_blocks
):
  source = python_objects.source(folder)
  found = semppl_jax.save_embeddings(model, source, tmp_path / 'e.npy')
  kept = [str(folder / f'{i}.png') for i in (0, 1, 2, 4, 5, 6)]
  rows = np.load(tmp_path / 'e.npy')
  assert rows.dtype == np.float32 and found.images == 6
  np.testing.assert_allclose(rows, model.embed(kept), rtol=1e-5, atol=1e-6)
  assert (tmp_path / 'e.names.txt').read_text().splitlines() == kept
  assert list(found.unreadable) == [str(folder / '3.png')]
  semppl_jax.save_embeddings(model, source, tmp_path / 'e.csv')
  head, names, values = _csv(tmp_path / 'e.csv')
  assert head == ['name', *map(str, range(64))] and names == kept
  np.testing.assert_array_equal(values.astype(np.float32), rows)
  left = {path.name for path in tmp_path.iterdir()}
  assert left == {'images', 'e.npy', 'e.names.txt', 'e.csv'}


def test_images_of_one_name_are_left_out_each_for_itself(model, tmp_path):
  good = np.zeros((9, 8, 3), np.uint8)
  source = sources.Records(
    [-1] * 3, [good, b'no image', good].__getitem__, encoded=True,
    names=['a/1.png', 'a/1.png', 'b/1.png'],
  )  # fmt: skip
  found = semppl_jax.save_embeddings(model, source, tmp_path / 'e.npy')
  assert found.images == 2 and list(found.unreadable) == ['a/1.png']
  names = (tmp_path / 'e.names.txt').read_text().splitlines()
  assert names == ['a/1.png', 'b/1.png']


def test_odd_names_have_a_line_each_and_folders_are_made(folder, tmp_path):
  odd = tmp_path / 'odd'
  odd.mkdir()
  for name in (b'a\nb.png', b'c,"d".png', b'lat\xe9.png', 'ü.png'.encode()):
    with open(os.path.join(os.fsencode(odd), name), 'wb') as file:
      file.write((folder / '0.png').read_bytes())
  expected = [f'{odd}/{x}' for x in ('a\ufffdb', 'c,"d"', 'lat\ufffd', 'ü')]
  expected = [f'{name}.png' for name in expected]
  flags = ['--checkpoint=digits', f'--images={odd}']
  assert embed.main([*flags, f'--out={tmp_path}/new/e.npy']) == 0
  names = (tmp_path / 'new/e.names.txt').read_text().splitlines()
  assert names == expected and len(np.load(tmp_path / 'new/e.npy')) == 4
  assert embed.main([*flags, f'--out={tmp_path}/e.csv']) == 0
  assert _csv(tmp_path / 'e.csv')[1] == expected


class _Stops(Exception):
  pass


def test_a_stopped_job_goes_on(
  model, folder, tmp_path, small_blocks, monkeypatch
):
  source = python_objects.source(folder)
  semppl_jax.save_embeddings(model, source, tmp_path / 'whole.npy')
  whole, asked = type(model).features, []

  def stops(self, part, *settings):
    asked.append(len(asked))
    if len(asked) == 3:
      raise _Stops
    return whole(self, part, *settings)

  monkeypatch.setattr(type(model), 'features', stops)
  with pytest.raises(_Stops):
    semppl_jax.save_embeddings(model, source, tmp_path / 'e.npy')
  assert not (tmp_path / 'e.npy').exists()
  found = semppl_jax.save_embeddings(model, source, tmp_path / 'e.npy')
  assert len(asked) == 3 + 2  # of four blocks two were done
  assert list(found.unreadable) == [str(folder / '3.png')]  # of the first call
  np.testing.assert_array_equal(
    np.load(tmp_path / 'e.npy'), np.load(tmp_path / 'whole.npy')
  )


def test_what_was_begun_with_other_images_is_not_gone_on_with(
  model, folder, tmp_path, small_blocks, monkeypatch
):
  source = python_objects.source(folder)
  with monkeypatch.context() as patch:
    patch.setattr(embed, '_finish', lambda *_: (_ for _ in ()).throw(_Stops))
    with pytest.raises(_Stops):
      semppl_jax.save_embeddings(model, source, tmp_path / 'e.npy')
  fewer = sources.Rows(source, np.arange(5))
  with pytest.raises(UserError, match='e.npy.part is of other images'):
    semppl_jax.save_embeddings(model, fewer, tmp_path / 'e.npy')


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--images={images}', '--out={out}/e.txt'], 'must end in .npy or .csv'),
    (['--out={out}/e.npy'], 'Give either --images or --dataset.'),
    (['--images={out}/none', '--out={out}/e.npy'], 'There is no file'),
    (['--images={out}/a.txt', '--out={out}/e.npy'], 'There is no file'),
    (['--images={out}/there.csv', '--out={out}/e.npy'], 'no file'),
    (['--images={images}/3.png', '--out={out}/e.npy'], 'None of 1 images'),
    (['--dataset=digit', '--out={out}/e.npy'], "did you mean 'digits'"),
    (['--images={images}', '--out={out}/there.csv'], 'is there already'),
  ],
)
def test_what_cannot_be_done_is_one_line(flags, said, folder, tmp_path, capsys):
  (tmp_path / 'there.csv').write_text('mine')
  flags = [flag.format(images=folder, out=tmp_path) for flag in flags]
  assert embed.main(['--checkpoint=digits', *flags]) == 2
  shown = capsys.readouterr().err.splitlines()
  (line,) = [line for line in shown if line.startswith('error: ')]
  assert said in line
  assert not list(tmp_path.glob('e.*'))
  assert (tmp_path / 'there.csv').read_text() == 'mine'


def test_a_list_and_a_data_set(folder, tmp_path, capsys):
  names = [str(folder / '5.png'), str(folder / '0.png')]
  (tmp_path / 'list.txt').write_text('\n'.join(names) + '\n\n')
  flags = [f'--images={tmp_path}/list.txt', f'--out={tmp_path}/e.csv']
  assert embed.main(['--checkpoint=digits', *flags]) == 0
  assert _csv(tmp_path / 'e.csv')[1] == names
  assert '2 images, 64 numbers each' in capsys.readouterr().out
  flags = ['--dataset=digits', '--split=test', f'--out={tmp_path}/d.npy']
  assert embed.main(['--checkpoint=digits', *flags]) == 0
  assert np.load(tmp_path / 'd.npy').shape == (297, 64)
