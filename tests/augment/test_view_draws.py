"""How often each operation acts on a view, how strongly, and with what else.

Operations are replaced by marks, so that a view tells which of them acted, and
with which numbers. What they do to pixels: test_views.py.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semppl_jax import config
from semppl_jax.augment import views

_NUMBER = 1500  # images, each in two large and two small views
_SIDE = 4
_PROBABILITIES = {'flip': 0.3, 'jitter': 0.6, 'grayscale': 0.25}
_BLUR = (0.55, 0.2)  # in views of type A, of type B
_SOLARIZE = (0.15, 0.45)
_SIGMA = (0.5, 2.5)
_OPERATIONS = ('flip', 'jitter', 'grayscale', 'blur', 'solarize')
_FOUR_SIGMA = 4 * (0.25 / (2 * _NUMBER)) ** 0.5  # of a share in views of a type


def _mark(operation):
  """Adds a bit of its own in the first row; the view is 0 otherwise."""
  bit = 2.0 ** -(1 + _OPERATIONS.index(operation))
  return lambda image: image.at[0, :, 0].add(bit)


def _jitter(image, order, amounts, strengths, brightness_mode):
  del strengths, brightness_mode
  numbers = jnp.stack([order, amounts])  # [2, 4]
  return _mark('jitter')(image.at[1:3, :, 1].set(numbers))


def _blur(image, sigma, *, radius, precision):
  del radius, precision
  return _mark('blur')(image.at[3, 0, 2].set(sigma / 4))


@pytest.fixture(scope='module')
def drawn():
  """{'A', 'B'} -> who acted, by name [n]; order, amounts [n, 4]; sigma [n]."""
  cfg = config.default().views
  with cfg.unlocked():
    cfg.update(
      num_large=2, num_small=2, large_size=_SIDE, small_size=_SIDE,
      blur=_BLUR, solarize=_SOLARIZE, blur_sigma=_SIGMA, blur_kernel=0.5,
      **_PROBABILITIES,
    )  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(views.pix, 'flip_left_right', _mark('flip'))
    patch.setattr(views.pix, 'solarize', lambda x, _: _mark('solarize')(x))
    patch.setattr(views, 'grayscale', _mark('grayscale'))
    patch.setattr(views, 'jitter', _jitter)
    patch.setattr(views, 'blur', _blur)
    keys = jax.random.split(jax.random.key(5), _NUMBER)
    images = jnp.zeros((_NUMBER, _SIDE, _SIDE, 3), jnp.uint8)
    large, small = jax.jit(lambda k, x: views.make_views(k, x, cfg))(
      keys, images
    )
  found = {}
  for place, kind in enumerate('AB'):
    seen = np.concatenate([large[place], small[place]])  # [n, S, S, 3]
    bits = np.round(seen[:, 0, 0, 0] * 32).astype(int)
    found[kind] = {
      name: bits >> (len(_OPERATIONS) - 1 - i) & 1 == 1
      for i, name in enumerate(_OPERATIONS)
    }
    found[kind] |= {
      'order': seen[:, 1, :, 1],
      'amounts': seen[:, 2, :, 1],
      'sigma': 4 * seen[:, 3, 0, 2],
    }
  return found


@pytest.mark.parametrize('kind', 'AB')
def test_each_operation_acts_as_often_as_asked(drawn, kind):
  asked = _PROBABILITIES | {
    'blur': _BLUR['AB'.index(kind)],
    'solarize': _SOLARIZE['AB'.index(kind)],
  }
  for name, probability in asked.items():
    share = drawn[kind][name].mean()
    assert abs(share - probability) < _FOUR_SIGMA, name


@pytest.mark.parametrize('kind', 'AB')
@pytest.mark.parametrize('pair', [*itertools.combinations(_OPERATIONS, 2)])
def test_operations_act_independently(drawn, kind, pair):
  one, other = (drawn[kind][name] for name in pair)
  together = np.mean(one & other)
  assert abs(together - one.mean() * other.mean()) < _FOUR_SIGMA


def _assert_uniform(x):
  """[n] in [0, 1): by deciles, within four sigma."""
  shares = np.histogram(x, 10, (0, 1))[0] / len(x)
  assert np.all(np.abs(shares - 0.1) < 4 * (0.09 / len(x)) ** 0.5)


def test_how_strong_a_blur_is_does_not_depend_on_whether_there_is_one(drawn):
  for kind in 'AB':
    blurred = drawn[kind]['blur']
    low, high = _SIGMA
    _assert_uniform((drawn[kind]['sigma'][blurred] - low) / (high - low))


def test_amounts_and_order_of_the_jitter_are_uniform(drawn):
  for kind in 'AB':
    jittered = drawn[kind]['jitter']
    numbers = [drawn[kind][name][jittered] for name in ('order', 'amounts')]
    columns = np.concatenate(numbers, axis=1).T  # [8, n]
    for column in columns:
      _assert_uniform(column)
    # And of each other: a change is not the stronger for coming first.
    related = np.corrcoef(columns) - np.eye(8)
    assert np.abs(related).max() < 4 / columns.shape[1] ** 0.5


def test_views_of_an_image_draw_independently(drawn):
  large = [
    np.stack([drawn[kind][name][:_NUMBER] for name in _PROBABILITIES])
    for kind in 'AB'
  ]
  small = [
    np.stack([drawn[kind][name][_NUMBER:] for name in _PROBABILITIES])
    for kind in 'AB'
  ]
  for one, other in itertools.combinations(large + small, 2):
    together = np.mean(one & other, axis=1)
    expected = one.mean(axis=1) * other.mean(axis=1)
    assert np.abs(together - expected).max() < 4 * (0.25 / _NUMBER) ** 0.5
