"""The manifest, and where downloaded files are looked for."""

import jax
import jax.numpy as jnp
import pytest

from semppl_jax import errors
from semppl_jax.models import encoders, networks
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import haiku_trees, releases

_SITE = 'https://storage.googleapis.com/dm-semppl/'


def test_the_manifest_has_the_releases_14_files():
  rows = releases.manifest()
  assert len({row['file'] for row in rows}) == 14
  for row in rows:
    assert row['address'] == _SITE + row['file']
    # The release's own, uneven, naming.
    mark = '_pct' if '50_1x' in row['file'] else 'pct'
    assert row['file'].endswith(row['labels'].rstrip('%') + mark + '.pkl')
    assert row['file'].startswith('sk_') == row['selective_kernels']
  kinds = {(r['encoder'], r['width'], r['selective_kernels']) for r in rows}
  assert kinds == {
    ('resnet50', 1, False), ('resnet50', 2, False), ('resnet50', 4, False),
    ('resnet200', 2, False), ('resnet50', 1, True), ('resnet50', 2, True),
    ('resnet200', 2, True),
  }  # fmt: skip


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
  row = releases.manifest()[-1]
  nets = networks.build(
    encoder=row['encoder'], width=row['width'],
    selective_kernels=row['selective_kernels'],
  )  # fmt: skip
  params, state = jax.eval_shape(nets.init, jax.random.key(0), images)
  encode = lambda p, s, x: nets.encode(p, s, x, False)
  embedding, _ = jax.eval_shape(encode, params, state, images)
  assert embedding.shape == (1, 4096)
