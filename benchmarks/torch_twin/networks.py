"""The networks of `step`, and its sizes."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {'resnet18': (2, 2, 2, 2), 'resnet50': (3, 4, 6, 3)}


class Sizes(NamedTuple):
  """All that decides how much work a step is."""

  encoder: str
  width: int
  stem: str  # imagenet or small
  batch_size: int
  canvas: int
  large_size: int
  small_size: int
  capacity: int
  projector_hidden: int
  embedding_size: int
  num_classes: int
  num_large: int = 4
  num_small: int = 2
  k: int = 1
  num_draws: int = 3
  num_negatives: int = 10


def _conv(
  inside: int, outside: int, kernel: int, stride: int = 1, relu: bool = True
) -> nn.Sequential:
  conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
  end = [nn.ReLU(inplace=True)] if relu else []
  return nn.Sequential(conv, nn.BatchNorm2d(outside), *end)


class Block(nn.Module):
  """A residual block, basic or bottleneck (v1, stride in the 3x3)."""

  def __init__(
    self, inside: int, outside: int, stride: int, first: bool, bottleneck: bool
  ):
    super().__init__()
    self.shortcut = nn.Identity()
    if first:
      self.shortcut = _conv(inside, outside, 1, stride, relu=False)
    inner = outside // 4
    if bottleneck:
      self.layers = nn.Sequential(
        _conv(inside, inner, 1),
        _conv(inner, inner, 3, stride),
        _conv(inner, outside, 1, relu=False),
      )
      nn.init.zeros_(self.layers[-1][1].weight)
    else:
      self.layers = nn.Sequential(
        _conv(inside, outside, 3, stride),
        _conv(outside, outside, 3, relu=False),
      )

  def forward(self, x: Tensor) -> Tensor:
    """[n, any, H, W] -> [n, c, h, w]."""
    return F.relu(self.layers(x) + self.shortcut(x), inplace=True)


def resnet(encoder: str, width: int, stem: str) -> tuple[nn.Sequential, int]:
  """Normalised images [n, 3, H, W] -> [n, e]; and e."""
  bottleneck = encoder == 'resnet50'
  channels = 64 * width
  layers = [_conv(3, channels, 3)]
  if stem == 'imagenet':
    layers = [_conv(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
  for group, blocks in enumerate(BLOCKS[encoder]):
    outside = 64 * width * 2**group * (4 if bottleneck else 1)
    for i in range(blocks):
      stride = 2 if group and not i else 1
      layers.append(Block(channels, outside, stride, not i, bottleneck))
      channels = outside
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


def _head(inside: int, sizes: Sizes) -> nn.Sequential:
  hidden = sizes.projector_hidden
  return nn.Sequential(
    nn.Linear(inside, hidden),
    nn.BatchNorm1d(hidden),
    nn.ReLU(inplace=True),
    nn.Linear(hidden, sizes.embedding_size, bias=False),
  )


class Network(nn.Module):
  """Encoder and projector; the online network has two parts more."""

  def __init__(self, sizes: Sizes, online: bool):
    super().__init__()
    self.encoder, size = resnet(sizes.encoder, sizes.width, sizes.stem)
    self.projector = _head(size, sizes)
    self.online = online
    if online:  # after what the target network has, in this order
      self.predictor = _head(sizes.embedding_size, sizes)
      self.classifier = nn.Linear(size, sizes.num_classes)

  def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """[B, 3, H, W] -> projection [B, d]; online: prediction, logits [B, K]."""
    embedding = self.encoder(x)
    projection = self.projector(embedding)
    if not self.online:
      return projection
    return self.predictor(projection), self.classifier(embedding.detach())
