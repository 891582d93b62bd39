"""ResNet of semppl_jax for PyTorch: self-contained, evaluation and training.

  model = load('FOLDER')  # of `semppl-jax export`; in evaluation mode
  embeddings = model(images)  # [N, 3, S, S] floats in [0, 1] -> [N, e]

Parameters are named as in torchvision's and timm's ResNets. It differs from
torchvision's in what no weight shows: 'SAME' padding pads an even image at its
end only, colours are normalised inside, and the first block of a ResNet-18 or
34 has a projection. Needs torch, and safetensors in `load`.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from torch import nn

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's colours
_STD = (0.229, 0.224, 0.225)


def load(folder):
  """The exported network, in evaluation mode."""
  from safetensors.torch import load_file

  folder = pathlib.Path(folder)
  settings = json.loads((folder / 'settings.json').read_text())
  model = ResNet(**settings['network'])
  model.load_state_dict(load_file(folder / 'weights.safetensors'))
  return model.eval()


def _sides(size, kernel, stride):
  """Zeros before and after an axis: 'SAME', as TensorFlow's and JAX's."""
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def _pad_same(x, kernel, stride, value=0.0):
  height, width = x.shape[-2:]
  sides = (*_sides(width, kernel, stride), *_sides(height, kernel, stride))
  return F.pad(x, sides, value=value)


class Conv2d(nn.Conv2d):
  """Convolution without bias, padded 'same' or alike on all sides."""

  def __init__(self, inputs, outputs, kernel, stride=1, padding='same'):
    symmetric = stride == 1 or padding == 'symmetric'
    super().__init__(
      inputs,
      outputs,
      kernel,
      stride,
      (kernel - 1) // 2 if symmetric else 0,
      bias=False,
    )
    self.same = not symmetric

  def forward(self, x):
    """[N, c, H, W] -> [N, c', h, w]."""
    if self.same:
      x = _pad_same(x, self.kernel_size[0], self.stride[0])
    return super().forward(x)


class AveragePool(nn.Module):
  """2x2 averages; with a stride, zeros after the end count in the mean."""

  def __init__(self, stride):
    super().__init__()
    self.stride = stride

  def forward(self, x):
    """[N, c, H, W] -> [N, c, h, w]."""
    averages = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, self.stride)
    if self.stride > 1:
      return averages
    there = F.pad(torch.ones_like(x[:1, :1]), (0, 1, 0, 1))
    return averages / F.avg_pool2d(there, 2, 1)


class SelectiveKernels(nn.Module):
  """SimCLRv2's SK unit: two convolutions, mixed as each image chooses."""

  def __init__(self, channels, stride, padding, eps):
    super().__init__()
    size = max(int(channels * 0.0625), 32)
    self.conv = Conv2d(channels, 2 * channels, 3, stride, padding)
    self.bn = nn.BatchNorm2d(2 * channels, eps)
    self.squeeze = nn.Sequential(
      Conv2d(channels, size, 1), nn.BatchNorm2d(size, eps), nn.ReLU()
    )
    self.mix = Conv2d(size, 2 * channels, 1)

  def forward(self, x):
    """[N, c, H, W] -> [N, c, h, w]."""
    branches = F.relu(self.bn(self.conv(x))).chunk(2, dim=1)
    context = (branches[0] + branches[1]).mean(dim=(2, 3), keepdim=True)
    weights = torch.stack(self.mix(self.squeeze(context)).chunk(2, dim=1))
    weights = weights.softmax(dim=0)
    return branches[0] * weights[0] + branches[1] * weights[1]


class Block(nn.Module):
  """Residual block; a bottleneck has its stride in the 3x3 convolution."""

  def __init__(
    self, inputs, channels, stride, first, bottleneck, kernels, padding, eps
  ):
    super().__init__()
    inner = channels // 4 if bottleneck else channels
    first_kernel, first_stride = (1, 1) if bottleneck else (3, stride)
    self.conv1 = Conv2d(inputs, inner, first_kernel, first_stride, padding)
    self.bn1 = nn.BatchNorm2d(inner, eps)
    self.selective = bottleneck and kernels
    if self.selective:
      self.conv2 = SelectiveKernels(inner, stride, padding, eps)
    else:
      again = stride if bottleneck else 1
      self.conv2 = Conv2d(inner, inner, 3, again, padding)
      self.bn2 = nn.BatchNorm2d(inner, eps)
    if bottleneck:
      self.conv3 = Conv2d(inner, channels, 1)
      self.bn3 = nn.BatchNorm2d(channels, eps)
    self.downsample = None
    if first:
      pool = [AveragePool(stride)] if kernels else []
      own_stride = 1 if kernels else stride
      self.downsample = nn.Sequential(
        *pool,
        Conv2d(inputs, channels, 1, own_stride, padding),
        nn.BatchNorm2d(channels, eps),
      )

  def forward(self, x):
    """[N, c, H, W] -> [N, c', h, w]."""
    shortcut = x if self.downsample is None else self.downsample(x)
    x = F.relu(self.bn1(self.conv1(x)))
    x = self.conv2(x) if self.selective else self.bn2(self.conv2(x))
    if hasattr(self, 'conv3'):
      x = self.bn3(self.conv3(x if self.selective else F.relu(x)))
    return F.relu(x + shortcut)


class ResNet(nn.Module):
  """ResNet v1: images [N, 3, S, S] in [0, 1] -> embeddings [N, e].

  Args:
    blocks: of each group.
    channels: of each group's outputs, times the width.
    strides: of each group's first block.
    stem_channels: times the width.
    stem: 'imagenet', or 'small': 3x3 with stride 1 and no max-pool.
    bottleneck: 1x1, 3x3, 1x1; else 3x3, 3x3.
    selective_kernels: SimCLRv2's units, stem and shortcuts.
    padding: of convolutions with a stride, 'same' or 'symmetric'.
    eps: of BatchNorm.
    num_classes: of the classifier `fc`, see `logits`; 0: there is none.
    projector: [kind, inputs, outputs, with bias] of each of its layers; see
      `project`. Empty: there is none.
  """

  def __init__(
    self,
    blocks,
    channels,
    strides,
    stem_channels,
    stem='imagenet',
    bottleneck=True,
    selective_kernels=False,
    padding='same',
    eps=1e-5,
    num_classes=0,
    projector=(),
  ):
    super().__init__()
    self.register_buffer(
      'mean', torch.tensor(_MEAN).view(3, 1, 1), persistent=False
    )
    self.register_buffer(
      'std', torch.tensor(_STD).view(3, 1, 1), persistent=False
    )
    self.pool = stem == 'imagenet'
    half = stem_channels // 2
    if stem == 'small':
      self.conv1 = Conv2d(3, stem_channels, 3)
    elif not selective_kernels:
      self.conv1 = Conv2d(3, stem_channels, 7, 2, padding)
    else:
      self.conv1 = nn.Sequential(
        Conv2d(3, half, 3, 2, padding),
        nn.BatchNorm2d(half, eps),
        nn.ReLU(),
        Conv2d(half, half, 3),
        nn.BatchNorm2d(half, eps),
        nn.ReLU(),
        Conv2d(half, stem_channels, 3),
      )
    self.bn1 = nn.BatchNorm2d(stem_channels, eps)
    self.groups = []
    inputs = stem_channels
    rows = zip(blocks, channels, strides)
    for number, (count, outputs, stride) in enumerate(rows, 1):
      group = []
      for i in range(count):
        group.append(
          Block(
            inputs,
            outputs,
            stride if i == 0 else 1,
            i == 0,
            bottleneck,
            selective_kernels,
            padding,
            eps,
          )
        )
        inputs = outputs
      self.groups.append(f'layer{number}')
      self.add_module(self.groups[-1], nn.Sequential(*group))
    self.fc = nn.Linear(inputs, num_classes) if num_classes else None
    layers = [_layer(*row, eps) for row in projector]
    self.projector = nn.Sequential(*layers) if layers else None

  def feature_maps(self, images):
    """Outputs of all groups, the finest first, as detection heads take them."""
    x = F.relu(self.bn1(self.conv1((images - self.mean) / self.std)))
    if self.pool:
      x = F.max_pool2d(_pad_same(x, 3, 2, float('-inf')), 3, 2)
    found = []
    for name in self.groups:
      x = getattr(self, name)(x)
      found.append(x)
    return found

  def forward(self, images):
    """[N, 3, S, S] floats in [0, 1] -> [N, e], not normalised."""
    return self.feature_maps(images)[-1].mean(dim=(2, 3))

  def logits(self, images):
    """The classifier's outputs, [N, K]."""
    return self.fc(self(images))

  def project(self, images):
    """Projections [N, d], not normalised."""
    return self.projector(self(images))


def _layer(kind, inputs, outputs, bias, eps):
  if kind == 'linear':
    return nn.Linear(inputs, outputs, bias=bias)
  if kind == 'batch_norm':
    return nn.BatchNorm1d(outputs, eps)
  return {'relu': nn.ReLU, 'gelu': nn.GELU}[kind]()
