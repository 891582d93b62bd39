"""The PyTorch step that ours is timed beside does the same work."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semppl_jax import config
from semppl_jax.augment import views
from semppl_jax.losses import contrastive
from semppl_jax.models import networks
from semppl_jax.train import optimizers

torch = pytest.importorskip('torch')
# They need PyTorch.
from benchmarks.torch_twin import losses as torch_losses  # noqa: E402
from benchmarks.torch_twin import networks as torch_networks  # noqa: E402
from benchmarks.torch_twin import step as torch_step  # noqa: E402
from benchmarks.torch_twin import views as torch_views  # noqa: E402

TINY = torch_networks.Sizes(
  encoder='resnet18',
  width=1,
  stem='imagenet',
  batch_size=20,
  canvas=40,
  large_size=32,
  small_size=24,
  capacity=30,
  projector_hidden=32,
  embedding_size=16,
  num_classes=3,
)
random = np.random.default_rng(0)


def unit(*shape):
  x = random.normal(size=shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def uniform(*shape):
  return random.uniform(size=shape).astype(np.float32)


def channels_first(images):
  return torch.tensor(np.moveaxis(images, -1, 1))


def channels_last(images):
  return np.moveaxis(images.numpy(), 1, -1)


@functools.cache
def tiny_step():
  return torch_step.Step(TINY)


def test_objective_and_its_gradient_are_ours():
  online = unit(3, 5, 8)
  positives, negatives = unit(3, 2, 5, 8), unit(2, 5, 4, 8)  # 2 draws
  exists = np.array([True, False, True, True, False])

  def ours(online):
    weights = np.array([1, 1, 1, 1, 1]) / 5, exists / exists.sum()
    parts = []
    for positive in positives:
      logits = contrastive.similarity_logits(
        online, positive, negatives, temperature=0.2
      )
      steady = contrastive.invariance(logits[:2], stop_gradient='entropy')
      parts.append((contrastive.info_nce(logits), steady))
    (augm, inv_augm), *draws = parts
    sempos, inv_sempos = (sum(x) / 2 for x in zip(*draws))
    near = augm @ weights[0] + 0.2 * sempos @ weights[1]
    return 0.3 * near + 5 * (inv_augm @ weights[0] + inv_sempos @ weights[1])

  theirs = torch.tensor(online, requires_grad=True)
  log_p = torch_losses.log_scores(
    theirs, torch.tensor(positives), torch.tensor(negatives)
  )
  loss = torch_losses.objective(log_p, torch.tensor(exists), 2)
  loss.backward()
  value, gradient = jax.value_and_grad(ours)(online)
  np.testing.assert_allclose(loss.detach(), value, rtol=1e-5)
  np.testing.assert_allclose(theirs.grad, gradient, rtol=1e-4, atol=1e-6)


def test_lars_is_ours():
  tree = {
    'a/linear': {'w': uniform(6, 4), 'b': uniform(4)},
    'a/batchnorm': {'scale': uniform(4)},
    'b/zero': {'w': np.zeros((4, 3), np.float32)},
  }
  optimizer = optimizers.lars(
    weight_decay=1e-6, momentum=0.9, trust_coefficient=1e-3
  )
  state = optimizer.init(tree)
  theirs = [torch.tensor(x) for x in jax.tree.leaves(tree)]
  lars = torch_step.Lars(theirs)
  for rate in 0.1, 0.5, 0.3:
    grads = jax.tree.map(lambda x: uniform(*x.shape) - 0.5, tree)
    for p, grad in zip(theirs, jax.tree.leaves(grads)):
      p.grad = torch.tensor(grad)
    norm = lars.step(rate)
    np.testing.assert_allclose(norm, optax.tree.norm(grads), rtol=1e-5)
    updates, state = optimizer.update(grads, state, tree)
    tree = jax.tree.map(lambda p, u, r=rate: p - r * u, tree, updates)
  for p, expected in zip(theirs, jax.tree.leaves(tree)):
    np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('stem', ['imagenet', 'small'])
@pytest.mark.parametrize(
  ('encoder', 'width'), [('resnet18', 1), ('resnet18', 2), ('resnet50', 1)]
)
def test_parameters_are_as_many_as_ours(encoder, width, stem):
  nets = networks.build(
    encoder=encoder, width=width, stem=stem, projector_hidden=12,
    embedding_size=6, num_classes=5,
  )  # fmt: skip
  images = jnp.zeros((1, 32, 32, 3))
  params, _ = jax.eval_shape(nets.init, jax.random.key(0), images)
  sizes = TINY._replace(
    encoder=encoder, width=width, stem=stem, projector_hidden=12,
    embedding_size=6, num_classes=5,
  )  # fmt: skip
  for online, tree in (True, params), (False, nets.target_tree(params)):
    theirs = torch_networks.Network(sizes, online).parameters()
    ours = sorted(x.size for x in jax.tree.leaves(tree))
    assert sorted(p.numel() for p in theirs) == ours


def test_windows_are_ours():
  draws, sizes = uniform(50, 22), random.uniform(30, 300, (50, 2))
  theirs = torch_views.random_windows(
    torch.tensor(draws), torch.tensor(sizes, dtype=torch.float32), (0.14, 1.0)
  )
  window = functools.partial(
    views.random_window, area=(0.14, 1.0), aspect=(3 / 4, 4 / 3)
  )
  ours = jax.vmap(window)(draws[:, :20], draws[:, 20:], sizes)
  np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('flip', [False, True])
def test_crops_are_close_to_ours(flip):
  # A smooth picture, since the kernels differ: slopes of 0.03 a pixel.
  y, x, c = np.meshgrid(*map(np.arange, (40, 40, 3)), indexing='ij')
  image = (0.5 + 0.4 * np.sin(y / 13 + c) * np.cos(x / 17)).astype(np.float32)
  windows = np.float32([[3.3, 8.1, 14.2, 29.7], [0, 0, 40, 40]])
  crop = functools.partial(views.crop, shape=jnp.array([40.0, 40.0]), size=24)
  ours = np.stack([crop(image, window) for window in windows])
  if flip:
    ours = ours[:, :, ::-1]
    windows[:, 1] += windows[:, 3]
    windows[:, 3] *= -1
  theirs = torch_views.crop(
    channels_first(np.stack([image] * 2)), torch.tensor(windows), 24
  )
  np.testing.assert_allclose(channels_last(theirs), ours, atol=4e-3)


def test_colours_and_blur_are_ours():
  images = uniform(4, 30, 30, 3)
  images[0, :5] = images[0, :5, :, :1]  # gray
  images[1, :5] = 0
  amounts = np.float32([-0.2, -0.1, 0.1, 0.19])
  sigma = np.float32([0.1, 0.5, 1.0, 2.0])
  clipped = lambda f: lambda *args: jnp.clip(f(*args), 0, 1)
  pairs = [
    (torch_views.brightness, clipped(pix.adjust_brightness), amounts, 0),
    (torch_views.contrast, clipped(pix.adjust_contrast), amounts, 1),
    (
      torch_views.saturation,
      lambda x, a: views.adjust_hsv(x, a, 0),
      amounts,
      1,
    ),
    (torch_views.hue, lambda x, a: views.adjust_hsv(x, 1, a), amounts, 0),
    (torch_views.blur, functools.partial(views.blur, radius=1), sigma, 0),
  ]
  for theirs, ours, amount, offset in pairs:
    changed = theirs(
      channels_first(images), torch.tensor(amount)[:, None, None, None]
    )
    expected = jax.vmap(ours)(images, amount + offset)
    np.testing.assert_allclose(channels_last(changed), expected, atol=1e-5)
  gray = channels_last(torch_views.grayscale(channels_first(images)))
  expected = jax.vmap(views.grayscale)(images)
  np.testing.assert_allclose(gray, expected, atol=1e-5)


def test_only_the_chosen_change():
  images = torch.zeros(5, 3, 2, 2)
  chosen = torch.tensor([True, False, False, True, False])
  add = lambda x, amount: x + amount
  images = torch_views._some(images, chosen, add, torch.arange(5.0) + 1)
  np.testing.assert_array_equal(images[:, 0, 0, 0], [1, 0, 0, 4, 0])


def test_settings_are_ours():
  cfg = config.default()
  assert cfg.views.large_area == torch_views.LARGE_AREA
  assert cfg.views.small_area == torch_views.SMALL_AREA
  assert cfg.views.blur == torch_views.BLUR
  assert cfg.views.solarize == torch_views.SOLARIZE
  assert cfg.loss.temperature == torch_losses.TEMPERATURE
  assert cfg.optimizer.weight_decay == torch_step.WEIGHT_DECAY
  assert cfg.optimizer.trust_coefficient == torch_step.TRUST


def test_queue_is_first_in_first_out():
  queue = torch_losses.Queue(1, 3, 2, 'cpu')
  labels = torch.tensor([5, -1, 6])
  entries = torch.eye(2)[torch.tensor([0, 1, 1])][None]
  queue.push(entries, labels, torch.tensor([10, 11, 12]))
  assert queue.count == 2
  assert queue.labels.tolist() == [5, 6, -1]
  assert queue.ids.tolist() == [10, 12, -1]
  np.testing.assert_array_equal(queue.embeddings[0, 1], [0, 1])
  queue.push(torch.ones(1, 5, 2), torch.arange(5), torch.arange(5))
  assert queue.count == 7
  assert queue.labels.tolist() == [4, 2, 3]  # slots 6 % 3 = 0, 4 % 3, 5 % 3


@pytest.mark.parametrize('k', [1, 2])
def test_neighbours_and_the_look_up_blind_to_the_own_id(k):
  queue = torch_losses.Queue(2, 4, 2, 'cpu')
  angles = torch.tensor([[0.0, 0.5, 3.0], [0.1, 0.4, 3.0]])
  circle = lambda a: torch.stack([a.cos(), a.sin()], dim=-1)
  queue.push(circle(angles), torch.tensor([7, 8, 9]), torch.tensor([1, 2, 3]))
  queries = circle(torch.tensor([[0.0, 0.45]]))  # [1, 2, 2]
  similarity, labels = queue.nearest(queries, torch.tensor([1, 99]), k)
  rows = [[[7, 8], [8, 7]], [[8, 9], [8, 7]]]  # the same in both queues
  expected = [[row[:k] * 2 for row in lookup] for lookup in rows]
  assert labels.tolist() == expected
  np.testing.assert_allclose(similarity[0, 0, 0], 1, rtol=1e-6)
  np.testing.assert_allclose(similarity[0, 0, k], np.cos(0.1), rtol=1e-6)


def test_positives_have_the_label():
  queue = torch_losses.Queue(2, 6, 1, 'cpu')
  labels = torch.tensor([3, 1, 3, 1, 3])
  entries = torch.arange(5.0).expand(2, 5)[..., None]
  queue.push(entries, labels, torch.arange(5))
  wanted = torch.tensor([3, 1, 2, -1])
  positives, exists = queue.sample(wanted, 200)  # [200, 2, 4, 1]
  assert positives.shape == (200, 2, 4, 1)
  assert exists.tolist() == [True, True, False, False]
  assert set(positives[:, 0, 0, 0].tolist()) == {0, 2, 4}
  assert set(positives[:, 1, 1, 0].tolist()) == {1, 3}


def test_votes():
  labels = torch.tensor(
    [[2, 1, 1, 0], [2, 2, 1, 1], [5, 4, -1, -1], [-1, -1, -1, -1]]
  )
  similarity = torch.tensor(
    [
      [0.9, 0.1, 0.1, 0.8],  # the most frequent
      [0.5, 0.4, 0.3, 0.1],  # the nearest of two
      [0.5, 0.5, -torch.inf, -torch.inf],  # the smallest of two
      [-torch.inf] * 4,
    ]
  )
  winner, share = torch_losses.vote(similarity, labels)
  assert winner.tolist() == [1, 2, 4, -1]
  assert share.tolist() == [0.5, 0.5, 0.5, 0]


def test_negatives_are_others():
  drawn = torch_losses.draw_negatives(12, 10, 'cpu')
  for image, row in enumerate(drawn.tolist()):
    assert len({image, *row}) == 11


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_whole_step_moves_both_networks(precision):
  step = torch_step.Step(TINY, precision=precision)
  # Not biases: before a BatchNorm their gradients are zeros.
  weights = lambda: [
    [p.clone() for p in network.parameters() if p.ndim > 1]
    for network in (step.online, step.target)
  ]
  before, count = weights(), step.queue.count
  loss = step.whole()
  assert np.isfinite(loss)
  assert all(np.isfinite(x.item()) for x in step.metrics.values())
  assert step.queue.count == count + 2  # a tenth of the images
  for was, now in zip(before, weights()):
    assert not any(torch.equal(x, y) for x, y in zip(was, now))
  assert step.whole() != loss


def test_views_have_their_sizes_and_lie_channels_last():
  step = tiny_step()
  sides = [view.shape for view in step._views]
  assert sides == [(20, 3, 32, 32)] * 4 + [(20, 3, 24, 24)] * 2
  for view in step._views:
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert view.min() >= -0.485 / 0.229 - 1e-3
    assert view.max() <= (1 - 0.406) / 0.225 + 1e-3
    assert view.std() > 0.1


def test_bare_changes_no_weights():
  step = tiny_step()
  before = [p.clone() for p in step.online.parameters()]
  step.bare()
  for was, now in zip(before, step.online.parameters()):
    assert torch.equal(was, now)
  assert step.online.projector[0].weight.grad.abs().max() > 0


def test_embedding_moves_no_running_statistics():
  step = tiny_step()
  before = [b.clone() for b in step.online.buffers()]
  step.embed()
  for was, now in zip(before, step.online.buffers()):
    assert torch.equal(was, now)
  assert step.online.training


def test_serves_until_there_are_no_more_lines():
  command = [sys.executable, '-m', 'benchmarks.torch_twin.step', '--serve']
  command += [f'--sizes={json.dumps(TINY._asdict())}', '--threads=1']
  done = subprocess.run(
    command, input='whole\nbare\nembed\n', capture_output=True, text=True,
    check=True, cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | {'OMP_NUM_THREADS': '1'},
  )  # fmt: skip
  ready, whole, bare, embed = map(json.loads, done.stdout.splitlines())
  assert ready['ready'] and ready['threads'] == 1
  assert whole['seconds'] > 0 and np.isfinite(bare['loss'])
  assert np.isfinite(embed['loss'])
