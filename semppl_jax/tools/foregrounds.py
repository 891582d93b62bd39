"""Which pixels of an image are foreground, without anything learnt.

Classical saliency with OpenCV: contrast, the image's borders, and GrabCut.
"""

from typing import Any

import numpy as np

from semppl_jax.data import masks
from semppl_jax.errors import UserError
from semppl_jax.utils.text import first_line

# What masks.json says of them; to be changed whenever `foreground` is.
METHOD = 'border contrast + spectral residual, GrabCut; 1'

_SIDE = 256  # longest side of a mask, in pixels
_PLAUSIBLE = (0.02, 0.95)  # share of an image that can be foreground
_SUPERPIXEL = 16  # side in pixels
_NARROWEST = 2 * _SUPERPIXEL  # nothing can be told of narrower images


def foreground(image: np.ndarray) -> np.ndarray | None:
  """Which pixels of an image are its foreground, by contrast alone.

  Superpixels are background as far as they hang together with the border of
  the image, and salient by their contrast to such background (boundary
  connectivity: Zhu et al., Saliency Optimization from Robust Background
  Detection, CVPR 2014, without its last step). OpenCV's spectral residual is
  added, Otsu's threshold makes a mask of the sum, one iteration of GrabCut
  moves its outline to edges, and specks are dropped. Constants and combination
  are [ours]: of about 50 variants, on synthetic images and 37 photographs.

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    [h, w] bool of the same aspect, at most 256 pixels long; None: the share of
    foreground is below 2% or above 95%, or the image is too narrow to tell.

  Raises:
    UserError: there is no OpenCV, or one without saliency.
  """
  cv2 = opencv()
  height, width = image.shape[:2]
  scale = _SIDE / max(height, width)
  size = round(width * scale), round(height * scale)
  if min(size) < _NARROWEST:
    return None
  way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  image = cv2.resize(image, size, interpolation=way)
  saliency = _border_contrast(image) + 0.5 * _spectral_residual(image)
  mask = _without_specks(_grab_cut(image, _otsu(saliency)))
  if scale > 1:  # a small image has no more mask than pixels
    mask = masks.fit(mask, height, width)
  return mask if _PLAUSIBLE[0] <= mask.mean() <= _PLAUSIBLE[1] else None


def opencv() -> Any:
  """The cv2 module; UserError if it is missing or lacks what we need."""
  advice = (
    "pip install 'semppl-jax[saliency]' (opencv-contrib-python-headless; "
    'remove other OpenCV packages first)'
  )
  try:
    import cv2  # late: nobody else needs it
  except ImportError as error:
    raise UserError(
      f'OpenCV cannot be imported ({first_line(error)}): {advice}.'
    ) from None
  if not hasattr(cv2, 'saliency') or not hasattr(cv2, 'ximgproc'):
    raise UserError(f'This OpenCV was built without saliency: {advice}.')
  return cv2


def _border_contrast(image: np.ndarray) -> np.ndarray:
  """Contrast to what hangs together with the border: [h, w] in [0, 1]."""
  lab = opencv().cvtColor(
    image.astype(np.float32) / 255, opencv().COLOR_RGB2Lab
  )
  labels = _superpixels(image)  # [h, w]
  count = labels.max() + 1  # n
  pixels = np.bincount(labels.ravel(), minlength=count).clip(1)
  mean = lambda plane: (
    np.bincount(labels.ravel(), plane.ravel(), minlength=count) / pixels
  )
  rows, columns = np.indices(labels.shape) / max(labels.shape)
  distance = lambda *planes: np.sqrt(
    sum(np.subtract.outer(mean(p), mean(p)) ** 2 for p in planes)
  )
  colours = distance(*np.moveaxis(lab, -1, 0))  # [n, n]
  near = np.exp(-(distance(rows, columns) ** 2) / (2 * 0.25**2))  # [n, n]
  edge = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
  border = np.isin(np.arange(count), np.concatenate(edge))  # [n]
  alike = np.exp(-(_path_lengths(labels, colours, border) ** 2) / (2 * 7.0**2))
  connectivity = alike[:, border].sum(1) / np.sqrt(alike.sum(1))
  background = 1 - np.exp(-(connectivity**2) / 2)
  return _stretched((colours * near * background).sum(1))[labels]


def _superpixels(image: np.ndarray) -> np.ndarray:
  """SLIC's label of each pixel, [h, w] int32 from 0."""
  cv2 = opencv()
  smooth = cv2.cvtColor(cv2.GaussianBlur(image, (3, 3), 0), cv2.COLOR_RGB2Lab)
  slic = cv2.ximgproc.createSuperpixelSLIC(
    smooth, cv2.ximgproc.SLIC, _SUPERPIXEL, 20.0
  )
  slic.iterate(3)
  slic.enforceLabelConnectivity(50)
  return slic.getLabels()


def _path_lengths(
  labels: np.ndarray, colours: np.ndarray, border: np.ndarray
) -> np.ndarray:
  """Colour changes along the shortest paths between superpixels.

  Args:
    labels: [h, w] superpixels.
    colours: [n, n] distances of their colours.
    border: [n] bool, whether they touch the border; these are all neighbours.

  Returns:
    [n, n] lengths.
  """
  neighbours = np.logical_and.outer(border, border)
  neighbours[labels[:, 1:], labels[:, :-1]] = True
  neighbours[labels[1:], labels[:-1]] = True
  # Small changes are free, or long paths in a smooth background would add up.
  steps = np.maximum(colours - 2, 0)
  lengths = np.where(neighbours | neighbours.T, steps, np.inf)
  np.fill_diagonal(lengths, 0)
  for middle in range(len(lengths)):  # Floyd and Warshall
    through = lengths[:, middle, None] + lengths[middle]
    np.minimum(lengths, through, out=lengths)
  return lengths


def _spectral_residual(image: np.ndarray) -> np.ndarray:
  """OpenCV's saliency by the spectral residual, smooth: [h, w] in [0, 1]."""
  cv2 = opencv()
  method = cv2.saliency.StaticSaliencySpectralResidual_create()
  _, found = method.computeSaliency(image[..., ::-1])
  return _stretched(cv2.GaussianBlur(found, (0, 0), 0.03 * max(found.shape)))


def _stretched(values: np.ndarray) -> np.ndarray:
  """Lowest to 0, highest to 1; equal values to 0."""
  return (values - values.min()) / max(np.ptp(values), 1e-6)


def _otsu(saliency: np.ndarray) -> np.ndarray:
  cv2 = opencv()
  levels = (255 * _stretched(saliency)).astype(np.uint8)
  way = cv2.THRESH_BINARY + cv2.THRESH_OTSU
  return cv2.threshold(levels, 0, 1, way)[1].astype(bool)


def _grab_cut(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
  cv2 = opencv()
  if mask.all() or not mask.any():
    return mask  # there are no two sides to be told apart
  cv2.setRNGSeed(0)  # of its clusters: the same image has the same mask
  labels = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
  models = np.zeros((1, 65)), np.zeros((1, 65))
  bgr = image[..., ::-1]
  cv2.grabCut(bgr, labels, None, *models, 1, cv2.GC_INIT_WITH_MASK)
  return labels == cv2.GC_PR_FGD


def _without_specks(mask: np.ndarray) -> np.ndarray:
  """Drops pieces far smaller than the largest, and fills such holes."""
  cv2 = opencv()
  round_5 = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
  mask = mask.astype(np.uint8)
  for way in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
    mask = cv2.morphologyEx(mask, way, round_5)
  mask = _large_pieces(mask)
  return ~_large_pieces(~mask)


def _large_pieces(mask: np.ndarray, share: float = 0.1) -> np.ndarray:
  """The pieces of at least this share of the largest one's area."""
  _, pieces, stats, _ = opencv().connectedComponentsWithStats(
    mask.astype(np.uint8)
  )
  areas = stats[:, opencv().CC_STAT_AREA]
  areas[0] = 0  # what is outside the mask
  return np.isin(pieces, np.flatnonzero(areas >= max(1, share * areas.max())))
