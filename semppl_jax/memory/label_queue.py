"""First-in-first-out queues of labelled embeddings, split over the devices.

Where labels are of no matter, as SwAV's, one for all makes every image enter;
where images without a label count, too, as in mean shift, `keep` does.

One queue for each large view, with labels and ids in common. All functions run
inside the mapped step and see one device's part. Slots are numbered globally,
0..C-1, and device s holds the embeddings of slots s * C/D to (s+1) * C/D - 1;
labels and ids are everywhere. Queries travel, keys do not: no collective here
has an operand whose size depends on C. Whatever D is, results are those of one
unsharded queue; among equal similarities the newer entry comes first.

Shapes: V_L large views, B images in the global batch, D devices, b = B/D, d the
embedding size, C the capacity. Source: SemPPL (Bosnjak et al., ICLR 2023); the
sharding is ours.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from semppl_jax.distributed import parallel


class LabelQueue(NamedTuple):
  """One device's part of the queues. All but the embeddings is replicated."""

  embeddings: jax.Array  # [V_L, C/D, d] float32, unit rows: this device's slots
  labels: jax.Array  # [C] int32, -1: empty slot, or no label
  ids: jax.Array  # [C] int32, the image's number in its data set, -1: empty
  count: jax.Array  # [] int32, pushes so far: the next slot is count mod C


class Neighbours(NamedTuple):
  """Nearest entries, N of them for each image, empty places included."""

  similarity: jax.Array  # [..., N] float32, cosine; -inf: no entry
  labels: jax.Array  # [..., N] int32; -1: no entry, or it has no label
  slots: jax.Array  # [..., N] int32; -1: no entry


# Along which axis a leaf is split over the devices; -1: it is not.
SHARDS = LabelQueue(embeddings=1, labels=-1, ids=-1, count=-1)


def init(num_views: int, capacity: int, size: int) -> LabelQueue:
  """An empty queue, of all devices together.

  Args:
    num_views: V_L.
    capacity: C.
    size: d.
  """
  return LabelQueue(
    embeddings=jnp.zeros((num_views, capacity, size), jnp.float32),
    labels=jnp.full((capacity,), -1, jnp.int32),
    ids=jnp.full((capacity,), -1, jnp.int32),
    count=jnp.zeros((), jnp.int32),
  )


def push(
  queue: LabelQueue,
  embeddings: jax.Array,
  labels: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None = None,
) -> LabelQueue:
  """Enters the labelled images of the global batch, in the batch's order.

  Every device knows the whole batch, works out the same slots and writes the
  rows that fall into its part: nothing travels. Of more images that enter than
  slots, the last C stay.

  Args:
    queue: this device's part.
    embeddings: [V_L, B, d] target projections, unit rows.
    labels: [B] int32, -1: unlabelled, not entered.
    ids: [B] int32, at least 0.
    keep: [B] bool, the images that enter, with or without a label; None: those
      with a label.
  """
  capacity = len(queue.labels)
  views, here, size = queue.embeddings.shape  # [V_L, C/D, d]
  chex.assert_shape(embeddings, (views, len(labels), size))
  chex.assert_equal_shape([labels, ids])
  enters = labels >= 0 if keep is None else keep  # [B]
  rank = jnp.cumsum(enters) - 1  # [B] among those that enter
  total = jnp.sum(enters)
  # No slot is written twice: the order of a scatter's writes is undefined.
  stays = enters & (rank >= total - capacity)
  slots = (queue.count + rank) % capacity
  local = slots - parallel.axis_index() * here

  # Out of range is dropped: past the end, that is; negative ones would wrap.
  slots = jnp.where(stays, slots, capacity)
  local = jnp.where(stays & (local >= 0), local, here)
  return LabelQueue(
    embeddings=queue.embeddings.at[:, local].set(embeddings, mode='drop'),
    labels=queue.labels.at[slots].set(labels, mode='drop'),
    ids=queue.ids.at[slots].set(ids, mode='drop'),
    count=queue.count + total.astype(jnp.int32),
  )


def push_all(
  queue: LabelQueue, embeddings: jax.Array, ids: jax.Array, begun: jax.Array
) -> LabelQueue:
  """Enters every image of the global batch, of whatever label, once it begins.

  Args:
    queue: this device's part.
    embeddings: [V_L, B, d], unit rows.
    ids: [B] int32.
    begun: [] bool, False: nothing enters.
  """
  labels = jnp.full_like(ids, jnp.where(begun, 0, -1))  # -1 does not enter
  return push(queue, embeddings, labels, ids)


def nearest(
  queue: LabelQueue,
  queries: jax.Array,
  exclude_ids: jax.Array,
  *,
  k: int,
  block_size: int,
  wanted: jax.Array | None = None,
) -> Neighbours:
  """The k nearest entries in every queue, for every view of an image.

  Args:
    queue: this device's part.
    queries: [V_q, B, d] unit rows, of the whole batch, in any number of views.
    exclude_ids: [M, B] int32: M look-ups that share their products; look-up m
      of image i does not see entries with id exclude_ids[m, i]. -2: sees all.
    k: entries for each pair of view and queue; those that lack are marked.
    block_size: keys in one product; bounds the temporary memory.
    wanted: [M, B] int32: look-up m of image i sees entries with this label
      only; -1, or None for all: it sees every entry.

  Returns:
    Neighbours [M, b, V_q * V_L * k] of this device's images: view by view,
    queue by queue, nearest first and the newer first among equals.
  """
  _, images, _ = queries.shape
  chex.assert_shape(queries, (None, images, queue.embeddings.shape[-1]))
  chex.assert_shape(exclude_ids, (None, images))
  if wanted is not None:
    chex.assert_equal_shape([exclude_ids, wanted])
  found = _search_shard(queue, queries, exclude_ids, wanted, k, block_size)
  similarity, slots = map(_to_owners, found)  # [M, b, V_q, V_L, D * k]
  capacity = len(queue.labels)
  age = jnp.where(slots < 0, capacity, (queue.count - 1 - slots) % capacity)
  merged = jax.lax.sort((-similarity, age, slots), num_keys=2)
  shape = similarity.shape[:2] + (-1,)
  distance, _, slots = (x[..., :k].reshape(shape) for x in merged)
  return Neighbours(
    similarity=-distance,
    labels=jnp.where(slots < 0, -1, queue.labels[slots]),
    slots=slots,
  )


def best_slots(found: Neighbours, number: int) -> jax.Array:
  """The slots of the most similar entries, each of them once.

  The same entry may be found for several pairs of view and queue; its largest
  similarity counts.

  Args:
    found: of `nearest`, with k at least `number`.
    number: N.

  Returns:
    [..., N] int32, the most similar first, -1: there are no more.
  """
  order = jnp.argsort(-found.similarity, axis=-1, stable=True)
  slots = jnp.take_along_axis(found.slots, order, axis=-1)
  # Of equal slots the first stays, which is the most similar.
  same = slots[..., :, None] == slots[..., None, :]
  again = jnp.tril(same, -1).any(axis=-1)
  last = jnp.argsort(again | (slots < 0), axis=-1, stable=True)[..., :number]
  slots = jnp.where(again, -1, slots)
  return jnp.take_along_axis(slots, last, axis=-1)


def _search_shard(
  queue: LabelQueue,
  queries: jax.Array,
  exclude_ids: jax.Array,
  wanted: jax.Array | None,
  k: int,
  block_size: int,
) -> tuple[jax.Array, jax.Array]:
  """The k nearest of this device's entries: similarity, slots (-inf, -1: none).

  Walks from the newest entry to the oldest, block by block, with a running
  top k: whatever keeps the first of equals keeps the newest. From the newest
  slot downwards (from the last, if the newest lies elsewhere), modulo the
  part's size, slots are in order of age.

  Returns:
    Two arrays [V_L, M, V_q, B, k].
  """
  num_views, here, _ = queue.embeddings.shape
  block = min(block_size, here)
  first = parallel.axis_index() * here
  newest = (queue.count - 1) % len(queue.labels) - first
  newest = jnp.where((newest >= 0) & (newest < here), newest, here - 1)

  def search(view):
    def visit(i, best):
      order = i * block + jnp.arange(block)  # 0 is the newest entry here
      rows = (newest - order) % here
      slots = first + rows
      present = (order < here) & (queue.ids[slots] >= 0)
      # Indexed at once: a slice of one view would be a copy that grows with C.
      keys = queue.embeddings[view, rows]  # [block, d]
      similarity = jnp.einsum(
        'vbd,nd->vbn', queries, keys, precision=jax.lax.Precision.HIGHEST
      )
      # A top k may rank 0.0 above -0.0; equal similarities must be equal.
      similarity = jnp.where(similarity == 0, 0.0, similarity)
      seen = present & (queue.ids[slots] != exclude_ids[..., None])
      if wanted is not None:
        same = queue.labels[slots] == wanted[..., None]  # [M, B, block]
        seen &= same | (wanted[..., None] < 0)
      # [M, V_q, B, block]
      similarity = jnp.where(seen[:, None], similarity, -jnp.inf)
      top, at = _largest(similarity, min(k, block))
      # The best so far are newer, so they come first.
      similarity, slots = (
        jnp.concatenate(pair, axis=-1) for pair in zip(best, (top, slots[at]))
      )  # [M, V_q, B, k + min(k, block)]
      top, at = _largest(similarity, k)
      return top, jnp.take_along_axis(slots, at, axis=-1)

    shape = exclude_ids.shape[:1] + queries.shape[:2] + (k,)
    none = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
    return jax.lax.fori_loop(0, -(-here // block), visit, none)

  similarity, slots = jax.lax.map(search, jnp.arange(num_views))
  return similarity, jnp.where(similarity == -jnp.inf, -1, slots)


def _largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k largest of the last axis and their places, the first of equals."""
  if k == 1:  # a reduction is much cheaper than a partial sort
    return x.max(axis=-1, keepdims=True), x.argmax(axis=-1, keepdims=True)
  return jax.lax.top_k(x, k)


def _to_owners(found: jax.Array) -> jax.Array:
  """Sends candidates to the device of their image.

  Args:
    found: [V_L, M, V_q, B, k], from this device's entries, for all images.

  Returns:
    [M, b, V_q, V_L, D * k], from all devices, for this device's images.
  """
  views, lookups, query_views, _, k = found.shape
  found = found.reshape(
    (views, lookups, query_views, parallel.axis_size(), -1, k)
  )
  found = jax.lax.all_to_all(found, parallel.AXIS, split_axis=3, concat_axis=4)
  # [V_L, M, V_q, b, D, k]
  found = found.transpose(1, 3, 2, 0, 4, 5)
  return found.reshape(found.shape[:4] + (-1,))


def sample_positives(
  queue: LabelQueue, keys: jax.Array, labels: jax.Array, *, num_draws: int
) -> tuple[jax.Array, jax.Array]:
  """Draws slots uniformly among those with the image's label.

  Independent draws, with replacement; an image's own entry is not left out.
  Every device draws for all images alike, so that each knows what to send.

  Args:
    queue: only its labels are used.
    keys: [B] keys, one for each image of the global batch.
    labels: [B] int32 (pseudo-)labels, -1: none.
    num_draws: S.

  Returns:
    Slots [B, S] int32, -1 where there is none, and mask [B] bool: there is one.
  """
  by_label = jnp.argsort(queue.labels)  # [C], empty slots first
  ordered = queue.labels[by_label]
  start = jnp.searchsorted(ordered, labels, side='left')  # [B]
  number = jnp.searchsorted(ordered, labels, side='right') - start
  exists = (labels >= 0) & (number > 0)

  def draw(key, number):
    # 64 random bits modulo `number`: no bias that could ever be seen.
    return jax.random.randint(key, (num_draws,), 0, number)

  rank = jax.vmap(draw)(keys, jnp.maximum(number, 1))  # [B, S]
  slots = by_label[jnp.where(exists[:, None], start[:, None] + rank, 0)]
  return jnp.where(exists[:, None], slots, -1), exists


def sample_slots(queue: LabelQueue, key: jax.Array, number: int) -> jax.Array:
  """Draws filled slots uniformly, with replacement.

  Args:
    queue: only its ids are used.
    key: the same on all devices.
    number: n.

  Returns:
    [n] int32, the same on all devices; 0s of an empty queue.
  """
  filled = jnp.sum(queue.ids >= 0)  # these are the first ones
  return jax.random.randint(key, (number,), 0, jnp.maximum(filled, 1))


def rows(queue: LabelQueue, slots: jax.Array) -> jax.Array:
  """Brings chosen entries, in all views, to all devices.

  Args:
    queue: this device's part.
    slots: [n] int32, the same on all devices; -1 gives zeros.

  Returns:
    [V_L, n, d], the same on all devices.
  """
  # One device has the row, the others zeros: the sum is exact.
  return jax.lax.psum(_rows_here(queue, slots), parallel.AXIS)


def _rows_here(queue: LabelQueue, slots: jax.Array) -> jax.Array:
  """[...] slots -> [V_L, ..., d], zeros where a slot is not of this part."""
  here = queue.embeddings.shape[1]
  local = slots - parallel.axis_index() * here
  mine = (local >= 0) & (local < here)  # never where the slot is -1
  chosen = queue.embeddings[:, jnp.where(mine, local, 0)]
  return jnp.where(mine[..., None], chosen, 0.0)


def fetch(queue: LabelQueue, slots: jax.Array) -> jax.Array:
  """Brings chosen entries, in all views, to the devices of their images.

  Args:
    queue: this device's part.
    slots: [B, S] int32, the same on all devices; -1 gives zeros.

  Returns:
    [S, V_L, b, d] for this device's images.
  """
  # One device has the row, the others zeros: the sum is exact.
  fetched = jax.lax.psum_scatter(
    _rows_here(queue, slots.T), parallel.AXIS, scatter_dimension=2, tiled=True
  )  # [V_L, S, b, d]
  return jnp.swapaxes(fetched, 0, 1)


def fill(queue: LabelQueue) -> jax.Array:
  """Share of slots that are filled, [] float32."""
  return jnp.mean(queue.ids >= 0, dtype=jnp.float32)


def is_full(queue: LabelQueue) -> jax.Array:
  """Whether all slots are filled, [] bool."""
  return jnp.all(queue.ids >= 0)
