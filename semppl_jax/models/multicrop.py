"""Multi-crop: views through a network, and unit embeddings."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp


def forward_views(
  apply: Callable[..., Any],
  params: Any,
  bn_state: Any,
  groups: tuple[jax.Array, ...],
  *,
  one_pass: bool,
  heads: Callable[..., Any] | None = None,
) -> tuple[dict[str, jax.Array], Any]:
  """Passes views through a network in training mode, in order.

  Each view has BatchNorm statistics of its own, over its B images on all
  devices, and moves the running statistics once (our setting, as BYOL's two
  passes), though all views of a size go through together.

  Args:
    apply: (params, bn_state, images [v, b, S, S, 3], is_training) -> (outputs
      [v, b, ...], bn_state), see networks.Networks; with `heads` the encoder
      alone.
    params: the network's weights.
    bn_state: its running statistics.
    groups: arrays [views, b, S, S, 3], one for each size of view.
    one_pass: all views of a size share their statistics, as views x b images.
    heads: (params, bn_state, embeddings [1, V b, e], is_training) -> (outputs
      [1, V b, ...], bn_state): the heads by themselves, whose BatchNorms see
      all views together, of whatever size; None: they are part of `apply`.

  Returns:
    Outputs with a leading axis of all views, [V, b, ...], and the new state.
  """
  outputs, bn_state = _in_turn(
    apply, params, bn_state, groups, one_pass=one_pass
  )
  joined = jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)
  if heads is None:
    return joined, bn_state
  lead, rows = joined.shape[:2], _rows(joined)
  outputs, bn_state = heads(params, bn_state, rows, True)
  return jax.tree.map(
    lambda x: x.reshape(lead + x.shape[2:]), outputs
  ), bn_state


def forward_joined(
  apply: Callable[..., Any],
  params: Any,
  bn_state: Any,
  support: jax.Array,
  groups: tuple[jax.Array, ...],
  *,
  heads: Callable[..., Any] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Any]:
  """`forward_views` with `one_pass`, where other images go first.

  They share a pass, and so BatchNorm's statistics, with the first group; with
  `heads` those of the heads with all views. As PAWS and Suave see their
  labelled images.

  Args:
    apply: see `forward_views`.
    params: likewise.
    bn_state: likewise.
    support: [V_s, s, S, S, 3].
    groups: [views, b, S, S, 3] of the same S, then others as there.
    heads: likewise.

  Returns:
    Outputs of the support, [V_s, s, ...], of all views, [V, b, ...], and the
    new state.
  """
  first, *others = groups
  together = jnp.concatenate([_rows(support), _rows(first)], axis=1)
  outputs, bn_state = _in_turn(
    apply, params, bn_state, (together, *others), one_pass=True
  )
  joined = jax.tree.map(
    lambda *x: jnp.concatenate([_rows(y) for y in x], axis=1), *outputs
  )  # [1, V_s s + V b, ...]
  if heads is not None:
    joined, bn_state = heads(params, bn_state, joined, True)
  lead, images = support.shape[:2], first.shape[1]
  count = lead[0] * lead[1]
  of_support = jax.tree.map(
    lambda x: x[0, :count].reshape(lead + x.shape[2:]), joined
  )
  of_views = jax.tree.map(
    lambda x: x[0, count:].reshape(-1, images, *x.shape[2:]), joined
  )
  return of_support, of_views, bn_state


def _in_turn(
  apply: Callable[..., Any],
  params: Any,
  bn_state: Any,
  groups: tuple[jax.Array, ...],
  *,
  one_pass: bool,
) -> tuple[list[Any], Any]:
  """Outputs [views, b, ...] of each group that has views, and the new state."""
  chex.assert_rank(groups, 5)  # [views, b, S, S, 3]
  outputs = []
  for images in groups:
    lead = images.shape[:2]
    if not lead[0]:
      continue
    if one_pass:
      images = _rows(images)
    output, bn_state = apply(params, bn_state, images, True)
    outputs.append(
      jax.tree.map(lambda x, s=lead: x.reshape(s + x.shape[2:]), output)
    )
  return outputs, bn_state


def _rows(x: jax.Array) -> jax.Array:
  """[views, b, ...] -> [1, views b, ...]."""
  return x.reshape(1, -1, *x.shape[2:])


def l2_normalize(x: jax.Array) -> jax.Array:
  """Rows of length 1, in float32 at least; a zero row stays zero."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def embedding_std(embeddings: jax.Array) -> jax.Array:
  """Standard deviation of unit embeddings over the batch, times sqrt(d).

  About 1 where they fill the sphere, towards 0 where they collapse.

  Args:
    embeddings: [views, B, d] unit vectors.

  Returns:
    [] float32.
  """
  chex.assert_rank(embeddings, 3)
  deviation = jnp.std(embeddings, axis=1).mean()
  return deviation * embeddings.shape[-1] ** 0.5
