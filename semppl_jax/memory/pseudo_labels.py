"""Pseudo-labels from the votes of nearest labelled images. No collectives.

A vote is a label >= 0 with a similarity; label -1 is a place without a vote.
Source: SemPPL (Bosnjak et al., ICLR 2023); how ties are broken is our setting.
"""

import chex
import jax
import jax.numpy as jnp

# Votes that the classes have before any is cast, as a share of an image's.
_HEAD_START = 0.2
_ROUNDS = 3


def vote(
  labels: jax.Array, similarity: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The most frequent label.

  A tie goes to the label with the largest summed similarity, then to the
  smallest id. The order of the votes changes nothing, to the last bit.

  Args:
    labels: [..., N] int32, -1: no vote.
    similarity: [..., N] float32; ignored where there is no vote.

  Returns:
    Label [...] int32, -1: no votes; and the winner's share of the votes cast,
    [...] float32, 0: no votes.
  """
  chex.assert_equal_shape([labels, similarity])
  # Sums are taken in order of similarity, one vote at a time: label by label
  # they depend on the set of votes alone, as a reduction's would not.
  similarity, labels = jax.lax.sort((similarity, labels), num_keys=1)
  cast = labels >= 0  # [..., N]

  def add(i, sums):
    number, total = sums
    same = cast & (labels == labels[..., i, None])
    return number + same, total + jnp.where(same, similarity[..., i, None], 0.0)

  zeros = jnp.zeros_like(labels), jnp.zeros_like(similarity)
  number, total = jax.lax.fori_loop(0, labels.shape[-1], add, zeros)
  ranked = jax.lax.sort((-number, -total, labels), num_keys=3)
  most, _, winner = (x[..., 0] for x in ranked)
  share = -most / jnp.maximum(cast.sum(axis=-1), 1)
  return winner, share.astype(jnp.float32)


def balance(
  labels: jax.Array,
  counted: jax.Array,
  class_share: jax.Array,
  *,
  strength: float,
) -> tuple[jax.Array, jax.Array]:
  """The most frequent label, after each class has got its share of the batch.

  Votes of all images are scaled class by class, then image by image, in turns
  (Sinkhorn-Knopp, as SwAV's assignments, arXiv 2006.09882): a label that is
  nearest to everything loses votes to those that nobody is nearest to. Every
  class has a head start, so that few votes can be overruled. Our setting.

  Args:
    labels: [B, N] int32, votes of the whole batch, -1: no vote.
    counted: [B] bool, the images that share the classes; the others' votes are
      scaled like theirs.
    class_share: [K] float32, of sum 1; a class with share 0 gets no image.
    strength: 1: the scaled votes of each class sum to its share; towards 0: as
      voted, but for ties, which go to the smaller id.

  Returns:
    Label [B] int32, -1: no votes; and the share of the votes cast that it had
    before it was balanced, [B] float32, 0: none.
  """
  chex.assert_rank([labels, counted, class_share], [2, 1, 1])
  possible = class_share > 0
  cast = jax.nn.one_hot(labels, len(class_share)).sum(axis=1)  # [B, K]
  has_votes = cast.sum(axis=1) > 0
  share = cast / jnp.maximum(cast.sum(axis=1, keepdims=True), 1)
  each = jnp.where(possible, share + _HEAD_START * class_share, 0.0)
  counted = (counted & has_votes)[:, None]
  wanted = jnp.where(possible, class_share, 1.0) * jnp.sum(counted)
  for _ in range(_ROUNDS):
    has = jnp.sum(jnp.where(counted, each, 0.0), axis=0)  # [K]
    each *= jnp.where(has > 0, wanted / jnp.maximum(has, 1e-6), 1.0) ** strength
    each /= jnp.maximum(each.sum(axis=1, keepdims=True), 1e-12)
  winner = each.argmax(axis=1)
  share = jnp.take_along_axis(share, winner[:, None], axis=1)[:, 0]
  return jnp.where(has_votes, winner, -1).astype(jnp.int32), share


def top_share(labels: jax.Array) -> jax.Array:
  """Share of the most frequent label among those that are there.

  Args:
    labels: [B] int32, -1: none.

  Returns:
    [] float32; 0: there is none.
  """
  ranked = jnp.sort(labels)
  ends = [jnp.searchsorted(ranked, ranked, side=s) for s in ('left', 'right')]
  counts = jnp.where(ranked >= 0, ends[1] - ends[0], 0)  # [B]
  return counts.max() / jnp.maximum(jnp.sum(labels >= 0), 1)


def assign(
  votes: jax.Array,
  share: jax.Array,
  labels: jax.Array,
  min_share: float | jax.Array,
) -> jax.Array:
  """(Pseudo-)labels: the true label if there is one, else the vote's.

  Args:
    votes: [b] int32, -1: none.
    share: [b] float32, the winner's share of the votes.
    labels: [b] int32 true labels, -1: unlabelled.
    min_share: a vote with a smaller share gives no label.

  Returns:
    [b] int32, -1: none.
  """
  voted = jnp.where(share >= min_share, votes, -1)
  return jnp.where(labels >= 0, labels, voted)
