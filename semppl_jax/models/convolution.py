"""Convolution and max-pool, in the form that their device computes fastest.

A GPU or TPU gets XLA's own. A CPU gets matrix products and a maximum of slices
where these were faster when measured (`python -m benchmarks.convolution`;
benchmarks/NOTES.md). Values are equal but for rounding.
"""

import functools
from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

# Input channels from which a k x k convolution is a product on a CPU.
_MIN_CHANNELS = 256

Form = Callable[..., jax.Array]  # of arrays
Padding = tuple[tuple[int, int], tuple[int, int]]  # of height and of width


class Conv2D(hk.Module):
  """2D convolution without bias, initialised and named as `hk.Conv2D`."""

  def __init__(
    self,
    channels: int,
    kernel: int,
    stride: int = 1,
    symmetric: bool = False,
    name: str | None = None,
  ):
    """Sets what it computes.

    Args:
      channels: c' of the output.
      kernel: k, its height and its width.
      stride: of both axes.
      symmetric: k - 1 zeros, whatever the size of the image; else 'SAME'.
      name: of the module.
    """
    super().__init__(name=name)
    self._channels, self._kernel, self._stride = channels, kernel, stride
    self._symmetric = symmetric

  def __call__(self, x: jax.Array) -> jax.Array:
    """[n, H, W, c] -> [n, h, w, c']."""
    shape = (self._kernel, self._kernel, x.shape[-1], self._channels)
    init = hk.initializers.TruncatedNormal(1 / np.sqrt(np.prod(shape[:-1])))
    w = hk.get_parameter('w', shape, x.dtype, init=init)
    before = (self._kernel - 1) // 2
    padding = ((before, self._kernel - 1 - before),) * 2
    if not self._symmetric:
      padding = _same(x.shape, self._kernel, self._stride)
    return conv2d(x, w, self._stride, padding)


def _by_platform(cpu: Form, others: Form) -> Form:
  """What is `cpu` on a CPU and else `others`, in value and in gradient.

  With a gradient of its own, so that neither form's residuals meet the other.
  """

  @jax.custom_vjp
  def apply(*args):
    return jax.lax.platform_dependent(*args, cpu=cpu, default=others)

  def backward(args, gradient):
    pull = lambda f: lambda *both: jax.vjp(f, *both[:-1])[1](both[-1])
    return jax.lax.platform_dependent(
      *args, gradient, cpu=pull(cpu), default=pull(others)
    )

  apply.defvjp(lambda *args: (apply(*args), args), backward)
  return apply


def conv2d(
  x: jax.Array, w: jax.Array, stride: int, padding: Padding
) -> jax.Array:
  """2D convolution.

  Args:
    x: [n, H, W, c].
    w: [k, k, c, c'].
    stride: of both axes.
    padding: zeros before and after.

  Returns:
    [n, h, w, c'], in x's dtype.
  """
  own = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  if len(w) > 1 and x.shape[-1] < _MIN_CHANNELS:
    return own(x, w)

  def product(x, w):
    columns = _columns(x, len(w), stride, padding)
    # Rows by columns: a product over more axes is not the fast one.
    y = columns.reshape(-1, columns.shape[-1]) @ w.reshape(-1, w.shape[-1])
    return y.reshape(*columns.shape[:-1], -1)

  return _by_platform(product, own)(x, w)


def max_pool(x: jax.Array, kernel: int = 3, stride: int = 2) -> jax.Array:
  """Max-pool with 'SAME' padding, [n, H, W, c] -> [n, h, w, c].

  Of equal maxima the gradient goes to the first, or on a CPU to equal parts.
  """
  window = (1, kernel, kernel, 1), (1, stride, stride, 1), 'SAME'
  rows, columns = _same(x.shape, kernel, stride)

  def maxima(x):
    # Of rows, then of columns. Without a barrier all of it becomes one loop
    # that finds the same maxima again for each of its outputs.
    for axis, sides in (1, rows), (2, columns):
      x = jax.lax.optimization_barrier(x)
      slices = _slices(x, axis, kernel, stride, sides, -jnp.inf)
      x = functools.reduce(jnp.maximum, slices)
    return x

  return _by_platform(maxima, lambda x: hk.max_pool(x, *window))(x)


def _same(shape: tuple[int, ...], kernel: int, stride: int) -> Padding:
  """'SAME' as XLA and TensorFlow have it: an odd zero stands at the end."""
  sides = []
  for size in shape[1:3]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    sides.append((total // 2, total - total // 2))
  return tuple(sides)


def _columns(
  x: jax.Array, kernel: int, stride: int, padding: Padding
) -> jax.Array:
  """What the kernel meets at each position, [n, h, w, k^2 c] ("im2col")."""
  if kernel == 1:
    return x[:, ::stride, ::stride]
  parts = [
    part
    for rows in _slices(x, 1, kernel, stride, padding[0], 0)
    for part in _slices(rows, 2, kernel, stride, padding[1], 0)
  ]
  return jnp.concatenate(parts, axis=-1)


def _slices(
  x: jax.Array,
  axis: int,
  kernel: int,
  stride: int,
  sides: tuple[int, int],
  fill: float,
) -> list[jax.Array]:
  """What each of the k positions of a kernel along an axis meets."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = sides
  x = jnp.pad(x, widths, constant_values=fill)
  last = (x.shape[axis] - kernel) // stride * stride
  return [
    jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis)
    for i in range(kernel)
  ]
