"""SemPPL's four loss terms in slow loops, float64 NumPy, no JAX.

Written from the equations, one pair of vectors at a time, to check the fast
code against. Everything is global: no devices.

  loss_augm(online, targets, index, mask, tau) -> float
  inv_augm(online, targets, index, mask, tau) -> float
  loss_sempos(online, targets, positives, has, index, mask, tau) -> float
  inv_sempos(online, targets, positives, has, index, mask, tau) -> float

  online     [V, B, d] unit predictions, the large views first
  targets    [V_L, B, d] unit target projections of the large views
  positives  [S, V_L, B, d] semantic positives, one labelled image per draw
  has        [B] bool, whether the image has semantic positives
  index      [B, n] negatives, places in the batch; mask [B, n], True: counts
  tau        temperature

Each is the mean over the images that count: those with a negative and, in the
semantic terms, with positives; 0 if there are none. `image_nll` and `image_kl`
give one image's value; `kl` is the distance they use.
"""

import numpy as np


def log_p(anchor, positive, negatives, tau):
  """Log-probabilities of the positive and the [n, d] negatives, [1 + n]."""
  scores = [float(np.dot(anchor, positive)) / tau]
  for negative in negatives:
    scores.append(float(np.dot(anchor, negative)) / tau)
  scores = np.array(scores, np.float64)
  top = scores.max()
  return scores - top - np.log(np.sum(np.exp(scores - top)))


def kl(p, q):
  """KL divergence of two vectors of log-probabilities."""
  return sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def chosen(m, w, targets, index, mask):
  """The negatives of image m in target view w, as a list of [d]."""
  pairs = zip(index[m], mask[m], strict=True)
  return [targets[w][other] for other, counts in pairs if counts]


def image_nll(m, online, positives, targets, index, mask, tau):
  """Mean over v, w of -log P; positives [V_L, B, d]."""
  values = []
  for v in range(len(online)):
    for w in range(len(targets)):
      others = chosen(m, w, targets, index, mask)
      values.append(-log_p(online[v][m], positives[w][m], others, tau)[0])
  return np.mean(values)


def image_kl(m, online, positives, targets, index, mask, tau, distance=kl):
  """Mean over large v != w of KL(P(o_v; p_w, N_w) || P(o_w; p_v, N_v))."""
  values = []
  for v in range(len(targets)):
    for w in range(len(targets)):
      if v != w:
        in_v = chosen(m, v, targets, index, mask)
        in_w = chosen(m, w, targets, index, mask)
        p = log_p(online[v][m], positives[w][m], in_w, tau)
        mirrored = log_p(online[w][m], positives[v][m], in_v, tau)
        values.append(distance(p, mirrored))
  return np.mean(values) if values else 0.0


def mean_over_images(value, counts):
  """Mean of value(m) over the images m for which counts[m]; 0 if none."""
  values = [value(m) for m in range(len(counts)) if counts[m]]
  return float(np.mean(values)) if values else 0.0


def loss_augm(online, targets, index, mask, tau):
  value = lambda m: image_nll(m, online, targets, targets, index, mask, tau)
  return mean_over_images(value, np.any(mask, axis=1))


def inv_augm(online, targets, index, mask, tau):
  value = lambda m: image_kl(m, online, targets, targets, index, mask, tau)
  return mean_over_images(value, np.any(mask, axis=1))


def loss_sempos(online, targets, positives, has, index, mask, tau):
  value = lambda m: np.mean(
    [image_nll(m, online, z, targets, index, mask, tau) for z in positives]
  )
  return mean_over_images(value, np.any(mask, axis=1) & has)


def inv_sempos(online, targets, positives, has, index, mask, tau):
  value = lambda m: np.mean(
    [image_kl(m, online, z, targets, index, mask, tau) for z in positives]
  )
  return mean_over_images(value, np.any(mask, axis=1) & has)
