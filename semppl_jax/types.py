"""Named arrays that pass between packages. Shapes use METHOD's letters.

B images in the global batch, D devices, b = B/D images on one device, s = S/D
of its support, V_L large and V_S small views, d the embedding size. Inside the
mapped step a leading device axis is absent; on the host it is there.
"""

from typing import NamedTuple

import jax


class Batch(NamedTuple):
  """What reaches a device. A label outside the labelled subset never does.

  Images of many sizes lie whole in the top left corner of arrays of one size,
  with zeros around them.
  """

  images: jax.Array  # [b, H, W, 3] uint8
  labels: jax.Array  # [b] int32, -1: unlabelled
  ids: jax.Array  # [b] int32, the image's number in its data set
  sizes: jax.Array | None = None  # [b, 2] int32 height, width; None: [H, W]
  masks: jax.Array | None = None  # [b, H, W] bool foreground; None: no masks
  # [s, ...] labelled images that come with the batch; None: there are none
  support: 'Batch | None' = None


class Views(NamedTuple):
  """Augmented images, float32 in [0, 1]."""

  large: jax.Array  # [V_L, b, S, S, 3]
  small: jax.Array  # [V_S, b, s, s, 3]; V_S may be 0
