"""The release's input, measured: tf.data makes six views of each JPEG.

As DeepMind's BYOL release does it in pre-training (its SemPPL release has the
same file), with the six views of SemPPL in place of two: for every view a
window is drawn and the JPEG is decoded again, no further than the window, which
is resized (bicubic, no antialiasing) to float32 in [0, 1]. Flips and colours
are changed on the device. Files come out of memory, so reading costs nothing.

Needs TensorFlow, which nothing else here does: pip install
'semppl-jax[benchmark]'.
"""

import functools
import importlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import host_crops
from semppl_jax.errors import UserError


def measure(
  jpegs: Sequence[bytes],
  seconds: float,
  *,
  batch_size: int = 32,
  threads: int = 1,
  decode_once: bool = False,
) -> dict[str, float]:
  """How fast tf.data makes views {'large_0': [b, 224, 224, 3], ..}.

  Args:
    jpegs: files, over and over.
    seconds: how long the clock runs.
    batch_size: b.
    threads: of tf.data's (the release has 48), each for one image at a time.
    decode_once: whether an image is decoded whole, once, and cut into views;
      the release does not.

  Returns:
    See `host_crops.rate`.

  Raises:
    UserError: TensorFlow is not there.
  """
  start = functools.partial(
    batches,
    jpegs,
    batch_size=batch_size,
    threads=threads,
    decode_once=decode_once,
  )
  return host_crops.rate(start, seconds)


def batches(
  jpegs: Sequence[bytes], *, batch_size: int, threads: int, decode_once: bool
) -> Iterator[dict[str, np.ndarray]]:
  """Endless batches; for the arguments, see `measure`."""
  tf = _tensorflow()
  options = tf.data.Options()
  options.threading.private_threadpool_size = threads
  options.threading.max_intra_op_parallelism = 1
  options.deterministic = False
  data = tf.data.Dataset.from_tensor_slices(list(jpegs))
  data = data.repeat().shuffle(10 * batch_size, seed=0).with_options(options)
  data = data.map(
    functools.partial(_views, tf, decode_once=decode_once),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  data = data.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
  return data.as_numpy_iterator()


def _views(tf: Any, jpeg: Any, *, decode_once: bool) -> dict[str, Any]:
  """All views of one image, float32 in [0, 1]."""
  shape = tf.io.extract_jpeg_shape(jpeg)
  image = tf.io.decode_jpeg(jpeg, channels=3) if decode_once else None

  def view(crops):
    window = _window(tf, shape, crops.area)
    if decode_once:
      part = tf.slice(image, [*window[:2], 0], [*window[2:], 3])
    else:
      part = tf.io.decode_and_crop_jpeg(jpeg, tf.stack(window), channels=3)
    side = [crops.size, crops.size]
    resized = tf.image.resize(part, side, tf.image.ResizeMethod.BICUBIC)
    return tf.clip_by_value(resized / 255.0, 0.0, 1.0)

  return {
    f'{name}_{i}': view(crops)
    for name, crops in host_crops.VIEWS.items()
    for i in range(crops.count)
  }


def _window(tf: Any, shape: Any, area: tuple[float, float]) -> list[Any]:
  """Top, left, height and width of a random window, in whole pixels."""
  pixels = tf.cast(shape[0] * shape[1], tf.float32)
  pixels *= tf.random.uniform([], *area)
  low, high = host_crops.ASPECT
  ratio = tf.exp(tf.random.uniform([], math.log(low), math.log(high)))
  sides = tf.stack([tf.sqrt(pixels / ratio), tf.sqrt(pixels * ratio)])
  sides = tf.minimum(tf.cast(tf.round(sides), tf.int32), shape[:2])
  corner = [
    tf.random.uniform([], maxval=shape[i] - sides[i] + 1, dtype=tf.int32)
    for i in range(2)
  ]
  return [*corner, sides[0], sides[1]]


def _tensorflow() -> Any:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # else it greets
  try:
    return importlib.import_module('tensorflow')
  except ImportError as e:
    raise UserError(
      'This benchmark compares with tf.data, and TensorFlow is not installed: '
      "pip install 'semppl-jax[benchmark]'."
    ) from e
