"""PAWS's loss: its release's numbers, values by hand, and what is refused.

golden_data/paws_loss.npz: init_paws_loss of facebookresearch/suncet at 731547d
(src/losses.py) for 4 images in 2 + 2 views and 6 classes of 2 labelled images,
in one process. paws_parts.npz: its learning rate, and more that
models/test_paws_head reads.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import methods, pretraining
from semppl_jax.config import upgrade
from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError
from semppl_jax.losses import clustering, similarity
from semppl_jax.methods import base, paws
from semppl_jax.models import heads
from semppl_jax.models.multicrop import l2_normalize
from semppl_jax.report import page
from semppl_jax.train import schedules
from semppl_jax.weights import architecture
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics
from tests.helpers import golden, tiny

_CLOSE = {'rtol': 1e-6, 'atol': 1e-6}
_GRADIENT = {'rtol': 2e-6, 'atol': 2e-6}
# Settings of the golden numbers, where they differ from the release's.
_SETTINGS = {
  'base': {},
  'no_multicrop': {'views': 2},
  'no_me_max': {'entropy_weight': 0.0},
  'T1': {'sharpening': 1.0},
  'no_smoothing': {'smoothing': 0.0},
}


@functools.cache
def _golden():
  return golden.load('paws_loss.npz')


def _method(views=4, classes=6, images=2, support_views=1, **loss):
  cfg = tiny.make_config('paws', views__num_small=views - 2)
  cfg.support.update(
    classes=classes, images_per_class=images, views=support_views
  )
  cfg.loss.update(**loss)
  return paws.build(cfg, None)


def _place(classes, images):
  return np.repeat(np.arange(classes, dtype=np.int32), images)


def _loss(method, arrays, place, number=1, labels=None, classes=None):
  """Loss, metrics, labels and gradient of PAWS on some devices.

  Args:
    method: PAWS with its settings.
    arrays: [V, B, d] of `prediction` and `projection`, and [V_s, S, d] of both
      of the support.
    place: [S] int32, of the labelled images' classes.
    number: of devices.
    labels: [B] int32; None: nobody has one.
    classes: [C_s] int32; None: 0, 1, ...

  Returns:
    ({metric: its mean over devices}, labels [B], gradients like `arrays` of the
    loss's mean over devices).
  """
  images = arrays['prediction'].shape[1]
  labels = np.full(images, -1, np.int32) if labels is None else labels
  if classes is None:
    classes = np.arange(place.max() + 1)

  def step(arrays, place, labels):
    def loss(arrays):
      rows = {
        kind: {
          name.removeprefix('support_'): x
          for name, x in arrays.items()
          if name.startswith('support_') == kind
        }
        for kind in (False, True)
      }
      batch = base.BatchWide(None, jnp.zeros(images, int), None, None)
      inputs = base.Inputs(
        rows[False], None, labels, None, batch, (), None,
        support=base.Support(rows[True], None, place, jnp.asarray(classes)),
      )  # fmt: skip
      result = method.loss(inputs, ())
      told = result.metrics | {'loss': result.loss}
      return result.loss, (told, result.labels)

    grads, aux = jax.grad(loss, has_aux=True)(arrays)
    return jax.tree.map(lambda x: x / number, grads), aux

  mapped = jax.pmap(
    step, axis_name=parallel.AXIS, in_axes=(1, 0, 0), out_axes=(1, 0),
    devices=jax.devices()[:number],
  )  # fmt: skip
  cut = lambda x, axis: x.reshape(
    *x.shape[:axis], number, -1, *x.shape[axis + 1 :]
  )
  grads, (told, guesses) = mapped(
    {name: cut(x, 1) for name, x in arrays.items()}, cut(place, 0),
    cut(labels, 0),
  )  # fmt: skip
  for name, value in told.items():
    assert name != 'mean_entropy' or np.ptp(value) == 0
  grads = {name: x.reshape(arrays[name].shape) for name, x in grads.items()}
  told = {name: np.mean(x) for name, x in told.items()}
  return told, np.reshape(guesses, -1), grads


def _golden_arrays(views):
  """Their rows, view after view; small views have no target."""
  file = _golden()
  anchors = file['base/anchor_views'].reshape(4, 4, -1)[:views]
  targets = np.zeros_like(anchors)
  targets[:2] = file['base/target_views'].reshape(2, 4, -1)
  return {
    'prediction': anchors,
    'projection': targets,
    'support_prediction': file['base/anchor_supports'][None],
    'support_projection': file['base/target_supports'][None],
  }


@pytest.mark.parametrize('number', [1, 2, 4])
@pytest.mark.parametrize('setting', _SETTINGS)
def test_loss_and_gradient_are_the_releases(setting, number):
  file, changes = _golden(), _SETTINGS[setting]
  arrays = _golden_arrays(changes.get('views', 4))
  place = np.tile(np.arange(6, dtype=np.int32), 2)
  told, _, grads = _loss(_method(**changes), arrays, place, number)
  ce, minus_entropy = file[f'{setting}/ce'], file[f'{setting}/me_max']
  np.testing.assert_allclose(told['loss/consistency'], ce, **_CLOSE)
  np.testing.assert_allclose(told['loss'], ce + minus_entropy, **_CLOSE)
  if changes.get('entropy_weight', 1.0):
    np.testing.assert_allclose(told['mean_entropy'], -minus_entropy, **_CLOSE)
  wanted = {'prediction': 'views', 'support_prediction': 'supports'}
  for name, theirs in wanted.items():
    gradient = file[f'{setting}/grad_{theirs}'].reshape(grads[name].shape)
    np.testing.assert_allclose(grads[name], gradient, **_GRADIENT, err_msg=name)
  # Targets are stopped.
  assert not grads['projection'].any()
  assert not grads['support_projection'].any()


@pytest.mark.parametrize('setting', _SETTINGS)
def test_soft_labels_and_targets_are_the_releases(setting):
  file, changes = _golden(), _SETTINGS[setting]
  views = changes.get('views', 4)
  arrays = {k: l2_normalize(x) for k, x in _golden_arrays(views).items()}
  place = jnp.tile(jnp.arange(6), 2)
  classes = clustering.smoothed(place, 6, changes.get('smoothing', 0.1))
  np.testing.assert_allclose(classes, file[f'{setting}/labels'], **_CLOSE)
  soft = functools.partial(
    similarity.soft_labels, classes=classes, temperature=0.1
  )
  p = soft(arrays['prediction'], arrays['support_prediction'][0])
  q = soft(arrays['projection'][:2], arrays['support_projection'][0])
  of = lambda name, views: file[f'{setting}/{name}'].reshape(views, 4, 6)
  np.testing.assert_allclose(p, of('probs', views), **_CLOSE)
  # Theirs are in the order of the anchors that learn them.
  swapped = lambda x: x[::-1]
  np.testing.assert_allclose(swapped(q), of('target_probs', 2), **_CLOSE)
  sharpened = similarity.sharpen(q, changes.get('sharpening', 0.25))
  wanted = of('target_sharpened', 2)
  np.testing.assert_allclose(swapped(sharpened), wanted, **_CLOSE)
  targets = similarity.swapped_targets(sharpened, views, least=1e-4)
  both = np.repeat(wanted.mean(axis=0, keepdims=True), views - 2, axis=0)
  wanted = np.concatenate([wanted, both])
  wanted = np.where(wanted < 1e-4, 0, wanted)
  np.testing.assert_allclose(targets, wanted, **_CLOSE)
  if f'{setting}/anchor_sharpened' in file:
    found = similarity.sharpen(p, changes.get('sharpening', 0.25))
    wanted = of('anchor_sharpened', views)
    np.testing.assert_allclose(found, wanted, **_CLOSE)


def test_two_labelled_images_by_hand():
  x = jnp.array([[[1.0, 0.0], [0.5**0.5, 0.5**0.5]]])
  soft = lambda smoothing: similarity.soft_labels(
    x, jnp.eye(2), clustering.smoothed(jnp.arange(2), 2, smoothing),
    temperature=0.1,
  )  # fmt: skip
  first, between = soft(0.1)[0]
  # e^10 / (e^10 + 1), times 0.95, and of the rest 0.05.
  np.testing.assert_allclose(first[0], 0.9499591, rtol=1e-6)
  np.testing.assert_allclose(between, 0.5, rtol=1e-6)
  np.testing.assert_allclose(soft(0.0)[0, 0, 0], 0.9999546, rtol=1e-6)
  p = jnp.array([0.75, 0.25])
  sharp = similarity.sharpen(p, 0.25)  # 81 / 82, 1 / 82
  np.testing.assert_allclose(sharp, [0.9878049, 0.0121951], rtol=1e-5)
  value = similarity.cross_entropy(sharp, p)
  np.testing.assert_allclose(value, 0.3010798, rtol=1e-6)
  np.testing.assert_allclose(similarity.entropy(p), 0.5623351, rtol=1e-6)


def test_what_each_view_is_to_predict():
  one, two = jnp.array([[0.8, 0.2]]), jnp.array([[0.99995, 0.00005]])
  found = similarity.swapped_targets(jnp.stack([one, two]), 4, least=1e-4)
  both = [[0.899975, 0.100025]]  # of which nothing is small
  np.testing.assert_allclose(
    found, [[[0.99995, 0.0]], one, both, both], rtol=1e-6
  )


def test_all_alike_is_chance():
  method = _method(classes=5)
  arrays = {
    name: np.ones((4 if name in ('prediction', 'projection') else 1, n, 3))
    for name, n in (
      ('prediction', 4), ('projection', 4),
      ('support_prediction', 10), ('support_projection', 10),
    )
  }  # fmt: skip
  told, _, _ = _loss(method, arrays, _place(5, 2))
  np.testing.assert_allclose(told['loss'], 0, atol=1e-5)
  np.testing.assert_allclose(told['loss/consistency'], math.log(5), rtol=1e-6)
  np.testing.assert_allclose(told['mean_entropy'], math.log(5), rtol=1e-6)
  chance = method.chance['loss/consistency']
  np.testing.assert_allclose([chance, -method.lowest], math.log(5))


# Invariances. ----------------------------------------------------------------


def _random(seed=0, images=8, support=(1, 16), views=4, size=5):
  random = np.random.RandomState(seed)
  of_views, of_support = (views, images, size), (*support, size)
  return {
    'prediction': random.normal(size=of_views),
    'projection': random.normal(size=of_views),
    'support_prediction': random.normal(size=of_support),
    'support_projection': random.normal(size=of_support),
  }


def test_the_number_of_devices_changes_nothing():
  """In 64 bits, where rounding hides no difference."""
  method, place = _method(classes=4, images=4), _place(4, 4)
  with tiny.enable_x64(True):
    wanted, labels, gradient = _loss(method, _random(), place)
    assert gradient['support_prediction'].dtype == np.float64
    for number in (2, 4, 8):
      told, found, grads = _loss(method, _random(), place, number)
      np.testing.assert_array_equal(found, labels)
      for name, value in wanted.items():
        np.testing.assert_allclose(told[name], value, rtol=1e-6, err_msg=name)
      for name, value in gradient.items():
        np.testing.assert_allclose(grads[name], value, rtol=1e-5, atol=1e-9)


def _same(method, one, two, place, places=None):
  told, labels, _ = _loss(method, one, place)
  other, found, _ = _loss(method, two, place if places is None else places)
  for name, value in told.items():
    np.testing.assert_allclose(other[name], value, rtol=2e-5, err_msg=name)
  return labels, found


def test_what_does_not_matter():
  method, place, one = _method(classes=4, images=4), _place(4, 4), _random()
  assert len(np.unique(_loss(method, one, place)[1])) > 1
  of_support = lambda change: {
    name: change(x) if 'support' in name else x for name, x in one.items()
  }
  # The order of labelled images, the length of embeddings, which view is first.
  order = np.random.RandomState(1).permutation(16)
  swap = lambda x: x[:, order]
  labels, found = _same(method, one, of_support(swap), place, place[order])
  np.testing.assert_array_equal(found, labels)
  labels, found = _same(
    method, one, {k: 3.0 * x for k, x in one.items()}, place
  )
  np.testing.assert_array_equal(found, labels)
  swap = lambda x: x[jnp.array([1, 0, 3, 2])]
  views = {k: x if 'support' in k else swap(x) for k, x in one.items()}
  labels, found = _same(method, one, views, place)
  np.testing.assert_array_equal(found, labels)
  # The names of classes.
  names = np.array([2, 0, 3, 1], np.int32)
  labels, found = _same(method, one, one, place, names[place])
  np.testing.assert_array_equal(found, names[labels])


def test_labelled_images_have_several_views():
  """As if they were so many more images of the same classes."""
  one = _random(support=(2, 8))
  several = _method(classes=4, images=2, support_views=2)
  twice = {
    k: x.reshape(1, 16, -1) if 'support' in k else x for k, x in one.items()
  }
  told, labels, grads = _loss(several, one, _place(4, 2), number=2)
  plain = _method(classes=4, images=4)
  wanted, found, wanted_grads = _loss(plain, twice, np.tile(_place(4, 2), 2))
  np.testing.assert_array_equal(labels, found)
  for name, value in wanted.items():
    np.testing.assert_allclose(told[name], value, rtol=1e-5)
  for name, value in grads.items():
    theirs = wanted_grads[name].reshape(value.shape)
    np.testing.assert_allclose(value, theirs, rtol=1e-4, atol=1e-6)


def test_pseudo_labels_are_classes_of_the_step_and_true_ones_overrule():
  one = _random()
  for name in ('projection', 'prediction'):
    # Every image is where the first labelled image of a place is.
    one[name][:] = one[f'support_{name}'][:, ::2]
  classes = np.array([7, 3, 9, 5], np.int32)
  labels = np.array([-1, -1, -1, -1, -1, 2, -1, 0], np.int32)
  method, place = _method(classes=4, images=4, temperature=0.02), _place(4, 4)
  for number in (1, 4):
    _, found, _ = _loss(method, one, place, number, labels, classes)
    np.testing.assert_array_equal(found, [7, 7, 3, 3, 9, 2, 5, 0])


def test_a_soft_label_of_0_gives_numbers():
  """Without smoothing far classes are lost to underflow."""
  one = _random()
  one['projection'] = -one['projection']
  method = _method(
    classes=4, images=4, temperature=0.002, smoothing=0.0
  )  # fmt: skip
  told, _, grads = _loss(method, one, _place(4, 4))
  assert np.isfinite(list(told.values())).all()
  assert all(np.isfinite(x).all() for x in grads.values())
  assert told['loss/consistency'] > 10


# The release's schedule, and settings. ----------------------------------------


def test_the_learning_rate_is_the_releases():
  file = golden.load('paws_parts.npz')
  opt = methods.default('paws').optimizer
  found = [
    schedules.learning_rate(
      int(step), base=opt.learning_rate, batch_size=4096, total_steps=31_200,
      warmup_steps=3_120, start=opt.start_learning_rate,
      final=opt.final_learning_rate, warmup_kind=opt.warmup_kind,
    )
    for step in file['schedule/steps']
  ]  # fmt: skip
  np.testing.assert_allclose(found, file['schedule/rate'], rtol=1e-6)


@pytest.mark.parametrize(
  'changes, line',
  [
    (
      {'support__images_per_class': 5},
      "images_per_class is 5, but class '0' has only 4 labelled training",
    ),
    (
      {'support__classes': 4},
      'support.classes is 4, but the data set has 3 classes',
    ),
    ({'support__classes': 1}, 'support.classes is 1, of which nothing could'),
    (
      {
        'support__images': 8,
        'support__classes': 0,
        'support__images_per_class': 0,
      },
      "support.images is 8, but method 'paws' needs as many",
    ),
    ({'accumulate': 2}, "accumulate is 2, but method 'paws' takes its support"),
    ({'labels__per_class': 0}, 'learns from labelled images, but no image has'),
    ({'views__num_large': 3}, 'views.num_large is 3, .* set it to 2'),
    ({'views__num_large': 1}, 'views.num_large is 1, .* set it to 2'),
    ({'views__one_pass': False}, 'support.joint is True, but with'),
    ({'loss__temperature': 0.0}, 'loss.temperature is 0.0; it must be above 0'),
    ({'loss__sharpening': 0.0}, 'loss.sharpening is 0.0; it must be above 0'),
    ({'loss__sharpening': 2.0}, 'loss.sharpening is 2.0, which would blur'),
    ({'loss__smoothing': 1.5}, 'loss.smoothing is 1.5'),
    ({'loss__entropy_weight': -1.0}, 'loss.entropy_weight is -1.0'),
    ({'predictor__hidden': 0}, 'predictor.hidden is 0'),
  ],
)
def test_what_cannot_work_is_refused(changes, line):
  with pytest.raises(UserError, match=line) as caught:
    tiny.prepare('paws', **changes)
  assert '\n' not in str(caught.value)


def test_a_support_that_devices_do_not_share_is_refused():
  cfg = tiny.make_config('paws', support__images_per_class=3)
  with pytest.raises(UserError, match='support of 6 images .* the 4 devices'):
    methods.validate(cfg, 4)


# Whole runs. -----------------------------------------------------------------


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(folder, results) of a run of 5 steps."""
  workdir = tmp_path_factory.mktemp('paws')
  cfg = tiny.make_config('paws', num_devices=2)
  return workdir, pretraining.pretrain(cfg, str(workdir))


def test_it_ends_with_scores(run):
  workdir, results = run
  assert results['step'] == 5 and results['network'] == 'online'
  assert 0 <= results['knn_top1'] <= 1
  rows = metrics.read(str(workdir))
  for row in rows:
    assert 0 < row['loss/consistency'] < 10
    assert 0 <= row['mean_entropy'] <= math.log(2) + 1e-6
    wanted = row['loss/consistency'] - row['mean_entropy']
    np.testing.assert_allclose(row['loss'], wanted, atol=1e-5)
    assert 0 <= row['pseudo_label_accuracy'] <= 1


def test_its_network_comes_back_from_a_file(run, tmp_path):
  held, file = load_lib.load_checkpoint(run[0]), tmp_path / 'file.safetensors'
  assert 'projector yes, predictor yes' in str(held)
  load_lib.save_safetensors(file, held)
  again = load_lib.load_checkpoint(file)
  assert load_lib.digest(again) == load_lib.digest(held)
  sizes = architecture.head_sizes(again.params)
  assert sizes['heads'] == heads.PAWSHead(16, 8, 16)
  layers = ['encoder', 'projector/1', 'projector/2', 'projector/3']
  assert architecture.layers(again.params) == layers


def test_it_is_reported(run, tmp_path):
  path = page.write([str(run[0])], str(tmp_path / 'page.html'))
  with open(path) as file:
    text = file.read()
  assert 'PAWS: views predict' in text and 'the mean soft label' in text
  assert 'another view&#x27;s soft label, cross-entropy' in text


def test_its_settings_are_read_again():
  settings = tiny.make_config('paws').to_dict()
  assert upgrade.upgrade(settings) == settings
