"""Convolution and max-pool: all forms are XLA's own but for rounding."""

import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax.models import convolution


def _noise(*shape, seed=0, dtype='float32'):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), dtype)


def _with_gradients(f, *args):
  """The value, and the gradients of its sum weighted by noise."""
  y, pull = jax.vjp(f, *args)
  return y, *pull(_noise(*y.shape, seed=9, dtype=y.dtype))


@pytest.mark.parametrize(
  ('size', 'channels', 'kernel', 'stride', 'symmetric'),
  [
    ((6, 5), 8, 1, 1, False),
    ((6, 5), 8, 1, 2, False),
    ((7, 7), 300, 1, 2, True),
    ((6, 5), 256, 3, 1, False),  # a product
    ((6, 5), 256, 3, 2, False),
    ((6, 6), 256, 3, 2, True),
    ((1, 2), 256, 3, 2, False),  # smaller than the kernel
    ((9, 8), 16, 3, 2, True),  # XLA's own
    ((6, 5), 16, 3, 1, False),
    ((1, 2), 16, 3, 2, False),
    ((7, 10), 16, 2, 3, True),  # the last rows are in no window
    ((9, 8), 3, 7, 2, False),
    ((8, 11), 3, 7, 2, True),
  ],
)
def test_convolution_is_haikus(size, channels, kernel, stride, symmetric):
  before = (kernel - 1) // 2
  sides = 'SAME'
  if symmetric:
    sides = [(before, kernel - 1 - before)] * 2
  ours = hk.transform(
    lambda x: convolution.Conv2D(5, kernel, stride, symmetric, 'conv')(x)
  )
  theirs = hk.transform(
    lambda x: hk.Conv2D(
      5, kernel, stride, with_bias=False, padding=sides, name='conv'
    )(x)
  )
  x = _noise(2, *size, channels)
  params = ours.init(jax.random.key(1), x)
  same = theirs.init(jax.random.key(1), x)
  np.testing.assert_array_equal(params['conv']['w'], same['conv']['w'])
  got = _with_gradients(lambda p, x: ours.apply(p, None, x), params, x)
  want = _with_gradients(lambda p, x: theirs.apply(p, None, x), params, x)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('size', [(8, 8), (7, 9), (1, 2)])
def test_max_pool_is_haikus(size):
  theirs = lambda x: hk.max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')
  x = _noise(2, *size, 3)  # negative ones too: padding is no zero
  got = _with_gradients(convolution.max_pool, x)
  for a, b in zip(got, _with_gradients(theirs, x), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  # Behind a ReLU, ties of zeros get no gradient in either form.
  got = _with_gradients(lambda x: convolution.max_pool(jax.nn.relu(x)), x - 1)
  want = _with_gradients(lambda x: theirs(jax.nn.relu(x)), x - 1)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def _lowered(f, *args, platform):
  gradients = lambda *args: _with_gradients(f, *args)
  traced = jax.jit(gradients).trace(*args)
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('kernel', [1, 3])
def test_each_device_gets_its_convolution(kernel):
  x, w = _noise(2, 6, 6, 256), _noise(kernel, kernel, 256, 4)
  conv = lambda x, w: convolution.conv2d(x, w, 1, ((kernel // 2,) * 2,) * 2)
  for platform in ('cpu', 'cuda', 'tpu'):
    text = _lowered(conv, x, w, platform=platform)
    own = platform != 'cpu'
    assert text.count('stablehlo.convolution') == (3 if own else 0), platform
    assert ('stablehlo.dot_general' in text) != own, platform


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of a CPU')
@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (7, 2)])
def test_gradients_are_fast_within_a_loop(kernel, stride):
  # Axes of another order are 50 times slower in one, on a CPU.
  def loop(x, w):
    conv = lambda w, x: convolution.conv2d(x, w, stride, ((1, 1),) * 2)
    step = lambda w, x: (w, jax.vjp(conv, w, x)[1](conv(w, x)))
    return jax.lax.scan(step, w, x)[1]

  x, w = _noise(3, 2, 24, 24, 8), _noise(kernel, kernel, 8, 8)
  text = jax.jit(loop).lower(x, w).compile().as_text()
  axes = set(re.findall(r'convolution\(.*dim_labels=(\w+->\w+)', text))
  assert ' while(' in text
  assert axes == {'b01f_01io->b01f'}


def test_each_device_gets_its_stem():
  x, w = _noise(2, 10, 10, 3), _noise(7, 7, 3, 4)
  stem = lambda x, w: convolution.conv2d(x, w, 2, ((2, 3),) * 2)
  for platform in ('cpu', 'cuda', 'tpu'):
    text = _lowered(stem, x, w, platform=platform)
    assert text.count('stablehlo.convolution') == 3
    assert ('tensor<4x4x16x4xf32>' in text) == (platform == 'cuda'), platform


def test_each_device_gets_its_max_pool():
  x = _noise(2, 6, 6, 8)
  for platform in ('cpu', 'cuda', 'tpu'):
    text = _lowered(convolution.max_pool, x, platform=platform)
    own = platform == 'tpu'
    assert ('stablehlo.select_and_scatter' in text) == own, platform


@pytest.mark.parametrize('size', [(16, 16), (11, 8), (8, 11), (7, 7), (9, 1)])
@pytest.mark.parametrize('symmetric', [False, True])
def test_blocks_of_pixels_are_the_stem(size, symmetric):
  x, w = _noise(2, *size, 3), _noise(7, 7, 3, 5, seed=1)
  padding = ((3, 3),) * 2 if symmetric else convolution._same(x.shape, 7, 2)
  own = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (2, 2), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  ours = lambda x, w: convolution._blocks_of_pixels(x, w, padding)
  got, want = _with_gradients(ours, x, w), _with_gradients(own, x, w)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5)


def test_leading_axes_are_images():
  x = _noise(2, 3, 6, 6, 4)
  conv = hk.transform(lambda x: convolution.Conv2D(5, 3, 2, name='c')(x))
  params = conv.init(jax.random.key(0), x)
  for f in (lambda x: conv.apply(params, None, x), convolution.max_pool):
    np.testing.assert_allclose(f(x), jnp.stack([f(y) for y in x]), atol=1e-6)


def test_bfloat16_stays():
  x, w = _noise(2, 4, 4, 256, dtype='bfloat16'), _noise(3, 3, 256, 4)
  w = w.astype('bfloat16')
  y, *gradients = _with_gradients(
    lambda x, w: convolution.conv2d(x, w, 2, ((0, 1), (0, 1))), x, w
  )
  assert {a.dtype for a in (y, *gradients)} == {jnp.dtype('bfloat16')}
