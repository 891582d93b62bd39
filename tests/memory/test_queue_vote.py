"""The vote as a step asks it: what no other test of it has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.distributed import parallel
from semppl_jax.memory import label_queue, queue_vote


def test_without_classes_nothing_is_balanced():
  """Of images without any class nobody votes, whatever the settings are."""
  ask = functools.partial(
    queue_vote.assign_labels,
    k=1,
    block_size=4,
    min_share=0.0,
    balance=1.0,
    class_share=np.zeros(0, np.float32),
  )
  nobody = jnp.full(4, -1)
  queries = jnp.eye(4)[None]
  queue = label_queue.init(1, 8, 4)
  mapped = jax.pmap(
    lambda *arguments: ask(queue, *arguments),
    axis_name=parallel.AXIS,
    devices=jax.devices()[:1],
  )
  labels, _ = mapped(
    *(x[None] for x in (queries, nobody, jnp.arange(4), nobody))
  )
  assert labels.tolist() == [[-1] * 4]
