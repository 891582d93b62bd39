"""The queue's functions as programs of their own, to count what they cost."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import programs
from experiments import imagenet
from semppl_jax.distributed import parallel
from semppl_jax.losses import negatives
from semppl_jax.memory import label_queue


class Parts:
  """The queue's functions as programs of their own, one device's part.

  Shapes are those of the paper's experiment but for B and C.
  """

  def __init__(self, batch_size: int, capacity: int, devices: int = 1):
    """See the class.

    Args:
      batch_size: B, global.
      capacity: C, of all devices.
      devices: D, which share both.
    """
    cfg = imagenet.get_config()
    self.cfg, self.batch_size, self.capacity = cfg, batch_size, capacity
    self._devices, self._here = devices, batch_size // devices
    self._views, self._size = cfg.views.num_large, cfg.projector.size

  def queue(self, views: int | None = None) -> label_queue.LabelQueue:
    """Shapes of one device's part of the queue."""
    views = views or self._views

    def init():
      whole = label_queue.init(views, self.capacity, self._size)
      here = self.capacity // self._devices
      return whole._replace(embeddings=whole.embeddings[:, :here])

    return jax.eval_shape(init)

  def lower(self, function: Callable[..., Any], *arguments: Any) -> Any:
    """A function of a queue and more, mapped over the devices."""
    spread = lambda x: jax.ShapeDtypeStruct((self._devices,) + x.shape, x.dtype)
    queue, *others = jax.tree.map(spread, arguments)
    step = lambda queue, others, unused_key: function(queue, *others)
    mapped = parallel.map_step(
      step, parallel.some_devices(self._devices), donate=False
    )
    return mapped.lower(
      queue, others, jax.eval_shape(lambda: jax.random.key(0))
    )

  def search(self, views: int | None = None, block_size: int = 0) -> Any:
    """`nearest`, as the step calls it.

    Args:
      views: of the queue; None: all large views.
      block_size: keys in a product; 0: as the experiment has it.
    """
    k, block = self.cfg.queue.k, block_size or self.cfg.queue.block_size
    find = functools.partial(label_queue.nearest, k=k, block_size=block)
    queries = _floats(self._views, self.batch_size, self._size)
    return self.lower(
      find, self.queue(views), queries, _ints(2, self.batch_size)
    )

  def search_flops(self) -> float:
    """Of `nearest` on one device.

    XLA counts a loop's body once, so that what is counted has one block of keys
    and one view of the queue; times the views.
    """
    once = self.search(views=1, block_size=self.capacity // self._devices)
    return self._views * programs.flops(once.compile())

  def search_formula(self) -> float:
    """Products alone: 2 V_q V_L B (C / D) d."""
    pairs = self._views**2 * self.batch_size * self.capacity / self._devices
    return 2 * pairs * self._size

  def sampling_flops(self) -> float:
    """Of drawing positives and negatives, and fetching positives."""
    return programs.flops(self.lower(self._sample, *self._drawn()).compile())

  def _drawn(self):
    key = jax.eval_shape(lambda: jax.random.key(0)).dtype
    keys = lambda n: jax.ShapeDtypeStruct((n,), key)
    return (
      self.queue(), keys(self.batch_size), keys(self._here),
      _ints(self.batch_size),
    )  # fmt: skip

  def _sample(self, queue, every, mine, labels):
    loss = self.cfg.loss
    slots, exists = label_queue.sample_positives(
      queue, every, labels, num_draws=loss.num_semantic_positives
    )
    others = negatives.sample(
      mine, parallel.global_indices(self._here), labels,
      num_negatives=loss.num_negatives, exclude_same_label=False,
    )  # fmt: skip
    return label_queue.fetch(queue, slots), exists, others


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.int32)
