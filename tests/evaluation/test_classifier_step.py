"""Linear evaluation and fine-tuning against the release's own run of them."""

import functools

import jax
import numpy as np
import pytest

from semppl_jax import types
from semppl_jax.config import eval_config
from semppl_jax.distributed import parallel
from semppl_jax.evaluation import classifier_step
from semppl_jax.models import networks
from semppl_jax.weights import load as load_lib
from tests.helpers import golden, tiny

STEPS, BATCH, CLASSES = 6, 8, 5


@pytest.fixture(scope='module')
def release():
  """What DeepMind's EvalExperiment did with the tiny checkpoint.

  Six steps of B = 8 on one device, on these images; from its own initial
  classifier, with the release's code on jax 0.4.13.
  """
  found = golden.load('release_linear_eval.npz')
  random = np.random.RandomState(0)
  images = random.uniform(size=(48, 32, 32, 3)).astype(np.float32)
  found['images'] = np.round(images * 255).astype(np.uint8)
  return found


@pytest.fixture(scope='module')
def checkpoint():
  return load_lib.load_checkpoint(golden.path('release_checkpoint_tiny.pkl'))


def make_hparams(checkpoint, rate, encoder_rate=None, **changes):
  cfg = eval_config.default()
  cfg.batch_size = BATCH
  # The whole image at its own size: no resampling.
  cfg.crops.update(size=32, augment=False, center=1.0)
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  nets = networks.build(**checkpoint.architecture._asdict())
  return classifier_step.Hyperparameters(
    tiny.frozen(cfg), nets.encode, rate, encoder_rate, STEPS, 0
  )


def first_state(hparams, checkpoint, head=None):
  encoder = {m: x for m, x in checkpoint.params.items() if '~' in m}
  bn_state = {m: x for m, x in checkpoint.state.items() if 'tiny' in m}
  state = classifier_step.init(
    hparams, encoder, bn_state, embedding_size=8, num_classes=CLASSES
  )
  if head is not None:
    params = state.online_params | {'classifier': head}
    state = state._replace(online_params=params)
  return state


def train(hparams, state, images, labels, num_devices):
  """All steps; returns the last state without device axis, and metrics."""
  step = functools.partial(classifier_step.train_step, hparams=hparams)
  mapped = tiny.map_step(step, num_devices)
  state = parallel.replicate(state, num_devices)
  state = parallel.put_sharded(state, jax.devices()[:num_devices])
  if images.dtype == np.uint8 and not hparams.cfg.crops.augment:
    images = images.astype(np.float32) / 255  # as the input crops them
  seen = []
  for i in range(STEPS):
    rows = slice(i * BATCH, (i + 1) * BATCH)
    batch = types.Batch(images[rows], labels[rows], np.arange(BATCH))
    state, metrics = mapped(
      state, parallel.shard(batch, num_devices), jax.random.key(0)
    )
    seen.append({k: float(v[0]) for k, v in metrics.items()})
  return classifier_step.to_host(state), seen


def final_logits(hparams, state, images):
  pixels = images.astype(np.float32) / 255
  embedding, _ = jax.jit(hparams.encode, static_argnums=3)(
    state.online_params, state.online_state, pixels, False
  )
  return classifier_step.logits(state.online_params, embedding)


@pytest.mark.parametrize('num_devices', [1, 4])
@pytest.mark.parametrize(
  'tag, rates', [('frozen', (3.0,)), ('fine_tuned', (0.3, 0.3))]
)
def test_equals_the_release(release, checkpoint, tag, rates, num_devices):
  """Losses of all steps, and the logits of its evaluation afterwards."""
  head = {'w': release[f'{tag}/w0'], 'b': release[f'{tag}/b0']}
  hparams = make_hparams(checkpoint, *rates)
  state = first_state(hparams, checkpoint, head)
  images, labels = release['images'], release['labels']
  tolerance = {'rtol': 1e-5, 'atol': 1e-5}
  if tag == 'fine_tuned':  # batch statistics of few elements amplify rounding
    tolerance = {'rtol': 1e-3, 'atol': 1e-3}
    images = images.astype(np.float32) / 255
  # In the first step one ReLU's input is 0 but for rounding, and which side of
  # it decides about 4e-4 of the next loss. So the images are nudged until it
  # falls as it did in the release; all else must then agree.
  noise = np.random.RandomState(1).standard_normal(images.shape)
  for nudge in (0, 1e-7, -1e-7, 3e-7, -3e-7, 1e-6, -1e-6):
    nudged = images if not nudge else (images + nudge * noise).astype('f4')
    last, seen = train(hparams, state, nudged, labels, num_devices)
    second = release[f'{tag}/losses'][1]
    if tag == 'frozen' or abs(seen[1]['loss'] / second - 1) < 1e-4:
      break
  np.testing.assert_allclose(
    [m['loss'] for m in seen], release[f'{tag}/losses'], **tolerance
  )
  found = final_logits(hparams, last, release['images'][:16])
  np.testing.assert_allclose(found, release[f'{tag}/logits'], **tolerance)
  np.testing.assert_allclose(
    last.online_params['classifier']['w'], release[f'{tag}/w'], **tolerance
  )


def test_equals_an_update_written_by_hand(release, checkpoint):
  """Nesterov momentum and cosine in float64, for the head alone."""
  images, labels = release['images'], release['labels']
  hparams = make_hparams(checkpoint, 2.0)
  state = first_state(hparams, checkpoint)
  last, seen = train(hparams, state, images, labels, 2)
  pixels = images.astype(np.float32) / 255
  features = np.asarray(
    jax.jit(hparams.encode, static_argnums=3)(
      checkpoint.params, checkpoint.state, pixels, False
    )[0],
    np.float64,
  )
  w = np.asarray(state.online_params['classifier']['w'], np.float64)
  b = np.zeros(CLASSES)
  trace_w, trace_b = np.zeros_like(w), np.zeros_like(b)
  for i, metrics in enumerate(seen):
    rows = slice(i * BATCH, (i + 1) * BATCH)
    x, y = features[rows], np.eye(CLASSES)[labels[rows]]
    scores = x @ w + b
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.mean(np.sum(y * np.log(p), axis=1))
    assert metrics['loss'] == pytest.approx(loss, rel=1e-5)
    assert metrics['accuracy'] == np.mean(p.argmax(1) == labels[rows])
    rate = 2.0 * BATCH / 256 * 0.5 * (1 + np.cos(np.pi * i / STEPS))
    assert metrics['learning_rate'] == pytest.approx(rate, rel=1e-5)
    grad_w, grad_b = x.T @ (p - y) / BATCH, (p - y).mean(0)
    trace_w, trace_b = grad_w + 0.9 * trace_w, grad_b + 0.9 * trace_b
    w -= rate * (grad_w + 0.9 * trace_w)
    b -= rate * (grad_b + 0.9 * trace_b)
  head = last.online_params['classifier']
  np.testing.assert_allclose(head['w'], w, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(head['b'], b, rtol=1e-4, atol=1e-6)


def _moved(before, after):
  """Names of the modules with a leaf that changed."""
  return {
    module
    for module, leaves in before.items()
    if any(np.any(x != after[module][k]) for k, x in leaves.items())
  }


def test_what_is_frozen_does_not_move(release, checkpoint):
  images, labels = release['images'], release['labels']
  for encoder_rate, trained in ((None, False), (0.3, True)):
    hparams = make_hparams(checkpoint, 0.3, encoder_rate)
    state = first_state(hparams, checkpoint)
    last, _ = train(hparams, state, images, labels, 2)
    params = _moved(state.online_params, last.online_params)
    assert 'classifier' in params
    statistics = _moved(state.online_state, last.online_state)
    if trained:
      assert params == set(state.online_params)
      assert statistics == set(state.online_state)
    else:
      assert params == {'classifier'} and not statistics


def test_each_part_has_its_own_rate(release, checkpoint):
  """Without a rate the encoder's weights stay; its statistics move on."""
  hparams = make_hparams(checkpoint, 0.3, 0.0)
  state = first_state(hparams, checkpoint)
  last, _ = train(hparams, state, release['images'], release['labels'], 2)
  assert _moved(state.online_params, last.online_params) == {'classifier'}
  assert _moved(state.online_state, last.online_state)


def test_crops_depend_on_the_place_in_the_batch_alone(release, checkpoint):
  """Augmentation on: the number of devices changes nothing."""
  hparams = make_hparams(checkpoint, 0.3, crops__augment=True)
  state = first_state(hparams, checkpoint)
  losses = []
  for num_devices in (1, 8):
    _, seen = train(
      hparams, state, release['images'], release['labels'], num_devices
    )
    losses.append([m['loss'] for m in seen])
  np.testing.assert_allclose(*losses, rtol=1e-5)
  still = make_hparams(checkpoint, 0.3)
  _, seen = train(still, state, release['images'], release['labels'], 1)
  assert abs(seen[0]['loss'] - losses[0][0]) > 1e-4


def test_a_batch_of_features_needs_no_encoder(release, checkpoint):
  """features=cached trains the same head as crops of the middle."""
  images, labels = release['images'], release['labels']
  hparams = make_hparams(checkpoint, 0.3)
  state = first_state(hparams, checkpoint)
  online, seen = train(hparams, state, images, labels, 2)
  pixels = images.astype(np.float32) / 255
  features = np.asarray(
    jax.jit(hparams.encode, static_argnums=3)(
      checkpoint.params, checkpoint.state, pixels, False
    )[0]
  )
  cached, seen_cached = train(
    hparams._replace(encode=None), state, features, labels, 2
  )
  for one, other in zip(seen, seen_cached):
    assert one['loss'] == pytest.approx(other['loss'], rel=1e-5)
  np.testing.assert_allclose(
    online.online_params['classifier']['w'],
    cached.online_params['classifier']['w'],
    rtol=1e-4,
    atol=1e-6,
  )
