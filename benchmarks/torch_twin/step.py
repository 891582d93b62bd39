"""SemPPL's training step in PyTorch, written for speed, to time beside ours.

  python -m benchmarks.torch_twin.step --serve --sizes='{"encoder": ..}'

reads `whole`, `bare` or `embed` from stdin, line by line, runs it and prints
how long it took, so that another process can take turns with it. One device; it
does the work of `semppl_jax.train.step` and is no trainer: one batch
of noise, a fixed learning rate and moving average. Everything random about
views is drawn on the host, so that only the images that an operation is for go
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
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.torch_twin import losses, networks
from benchmarks.torch_twin.networks import Sizes
from benchmarks.torch_twin.views import make_views

MOMENTUM, WEIGHT_DECAY, TRUST = 0.9, 1e-6, 1e-3
KEEP = 0.996  # of the target network, in every step


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
    layout: str = 'channels_last',
    seed: int = 0,
  ):
    """See the class.

    Args:
      sizes: how much work there is.
      device: cpu or cuda.
      precision: float32, or bfloat16: by autocast, in the networks only.
      compiled: torch.compile for the networks; None: on CUDA.
      layout: of weights and views in memory, a torch.memory_format's name.
      seed: of weights, batch and views.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    self.sizes, self.device = sizes, device
    self._narrow = precision == 'bfloat16'
    self._layout = getattr(torch, layout)
    place = {'device': device, 'memory_format': self._layout}
    self.online = networks.Network(sizes, online=True).to(**place)
    self.target = (
      networks.Network(sizes, online=False).to(**place).requires_grad_(False)
    )
    self.target.load_state_dict(self.online.state_dict(), strict=False)
    self._networks = self.online, self.target, self.online.encoder
    if device.startswith('cuda') if compiled is None else compiled:
      self._networks = [torch.compile(n, dynamic=False) for n in self._networks]
    self.optimizer = Lars(list(self.online.parameters()))
    self.metrics: dict[str, Tensor] = {}

    self.batch = _make_batch(sizes, device)
    self.queue = losses.Queue(
      sizes.num_large, sizes.capacity, sizes.embedding_size, device
    )
    labels = torch.randint(sizes.num_classes, (sizes.capacity,))
    entries = torch.randn_like(self.queue.embeddings)
    self.queue.push(_unit(entries), labels, -2 - torch.arange(sizes.capacity))
    self._views = self._make_views(self.batch[0].to(device), self.batch[1])

  def whole(self) -> Tensor:
    """One update, from the batch on the host to new weights; its loss []."""
    images, sizes, labels, ids = self.batch
    send = lambda x: x.to(self.device, non_blocking=True)
    views = self._make_views(send(images), sizes)
    targets = self._encode_targets(views)  # [V_L, B, d]
    self.queue.push(targets, labels, ids)
    outputs = self._encode_online(views)
    loss = self._loss(outputs, targets, send(labels), send(ids))
    self.online.zero_grad()
    loss.backward()
    rate = 0.3 * self.sizes.batch_size / 256
    self.metrics['grad_norm'] = self.optimizer.step(rate)
    self._follow()
    return self.metrics['loss']

  def bare(self) -> Tensor:
    """Both networks on views made before, and gradients; no update; a loss [].

    The loss is minus the mean inner product of every online view with the mean
    of the target views.
    """
    targets = self._encode_targets(self._views)
    online, _ = self._encode_online(self._views)
    loss = -(online * targets.mean(dim=0)).sum(dim=-1).mean()
    self.online.zero_grad()
    loss.backward()
    return loss.detach()

  @torch.no_grad()
  def embed(self) -> Tensor:
    """The encoder in evaluation mode, on one large view; a sum []."""
    self.online.eval()
    with self._autocast():
      embedding = self._networks[2](self._views[0])
    self.online.train()
    return embedding.float().sum()

  def _make_views(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
    return [
      view.contiguous(memory_format=self._layout)
      for view in make_views(images, sizes, self.sizes)
    ]

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
    voted, share = losses.vote(
      *self.queue.nearest(queries, ids, s.k)
    )  # [2, B] each
    known = labels >= 0
    pseudo = torch.where(known, labels, voted[0])
    positives, exists = self.queue.sample(pseudo, s.num_draws)
    others = losses.draw_negatives(s.batch_size, s.num_negatives, self.device)
    log_p = losses.log_scores(
      online, torch.cat([targets[None], positives]), targets[:, others]
    )
    loss = losses.objective(log_p, exists, s.num_large)
    cross_entropy, accuracy = losses.monitor(logits[: s.num_large], labels)
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


def serve(step: Step, ahead: int = 1) -> None:
  """Answers lines on stdin, until there are no more; asleep in between.

  Args:
    step: what is run.
    ahead: so many times for a line, without waiting in between.
  """
  calls = {'whole': step.whole, 'bare': step.bare, 'embed': step.embed}
  device = step.device
  if device.startswith('cuda'):
    device = torch.cuda.get_device_name(device)
  ready = {'ready': True, 'torch': torch.__version__, 'device': device}
  ready |= {'threads': torch.get_num_threads()}
  print(json.dumps(ready), flush=True)
  for line in sys.stdin:
    print(json.dumps(_timed(calls[line.strip()], ahead)), flush=True)


def _timed(call, calls: int = 1) -> dict[str, float]:
  begun = time.perf_counter()
  for _ in range(calls):
    loss = call()
  loss = loss.item()  # waits
  return {'seconds': (time.perf_counter() - begun) / calls, 'loss': loss}


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
  parser.add_argument('--layout', default='channels_last')
  parser.add_argument('--threads', type=int, default=0)
  parser.add_argument('--ahead', type=int, default=1)
  args = parser.parse_args()
  if args.threads:
    torch.set_num_threads(args.threads)
  sizes = Sizes(**args.sizes)
  step = Step(sizes, args.device, args.precision, args.compiled, args.layout)
  serve(step, args.ahead)


if __name__ == '__main__':
  main()
