"""Convolution and max-pool, in the form that their device computes fastest.

A CPU and a GPU get other forms than XLA's own where these were faster when
measured (`python -m benchmarks.convolution`; benchmarks/NOTES.md); a TPU, where
nothing was measured, XLA's. Values are equal but for rounding.
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
    """[.., H, W, c] -> [.., h, w, c']."""
    shape = (self._kernel, self._kernel, x.shape[-1], self._channels)
    init = hk.initializers.TruncatedNormal(1 / np.sqrt(np.prod(shape[:-1])))
    w = hk.get_parameter('w', shape, x.dtype, init=init)
    before = (self._kernel - 1) // 2
    padding = ((before, self._kernel - 1 - before),) * 2
    flat = x.reshape(-1, *x.shape[-3:])
    if not self._symmetric:
      padding = _same(flat.shape, self._kernel, self._stride)
    y = conv2d(flat, w, self._stride, padding)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _by_platform(default: Form, **forms: Form) -> Form:
  """What is forms[platform] where there is one, in value and in gradient.

  With a gradient of its own, so that no form's residuals meet another's.
  """

  @jax.custom_vjp
  def apply(*args):
    return jax.lax.platform_dependent(*args, default=default, **forms)

  def backward(args, gradient):
    pull = lambda f: lambda *both: jax.vjp(f, *both[:-1])[1](both[-1])
    pulls = {platform: pull(form) for platform, form in forms.items()}
    return jax.lax.platform_dependent(
      *args, gradient, default=pull(default), **pulls
    )

  apply.defvjp(lambda *args: (apply(*args), args), backward)
  return apply


# Traced once for each shape, for it has a form for each platform.
@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
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
  own = functools.partial(_convolve, stride=stride, padding=padding)
  plain = _with_plain_gradient(stride, padding)
  if len(w) == 7 and stride == 2:  # the stem's
    stem = functools.partial(_blocks_of_pixels, padding=padding)
    return _by_platform(own, cpu=plain, cuda=stem)(x, w)
  if len(w) > 1 and x.shape[-1] < _MIN_CHANNELS:
    return _by_platform(own, cpu=plain)(x, w)

  def product(x, w):
    columns = _columns(x, len(w), stride, padding)
    # Rows by columns: a product over more axes is not the fast one.
    y = columns.reshape(-1, columns.shape[-1]) @ w.reshape(-1, w.shape[-1])
    return y.reshape(*columns.shape[:-1], -1)

  return _by_platform(own, cpu=product)(x, w)


def _convolve(
  x: jax.Array,
  w: jax.Array,
  stride: int = 1,
  padding: Padding | str = 'VALID',
  **dilation: tuple[int, int],
) -> jax.Array:
  """XLA's convolution, [n, H, W, c] and [k, k, c, c'] -> [n, h, w, c']."""
  return jax.lax.conv_general_dilated(
    x,
    w,
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    **dilation,
  )


def _with_plain_gradient(stride: int, padding: Padding) -> Form:
  """XLA's convolution, whose gradients are convolutions of the same axes.

  JAX's name the axes otherwise. XLA on a CPU turns these into the order that it
  computes fast only outside of loops; in one they are many times slower.
  """

  @jax.custom_vjp
  def apply(x, w):
    return _convolve(x, w, stride, padding)

  def backward(operands, gradient):
    x, w = operands
    sides_x, sides_w = [], []
    for axis, (before, _) in enumerate(padding):
      kernel, size = w.shape[axis], x.shape[1 + axis]
      last = (gradient.shape[1 + axis] - 1) * stride  # where a window begins
      sides_x.append((kernel - 1 - before, size - 1 - last + before))
      sides_w.append((before, kernel + last - size - before))
    dilation = (stride, stride)
    turned = w[::-1, ::-1].swapaxes(2, 3)  # [k, k, c', c]
    of_x = _convolve(gradient, turned, padding=sides_x, lhs_dilation=dilation)
    of_w = _convolve(  # [c, H, W, n] and [h, w, n, c'] -> [c, k, k, c']
      x.transpose(3, 1, 2, 0),
      gradient.transpose(1, 2, 0, 3),
      padding=sides_w,
      rhs_dilation=dilation,
    )
    return of_x, of_w.transpose(1, 2, 0, 3)

  apply.defvjp(lambda *args: (apply(*args), args), backward)
  return apply


def max_pool(x: jax.Array, kernel: int = 3, stride: int = 2) -> jax.Array:
  """Max-pool with 'SAME' padding, [.., H, W, c] -> [.., h, w, c].

  Of equal maxima the gradient goes to the first, or on a CPU or GPU to equal
  parts.
  """
  flat = x.reshape(-1, *x.shape[-3:])
  window = (1, kernel, kernel, 1), (1, stride, stride, 1), 'SAME'
  rows, columns = _same(flat.shape, kernel, stride)

  def maxima(x, barriers):
    # Of rows, then of columns. Without a barrier all of it, and what comes
    # before, becomes one loop that finds the same again for each output.
    for axis, sides, barrier in zip(
      (1, 2), (rows, columns), barriers, strict=True
    ):
      x = jax.lax.optimization_barrier(x) if barrier else x
      slices = _slices(x, axis, kernel, stride, sides, -jnp.inf)
      x = functools.reduce(jnp.maximum, slices)
    return x

  y = _by_platform(
    lambda x: hk.max_pool(x, *window),
    cpu=functools.partial(maxima, barriers=(True, True)),
    cuda=functools.partial(maxima, barriers=(True, False)),
  )(flat)
  return y.reshape(*x.shape[:-3], *y.shape[1:])


def _blocks_of_pixels(
  x: jax.Array, w: jax.Array, padding: Padding
) -> jax.Array:
  """A 7x7 convolution with stride 2 as a 4x4 one of blocks of 2x2 pixels.

  Space-to-depth, as in MLPerf's ResNets: of 3 channels come 12, and 4 of zeros,
  because tensor cores take 8 at a time.
  """
  for axis, (before, after) in enumerate(padding):
    size = x.shape[1 + axis]
    blocks = (size + before + after - 7) // 2 + 4
    sides = [(0, 0)] * 4
    sides[1 + axis] = before, 2 * blocks - before - size
    x = jnp.pad(x, sides)
  w = jnp.pad(w, ((0, 1), (0, 1), (0, 0), (0, 0)))  # 8 x 8
  n, height, width, channels = x.shape
  x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // 2, width // 2, -1)
  w = w.reshape(4, 2, 4, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
  w = w.reshape(4, 4, 4 * channels, -1)
  fill = (0, -4 * channels % 8)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), fill))
  w = jnp.pad(w, ((0, 0), (0, 0), fill, (0, 0)))
  return _convolve(x, w)


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
