"""How images become the arrays of a batch, on the host.

Images of any size lie whole in the corner of arrays of one size, or are cropped
as the release's evaluation sees them.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from semppl_jax.data import images as images_lib
from semppl_jax.data import masks as masks_lib

_ON_CANVAS = ('image', 'mask')  # what differs in size from image to image


@dataclasses.dataclass(frozen=True)
class Images:
  """How a record's image becomes an array of a batch.

  Without canvas and crop, images are arrays and pass as they are.

  Attributes:
    canvas: (H, W) of arrays in whose corner images of any size lie whole;
      larger ones are shrunk.
    crop: (size in pixels, share of the shorter side) of the middle, as the
      release's evaluation sees it: float32 [size, size, 3] in [0, 1].
    masks: saliency masks by image id; None: none.
    on_corrupt: 'replace' or 'error': an image that cannot be decoded.
  """

  canvas: tuple[int, int] | None = None
  crop: tuple[int, float] | None = None
  masks: masks_lib.Masks | None = None
  on_corrupt: str = 'replace'

  def array(self, data: bytes | np.ndarray) -> np.ndarray:
    """A record's image; raises images.Unreadable."""
    if self.crop is not None:
      size, share = self.crop
      whole = images_lib.decode(data)
      return images_lib.center_crop(whole, size=size, share=share)
    return images_lib.load(data, min(self.canvas) if self.canvas else None)

  def mask(self, image_id: int, image: np.ndarray) -> np.ndarray | None:
    """The foreground of an image, [h, w] bool.

    Args:
      image_id: the image's number in its data set.
      image: [h, w, 3], as it lies on the canvas.

    Returns:
      All True where no mask is known of the image; None where none are used.
    """
    if self.masks is None:
      return None
    found = self.masks.read(image_id)
    if found is None:
      return np.ones(image.shape[:2], bool)
    return masks_lib.fit(found, *image.shape[:2])


def put_together(
  records: Iterable[dict[str, Any]], count: int, images: Images
) -> dict[str, np.ndarray]:
  """Arrays [n, ...] of n records; those of images lie on the canvas.

  Args:
    records: n with the same keys; 'image' [h, w, ...] and 'mask' [h, w] (or
      None) may differ in size where there is a canvas.
    count: n.
    images: how they became arrays.

  Returns:
    The same keys, but 'mask' only with masks; and 'size' [n, 2] int32, height
    and width, with a canvas.
  """
  batch: dict[str, np.ndarray] = {}
  # One by one: a decoded image's memory serves the next one at once. Kept until
  # the batch is whole, it would be new for each, which costs half a decoding.
  for i, record in enumerate(records):
    if images.canvas is not None:
      record['size'] = np.array(record['image'].shape[:2], np.int32)
    for key, value in record.items():
      if value is None:  # no mask
        continue
      if key not in batch:
        batch[key] = _room(key, np.asarray(value), count, images)
      if key in _ON_CANVAS and images.canvas is not None:
        height, width = value.shape[:2]
        batch[key][i, :height, :width] = value
      else:
        batch[key][i] = value
  return batch


def _room(
  key: str, value: np.ndarray, count: int, images: Images
) -> np.ndarray:
  """Zeros for n arrays like this one, or for as many canvases."""
  shape = value.shape
  if key in _ON_CANVAS and images.canvas is not None:
    shape = (*images.canvas, *shape[2:])
  return np.zeros((count, *shape), value.dtype)
