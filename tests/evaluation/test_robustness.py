"""The trained head on other test sets, against what comes out by hand."""

import copy
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from semppl_jax import errors
from semppl_jax.config import eval_config
from semppl_jax.data import images, robustness_sets
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation import robustness
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import plots
from tests.helpers import golden, objectnet_data, tfds_data

V2 = ('matched-frequency', 'threshold-0.7', 'topimages')

# AlexNet's top-1 errors at severities 1 to 5, from another public file.
ALEXNET = """
gaussian_noise    0.69528 0.82542 0.93554 0.98138 0.99452
shot_noise        0.71224 0.85108 0.93574 0.98182 0.99146
impulse_noise     0.78374 0.89808 0.9487  0.9872  0.99548
defocus_blur      0.65624 0.73202 0.85036 0.91364 0.94714
glass_blur        0.64308 0.75054 0.88806 0.91622 0.93344
motion_blur       0.5843  0.70048 0.82108 0.8975  0.92638
zoom_blur         0.70008 0.76992 0.80784 0.84198 0.87198
snow              0.71726 0.88392 0.86468 0.9187  0.94952
frost             0.6139  0.79734 0.8879  0.89942 0.9343
fog               0.67474 0.7605  0.84378 0.8726  0.945
brightness        0.4514  0.48502 0.54048 0.62166 0.7244
contrast          0.64548 0.7615  0.88874 0.9776  0.9927
elastic_transform 0.52596 0.70116 0.55686 0.64076 0.80554
pixelate          0.52218 0.5462  0.73728 0.87092 0.91262
jpeg_compression  0.51002 0.54718 0.57294 0.65458 0.74778
"""

# The head's five best classes, whatever it sees. ImageNet-R has 1 and 2, but
# not 0; the next ones that it has are 4, 6 and 8.
BEST = (0, 1, 2, 409, 954)
FOG = ([0, 0], [0, 1], [1, 1], [0, 0], [0, 1])  # labels at each severity


def write_checkpoint(path, w, b):
  """The tiny encoder with a classifier: w [8, K], b [K]."""
  found = load_lib.load_checkpoint(golden.path('release_checkpoint_tiny.pkl'))
  head = {'w': np.asarray(w, np.float32), 'b': np.asarray(b, np.float32)}
  params = found.params | {'classifier': head}
  load_lib.save_safetensors(path, found._replace(params=params))
  return str(path)


def write_constant(path):
  """A classifier that likes BEST best, then the others in their order."""
  b = -1 - np.arange(1000) / 1000
  b[list(BEST)] = (5, 4, 3, 2, 1)
  return write_checkpoint(path, np.zeros((8, 1000)), b)


def write_set(data_dir, name, split, labels, photos=None):
  examples = tfds_data.examples(name, labels, split=split)
  for example, photo in zip(examples, photos or ()):
    example['image'] = photo
  return tfds_data.write(data_dir, name, {split: examples}, shuffle=False)


def corrupted(name, severity):
  return f'imagenet2012_corrupted/{name}_{severity}'


def make_config(checkpoint, data_dir, *sets, **changes):
  cfg = eval_config.default()
  cfg.task, cfg.checkpoint, cfg.num_devices = 'robustness', str(checkpoint), 1
  cfg.dataset.path = str(data_dir)
  cfg.crops.size, cfg.evaluation.batch_size = 8, 4
  if sets:
    cfg.robustness.sets = sets
  cfg.robustness.update(changes)
  return cfg


def read(path):
  return json.loads(path.read_text())


def refused(cfg, workdir, *words, kind=errors.UserError):
  with pytest.raises(kind) as error:
    robustness.run(cfg, str(workdir))
  text = str(error.value)
  assert '\n' not in text
  for word in words:
    assert word in text, text


@pytest.fixture(scope='module', autouse=True)
def two_corruptions():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(robustness_sets, 'CORRUPTIONS', ('fog', 'snow'))
    yield


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A checkpoint of the constant head, and all test sets."""
  folder = tmp_path_factory.mktemp('robustness')
  data = folder / 'tfds'
  write_set(data, 'imagenet2012', 'validation', [0, 0, 1, 7])
  for variant, labels in zip(V2, ([0, 3, 3], [0, 0, 3], [0, 0, 0])):
    write_set(data, f'imagenet_v2/{variant}', 'test', labels)
  for severity, labels in enumerate(FOG, start=1):
    write_set(data, corrupted('fog', severity), 'validation', labels)
    write_set(data, corrupted('snow', severity), 'validation', [1, 7])
  write_set(data, 'imagenet_r', 'test', [1, 1, 2, 4])
  write_set(data, 'imagenet_sketch', 'test', [0, 5])
  photos = tfds_data.photos(5, seed=1)
  objectnet_data.write(
    folder / 'objectnet',
    {
      'alarm_clock': photos[:2],
      'banana': photos[2:3],
      'chair': photos[3:4],
      'squeegee': photos[4:],  # not in ImageNet
    },
  )
  checkpoint = write_constant(folder / 'constant.safetensors')
  return make_config(checkpoint, data, objectnet=str(folder / 'objectnet'))


EXPECTED = {
  'imagenet/top1': 1 / 2,
  'imagenet/top5': 3 / 4,
  'imagenet_v2/matched-frequency/top1': 1 / 3,
  'imagenet_v2/threshold-0.7/top1': 2 / 3,
  'imagenet_v2/topimages/top1': 1,
  'imagenet_c/fog/top1': 3 / 5,
  'imagenet_c/fog/top5': 1,
  'imagenet_c/snow/top1': 0,
  'imagenet_c/snow/top5': 1 / 2,
  'imagenet_c/mean_corruption_error': 0.7,
  'imagenet_c/mce': 100 * (0.4 / 0.819324 + 1 / 0.866816) / 2,
  'imagenet_r/top1': 1 / 2,  # 1 is the best of the 200
  'imagenet_r/top5': 1,  # 1, 2, 4, 6, 8
  'imagenet_r/unrestricted/top1': 0,
  'imagenet_r/unrestricted/top5': 3 / 4,
  'imagenet_sketch/top1': 1 / 2,
  'objectnet/top1': 1 / 2,  # 409 is the best of 6: one kind of alarm clock
  'objectnet/top5': 1,  # 409, 954, 423, 530, 559
  'objectnet/unrestricted/top1': 0,
  'objectnet/unrestricted/top5': 3 / 4,  # no chair is in BEST
  'unreadable_images': 0,
}


@pytest.fixture(scope='module')
def evaluated(prepared, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('evaluated')
  return robustness.run(prepared, str(workdir)), workdir


def test_all_sets_by_hand(evaluated):
  results, workdir = evaluated
  assert {k: results[k] for k in EXPECTED} == pytest.approx(EXPECTED)
  assert results == read(workdir / 'results.json')
  assert results['checkpoint'].startswith('tiny 1x, step 1,000')
  assert re.search('imagenet_r/unrestricted/top1 +0.0%', plots.table(results))
  part = read(workdir / 'sets' / 'imagenet_c' / 'fog' / '2.json')
  assert part['top1'] == 0.5 and part['images'] == 2
  assert len(list((workdir / 'sets').rglob('*.json'))) == 17


def test_all_sets_on_four_devices(prepared, tmp_path):
  prepared = copy.deepcopy(prepared)
  prepared.num_devices = 4
  results = robustness.run(prepared, str(tmp_path))
  assert {k: results[k] for k in EXPECTED} == pytest.approx(EXPECTED)


def test_the_table_by_hand(evaluated):
  text = (evaluated[1] / 'table.md').read_text()
  rows = [
    'test set | variant | top-1 | top-5 | images | measure',
    'imagenet | – | 50.00 | 75.00 | 4 | best of 1000 classes',
    'imagenet_v2 | topimages | 100.00 | 100.00 | 3 | best of 1000 classes',
    'imagenet_c | fog | 60.00 | 100.00 | 10 | mean of 5 severities',
    'imagenet_r | – | 50.00 | 100.00 | 4 | best of 200 classes',
    'imagenet_r | unrestricted | 0.00 | 75.00 | 4 | best of 1000 classes',
    'objectnet | – | 50.00 | 100.00 | 4 | best of 6 classes',
  ]
  lines = text.splitlines()
  for row in rows:
    assert f'| {row} |' in lines, text
  assert lines[-1].startswith(
    'imagenet_c: mean corruption error 70.00%; relative to AlexNet, mCE 82.09.'
  )
  assert 'Missing' not in text and 'Left out' not in text
  table = read(evaluated[1] / 'table.json')
  assert len(table) == 11 and table[0]['top-1'] == 50


def test_errors_relative_to_alexnets():
  for line in ALEXNET.split('\n')[1:-1]:
    name, *found = line.split()
    mean = np.mean([float(x) for x in found])
    assert robustness_sets.ALEXNET_ERRORS[name] == pytest.approx(mean, abs=1e-9)
  known = robustness_sets.ALEXNET_ERRORS
  assert len(known) == 15
  mce = robustness_sets.mean_corruption_error
  assert mce(known) == pytest.approx(100)
  # ResNet-50 of torchvision: 29.29% right under Gaussian noise.
  assert mce({'gaussian_noise': 0.7071}) == pytest.approx(79.77, abs=0.005)
  assert mce({'fog': 0.819324 / 2, 'snow': 0.866816}) == pytest.approx(75)


def test_right_answers_and_ties():
  logits = np.array([[0, 3, 3, 1, 0, 0, 2], [6, 5, 4, 3, 2, 1, 0]], np.float32)
  meanings = np.zeros((2, 7), bool)
  meanings[0, [2, 4]] = meanings[1, 5] = True
  top = lambda labels, among: robustness.top(
    logits, np.array(labels), meanings, np.array(among)
  )
  every = range(7)
  assert top([0, 1], every) == {'top1': 0, 'top5': 0.5}  # 1 stands before 2
  assert top([0, 1], [2, 3, 5, 6]) == {'top1': 0.5, 'top5': 1}
  assert top([1, 1], [5]) == {'top1': 1, 'top5': 1}
  assert top([0, 0], [2, 4]) == {'top1': 1, 'top5': 1}


def test_names_are_those_of_tfds(monkeypatch):
  names = tuple(robustness_sets.ALEXNET_ERRORS)
  monkeypatch.setattr(robustness_sets, 'CORRUPTIONS', names)
  parts = robustness_sets.parts(eval_config.default().robustness.sets)
  assert len(parts) == 1 + 3 + 75 + 1 + 1 + 1
  assert parts.pop('objectnet').dataset == ''
  for dataset in {part.dataset.partition('/')[0] for part in parts.values()}:
    configs = {c.name for c in tfds.builder_cls(dataset).BUILDER_CONFIGS}
    wanted = [p.dataset.partition('/') for p in parts.values()]
    own = {config for name, _, config in wanted if name == dataset}
    assert own <= (configs or {''}), dataset


def _features(photos, share, run):
  """What the encoder makes of the middle of images [H, W, 3]."""
  crops = [images.center_crop(x, size=8, share=share) for x in photos]
  encode = run.nets.encode
  params, state = run.checkpoint.params, run.checkpoint.state
  return np.asarray(encode(params, state, np.stack(crops), False)[0])


def _write_nearest(path, prototypes):
  """A classifier by the nearest prototype {class: [8]}."""
  w, b = np.zeros((8, 1000)), np.full(1000, -1e9)
  for number, x in prototypes.items():
    w[:, number], b[number] = 2 * x, -x @ x
  return write_checkpoint(path, w, b)


@pytest.mark.parametrize('num_devices', [1, 4])
def test_which_part_of_an_image_counts(num_devices, tmp_path):
  """Each class is one way to crop one image; wrong ways would be named.

  3 photos of each set; batches of 4 for one device, and for four.
  """
  run = setup_lib.prepare_without_data(
    make_config(write_constant(tmp_path / 'a'), '')
  )
  squares = tfds_data.photos(3, seed=2, size=(224, 224))
  wide = [x[:40] for x in tfds_data.photos(3, seed=3, size=(44, 60))]
  files = [tfds_data.jpeg(x) for x in squares]
  decoded = [images.decode(x) for x in files]
  framed = [objectnet_data.bordered(x) for x in wide]
  prototypes = {
    **dict(zip((10, 11, 12), _features(decoded, 1.0, run))),
    **dict(zip((20, 21, 22), _features(decoded, 0.875, run))),
    **dict(zip((409, 954, 559), _features(wide, 0.875, run))),
    **dict(zip((530, 423, 765), _features(framed, 0.875, run))),
  }
  assert min(
    np.linalg.norm(x - y)
    for i, x in prototypes.items()
    for j, y in prototypes.items()
    if i != j
  ) > 1e-3  # fmt: skip
  checkpoint = _write_nearest(tmp_path / 'b', prototypes)
  for name in ('fog', 'snow'):
    for severity in range(1, 6):
      labels = [10, 11, 12] if severity < 5 else [20, 21, 22]
      name_of = corrupted(name, severity)
      write_set(tmp_path / 'data', name_of, 'validation', labels, files)
  write_set(tmp_path / 'data', 'imagenet_sketch', 'test', [20, 21, 22], files)
  shown = zip(('alarm_clock', 'banana', 'chair'), wide)
  objectnet_data.write(tmp_path / 'o', {name: [x] for name, x in shown})
  cfg = make_config(
    checkpoint, tmp_path / 'data', 'imagenet_c', 'imagenet_sketch', 'objectnet',
    objectnet=str(tmp_path / 'o'),
  )  # fmt: skip
  cfg.num_devices = num_devices
  results = robustness.run(cfg, str(tmp_path / 'work'))
  assert results['imagenet_c/fog/top1'] == pytest.approx(0.8)
  assert results['imagenet_sketch/top1'] == 1
  assert results['objectnet/unrestricted/top1'] == 1


def _counted(monkeypatch, stop_at=None):
  """Counts what is predicted; at the last one a signal comes."""
  seen = []
  original = classifier_lib.predict

  def predict(run, state, source):
    seen.append(len(source))
    if len(seen) == stop_at:
      raise KeyboardInterrupt
    return original(run, state, source)

  monkeypatch.setattr(classifier_lib, 'predict', predict)
  return seen


def _without_time(results):
  return {k: v for k, v in results.items() if k != 'seconds'}


def test_a_stopped_evaluation_goes_on(
  prepared, evaluated, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    seen = _counted(patch, stop_at=6)
    with pytest.raises(KeyboardInterrupt):
      robustness.run(prepared, str(tmp_path))
  assert len(seen) == 6 and not (tmp_path / 'results.json').exists()
  done = list((tmp_path / 'sets').rglob('*.json'))
  parts = {path: path.stat().st_mtime_ns for path in done}
  assert len(parts) == 5
  seen = _counted(monkeypatch)
  results = robustness.run(prepared, str(tmp_path))
  assert len(seen) == 17 - 5
  assert _without_time(results) == _without_time(evaluated[0])
  assert parts == {path: path.stat().st_mtime_ns for path in parts}
  assert (tmp_path / 'table.md').read_text() == (
    evaluated[1] / 'table.md'
  ).read_text()


def test_done_is_done(prepared, evaluated, monkeypatch):
  results, workdir = evaluated
  seen = _counted(monkeypatch)
  monkeypatch.setattr(robustness_sets, 'find', lambda parts, *_: (parts, {}))
  assert robustness.run(prepared, str(workdir)) == results and not seen
  other = prepared.copy_and_resolve_references()
  other.crops.size = 9
  refused(other, workdir, 'crops.size is 8 there and 9 here')


def test_the_network_is_compiled_once(prepared, tmp_path, monkeypatch):
  """For all sets, whatever their size and their share of an image."""
  traced = []
  original = setup_lib.prepare_without_data

  def prepare_without_data(cfg):
    run = original(cfg)

    def features(*args):
      traced.append(args[2].shape)
      return run.nets.features(*args)

    return run._replace(nets=run.nets._replace(features=features))

  monkeypatch.setattr(setup_lib, 'prepare_without_data', prepare_without_data)
  robustness.run(prepared, str(tmp_path))
  assert traced == [(4, 8, 8, 3)]


@pytest.fixture
def partial(tmp_path):
  """Two of the data sets: a config and their folder."""
  data = tmp_path / 'tfds'
  write_set(data, 'imagenet_sketch', 'test', [0, 5])
  write_set(data, corrupted('fog', 3), 'validation', [0, 0])
  checkpoint = write_constant(tmp_path / 'constant.safetensors')
  return make_config(checkpoint, data)


def test_missing_sets_are_found_out_first(partial, tmp_path):
  data = partial.dataset.path
  refused(
    partial, tmp_path / 'work',
    '15 data sets are missing: imagenet, imagenet_v2, imagenet_c/fog/1, ',
    'imagenet_c/fog/5, imagenet_c/snow, imagenet_r, objectnet. First: ',
    f'looked for {data}/imagenet2012/VERSION/dataset_info.json',
    f'tfds build imagenet2012 --data_dir={data} --file_format=array_record',
    'robustness.missing=skip',
  )  # fmt: skip
  partial.robustness.sets = ('imagenet_sketch', 'objectnet')
  refused(
    partial, tmp_path / 'work',
    "There is no ObjectNet in '': set robustness.objectnet",
  )  # fmt: skip
  partial.robustness.update(sets=('imagenet_v2', 'imagenet_r'), missing='skip')
  refused(partial, tmp_path / 'work', '4 data sets are missing: imagenet_v2, i')
  assert not (tmp_path / 'work').exists()


def test_missing_sets_are_left_out(partial, tmp_path):
  partial.robustness.update(missing='skip', objectnet='~nobody_like_that/x')
  results = robustness.run(partial, str(tmp_path / 'work'))
  assert results['imagenet_sketch/top1'] == 0.5
  # One severity is not a corruption's mean, nor one corruption the mean error.
  assert not [k for k in results if k.startswith(('imagenet_c', 'imagenet/'))]
  text = (tmp_path / 'work' / 'table.md').read_text()
  names = [f'imagenet_c/fog/{i}' for i in (1, 2, 4, 5)] + ['imagenet_c/snow']
  assert text.splitlines()[-1] == (
    f'Missing: imagenet, imagenet_v2, {", ".join(names)}, imagenet_r, objectnet'
  )
  for severity in (1, 2, 4, 5):  # they come later: what was done is kept
    name = corrupted('fog', severity)
    write_set(partial.dataset.path, name, 'validation', [1, 0])
  results = robustness.run(partial, str(tmp_path / 'work'))
  assert results['imagenet_c/fog/top1'] == pytest.approx((1 + 4 * 0.5) / 5)
  assert not {'imagenet_c/mce', 'imagenet_c/snow/top1'} & set(results)


def test_one_version_may_be_named(partial, tmp_path):
  """As in training: the others are looked for beside it."""
  partial.robustness.sets = ('imagenet_sketch',)
  partial.dataset.path += '/imagenet2012_corrupted/fog_3/3.1.0'
  results = robustness.run(partial, str(tmp_path / 'work'))
  assert results['imagenet_sketch/top1'] == 0.5


def test_images_that_cannot_be_read_do_not_count(
  partial, tmp_path, capsys, caplog
):
  data = tmp_path / 'damaged'
  photos = [tfds_data.jpeg(x) for x in tfds_data.photos(4, seed=5)]
  photos[0] = photos[2] = b'\xff\xd8 no image'
  for variant in V2:  # all have images of the same names
    write_set(data, f'imagenet_v2/{variant}', 'test', [0, 0, 3, 7], photos)
  partial.robustness.sets = ('imagenet_v2',)
  partial.dataset.path = str(data)
  results = robustness.run(partial, str(tmp_path / 'work'))
  assert results['imagenet_v2/topimages/top1'] == 0.5  # of the second and last
  assert results['unreadable_images'] == 6
  told = capsys.readouterr().err + caplog.text
  assert told.count('cannot be decoded') == 6
  text = (tmp_path / 'work' / 'table.md').read_text()
  assert (
    'Left out, for they cannot be decoded: imagenet_v2/matched-freq' in text
  )
  partial.dataset.on_corrupt = 'error'
  refused(
    partial, tmp_path / 'other', 'cannot be decoded', 'on_corrupt=replace'
  )
  write_set(data, 'imagenet_r', 'test', [1], photos[:1])
  partial.robustness.sets = ('imagenet_r',)
  partial.dataset.on_corrupt = 'replace'
  refused(partial, tmp_path / 'third', 'imagenet_r has no labelled image')


@pytest.mark.parametrize(
  'sets, words',
  [
    (('imagenet_v3',), ("'imagenet_v3'", "did you mean 'imagenet_v2'?")),
    (('imagenet', 'sketch'), ("'sketch'", "mean 'imagenet_sketch'?")),
    ((), ('robustness.sets is empty; known: imagenet, imagenet_v2, ',)),
  ],
)
def test_unknown_sets_are_refused_first(sets, words, tmp_path):
  cfg = make_config('nowhere', tmp_path)
  cfg.robustness.sets = sets
  refused(cfg, tmp_path / 'work', *words)
  assert not (tmp_path / 'work').exists()


def test_settings_are_checked(partial, tmp_path):
  partial.robustness.missing = 'skipp'
  refused(partial, tmp_path, "robustness.missing is 'skipp'", "mean 'skip'?")


def test_a_checkpoint_without_imagenets_classifier(partial, tmp_path):
  partial.robustness.sets = ('imagenet_sketch',)
  kind = errors.CheckpointError
  partial.checkpoint = golden.path('release_checkpoint_tiny.pkl')
  refused(partial, tmp_path / 'w', 'tiny.pkl has 10 classes', '1000', kind=kind)
  found = load_lib.load_checkpoint(partial.checkpoint)
  params = {m: x for m, x in found.params.items() if m != 'classifier'}
  load_lib.save_safetensors(tmp_path / 'bare', found._replace(params=params))
  partial.checkpoint = str(tmp_path / 'bare')
  refused(partial, tmp_path / 'w', 'bare has no classifier', kind=kind)
  big = np.full((8, 1000), 3e38)
  partial.checkpoint = write_checkpoint(tmp_path / 'big', big, big[0])
  refused(partial, tmp_path / 'w2', 'imagenet_sketch', 'NaN or inf', kind=kind)


def test_prototypes_are_asked_where_they_are_the_classifier(partial, tmp_path):
  """A thousand and one, beside the constant classifier."""
  partial.robustness.sets = ('imagenet_sketch',)  # labels 0 and 5
  found = load_lib.load_checkpoint(partial.checkpoint)
  heads = ('projector', 'predictor')
  params, state = (
    {m: x for m, x in tree.items() if m.split('/')[0] not in heads}
    for tree in (found.params, found.state)
  )
  # Whatever an image is, its projection is 1.
  constant = {'w': np.zeros((8, 1), np.float32), 'b': np.ones(1, np.float32)}
  prototypes = np.full((1001, 1), -1, np.float32)
  prototypes[[0, 5, 1000], 0] = 1, 2, 3  # the last one is no class
  params |= {'projector/linear': constant, 'prototypes': {'w': prototypes}}
  partial.checkpoint = str(tmp_path / 'file')
  with_prototypes = found._replace(
    params=params, state=state, prototype_temperature=0.1,
    class_names=tuple(map(str, range(1000))),
  )  # fmt: skip
  load_lib.save_safetensors(partial.checkpoint, with_prototypes)
  results = robustness.run(partial, str(tmp_path / 'work'))
  assert results['classifier'] == 'prototypes'
  assert results['imagenet_sketch/top1'] == 0.5
  assert results['imagenet_sketch/top5'] == 1  # of the linear one 0.5


def test_data_sets_that_do_not_fit(partial, tmp_path):
  partial.robustness.missing = 'skip'
  features = {
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.ClassLabel(num_classes=3),
  }
  photo = {'image': tfds_data.photos(1, seed=0)[0], 'label': 1}
  one = tmp_path / 'one'
  tfds_data.write_custom(one, 'imagenet_r', features, {'test': [photo]})
  partial.dataset.path = str(one)
  refused(partial, tmp_path / 'w1', 'imagenet_r', 'has 3 classes')
  two = tmp_path / 'two'
  write_set(two, 'imagenet_r', 'train', [1])
  partial.dataset.path = str(two)
  refused(partial, tmp_path / 'w2', 'imagenet_r', "no split 'test'")
  rows = {'test': tfds_data.examples('imagenet_r', [1], split='test')}
  three = tmp_path / 'three'
  tfds_data.write(three, 'imagenet_r', rows, file_format='tfrecord')
  partial.dataset.path = str(three)
  refused(partial, tmp_path / 'w3', 'imagenet_r', 'stored as tfrecord')
  assert not (tmp_path / 'w2').exists() and not (tmp_path / 'w3').exists()
