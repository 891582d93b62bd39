"""Queue, votes and losses of `step`; shapes as there."""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.2


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
