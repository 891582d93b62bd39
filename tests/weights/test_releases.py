"""The manifest, and where downloaded files are looked for."""

import jax
import jax.numpy as jnp
import pytest

from semppl_jax import errors
from semppl_jax.models import encoders, networks
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import haiku_trees, releases

_SITE = 'https://storage.googleapis.com/dm-semppl/'
_BYOL = 'https://storage.googleapis.com/deepmind-byol/checkpoints/'
_DRIVE = 'https://drive.google.com/file/d/'


def _rows(method):
  return [row for row in releases.manifest() if row['method'] == method]


def _encoders(rows):
  return {(r['encoder'], r['width'], r['selective_kernels']) for r in rows}


def test_every_file_has_a_name_and_an_address_of_its_own():
  rows = releases.manifest()
  assert len({row['file'] for row in rows}) == len(rows) == 14 + 7 + 2
  assert len({row['address'] for row in rows}) == len(rows)
  assert len({tuple(row) for row in rows}) == 1  # the same keys


def test_the_manifest_has_semppls_14_files():
  rows = _rows('semppl')
  assert len(rows) == 14
  for row in rows:
    assert row['address'] == _SITE + row['file']
    # The release's own, uneven, naming.
    mark = '_pct' if '50_1x' in row['file'] else 'pct'
    assert row['file'].endswith(row['labels'].rstrip('%') + mark + '.pkl')
    assert row['file'].startswith('sk_') == row['selective_kernels']
  assert _encoders(rows) == {
    ('resnet50', 1, False), ('resnet50', 2, False), ('resnet50', 4, False),
    ('resnet200', 2, False), ('resnet50', 1, True), ('resnet50', 2, True),
    ('resnet200', 2, True),
  }  # fmt: skip


def test_the_manifest_has_relicv2s_7_files():
  """Under names of ours: its README has links to a drive, without names."""
  rows = _rows('relicv2')
  assert len(rows) == 7
  for row in rows:
    assert row['address'].startswith(_DRIVE)
    assert row['file'] == f'relicv2_{row["encoder"]}_{row["width"]}x.pkl'
    assert row['labels'] == '0%'
  assert _encoders(rows) == {
    ('resnet50', 1, False), ('resnet50', 2, False), ('resnet50', 4, False),
    ('resnet101', 1, False), ('resnet152', 1, False), ('resnet200', 1, False),
    ('resnet200', 2, False),
  }  # fmt: skip


def test_the_manifest_has_byols_2_files():
  rows = _rows('byol')
  assert [row['file'] for row in rows] == [
    'pretrain_res50x1.pkl', 'pretrain_res200x2.pkl'
  ]  # fmt: skip
  for row in rows:
    assert row['address'] == _BYOL + row['file'] and row['labels'] == '0%'
    assert row['file'] == f'pretrain_{row["encoder"][:3]}' + (
      f'{row["encoder"][6:]}x{row["width"]}.pkl'
    )
    assert not row['selective_kernels']


@pytest.mark.parametrize(
  'deep', [False, pytest.param(True, marks=pytest.mark.long)]
)
def test_the_manifests_parameters_are_those_of_our_encoders(deep):
  counted = {}
  rows = [
    r for r in releases.manifest() if (r['encoder'] != 'resnet50') == deep
  ]
  assert rows
  for row in rows:
    architecture = encoders.Architecture(
      row['encoder'], row['width'], selective_kernels=row['selective_kernels']
    )
    if architecture not in counted:
      params = architecture_lib.expected(architecture, {}).params
      counted[architecture] = haiku_trees.size(haiku_trees.encoder_part(params))
    assert row['encoder_parameters'] == counted[architecture]


def test_a_path_is_itself(tmp_path):
  file = tmp_path / 'x.pkl'
  file.write_text('')
  assert releases.find(file) == file
  assert releases.find(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
  'name',
  [
    'resnet_50_1x_10_pct.pkl', 'resnet_50_1x_10_pct', 'resnet_50_1x_10pct',
    'resnet_50_1x_10pct.pkl',
  ],
)  # fmt: skip
def test_names_are_looked_for_in_the_folder(name, tmp_path, monkeypatch):
  monkeypatch.setenv(releases.FOLDER_VARIABLE, str(tmp_path))
  with pytest.raises(errors.CheckpointError) as error:
    releases.find(name)
  text = str(error.value)
  assert f'{_SITE}resnet_50_1x_10_pct.pkl' in text and '\n' not in text
  assert releases.FOLDER_VARIABLE in text
  file = tmp_path / 'resnet_50_1x_10_pct.pkl'
  file.write_text('')
  assert releases.find(name) == file
  with pytest.raises(errors.CheckpointError, match='resnet_50_2x_1pct.pkl'):
    releases.find('resnet_50_2x_1_pct')


def test_a_missing_path_of_a_released_name_gives_the_address(tmp_path):
  with pytest.raises(errors.CheckpointError, match=_SITE + 'sk_resnet_200'):
    releases.find(tmp_path / 'sk_resnet_200_2x_10pct.pkl')


@pytest.mark.parametrize(
  'name, address',
  [
    ('relicv2_resnet50_1x', _DRIVE + '1PqLiSdGA8zCRVxvdb_6yQYBiTrtWqETn'),
    ('pretrain_res200x2', _BYOL + 'pretrain_res200x2.pkl'),
  ],
)
def test_where_to_put_what_is_not_there(name, address, tmp_path, monkeypatch):
  """A drive's download has any name: the line says which is found."""
  monkeypatch.setenv(releases.FOLDER_VARIABLE, str(tmp_path))
  with pytest.raises(errors.CheckpointError) as error:
    releases.find(name)
  file = tmp_path / f'{name}.pkl'
  assert address in str(error.value) and f' as {file} ' in str(error.value)
  file.write_text('')
  assert releases.find(name) == file


def test_a_name_that_is_none(monkeypatch, tmp_path):
  monkeypatch.setenv(releases.FOLDER_VARIABLE, str(tmp_path / 'gone'))
  with pytest.raises(errors.CheckpointError, match='did you mean resnet_50_1x'):
    releases.find('resnet_51_1x_1_pct.pkl')
  with pytest.raises(errors.CheckpointError, match="no checkpoint 'x'"):
    releases.find('x')


@pytest.mark.long  # the test above builds them, too
def test_every_released_encoder_can_be_built():
  """As the evaluation builds them; shapes only."""
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  row = _rows('semppl')[-1]
  nets = networks.build(
    encoder=row['encoder'], width=row['width'],
    selective_kernels=row['selective_kernels'],
  )  # fmt: skip
  params, state = jax.eval_shape(nets.init, jax.random.key(0), images)
  encode = lambda p, s, x: nets.encode(p, s, x, False)
  embedding, _ = jax.eval_shape(encode, params, state, images)
  assert embedding.shape == (1, 4096)
