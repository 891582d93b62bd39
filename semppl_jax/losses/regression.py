"""Regression of another network's embedding: BYOL's, SimReg's, mean shift's.

Per image, no collectives.

Shapes: b images on this device, V views of the online and W of the target
network, d the embedding size.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def squared_distances(online: jax.Array, targets: jax.Array) -> jax.Array:
  """Squared distance of unit embeddings, mean over pairs of views v != w.

  2 - 2 cos of unit vectors: normalised mean squared error, BYOL (arXiv
  2006.07733), eq. 2. A view's own target is left out; small views, which have
  none, are compared with all targets.

  Args:
    online: [V, b, d] unit predictions, large views first.
    targets: [W, b, d] unit projections of the W large views.

  Returns:
    [b] float32, from 0 to 4.
  """
  views, images, size = online.shape
  chex.assert_shape(targets, (None, images, size))
  other_view = ~np.eye(views, len(targets), dtype=bool)  # [V, W]
  cosine = jnp.einsum(
    'vbd,wbd->vwb', online, targets, precision=jax.lax.Precision.HIGHEST
  )
  distance = 2 - 2 * cosine  # [V, W, b]
  pairs = jnp.where(other_view[..., None], distance, 0.0)
  return pairs.sum(axis=(0, 1)) / other_view.sum()


def same_view_distances(online: jax.Array, targets: jax.Array) -> jax.Array:
  """Squared distance of unit embeddings of the same view, mean over views.

  2 - 2 cos: SimReg (Navaneet et al., BMVC 2021). A network that is not trained
  gives the target, so that both may see the same view.

  Args:
    online: [V, b, d] unit predictions.
    targets: [V, b, d] unit embeddings of the same views.

  Returns:
    [b] float32, from 0 to 4.
  """
  chex.assert_equal_shape((online, targets))
  cosine = jnp.einsum(
    'vbd,vbd->vb', online, targets, precision=jax.lax.Precision.HIGHEST
  )
  return (2 - 2 * cosine).mean(axis=0)


def neighbour_distances(
  online: jax.Array, neighbours: jax.Array, exists: jax.Array
) -> jax.Array:
  """Squared distance of unit embeddings to k neighbours, mean over those.

  2 - 2 cos, of every view to every neighbour: MSF (Koohpayegani et al., arXiv
  2105.07269). With the target's own embedding as the only neighbour it is
  BYOL's distance.

  Args:
    online: [V, b, d] unit predictions.
    neighbours: [k, b, d] unit projections, the same for all views.
    exists: [b, k] bool, False: there is none, and it does not count.

  Returns:
    [b] float32, from 0 to 4; 0: an image has no neighbour.
  """
  views, images, size = online.shape
  chex.assert_shape(neighbours, (None, images, size))
  chex.assert_shape(exists, (images, len(neighbours)))
  cosine = jnp.einsum(
    'vbd,kbd->vbk', online, neighbours, precision=jax.lax.Precision.HIGHEST
  )
  distance = jnp.where(exists, 2 - 2 * cosine, 0.0)  # [V, b, k]
  count = jnp.maximum(exists.sum(axis=-1), 1)  # [b]
  return distance.sum(axis=(0, 2)) / (views * count)
