"""One image of each cluster: a dense one, and far from the other choices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from semppl_jax.selection import blocks

# Squared distances below it, of images that are alike, are rounding: they count
# as large as this [ours].
NEAREST = 1e-6


def choose(
  features: np.ndarray,
  density: np.ndarray,
  clusters: np.ndarray,
  *,
  rounds: int,
  weight: float,
  momentum: float,
  power: float,
  horizon: float,
  nearest: int,
  own_cluster: bool,
  hide: bool | None = True,
) -> tuple[np.ndarray, np.ndarray]:
  """USL's regularised choice: rounds that push the choices apart.

  With r = 0 at first, every round takes of each cluster the image of the
  largest density - weight * r, the first of equals. Then, over the chosen s,

    q_i = sum_s 1 / (|f_i - f_s|^2)^power,
    r = momentum * r + (1 - momentum) * q.

  Wang, Lian, Yu, arXiv 2110.03006, and its release (nn_utils_cifar.py,
  nn_utils_imagenet.py).

  Args:
    features: [N, d] float32 rows of unit length.
    density: [N] float32.
    clusters: [N] int32, 0 .. C - 1, each at least once.
    rounds: from 1 on; 1: the densest image of each cluster.
    weight: of r, at least 0.
    momentum: from 0 to 1.
    power: above 0.
    horizon: chosen images at this squared distance or farther do not count; 0:
      all do.
    nearest: so many nearest chosen images count; 0: all do.
    own_cluster: whether the image chosen of the same cluster counts, too; an
      image never counts for itself, but takes its place among the nearest.
    hide: no progress bar; None: none where nobody looks.

  Returns:
    [C] rows, one of each cluster in their order, and [C] float32, by how much
    they won: density - weight * r.
  """
  count, number = len(features), int(clusters.max()) + 1
  size = blocks.rows(count, number)
  parts = blocks.split(features, size)
  own = blocks.split(clusters, size, fill=-1)
  lines = blocks.split(np.arange(count, dtype=np.int32), size, fill=-1)
  score = density
  crowding = np.zeros(count, np.float32)
  for left in tqdm.tqdm(
    range(rounds - 1, -1, -1), desc='choice', unit='round', disable=hide
  ):
    chosen = _best(score, clusters, number)
    if not left:
      break
    found = _crowding(
      parts, own, lines, jnp.asarray(features[chosen]), jnp.asarray(chosen),
      power, horizon or math.inf, nearest=min(nearest or number, number),
      own_cluster=own_cluster,
    )  # fmt: skip
    found = blocks.join(found, count)
    crowding = momentum * crowding + (1 - momentum) * found
    score = density - weight * crowding
  return chosen, score[chosen]


def _best(score: np.ndarray, clusters: np.ndarray, number: int) -> np.ndarray:
  """The row of the largest score in each cluster, the first of equals: [C]."""
  order = np.lexsort((-score, clusters))
  return order[np.searchsorted(clusters[order], np.arange(number))]


@functools.partial(jax.jit, static_argnames=('nearest', 'own_cluster'))
def _crowding(
  parts: jax.Array,
  own: jax.Array,
  lines: jax.Array,
  chosen: jax.Array,
  rows: jax.Array,
  power: float,
  horizon: float,
  *,
  nearest: int,
  own_cluster: bool,
) -> jax.Array:
  """q of all images, see `choose`.

  Args:
    parts: [blocks, n, d] features.
    own: [blocks, n] their clusters.
    lines: [blocks, n] their rows.
    chosen: [C, d] features of the chosen images, cluster by cluster.
    rows: [C] their rows.
    power: see `choose`.
    horizon: likewise; infinite: none.
    nearest: likewise, from 1 to C.
    own_cluster: likewise.

  Returns:
    [blocks, n] float32.
  """

  def block(part):
    features, clusters, numbers = part
    products = jnp.dot(features, chosen.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.maximum(2 - 2 * products, NEAREST)  # [n, C]
    if own_cluster:
      squared = jnp.where(numbers[:, None] == rows, 0.0, squared)
    else:
      mine = clusters[:, None] == jnp.arange(len(rows))
      squared = jnp.where(mine, jnp.inf, squared)
    if nearest < len(rows):
      squared = -jax.lax.top_k(-squared, nearest)[0]
    counts = (squared > 0) & (squared < horizon)
    return jnp.sum(jnp.where(counts, squared, jnp.inf) ** -power, axis=1)

  return jax.lax.map(block, (parts, own, lines))
