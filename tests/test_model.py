"""The Python API: images of every form in, the same arrays out."""

import importlib
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import semppl_jax
from benchmarks import turns
from experiments import digits, eval_knn
from semppl_jax import model
from semppl_jax.data import datasets
from semppl_jax.distributed import parallel, processes
from semppl_jax.evaluation import features as features_lib
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.methods import base
from semppl_jax.models import heads
from semppl_jax.train import state as state_lib
from semppl_jax.weights import haiku_trees
from semppl_jax.weights import load as load_lib
from tests.helpers import tiny

_REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def ours():
  return semppl_jax.load_pretrained('digits')


@pytest.fixture(scope='module')
def test_split():
  test = datasets.load(digits.get_config().dataset).test
  return np.stack([test[i]['image'] for i in range(len(test))]), test.labels


def _noise(*shape, seed=0):
  return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def test_the_shipped_model_is_the_demos(ours, test_split):
  images, labels = test_split
  assert (ours.image_size, ours.center) == (8, 1.0)
  assert (ours.num_classes, ours.checkpoint.step) == (10, 703)
  assert 'sees 8 px' in repr(ours) and 'classifier yes' in repr(ours)
  logits = ours.logits(images)
  assert logits.shape == (297, 10) and logits.dtype == np.float32
  predicted = ours.predict(images)
  np.testing.assert_array_equal(predicted, logits.argmax(axis=1))
  assert predicted.dtype == np.int32
  # Of 20 labels; chance is 0.1, and the model card has the exact score.
  assert np.mean(predicted == labels) > 0.8


def test_embeddings_are_those_of_evaluation(ours, test_split):
  cfg = eval_knn.get_config('digits')
  cfg.checkpoint = 'digits'
  cfg.evaluation.batch_size = 64
  run = setup_lib.prepare(cfg)
  placed = setup_lib.replicated(
    run, (run.checkpoint.params, run.checkpoint.state)
  )
  expected, _ = setup_lib.embed(run, run.data.test, *placed)
  found = ours.embed(test_split[0])
  assert found.shape == (297, ours.embedding_size)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, expected)


def test_projections_are_the_online_networks(ours, test_split, tmp_path):
  images = test_split[0][:70]
  found = ours.project(images)
  assert found.shape == (70, ours.projection_size) == (70, 64)
  nets = ours.checkpoint.network()
  outputs, _ = nets.online(
    ours.params, ours.state, jnp.asarray(ours.preprocess(images)), False
  )
  np.testing.assert_allclose(found, outputs['projection'], atol=1e-5)

  def without(*heads):
    path = tmp_path / 'part.safetensors'
    cut = lambda tree: {
      module: leaves
      for module, leaves in tree.items()
      if haiku_trees.root(module) not in heads
    }
    part = ours.checkpoint._replace(
      params=cut(ours.params), state=cut(ours.state)
    )
    load_lib.save_safetensors(path, part)
    return semppl_jax.load_pretrained(path)

  # A target network has no predictor.
  target = without('predictor', 'classifier')
  np.testing.assert_allclose(target.project(images), found, atol=1e-6)
  encoder = without('projector', 'predictor', 'classifier')
  assert encoder.projection_size == 0
  with pytest.raises(semppl_jax.CheckpointError, match='has no projector'):
    encoder.project(images)


def _no_method():
  return base.Method(heads=heads.no_heads, loss=None)


def test_embeddings_are_those_of_a_trainings_end(ours, test_split):
  cfg = tiny.frozen(digits.get_config())
  devices = jax.devices()
  state = state_lib.TrainState(
    np.int32(0), ours.params, ours.state, {}, {}, (), ()
  )
  placed = parallel.put_sharded(
    parallel.replicate(state, len(devices)), devices
  )
  expected = features_lib.features(
    placed, _no_method(), ours.checkpoint.network(), cfg,
    datasets.load(cfg.dataset).test, devices,
  )  # fmt: skip
  np.testing.assert_allclose(
    ours.embed(test_split[0]), expected.embeddings, atol=1e-6
  )
  np.testing.assert_array_equal(ours.predict(test_split[0]), expected.guesses)


def test_every_form_of_an_image_is_the_same(ours, tmp_path):
  images = _noise(3, 8, 8, 3)
  expected = ours.embed(images)
  paths = [tmp_path / 'b' / f'{i}.png' for i in range(3)]
  paths[0].parent.mkdir()
  pictures = [Image.fromarray(image) for image in images]
  for path, picture in zip(paths, pictures):
    picture.save(path)
  for same in (
    list(images), iter(images), jnp.asarray(images), pictures, paths,
    [str(path) for path in paths], tmp_path, str(tmp_path),
    [images[0], pictures[1], paths[2]],
    [path.read_bytes() for path in paths],
    [wrap(path.read_bytes()) for wrap, path in
     zip((bytes, bytearray, memoryview), paths)],
  ):  # fmt: skip
    np.testing.assert_array_equal(ours.embed(same), expected)
  for scaled in (images / 255, np.float32(images) / np.float32(255)):
    np.testing.assert_allclose(ours.embed(scaled), expected, atol=1e-6)
    found = ours.preprocess(scaled)
    np.testing.assert_allclose(found, images / np.float32(255), atol=1e-6)
  encoded = paths[1].read_bytes()
  for one in (images[1], pictures[1], paths[1], encoded, [images[1]]):
    found = ours.embed(one)
    assert found.shape == (1, ours.embedding_size)
    np.testing.assert_allclose(found, expected[1:2], atol=1e-6)


def test_a_folders_images_come_sorted_by_path(ours, tmp_path):
  images = _noise(4, 8, 8, 3)
  paths = [tmp_path / name for name in ('b.png', 'a/2.png', 'a.png', 'a/1.png')]
  (tmp_path / 'a').mkdir()
  for path, image in zip(paths, images):
    Image.fromarray(image).save(path)
  expected = ours.embed(sorted(tmp_path.rglob('*.png')))
  np.testing.assert_array_equal(ours.embed(tmp_path), expected)
  np.testing.assert_allclose(expected, ours.embed(images)[[3, 1, 2, 0]])


def test_files_come_with_their_paths(ours, tmp_path):
  files = _files(tmp_path)
  Image.fromarray(_noise(8, 8, 3)[::-1]).save(tmp_path / 'empty' / 'b.png')
  found = ours.embed_files(tmp_path, skip_unreadable=True)
  paths = [str(tmp_path / 'empty' / 'b.png'), str(files['good'])]
  assert found.paths == paths
  np.testing.assert_array_equal(found.embeddings, ours.embed(paths))
  assert set(found.unreadable) == {str(files['text']), str(files['cut'])}
  assert all(found.unreadable.values())
  with pytest.raises(semppl_jax.UserError, match='cut.jpg cannot be decoded'):
    ours.embed_files(tmp_path)
  # A path that stands twice, and a sequence of folders.
  again = ours.embed_files([paths[1], tmp_path / 'empty', paths[1]])
  assert again.paths == [paths[1], paths[0], paths[1]]
  np.testing.assert_array_equal(again.embeddings[0], again.embeddings[2])


@pytest.mark.parametrize(
  'files, words',
  [
    (np.zeros((2, 8, 8, 3)), 'not a ndarray'),
    (b'x.png', 'not a bytes'),
    ({'x.png': 1}, 'not a dict'),
    ([3], 'file 0 is a int, not a path'),
    ([], 'There is no file'),
    ('gone.png', "no file 'gone.png'"),
  ],
)
def test_what_is_no_file(files, words, ours):
  with pytest.raises(semppl_jax.UserError, match=words):
    ours.embed_files(files)


def test_pictures_of_16_bits_are_their_files(ours, tmp_path):
  deep = Image.fromarray(_noise(8, 8).astype(np.uint16) * 257)
  deep.save(tmp_path / 'deep.png')
  by_path = ours.preprocess(tmp_path / 'deep.png')
  assert np.ptp(by_path) > 0.5
  np.testing.assert_array_equal(ours.preprocess(deep), by_path)
  # Of 32 bits nothing says which number is white.
  with pytest.raises(semppl_jax.UserError, match='its mode I is neither'):
    ours.embed([deep.convert('I')])


def test_grey_images_go_in_a_list(ours):
  grey = _noise(8, 8)
  colour = np.repeat(grey[..., None], 3, axis=-1)
  found = ours.embed([grey, grey[..., None], Image.fromarray(grey)])
  np.testing.assert_array_equal(found, ours.embed([colour] * 3))


def test_sizes_and_numbers_change_no_image(ours):
  """70 images: more than a batch, and no multiple of one."""
  images = [_noise(8 + i % 5, 9 + i % 7, 3, seed=i) for i in range(70)]
  together = ours.embed(images)
  assert ours.preprocess(images).shape == (70, 8, 8, 3)
  for i in (0, 63, 64, 69):
    alone = ours.embed(images[i])[0]
    np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_what_it_sees_can_be_changed():
  wide = semppl_jax.load_pretrained('digits', image_size=12, center=0.5)
  seen = wide.preprocess(_noise(24, 40, 3))
  assert seen.shape == (1, 12, 12, 3)
  image = _noise(24, 40, 3)
  np.testing.assert_allclose(
    seen[0], image[6:18, 14:26] / np.float32(255), atol=1e-6
  )


def test_sizes_and_numbers_are_not_compiled_for():
  fresh = semppl_jax.load_pretrained('digits')
  heard = turns.Compilations()
  fresh.embed([_noise(8, 8, 3)] * 20)
  assert heard.seconds
  before = len(heard.seconds)
  for side, count in ((5, 12), (8, 40), (31, 61)):
    fresh.embed([_noise(side, side + i, 3) for i in range(count)])
  assert len(heard.seconds) == before


def test_apply_is_pure(ours):
  images = jnp.asarray(ours.preprocess(_noise(2, 8, 8, 3)))
  of = lambda x: ours.apply(ours.params, ours.state, x)
  embedded = jax.jit(of)(images)
  np.testing.assert_allclose(
    embedded, ours.embed(np.asarray(images)), atol=1e-5
  )
  one_by_one = jax.jit(jax.vmap(lambda x: of(x[None])[0]))(images)
  np.testing.assert_allclose(one_by_one, embedded, atol=1e-5)
  length = jax.jit(lambda x: jnp.mean(of(x) ** 2))
  slope = jax.jit(jax.grad(length))(images)
  along = slope / jnp.linalg.norm(slope)
  step = 1e-2
  rise = (length(images + step * along) - length(images - step * along)) / (
    2 * step
  )
  np.testing.assert_allclose(jnp.sum(slope * along), rise, rtol=0.05)


def test_without_a_classifier(ours):
  params = {
    module: leaves
    for module, leaves in ours.params.items()
    if haiku_trees.root(module) != 'classifier'
  }
  headless = model.Model(ours.checkpoint._replace(params=params))
  assert headless.num_classes == 0
  for method in (headless.predict, headless.logits):
    with pytest.raises(semppl_jax.CheckpointError, match='no classifier') as e:
      method(_noise(8, 8, 3))
    assert '\n' not in str(e.value)


def _vote(labels, similarity):
  """The method's vote in plain Python."""
  ranked = sorted(
    (-np.sum(labels == c), -similarity[labels == c].sum(), c)
    for c in set(labels)
  )
  return ranked[0][2], -ranked[0][0] / len(labels)


@pytest.mark.parametrize('k', [1, 3])
def test_pseudo_labels_are_the_nearest_ones_vote(k, ours, test_split):
  images, labels = test_split
  found = ours.pseudo_label(images[40:], images[:40], labels[:40], k=k)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  embedded = unit(ours.embed(images).astype(np.float64))
  similarity = embedded[40:] @ embedded[:40].T
  nearest = np.argsort(-similarity, axis=1)[:, :k]
  np.testing.assert_array_equal(found.neighbours, nearest)
  chosen = np.take_along_axis(similarity, nearest, axis=1)
  np.testing.assert_allclose(found.similarity, chosen, atol=1e-6)
  expected = [_vote(labels[r], s) for r, s in zip(nearest, chosen)]
  np.testing.assert_array_equal(found.labels, [label for label, _ in expected])
  np.testing.assert_allclose(found.share, [share for _, share in expected])
  assert found.labels.dtype == np.int32 and found.share.dtype == np.float32


def test_ties_of_pseudo_labels(ours, monkeypatch):
  """In the plane; `images` stand for their own embeddings."""
  monkeypatch.setattr(ours, 'embed', lambda x: np.asarray(x, np.float32))
  query = [[1, 0]]
  near, far, equal = [1, 0.1], [1, 0.5], [2, 0]
  vote = lambda keys, labels: ours.pseudo_label(
    query, keys, labels, k=len(keys)
  )
  # As many votes each: the nearer one. Equal in all: the smaller label.
  assert vote([far, near], [1, 7]).labels == [7]
  found = vote([equal, equal], [7, 1])
  assert found.labels == [1] and found.share == [0.5]
  assert found.neighbours.tolist() == [[0, 1]]  # the earlier of equals
  # More votes win against a nearer one.
  assert vote([near, far, far], [7, 1, 1]).labels == [1]


def _files(tmp_path):
  good = tmp_path / 'good.png'
  Image.fromarray(_noise(8, 8, 3)).save(good)
  text = tmp_path / 'text.jpg'
  text.write_text('no image\n' * 99)
  cut = tmp_path / 'cut.jpg'
  Image.fromarray(_noise(64, 64, 3)).save(cut)
  cut.write_bytes(cut.read_bytes()[:900])
  (tmp_path / 'empty').mkdir()
  return {'good': good, 'text': text, 'cut': cut, 'empty': tmp_path / 'empty'}


_BAD = {  # images of `_files` and noise x -> what the line must name
  'rank 2': (lambda x, f: x[0, :, :, 0], r'\(8, 8\).*\[N, H, W, 3\]'),
  'rank 5': (lambda x, f: x[None], r'\(1, 3, 8, 8, 3\)'),
  'channels': (lambda x, f: x[..., :2], r'\(3, 8, 8, 2\)'),
  'RGBA': (lambda x, f: np.zeros((8, 8, 4), np.uint8), 'transparency'),
  'RGBA in a list': (
    lambda x, f: [x[0], np.zeros((8, 8, 4), np.uint8)], 'image 1.*transparency',
  ),
  'channels first': (lambda x, f: x.transpose(0, 3, 1, 2), 'moveaxis'),
  'bytes of no file': (lambda x, f: b'hello', 'the image cannot be decoded'),
  'no bytes': (lambda x, f: [x[0], b''], 'image 1 cannot be decoded: it'),
  'a dict': (lambda x, f: {'image': x}, "dict of 'image': pass one of its"),
  'rank in a list': (lambda x, f: [x[0], x], r'image 1 has shape \(3, 8'),
  'no pixels': (lambda x, f: [x[0], x[0, :0]], r'image 1 has shape \(0, 8'),
  'integers': (lambda x, f: x.astype(int), 'image 0 has dtype int64'),
  'logical': (lambda x, f: [x[0], x[1] > 9], 'image 1 has dtype bool'),
  'objects': (lambda x, f: x.astype(object), 'image 0 has dtype object'),
  'above 1': (lambda x, f: x.astype(float), 'image 0 .* from 0 to 25'),
  'below 0': (lambda x, f: [x[0], x[0] / -255.0], 'image 1 .* from -'),
  'NaN': (lambda x, f: [x[0], np.full((8, 8, 3), np.nan)], 'image 1 has NaN'),
  'infinite': (lambda x, f: [np.full((8, 8, 3), np.inf)], 'image 0 .* inf'),
  'none': (lambda x, f: [], 'no image'),
  'none of an array': (lambda x, f: x[:0], 'no image'),
  'empty folder': (lambda x, f: f['empty'], 'no image in the folder .*empty'),
  'no file': (lambda x, f: [f['good'], 'x/gone.png'], "no file 'x/gone.png'"),
  'no text': (lambda x, f: '', "no file ''"),
  'text': (lambda x, f: [f['good'], f['text']], r'text\.jpg cannot be decoded'),
  'cut': (lambda x, f: [x[0], f['cut']], r'cut\.jpg cannot be decoded: '),
  'cut picture': (
    lambda x, f: [x[0], Image.open(f['cut'])], 'image 1 cannot be decoded: ',
  ),
  'number': (lambda x, f: 3, 'not an? .*int'),
  'nothing': (lambda x, f: None, 'NoneType'),
  'nested': (lambda x, f: [x.tolist()], 'image 0 is .*list'),
}  # fmt: skip


@pytest.mark.parametrize('name', _BAD)
def test_bad_images_are_named(name, ours, tmp_path):
  make, words = _BAD[name]
  bad = make(_noise(3, 8, 8, 3), _files(tmp_path))
  for method in (ours.embed, ours.preprocess):
    with pytest.raises(semppl_jax.UserError, match=words) as error:
      method(bad)
    assert '\n' not in str(error.value)
    assert 'on_corrupt' not in str(error.value)  # no setting of this API


def test_a_file_that_goes_while_it_works(ours, tmp_path, monkeypatch):
  path = _files(tmp_path)['good']
  real = model.python_objects.source

  def gone(images):
    found = real(images)
    path.unlink()
    return found

  monkeypatch.setattr(model.python_objects, 'source', gone)
  with pytest.raises(semppl_jax.UserError, match='good.png .*No such file'):
    ours.embed([path])


def test_classes_by_name_and_files_by_path(ours, tmp_path):
  images, support = _noise(3, 8, 8, 3), _noise(4, 8, 8, 3)[::-1]
  by_number = ours.pseudo_label(images, support, [1, 0, 2, 0], k=3)
  names = np.array(['ant', 'bee', 'cow'])
  by_name = ours.pseudo_label(images, support, list(names[[1, 0, 2, 0]]), k=3)
  assert by_name.labels.tolist() == names[by_number.labels].tolist()
  np.testing.assert_array_equal(by_name.share, by_number.share)
  assert by_number.paths is None and by_number.labels.dtype == np.int32
  labels, *_, similarity = by_number  # it unpacks as ever
  assert len(by_number) == 4 and similarity is by_number.similarity
  paths = [tmp_path / f'{i}.png' for i in (2, 0, 1)]
  for path, image in zip(paths, images):
    Image.fromarray(image).save(path)
  for given in (tmp_path, sorted(paths)):
    found = ours.pseudo_label(given, support, [1, 0, 2, 0], k=3)
    assert found.paths == [str(path) for path in sorted(paths)]
    order = [1, 2, 0]
    np.testing.assert_array_equal(found.labels, by_number.labels[order])


def test_predictions_by_name(ours):
  images = _noise(5, 8, 8, 3)
  with pytest.raises(semppl_jax.CheckpointError, match='does not name'):
    ours.predict_names(images)
  names = tuple('abcdefghij')
  named = model.Model(ours.checkpoint._replace(class_names=names))
  assert named.class_names == names
  assert named.predict_names(images) == [names[i] for i in ours.predict(images)]


@pytest.mark.parametrize(
  'labels, k, words',
  [
    ([1, 2, 3], 1, '2 support images, but 3 support labels'),
    ([[1, 2]], 1, r'int64\[1, 2\]'),
    ([1.0, 2.0], 1, r'float64\[2\]'),
    ([['a', 'b']], 1, r'support_labels are <U1\[1, 2\]'),
    ([[1], [2, 3]], 1, 'support_labels'),
    ([1, -1], 1, 'from -1 to 1'),
    ([1, 2**31], 1, '2147483648'),
    ([1, 2], 0, 'k is 0; it must be a whole number from 1 to 2'),
    ([1, 2], 3, 'k is 3'),
    ([1, 2], 1.5, 'k is 1.5'),
    ([], 1, 'no support label'),
  ],
)
def test_bad_supports_are_named(labels, k, words, ours):
  images = _noise(2, 8, 8, 3)
  with pytest.raises(semppl_jax.UserError, match=words) as error:
    ours.pseudo_label(images, images, labels, k=k)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, words',
  [
    ('digts', 'did you mean digits'),
    ('resnet_51_1x_1_pct', 'did you mean resnet_50_1x_.* or resnet_50_1x_'),
    ('nothing like it', r'download: digits[,;]'),
    ('resnet_50_1x_10pct', 'download https://'),
    ('a\nb', r"'a\\nb'"),
  ],
)
def test_unknown_names(name, words):
  with pytest.raises(semppl_jax.CheckpointError, match=words) as error:
    semppl_jax.load_pretrained(name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'options',
  [{'image_size': 0}, {'image_size': 8.5}, {'center': 0.0}, {'center': 1.5}],
)
def test_what_it_cannot_see(options):
  with pytest.raises(semppl_jax.UserError, match='a whole number from 1 on'):
    semppl_jax.load_pretrained('digits', **options)


def test_alone(ours, monkeypatch):
  monkeypatch.setattr(processes, 'count', lambda: 2)
  with pytest.raises(semppl_jax.UserError, match='process'):
    model.Model(ours.checkpoint)


def test_tasks_know_their_configs(tmp_path):
  with pytest.raises(semppl_jax.UserError, match='call evaluate'):
    semppl_jax.pretrain(semppl_jax.eval_config.default(), str(tmp_path))
  with pytest.raises(semppl_jax.UserError, match='call pretrain'):
    semppl_jax.evaluate(semppl_jax.config.default(), str(tmp_path))
  assert not list(tmp_path.iterdir())


_TRY = """
import numpy, semppl_jax
model = semppl_jax.load_pretrained('digits')
print(semppl_jax.__file__)
print(model.embed(numpy.zeros((3, 20, 30, 3), 'uint8')).shape)
"""


def _build_wheel(sources, folder):
  """With this environment's setuptools, or else one that pip fetches."""
  command = [
    sys.executable, '-m', 'pip', 'wheel', str(sources), '--no-deps',
    f'--wheel-dir={folder}',
  ]  # fmt: skip
  try:
    importlib.import_module('setuptools.command.bdist_wheel')
    command += ['--no-build-isolation', '--no-index']
  except ImportError:
    pass
  built = subprocess.run(command, stderr=subprocess.PIPE, text=True)
  if 'No matching distribution found for setuptools' in built.stderr:
    pytest.skip('no setuptools from 70.1 on, and no package index')
  assert built.returncode == 0, built.stderr
  (wheel,) = folder.glob('*.whl')
  return wheel


@pytest.mark.long
def test_the_wheel_has_the_model(tmp_path):
  """Built from a copy without git, unpacked, and used from elsewhere."""
  sources = tmp_path / 'sources'
  sources.mkdir()
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(_REPOSITORY / name, sources)
  for name in ('semppl_jax', 'checkpoints', 'experiments'):
    shutil.copytree(_REPOSITORY / name, sources / name)
  wheel = _build_wheel(sources, tmp_path)
  installed, elsewhere = tmp_path / 'installed', tmp_path / 'elsewhere'
  elsewhere.mkdir()
  zipfile.ZipFile(wheel).extractall(installed)
  told = subprocess.run(
    [sys.executable, '-c', _TRY], cwd=elsewhere, text=True, check=True,
    env={'PYTHONPATH': str(installed), 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
  ).stdout.splitlines()  # fmt: skip
  assert told[0].startswith(str(installed))
  assert told[1] == '(3, 64)'
  # An experiment that comes along, and builds on another one.
  trained = subprocess.run(
    [sys.executable, '-m', 'semppl_jax.cli', 'train',
     '--config=digits_relicv2'], cwd=elsewhere, text=True,
    env={'PYTHONPATH': str(installed), 'JAX_PLATFORMS': 'cpu'},
    stderr=subprocess.PIPE,
  )  # fmt: skip
  assert trained.stderr == 'error: --workdir is missing; see --help.\n'
