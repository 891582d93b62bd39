"""The support in the step: its views, and what a loss sees of it.

Shapes: S labelled images over D devices, s = S/D here; V_s views of each; C_s
classes of n images each, or images of any class.
"""

import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax import types
from semppl_jax.augment import views as views_lib
from semppl_jax.distributed import parallel
from semppl_jax.methods import base

# What the `support` section has of its own; all else is the batch's.
_OWN = (
  'saliency', 'jitter', 'brightness', 'contrast', 'saturation', 'hue',
  'grayscale', 'blur', 'solarize',
)  # fmt: skip


def view_settings(
  cfg: ml_collections.FrozenConfigDict,
) -> ml_collections.ConfigDict:
  """The `views` section that makes the support's views: as large ones."""
  section = ml_collections.ConfigDict(cfg.views)
  own = cfg.support
  section.update(num_large=own.views, num_small=0, large_area=own.area)
  section.update({key: own[key] for key in _OWN})
  return section


def make_views(
  base_key: jax.Array,
  step: jax.Array,
  batch: types.Batch,
  batch_size: int,
  cfg: ml_collections.FrozenConfigDict,
  precision: jax.lax.Precision,
) -> jax.Array:
  """Views of s images: [V_s, s, S, S, 3], of the size of large ones.

  Their keys are those of places B, B+1, .. of the step.

  Args:
    base_key: of the run.
    step: [] int32.
    batch: the support, leaves [s, ...].
    batch_size: B.
    cfg: settings.
    precision: of the products that crop and blur.
  """
  step_key = jax.random.fold_in(base_key, step)
  places = batch_size + parallel.global_indices(len(batch.labels))
  # As those of the batch's views, see `base.Keys.fold`.
  key = lambda i: jax.random.fold_in(jax.random.fold_in(step_key, i), 0)
  return views_lib.make_views(
    jax.vmap(key)(places),
    batch.images,
    view_settings(cfg),
    batch.sizes,
    batch.masks,
    precision,
  ).large


def for_loss(
  online: base.Outputs,
  labels: jax.Array,
  cfg: ml_collections.FrozenConfigDict,
) -> base.Support:
  """What a loss sees.

  Args:
    online: [V_s, s, ...].
    labels: [s] int32.
    cfg: settings.
  """
  count = cfg.support.images_per_class
  if not count:
    return base.Support(online, labels)
  # Images of a class stand together, see `data.support`.
  place = parallel.global_indices(len(labels)) // count
  classes = parallel.all_gather(labels)[::count]
  return base.Support(online, labels, place.astype(jnp.int32), classes)
