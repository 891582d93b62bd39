"""Pseudo-labels by a vote of the nearest entries of a label queue.

SemPPL's (Bosnjak et al., ICLR 2023). Runs inside the mapped step.

Shapes: V_q views of B images over D devices, b = B/D here; K classes.
"""

import jax
import jax.numpy as jnp

from semppl_jax.distributed import parallel
from semppl_jax.memory import label_queue, pseudo_labels
from semppl_jax.memory.label_queue import LabelQueue


def assign_labels(
  queue: LabelQueue,
  queries: jax.Array,
  labels: jax.Array,
  ids: jax.Array,
  all_labels: jax.Array,
  *,
  k: int,
  block_size: int,
  min_share: float,
  balance: float,
  class_share: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Votes of the nearest labelled images; a true label overrules them.

  Args:
    queue: of labelled images, those of this batch among them.
    queries: [V_q, B, d] unit rows, of all devices' images.
    labels: [b] int32, of this device's images, -1: unlabelled.
    ids: [B] int32, of all devices' images.
    all_labels: [B'] int32, of the whole batch, which may be more than these B
      images if nothing is balanced.
    k: entries that vote, for each pair of view and queue.
    block_size: keys per product: bounds the temporary memory.
    min_share: of the votes, to get a pseudo-label.
    balance: how strongly votes are balanced, see `pseudo_labels.balance`.
    class_share: [K] float32, how often a class should get a vote, then.

  Returns:
    (Pseudo-)labels [b] int32, -1 where there is none, and metrics, parts of the
    means over the whole batch. The accuracy on labelled images is that of a
    second look-up, blind to the image's own entries.
  """
  blind_to = jnp.stack([jnp.full_like(ids, -2), ids])  # [2, B]
  found = label_queue.nearest(
    queue, queries, blind_to, k=k, block_size=block_size
  )  # [2, b, V_q * V_L * k]
  voted, share = pseudo_labels.vote(found.labels, found.similarity)  # [2, b]
  known, all_known = labels >= 0, all_labels >= 0
  vote, vote_share = voted[0], share[0]
  if balance and len(class_share):  # of a data set without classes: none
    # Among all images of the batch, which is why these are all of it.
    balanced = pseudo_labels.balance(
      parallel.all_gather(found.labels[0]),
      ~all_known,
      jnp.asarray(class_share),
      strength=balance,
    )
    vote, vote_share = map(parallel.local_slice, balanced)
  mean = parallel.masked_mean
  return pseudo_labels.assign(vote, vote_share, labels, min_share), {
    'vote_share': mean(vote_share, ~known, ~all_known),
    'labelled_vote_accuracy': mean(voted[1] == labels, known, all_known),
  }
