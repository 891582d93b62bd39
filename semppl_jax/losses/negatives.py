"""Which other images of the global batch are an image's negatives.

Drawn uniformly without replacement, from the image's own key and its place in
the global batch only: every split of the batch over devices draws the same.
One draw serves all pairs of views, because the two sides of the invariance
terms need the same images.
"""

import chex
import jax
import jax.numpy as jnp


def sample(
  keys: jax.Array,
  indices: jax.Array,
  labels: jax.Array,
  *,
  num_negatives: int,
  exclude_same_label: bool,
) -> tuple[jax.Array, jax.Array]:
  """Draws every local image's negatives.

  All sets of `num_negatives` admissible images are equally likely; the order
  within a set is not uniform, and no loss depends on it. Costs n random numbers
  and n^2 comparisons per image, whatever B is.

  Args:
    keys: [b] one key per local image.
    indices: [b] int32, the local images' places in the global batch.
    labels: [B] int32 (pseudo-)labels of the global batch, -1: none.
    num_negatives: n (10 is our setting).
    exclude_same_label: leaves out the images with the image's own label, as in
      false negative cancellation. An image without a label neither excludes
      others nor is excluded.

  Returns:
    index [b, n] int32 into the global batch, mask [b, n] bool. An image with
    fewer than n admissible others gets all of them; its mask is False in the
    rest, where the index is 0.

  Raises:
    ValueError: if the global batch has not more than n images.
  """
  chex.assert_rank(labels, 1)
  chex.assert_equal_shape([keys, indices])
  batch_size = len(labels)
  if batch_size <= num_negatives:
    raise ValueError(
      f'batch_size {batch_size} has too few images for loss.num_negatives '
      f'{num_negatives}: it must be larger.'
    )
  # The images in an order in which the forbidden ones of every image are
  # neighbours: order[start:stop]. So the admissible ones are counted and
  # numbered without a table of images by images.
  if exclude_same_label:
    order, start, stop = _by_label(indices, labels)
  else:
    order, start, stop = jnp.arange(batch_size), indices, indices + 1
  width = (stop - start)[:, None]  # [b, 1], at least 1: the image itself
  draw = lambda key, count: _floyd(key, count, num_negatives)
  rank, mask = jax.vmap(draw)(keys, batch_size - width[:, 0])  # [b, n] both
  place = jnp.where(rank < start[:, None], rank, rank + width)
  index = order[place].astype(jnp.int32)
  return jnp.where(mask, index, 0), mask


def sample_without(
  keys: jax.Array,
  indices: jax.Array,
  excluded: jax.Array,
  mask: jax.Array,
  *,
  num_negatives: int,
  batch_size: int,
) -> tuple[jax.Array, jax.Array]:
  """Likewise, where every image names those that are none of its negatives.

  Args:
    keys: [b] one key per local image.
    indices: [b] int32, the local images' places in the global batch.
    excluded: [b, m] int32 places of others in the global batch, all different;
      the image itself is left out besides.
    mask: [b, m] bool, False: this place is empty.
    num_negatives: n, less than `batch_size`.
    batch_size: B.

  Returns:
    As `sample`.
  """
  chex.assert_equal_shape([keys, indices])
  chex.assert_equal_shape([excluded, mask])
  none = batch_size  # no image's place
  forbidden = jnp.where(mask, excluded, none)
  forbidden = jnp.concatenate([indices[:, None], forbidden], axis=1)
  forbidden = jnp.sort(forbidden, axis=1)  # [b, 1 + m]
  count = batch_size - jnp.sum(forbidden < none, axis=1)  # [b] admissible
  draw = lambda key, count: _floyd(key, count, num_negatives)
  index, present = jax.vmap(draw)(keys, count)  # [b, n] both
  # From a rank among the admissible to a place: past each forbidden one below.
  for place in forbidden.T[..., None]:  # [b, 1]
    index += index >= place
  return jnp.where(present, index, 0).astype(jnp.int32), present


def _by_label(
  indices: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Order [B] of the images by label; each local image's run of its label."""
  order = jnp.argsort(labels)  # [B], stable
  own = labels[indices]  # [b]
  start = jnp.searchsorted(labels[order], own, side='left')
  stop = jnp.searchsorted(labels[order], own, side='right')
  # Without a label only the image itself is forbidden.
  place = jnp.argsort(order)[indices]  # [b]
  alone = own < 0
  return (
    order,
    jnp.where(alone, place, start),
    jnp.where(alone, place + 1, stop),
  )


def _floyd(
  key: jax.Array, count: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
  """Floyd's algorithm: a uniform subset of 0..count-1, without replacement.

  Step i draws from 0..last[i]; a number already taken is replaced by last[i],
  which no earlier step could reach.

  Args:
    key: the image's own.
    count: [] int32, may be less than `size`, or 0.
    size: how many to draw, static.

  Returns:
    chosen [size] int32; present [size] bool, whose last entries are False if
    count < size.
  """
  last = jnp.maximum(count - size, 0) + jnp.arange(size)  # [size]
  drawn = jax.random.randint(key, (size,), 0, last + 1, dtype=jnp.int32)

  def step(i, chosen):
    taken = jnp.any(chosen == drawn[i])
    return chosen.at[i].set(jnp.where(taken, last[i], drawn[i]))

  chosen = jax.lax.fori_loop(0, size, step, jnp.full_like(drawn, -1))
  return chosen, last < count
