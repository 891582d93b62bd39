"""SemPPL's training step in PyTorch, written for speed, to time beside ours.

  python -m benchmarks.torch_step --serve --sizes='{"encoder": "resnet18", ..}'

reads `whole` or `bare` from stdin, line by line, runs it once and prints how
long it took, so that another process can take turns with it. One device; it
does the work of `semppl_jax.pretrain_step` and is no trainer: one batch of
noise, a fixed learning rate and moving average. Everything random about views
is drawn on the host, so that only the images that an operation is for go
through it, and nothing waits for the device before the loss is read.

What is not as in our step, for speed or because PyTorch has it so:
  crops: grid_sample's cubic kernel has a = -0.75; at an image's edge it sees
    the canvas around it (the canvas's own edge repeats);
  colour jitter: the order is drawn for a view of the batch, not for an image;
  convolutions with a stride pad alike on both sides;
  images are normalised once, not in both networks;
  equal similarities: any of the entries wins, not the newest.

Needs PyTorch, which nothing else here does. Shapes: B images, V_L large views,
V views in all, d the embedding size, C the queue's capacity, K classes, S draws
of semantic positives, n negatives.
"""

import argparse
import itertools
import json
import sys
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {'resnet18': (2, 2, 2, 2), 'resnet50': (3, 4, 6, 3)}
LARGE_AREA, SMALL_AREA = (0.14, 1.0), (0.05, 0.14)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
BLUR, SOLARIZE = (1.0, 0.1), (0.0, 0.2)  # in views of type A, of type B
TEMPERATURE, MOMENTUM, WEIGHT_DECAY, TRUST = 0.2, 0.9, 1e-6, 1e-3
KEEP = 0.996  # of the target network, in every step


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


def random_windows(
  draws: Tensor, sizes: Tensor, area: tuple[float, float]
) -> Tensor:
  """Crop windows by the rule of `semppl_jax.views.random_window`.

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


class Queue:
  """The last C labelled embeddings of every large view."""

  def __init__(self, views: int, capacity: int, size: int, device: str):
    self.embeddings = torch.zeros(views, capacity, size, device=device)
    self.labels = torch.full((capacity,), -1, device=device)
    self.ids = torch.full((capacity,), -1, device=device)
    self.count = 0  # pushes so far

  def push(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> None:
    """Enters labelled images: [V_L, B, d]; labels, ids [B] on the host."""
    capacity = len(self.labels)
    rows = (labels >= 0).nonzero()[:, 0]
    slots = (self.count + torch.arange(len(rows))) % capacity
    self.count += len(rows)
    rows, slots = rows[-capacity:], slots[-capacity:]
    send = lambda x: x.to(self.labels.device, non_blocking=True)
    at = send(slots)
    self.embeddings.index_copy_(1, at, embeddings.index_select(1, send(rows)))
    self.labels.index_copy_(0, at, send(labels[rows]))
    self.ids.index_copy_(0, at, send(ids[rows]))

  def nearest(self, queries: Tensor, ids: Tensor, k: int) -> list[Tensor]:
    """The k nearest in every queue; seen, and then without the own id.

    Args:
      queries: [V, B, d] unit vectors.
      ids: [B] of the images, on the device.
      k: how many.

    Returns:
      Similarities and labels, each [2, B, V * V_L * k]; -inf, -1: none.
    """
    filled = min(self.count, len(self.labels))
    own = ids[:, None] == self.ids[:filled]  # [B, C]
    found = []
    for keys in self.embeddings[:, :filled]:
      similarity = queries @ keys.T  # [V, B, C]
      for blind in (False, True):
        if blind:
          similarity.masked_fill_(own, -torch.inf)
        if k == 1:
          found += similarity.max(dim=-1, keepdim=True)
        else:
          found += similarity.topk(k)
    top, at = (
      torch.stack(x).unflatten(0, (-1, 2)).permute(1, 3, 2, 0, 4).flatten(2)
      for x in (found[::2], found[1::2])
    )  # [V_L * 2, V, B, k] -> [2, B, V * V_L * k]
    return [top, torch.where(top == -torch.inf, -1, self.labels[at])]

  def sample(self, labels: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Positives [S, V_L, B, d] of classes [B]; and whether there is one [B]."""
    ordered, by_label = self.labels.sort()
    start = torch.searchsorted(ordered, labels)
    number = torch.searchsorted(ordered, labels, right=True) - start
    exists = (labels >= 0) & (number > 0)
    draws = torch.rand(len(labels), num_draws, device=labels.device)
    rank = start[:, None] + (draws * number[:, None]).long()  # [B, S]
    slots = by_label[rank.clamp(max=len(ordered) - 1)]
    return self.embeddings[:, slots.T].transpose(0, 1), exists


def vote(similarity: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
  """Most frequent label, then largest summed similarity, then smallest id.

  Args:
    similarity: [.., N].
    labels: [.., N], -1: no vote.

  Returns:
    Label [..], -1: none; and its share of the votes [..].
  """
  cast = labels >= 0
  same = labels[..., None] == labels[..., None, :]  # [.., N, N]
  number = torch.where(cast, same.sum(dim=-1), 0)
  total = torch.where(cast, similarity, 0)[..., None, :] * same
  most = number.amax(dim=-1, keepdim=True)
  total = total.sum(dim=-1).masked_fill_(number < most, -torch.inf)
  best = total == total.amax(dim=-1, keepdim=True)
  winner = labels.masked_fill(~best, torch.iinfo(labels.dtype).max).amin(dim=-1)
  return winner, most[..., 0] / cast.sum(dim=-1).clamp(min=1)


def draw_negatives(count: int, number: int, device: str) -> Tensor:
  """Other images, without replacement: [B, n]."""
  noise = torch.rand(count, count, device=device).fill_diagonal_(-1)
  return noise.topk(number, dim=1, sorted=False).indices


def log_scores(online: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
  """Log-probabilities of the candidates, the positive first.

  Args:
    online: [V, B, d].
    positives: [P, V_L, B, d], P kinds that share their negatives.
    negatives: [V_L, B, n, d].

  Returns:
    [P, V, V_L, B, 1 + n].
  """
  first = torch.einsum('vbd,pwbd->pvwb', online, positives)[..., None]
  others = torch.einsum('vbd,wbnd->vwbn', online, negatives)
  others = others.expand(len(first), *others.shape)
  return (torch.cat([first, others], dim=-1) / TEMPERATURE).log_softmax(dim=-1)


def contrastive(log_p: Tensor) -> Tensor:
  """[P, V, V_L, B, 1 + n] -> [P, B]."""
  return -log_p[..., 0].mean(dim=(1, 2))


def invariance(log_p: Tensor) -> Tensor:
  """[P, V_L, V_L, B, 1 + n] -> [P, B], with the gradient of entropy form."""
  p, views = log_p.exp(), log_p.shape[1]
  entropy = (p * log_p).detach()
  kl = (entropy - p * log_p.transpose(1, 2)).sum(dim=-1)  # [P, V_L, V_L, B]
  pairs = 1 - torch.eye(views, device=kl.device)
  return (kl * pairs[..., None]).sum(dim=(1, 2)) / max(views * (views - 1), 1)


def objective(log_p: Tensor, exists: Tensor, num_large: int) -> Tensor:
  """Loss [] of [1 + S, V, V_L, B, 1 + n]; exists [B]: has a positive."""
  near, steady = contrastive(log_p), invariance(log_p[:, :num_large])
  share = exists / exists.sum().clamp(min=1)
  semantic = lambda x: (x[1:].mean(dim=0) * share).sum()
  return 0.3 * (near[0].mean() + 0.2 * semantic(near)) + 5 * (
    steady[0].mean() + semantic(steady)
  )


def monitor(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
  """Cross-entropy and accuracy of [V_L, B, K] on labelled images, [] both."""
  known = labels >= 0
  number = known.sum().clamp(min=1) * len(logits)
  every = labels.repeat(len(logits))
  total = F.cross_entropy(
    logits.flatten(0, 1), every, ignore_index=-1, reduction='sum'
  )
  hits = (logits.argmax(dim=-1) == labels) & known
  return total / number, hits.sum() / number


class Lars:
  """Weight decay, trust ratio, momentum, learning rate, in this order."""

  def __init__(self, params: list[Tensor]):
    self.weights = [p for p in params if p.ndim > 1]
    self.params = self.weights + [p for p in params if p.ndim == 1]
    self.trace = [torch.zeros_like(p) for p in self.params]

  @torch.no_grad()
  def step(self, rate: float) -> Tensor:
    """Updates the parameters; the gradients' norm []."""
    grads = [p.grad for p in self.params]
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    decayed = grads[: len(self.weights)]
    torch._foreach_add_(decayed, self.weights, alpha=WEIGHT_DECAY)
    own = torch.stack(torch._foreach_norm(self.weights))
    theirs = torch.stack(torch._foreach_norm(decayed))
    ratio = torch.where((own > 0) & (theirs > 0), TRUST * own / theirs, 1)
    torch._foreach_mul_(decayed, list(ratio.unbind()))
    torch._foreach_mul_(self.trace, MOMENTUM)
    torch._foreach_add_(self.trace, grads)
    torch._foreach_add_(self.params, self.trace, alpha=-rate)
    return norm


def _unit(x: Tensor) -> Tensor:
  return F.normalize(x.float(), dim=-1, eps=1e-6)


class Step:
  """Networks, queue, optimiser and a batch on the host.

  The queue is full from the start, as it is in most steps of a run.
  """

  def __init__(
    self,
    sizes: Sizes,
    device: str = 'cpu',
    precision: str = 'float32',
    compiled: bool | None = None,
    seed: int = 0,
  ):
    """See the class.

    Args:
      sizes: how much work there is.
      device: cpu or cuda.
      precision: float32, or bfloat16: by autocast, in the networks only.
      compiled: torch.compile for the networks; None: on CUDA.
      seed: of weights, batch and views.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    self.sizes, self.device = sizes, device
    self._narrow = precision == 'bfloat16'
    layout = {'device': device, 'memory_format': torch.channels_last}
    self.online = Network(sizes, online=True).to(**layout)
    self.target = (
      Network(sizes, online=False).to(**layout).requires_grad_(False)
    )
    self.target.load_state_dict(self.online.state_dict(), strict=False)
    self._networks = self.online, self.target
    if device.startswith('cuda') if compiled is None else compiled:
      self._networks = [torch.compile(n, dynamic=False) for n in self._networks]
    self.optimizer = Lars(list(self.online.parameters()))
    self.metrics: dict[str, Tensor] = {}

    self.batch = _make_batch(sizes, device)
    self.queue = Queue(
      sizes.num_large, sizes.capacity, sizes.embedding_size, device
    )
    labels = torch.randint(sizes.num_classes, (sizes.capacity,))
    entries = torch.randn_like(self.queue.embeddings)
    self.queue.push(_unit(entries), labels, -2 - torch.arange(sizes.capacity))
    self._views = make_views(
      self.batch[0].to(device), self.batch[1], self.sizes
    )

  def whole(self) -> float:
    """One update, from the batch on the host to new weights; its loss."""
    images, sizes, labels, ids = self.batch
    send = lambda x: x.to(self.device, non_blocking=True)
    views = make_views(send(images), sizes, self.sizes)
    targets = self._encode_targets(views)  # [V_L, B, d]
    self.queue.push(targets, labels, ids)
    outputs = self._encode_online(views)
    loss = self._loss(outputs, targets, send(labels), send(ids))
    self.online.zero_grad()
    loss.backward()
    rate = 0.3 * self.sizes.batch_size / 256
    self.metrics['grad_norm'] = self.optimizer.step(rate)
    self._follow()
    return self.metrics['loss'].item()

  def bare(self) -> float:
    """Both networks on views made before, and gradients; no update.

    The loss is minus the mean inner product of every online view with the mean
    of the target views.
    """
    targets = self._encode_targets(self._views)
    online, _ = self._encode_online(self._views)
    loss = -(online * targets.mean(dim=0)).sum(dim=-1).mean()
    self.online.zero_grad()
    loss.backward()
    return loss.item()

  def _autocast(self) -> torch.autocast:
    kind = self.device.split(':')[0]
    return torch.autocast(kind, torch.bfloat16, enabled=self._narrow)

  def _encode_targets(self, views: list[Tensor]) -> Tensor:
    """Target projections of large views, [V_L, B, d] unit vectors."""
    with torch.no_grad(), self._autocast():
      large = views[: self.sizes.num_large]
      return _unit(torch.stack([self._networks[1](x) for x in large]))

  def _encode_online(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Predictions [V, B, d], unit vectors, and logits [V, B, K]."""
    with self._autocast():
      outputs = zip(*[self._networks[0](x) for x in views])
      prediction, logits = map(torch.stack, outputs)
    return _unit(prediction), logits.float()

  def _loss(
    self, outputs: tuple, targets: Tensor, labels: Tensor, ids: Tensor
  ) -> Tensor:
    """The loss with the classifier's, []; fills the metrics."""
    s, (online, logits) = self.sizes, outputs
    queries = online.detach()[: s.num_large]
    voted, share = vote(*self.queue.nearest(queries, ids, s.k))  # [2, B] each
    known = labels >= 0
    pseudo = torch.where(known, labels, voted[0])
    positives, exists = self.queue.sample(pseudo, s.num_draws)
    others = draw_negatives(s.batch_size, s.num_negatives, self.device)
    log_p = log_scores(
      online, torch.cat([targets[None], positives]), targets[:, others]
    )
    loss = objective(log_p, exists, s.num_large)
    cross_entropy, accuracy = monitor(logits[: s.num_large], labels)
    right = (voted[1] == labels) & known
    self.metrics = {
      'loss': loss.detach(),
      'vote_share': (share[0] * ~known).sum() / (~known).sum().clamp(min=1),
      'labelled_vote_accuracy': right.sum() / known.sum().clamp(min=1),
      'classifier_accuracy': accuracy,
      'positive_share': exists.float().mean(),
      'embedding_std': targets.std(dim=1).mean() * s.embedding_size**0.5,
    }
    return loss + cross_entropy

  @torch.no_grad()
  def _follow(self) -> None:
    """Moves the target network, whose parts are the online one's first."""
    target = list(self.target.parameters())
    online = list(self.online.parameters())[: len(target)]
    torch._foreach_lerp_(target, online, 1 - KEEP)


def _make_batch(sizes: Sizes, device: str) -> tuple[Tensor, ...]:
  """Images, their sizes (3:4 on the canvas), labels (a tenth has one), ids."""
  count, canvas = sizes.batch_size, sizes.canvas
  images = torch.randint(256, (count, canvas, canvas, 3), dtype=torch.uint8)
  height_width = torch.tensor([0.75 * canvas, canvas]).expand(count, 2)
  ids = torch.arange(count)
  labels = torch.where(ids % 10 == 9, ids % sizes.num_classes, -1)
  if device.startswith('cuda'):
    images = images.pin_memory()
  return images, height_width, labels, ids


def serve(step: Step) -> None:
  """Answers lines on stdin, until there are no more; asleep in between."""
  calls = {'whole': step.whole, 'bare': step.bare}
  seconds = {name: _timed(call)['seconds'] for name, call in calls.items()}
  device = step.device
  if device.startswith('cuda'):
    device = torch.cuda.get_device_name(device)
  ready = {'ready': True, 'torch': torch.__version__, 'device': device}
  ready |= {'threads': torch.get_num_threads(), 'first_seconds': seconds}
  print(json.dumps(ready), flush=True)
  for line in sys.stdin:
    print(json.dumps(_timed(calls[line.strip()])), flush=True)


def _timed(call) -> dict[str, float]:
  begun = time.perf_counter()
  loss = call()
  return {'seconds': time.perf_counter() - begun, 'loss': loss}


def main() -> None:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--serve', action='store_true', required=True)
  parser.add_argument('--sizes', type=json.loads, required=True)
  parser.add_argument('--device', default='cpu')
  parser.add_argument(
    '--precision', default='float32', choices=['float32', 'bfloat16']
  )
  parser.add_argument('--compiled', action=argparse.BooleanOptionalAction)
  parser.add_argument('--threads', type=int, default=0)
  args = parser.parse_args()
  if args.threads:
    torch.set_num_threads(args.threads)
  sizes = Sizes(**args.sizes)
  serve(Step(sizes, args.device, args.precision, args.compiled))


if __name__ == '__main__':
  main()
