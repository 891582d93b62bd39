"""Clustering losses: assignments to prototypes. No collectives.

Shapes: A views that get assignments, b images on this device, K prototypes. All
is computed in float32 at least.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def sinkhorn(
  scores: jax.Array,
  queue_scores: jax.Array | None = None,
  queue_counts: jax.Array | bool = True,
  *,
  epsilon: float,
  iterations: int,
  over_devices: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
  """Sinkhorn-Knopp's assignments of SwAV: of equal weight for each prototype.

  Begins with exp(scores / epsilon); an iteration gives every prototype the same
  sum over images, then every image the sum 1. In logarithms, where scores of
  any size are finite. The last sums are those of images: prototypes have equal
  ones in the limit only. arXiv 2006.09882; facebookresearch/swav,
  main_swav.py, distributed_sinkhorn.

  Args:
    scores: [A, b, K]; each view by itself.
    queue_scores: [A, n, K] of more images, which share the prototypes but get
      no assignments here; None: there are none.
    queue_counts: [] bool, False: those images are left out.
    epsilon: above 0; the smaller, the harder the assignments.
    iterations: at least 1.
    over_devices: takes logarithms [A, K] of the devices' sums to that of the
      sum over all of them.

  Returns:
    [A, b, K]; each image's sum is 1.
  """
  views, _, prototypes = scores.shape
  rows = [scores]
  if queue_scores is not None:
    chex.assert_shape(queue_scores, (views, None, prototypes))
    rows.append(queue_scores)
  rows = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in rows]
  rows = [x / epsilon for x in rows]
  for _ in range(iterations):
    sums, *of_queue = (jax.nn.logsumexp(x, axis=1) for x in rows)  # [A, K]
    for more in of_queue:
      # Apart from the batch's: left out, it changes no bit of the sums.
      more = jnp.where(queue_counts, more, -jnp.inf)
      sums = jnp.logaddexp(sums, more)
    sums = over_devices(sums)[:, None]
    rows = [jax.nn.log_softmax(x - sums, axis=-1) for x in rows]
  return jnp.exp(rows[0])
