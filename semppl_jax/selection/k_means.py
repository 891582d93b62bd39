"""k-means: as many clusters as images are to be chosen, none of them empty."""

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from semppl_jax.selection import blocks


def cluster(
  features: np.ndarray,
  start: np.ndarray,
  iterations: int,
  *,
  hide: bool | None = True,
) -> tuple[np.ndarray, np.ndarray]:
  """Lloyd's k-means by Euclidean distance, from given images on.

  Centres are plain means, not of unit length. A cluster that is left without
  an image takes the one that is farthest from its own centre [ours: USL's
  release goes on without that cluster].

  Args:
    features: [N, d] float32.
    start: [C] rows of the first centres, C at most N.
    iterations: at most; it ends where no image changes its cluster.
    hide: no progress bar; None: none where nobody looks.

  Returns:
    Clusters [N] int32, each of 0 .. C - 1 at least once, and centres [C, d]
    float32, their means.
  """
  count, number = len(features), len(start)
  size = blocks.rows(count, number)
  parts = blocks.split(features, size)
  centres = jnp.asarray(features[start])
  clusters = None
  steps = range(iterations)
  for _ in tqdm.tqdm(steps, desc='clusters', unit='round', disable=hide):
    nearest, squared = _assign(parts, centres)
    found = blocks.join(nearest, count)
    sizes = np.bincount(found, minlength=number)
    if not sizes.all():
      found, sizes = _fill_empty(found, sizes, blocks.join(squared, count))
    if clusters is not None and np.array_equal(found, clusters):
      break
    clusters = found
    # `number` is out of range: what fills the last block up is dropped.
    labels = blocks.split(clusters, size, fill=number)
    centres = _means(parts, labels, jnp.asarray(sizes, jnp.float32))
  return clusters, np.asarray(centres)


@jax.jit
def _assign(
  parts: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Nearest centre, the smaller of equals, and its squared distance.

  Args:
    parts: [blocks, n, d].
    centres: [C, d].

  Returns:
    [blocks, n] int32 and float32.
  """
  lengths = jnp.sum(centres**2, axis=1)

  def block(rows):
    products = jnp.dot(rows, centres.T, precision=jax.lax.Precision.HIGHEST)
    squared = lengths - 2 * products  # [n, C], less the row's own length
    own = jnp.sum(rows**2, axis=1)
    return jnp.argmin(squared, axis=1), jnp.min(squared, axis=1) + own

  nearest, squared = jax.lax.map(block, parts)
  return nearest.astype(jnp.int32), jnp.maximum(squared, 0)


@jax.jit
def _means(parts: jax.Array, labels: jax.Array, sizes: jax.Array) -> jax.Array:
  """Means of the clusters, [C, d], from their labels [blocks, n]."""
  number = len(sizes)

  def add(sums, part):
    rows, own = part
    return sums + jax.ops.segment_sum(rows, own, number), None

  nothing = jnp.zeros((number, parts.shape[-1]), jnp.float32)
  sums, _ = jax.lax.scan(add, nothing, (parts, labels))
  return sums / sizes[:, None]


def _fill_empty(
  clusters: np.ndarray, sizes: np.ndarray, squared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Gives each empty cluster the farthest image of one that has several.

  Args:
    clusters: [N] int.
    sizes: [C] int, of them.
    squared: [N] distances to the own centres.

  Returns:
    Clusters and sizes, as they are then.
  """
  clusters, sizes = clusters.copy(), sizes.copy()
  farthest = iter(np.argsort(-squared, kind='stable'))
  for empty in np.flatnonzero(sizes == 0):
    image = next(i for i in farthest if sizes[clusters[i]] > 1)
    sizes[clusters[image]] -= 1
    clusters[image], sizes[empty] = empty, 1
  return clusters, sizes
