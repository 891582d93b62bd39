"""The views of `step`: a batch at a time, on its device.

Images are [B, 3, H, W] float in [0, 1] unless a function says otherwise.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.torch_twin.networks import Sizes

LARGE_AREA, SMALL_AREA = (0.14, 1.0), (0.05, 0.14)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
BLUR, SOLARIZE = (1.0, 0.1), (0.0, 0.2)  # in views of type A, of type B


def random_windows(
  draws: Tensor, sizes: Tensor, area: tuple[float, float]
) -> Tensor:
  """Crop windows by the rule of `semppl_jax.augment.views.random_window`.

  Args:
    draws: [B, 22] uniform numbers: ten areas, ten aspects, the corner.
    sizes: [B, 2] float height and width of the images.
    area: lowest and highest share of the image.

  Returns:
    [B, 4] top, left, height, width.
  """
  shares, places, corner = draws.split((10, 10, 2), dim=1)
  pixels = torch.lerp(*map(torch.tensor, area), shares)
  pixels = pixels * sizes.prod(dim=1, keepdim=True)  # [B, 10]
  ratios = 3 / 4 * (16 / 9) ** places
  sides = torch.stack([pixels / ratios, pixels * ratios], dim=-1).sqrt()
  fits = (sides <= sizes[:, None]).all(dim=-1)
  fits[:, -1] = True
  sides = sides[torch.arange(len(sides)), fits.int().argmax(dim=1)]  # [B, 2]
  sides *= (sizes / sides).amin(dim=1, keepdim=True).clamp(max=1)
  return torch.cat([corner * (sizes - sides), sides], dim=1)


def crop(images: Tensor, windows: Tensor, size: int) -> Tensor:
  """Bicubic crops; a negative width gives the mirror image.

  Of what works on a whole batch, grid_sample is the fastest: one pass on an
  accelerator, on a CPU half the time of products with banded matrices.

  Args:
    images: [B, 3, H, W] float.
    windows: [B, 4] top, left, height, width, on the images' device.
    size: the side of the result.

  Returns:
    [B, 3, size, size], clipped to [0, 1].
  """
  centres = (torch.arange(size, device=images.device) + 0.5) / size
  y, x = (
    2 / images.shape[2 + i] * (windows[:, i, None] + side[:, None] * centres)
    for i, side in enumerate(windows[:, 2:].unbind(dim=1))
  )  # [B, size] both, from 0 to 2
  shape = (-1, size, size)
  grid = [x[:, None].expand(shape), y[:, :, None].expand(shape)]
  grid = torch.stack(grid, dim=-1) - 1
  cropped = F.grid_sample(
    images, grid, 'bicubic', padding_mode='border', align_corners=False
  )
  return cropped.clamp_(0, 1)


def brightness(x: Tensor, amount: Tensor) -> Tensor:
  """Like all colour changes: x [n, 3, H, W], amount [n, 1, 1, 1]."""
  return (x + amount).clamp_(0, 1)


def contrast(x: Tensor, amount: Tensor) -> Tensor:
  """About each channel's mean."""
  mean = x.mean(dim=(2, 3), keepdim=True)
  return torch.lerp(mean, x, 1 + amount).clamp_(0, 1)


def saturation(x: Tensor, amount: Tensor) -> Tensor:
  """HSV's, without going there: all channels move away from the largest."""
  value, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
  most = value / (value - low).clamp_(min=1e-8)  # saturation ends at 1
  return torch.lerp(value, x, torch.minimum(1 + amount, most)).clamp_(0, 1)


def hue(x: Tensor, amount: Tensor) -> Tensor:
  """Turns HSV's hue; circle: 1."""
  red, green, blue = x.split(1, dim=1)
  value, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
  chroma = value - low
  scale = 1 / chroma.clamp(min=1e-8)
  otherwise = torch.where(
    value == green, (blue - red) * scale + 2, (red - green) * scale + 4
  )
  turn = torch.where(value == red, (green - blue) * scale, otherwise)
  turn = (turn + 6 * amount) % 6  # [n, 1, H, W], in sixths of the circle
  parts = [(turn - 3).abs() - 1, 2 - (turn - 2).abs(), 2 - (turn - 4).abs()]
  return torch.addcmul(low, chroma, torch.cat(parts, dim=1).clamp_(0, 1))


def grayscale(x: Tensor) -> Tensor:
  """Luma in all channels."""
  red, green, blue = x.split(1, dim=1)
  return (0.2989 * red + 0.587 * green + 0.114 * blue).expand_as(x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
  """Gaussian blur as two products with banded matrices; sigma [n, 1, 1, 1].

  Grouped convolutions are slower from 200 pixels on, and nowhere much faster.
  """
  side = x.shape[-1]
  radius = int(int(0.1 * side) / 2)
  at = torch.arange(side, device=x.device)
  distance = (at[:, None] - at).abs()
  gauss = lambda d: torch.exp(-(d**2) / (2 * sigma**2))
  total = gauss(torch.arange(-radius, radius + 1, device=x.device)).sum(-1)
  band = gauss(distance) * (distance <= radius) / total[..., None]
  return band @ x @ band  # bands are symmetric


def _some(x: Tensor, chosen: Tensor, change, *amounts: Tensor) -> Tensor:
  """Changes the images that are chosen; all but x is on the host, [B, ..]."""
  if not chosen.any():
    return x
  send = lambda a: a.to(x.device, non_blocking=True)
  amounts = [send(a[chosen])[..., None, None, None] for a in amounts]
  at = send(chosen.nonzero()[:, 0])
  return x.index_copy_(0, at, change(x.index_select(0, at), *amounts))


def make_view(
  images: Tensor, sizes: Tensor, size: int, area: tuple[float, float], kind: int
) -> Tensor:
  """One view of all images.

  Args:
    images: [B, 3, H, W] float in [0, 1].
    sizes: [B, 2] float, on the host.
    size: the view's side.
    area: share of the image that it covers.
    kind: 0: type A, 1: type B.

  Returns:
    [B, 3, size, size], normalised, its channels last in memory.
  """
  count = len(images)
  chance = lambda probability: torch.rand(count) < probability
  windows = random_windows(torch.rand(count, 22), sizes, area)
  width, flip = windows[:, 3], chance(0.5)
  windows[:, 1] += torch.where(flip, width, 0)
  windows[:, 3] = torch.where(flip, -width, width)
  x = crop(images, windows.to(images.device, non_blocking=True), size)

  changes = (brightness, contrast, saturation, hue)
  order = torch.randperm(4).tolist()
  amounts = (2 * torch.rand(count, 4) - 1) * torch.tensor(JITTER)

  def jitter(x, *amounts):
    for i in order:
      x = changes[i](x, amounts[i])
    return x

  x = _some(x, chance(0.8), jitter, *amounts.unbind(dim=1))
  x = _some(x, chance(0.2), grayscale)
  x = _some(x, chance(BLUR[kind]), blur, 0.1 + 1.9 * torch.rand(count))
  solarize = lambda x: torch.where(x < 0.5, x, 1 - x)
  x = _some(x, chance(SOLARIZE[kind]), solarize)
  normal = zip(x.unbind(1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  planes = [(plane.clamp(0, 1) - mean) / std for plane, mean, std in normal]
  return torch.stack(planes, dim=-1).permute(0, 3, 1, 2)


def make_views(images: Tensor, image_sizes: Tensor, s: Sizes) -> list[Tensor]:
  """V views, large ones first; images [B, H, W, 3] uint8 on the device."""
  images = images.permute(0, 3, 1, 2).contiguous().float().div_(255)
  rows = [(s.large_size, LARGE_AREA)] * s.num_large
  rows += [(s.small_size, SMALL_AREA)] * s.num_small
  number = itertools.chain(range(s.num_large), range(s.num_small))
  return [
    make_view(images, image_sizes, *row, i % 2) for row, i in zip(rows, number)
  ]
