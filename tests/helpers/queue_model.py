"""One unsharded queue in plain Python, which the sharded one must equal."""

import collections

import numpy as np


class Queue:
  """Entries from oldest to newest; an entry's number gives slot and age."""

  def __init__(self, capacity):
    self.capacity = capacity
    self.count = 0
    self.entries = collections.deque(maxlen=capacity)

  def push(self, embeddings, labels, ids, keep=None):
    """embeddings [V_L, B, d], labels [B], ids [B], keep [B]."""
    for i in np.flatnonzero(labels >= 0 if keep is None else keep):
      slot = self.count % self.capacity
      entry = (slot, int(labels[i]), int(ids[i]), embeddings[:, i])
      self.entries.append(entry)
      self.count += 1

  def table(self):
    """labels [C], ids [C], {slot: embeddings [V_L, d]}."""
    labels, ids = np.full((2, self.capacity), -1)
    rows = {}
    for slot, label, image, row in self.entries:
      labels[slot], ids[slot], rows[slot] = label, image, row
    return labels, ids, rows

  def nearest(self, query, view, k, exclude_id=-2, wanted=-1):
    """k (similarity, label, slot), padded; query [d], looked up in one view."""
    seen = [
      (float(np.dot(query, row[view])), label, slot)
      for slot, label, image, row in reversed(self.entries)
      if image != exclude_id and (wanted < 0 or label == wanted)
    ]
    seen.sort(key=lambda x: -x[0])  # stable: the newer of equals stays first
    return (seen + [(-np.inf, -1, -1)] * k)[:k]

  def neighbours(self, queries, exclude_ids, k, num_views, wanted=None):
    """Arrays [M, B, V_q * V_L * k]: similarity, labels, slots."""
    if wanted is None:
      wanted = np.full_like(exclude_ids, -1)
    found = [
      [
        [
          candidate
          for query in queries[:, i]
          for view in range(num_views)
          for candidate in self.nearest(query, view, k, row[i], labels[i])
        ]
        for i in range(queries.shape[1])
      ]
      for row, labels in zip(exclude_ids, wanted)
    ]
    return tuple(np.moveaxis(np.array(found, np.float64), -1, 0))

  def slots_of(self, label):
    """Slots with the label, in order; none for -1."""
    return sorted(s for s, known, *_ in self.entries if known == label >= 0)


def vote(labels, similarity):
  """(label, share) of one image's votes."""
  votes = collections.defaultdict(list)
  for label, value in zip(labels, similarity):
    if label >= 0:
      votes[int(label)].append(float(value))
  if not votes:
    return -1, 0.0
  rank = lambda label: (-len(votes[label]), -sum(votes[label]), label)
  winner = min(votes, key=rank)
  return winner, len(votes[winner]) / sum(map(len, votes.values()))
