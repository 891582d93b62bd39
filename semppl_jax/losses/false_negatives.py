"""False negatives: candidates so similar to an image that they may be its kind.

Found without labels, as those that are nearest to the image; then they are left
out of its negatives (elimination), or are positives (attraction). Huynh et al.,
WACV 2022 (arXiv 2011.11765); google-research/fnc, objective.py. Elimination is
the paper's alone, the release has attraction.

Shapes: b images on this device, B on all of them, M candidates: images, or
views of images; V views, d the embedding size.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class FalseNegatives(NamedTuple):
  """Up to k of each image's candidates, the most similar first."""

  index: jax.Array  # [b, k] int32, among the M candidates
  mask: jax.Array  # [b, k] bool, False: this place is empty

  def table(self, candidates: int) -> jax.Array:
    """[b, M] bool: which of the candidates they are."""
    rows = jnp.arange(len(self.index))[:, None]
    empty = jnp.zeros((len(self.index), candidates), bool)
    return empty.at[rows, self.index].set(self.mask)


def similarity(views: jax.Array, candidates: jax.Array) -> jax.Array:
  """Score of every candidate: the largest cosine with one of an image's views.

  Args:
    views: [V, b, d] unit vectors.
    candidates: [M, d] unit vectors.

  Returns:
    [b, M], without gradient.
  """
  views, candidates = jax.lax.stop_gradient((views, candidates))
  score = lambda view: jnp.einsum(
    'bd,md->bm', view, candidates, precision=jax.lax.Precision.HIGHEST
  )
  best = score(views[0])
  for view in views[1:]:  # one after another: V [b, M] are not there at once
    best = jnp.maximum(best, score(view))
  return best


def find(
  scores: jax.Array, own: jax.Array, *, top_k: int, threshold: jax.Array | float
) -> FalseNegatives:
  """The k most similar candidates, those of them above the threshold.

  Args:
    scores: [b, M] from `similarity`.
    own: [b, M] bool, the image's own, which are none.
    top_k: k (10, as released).
    threshold: [] cosine (0.7, as released).
  """
  chex.assert_equal_shape([scores, own])
  scores = jnp.where(own, -jnp.inf, scores)
  best, index = jax.lax.top_k(scores, min(top_k, scores.shape[1]))
  return FalseNegatives(index.astype(jnp.int32), best > threshold)


def quantile(scores: jax.Array, own: jax.Array, share: float) -> jax.Array:
  """The score of which `share` of an image's candidates have less, [b].

  A threshold that goes with the embedding, as their mean over the batch.

  Args:
    scores: [b, M] from `similarity`.
    own: [b, M] bool, the image's own, left out; as many for each image.
    share: from 0 to 1.
  """
  return jnp.nanquantile(jnp.where(own, jnp.nan, scores), share, axis=1)


def nt_xent(
  anchors: jax.Array,
  candidates: jax.Array,
  index: jax.Array,
  found: FalseNegatives,
  *,
  temperature: float,
  attract: bool,
) -> tuple[jax.Array, jax.Array]:
  """NT-Xent of any number of views, with false negatives out or as positives.

  With s = cosine / tau, P the image's other V - 1 views, F its false negatives
  and A all candidates but the anchor itself, the loss of an anchor is

    elimination: - mean over P of s + log sum over A without F of exp s
    attraction:  - mean over P and F of s + log sum over A of exp s

  Args:
    anchors: [V, b, d] views of this device's images.
    candidates: [V, B, d] views of all images, the anchors among them.
    index: [b] int32, places of the anchors' images among the candidates.
    found: false negatives among the V B candidates, view by view; of all
      anchors of an image.
    temperature: tau, above 0.
    attract: the second form.

  Returns:
    [V, b] the loss of each anchor, summed over them and times 2 / V the
    release's; and [V, V, b, B] the logits of each view with each view.
  """
  views, images, size = anchors.shape
  chex.assert_shape(candidates, (views, None, size))
  chex.assert_shape(index, (images,))
  total = candidates.shape[1]
  wide = jnp.promote_types(anchors.dtype, jnp.float32)
  logits = jnp.einsum(
    'vbd,wcd->vwbc',
    anchors.astype(wide),
    candidates.astype(wide),
    precision=jax.lax.Precision.HIGHEST,
  )  # [V, V, b, B]
  logits /= temperature
  same_image = index[:, None] == jnp.arange(total)  # [b, B]
  other_view = ~jnp.eye(views, dtype=bool)[:, :, None, None]
  itself = ~other_view & same_image  # [V, V, b, B]
  false = found.table(views * total).reshape(images, views, total)
  false = false.swapaxes(0, 1)[None]  # [1, V, b, B]
  positive = other_view & same_image
  left_out = itself
  if attract:
    positive |= false
  else:
    left_out |= false
  pulled = jnp.where(positive, logits, 0.0).sum((1, 3)) / positive.sum((1, 3))
  rest = jnp.where(left_out, -jnp.inf, logits)
  return jax.nn.logsumexp(rest, axis=(1, 3)) - pulled, logits
