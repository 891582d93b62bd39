"""How images become the arrays of a batch, on the host.

Images of any size lie whole in the corner of arrays of one size, or are cropped
as the release's evaluation sees them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from semppl_jax.data import images as images_lib
from semppl_jax.data import masks as masks_lib


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
  records: Sequence[dict[str, Any]], images: Images
) -> dict[str, np.ndarray]:
  """Arrays [n, ...] of n records; those of images lie on the canvas.

  Args:
    records: all with the same keys; 'image' [h, w, ...] and 'mask' [h, w] (or
      None) may differ in size where there is a canvas.
    images: how they became arrays.

  Returns:
    The same keys, but 'mask' only with masks; and 'size' [n, 2] int32, height
    and width, with a canvas.
  """
  arrays = lambda key: [record[key] for record in records]
  plain = [k for k in records[0] if k not in ('image', 'mask')]
  batch = {key: np.stack(arrays(key)) for key in plain}
  masked = images.masks is not None
  if images.canvas is None:
    batch['image'] = np.stack(arrays('image'))
    return batch | ({'mask': np.stack(arrays('mask'))} if masked else {})
  batch['image'] = _on_canvas(arrays('image'), images.canvas)
  sizes = [image.shape[:2] for image in arrays('image')]
  batch['size'] = np.array(sizes, np.int32)
  if masked:
    batch['mask'] = _on_canvas(arrays('mask'), images.canvas)
  return batch


def _on_canvas(
  parts: Sequence[np.ndarray], canvas: tuple[int, int]
) -> np.ndarray:
  """[n, H, W, ...], each part [h, w, ...] in the top left corner."""
  whole = np.zeros((len(parts), *canvas, *parts[0].shape[2:]), parts[0].dtype)
  for place, part in zip(whole, parts):
    height, width = part.shape[:2]
    place[:height, :width] = part
  return whole
