"""Panels of charts: which metrics are drawn together, whatever the objective.

By the prefix of a metric's name; known ones have words in the legend. The
report and plots/*.png draw the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Title -> metrics, by name or (ending in a slash) by prefix.
_NUMBERS = {
  'Total loss': ('loss',),
  'Loss terms': ('loss/',),
  'Invariance terms': ('invariance/',),
  'Embedding spread': ('embedding_std',),
  'Assignments to prototypes': ('assignment_entropy', 'marginal_entropy'),
  'Entropy of the mean soft label': ('mean_entropy',),
  'Prototypes in use': ('prototypes_used',),
  'False negatives of an image': ('false_negatives',),
  'Effective rank of the embeddings': ('rankme',),
}
_SHARES = {
  'Accuracy during training': (
    'pseudo_label_accuracy',
    'labelled_vote_accuracy',
    'labelled_accuracy',
    'contrastive_accuracy',
    'classifier_accuracy',
    'teacher_agreement',
    'false_negative_precision',
  ),
  'kNN of the embeddings': ('validation_knn_top1', 'leave_one_out_knn_top1'),
  'Neighbours of the same true label': (
    'neighbour_purity',
    'free_neighbour_purity',
  ),
  'Queue and votes': (
    'vote_share',
    'queue_fill',
    'memory_fill',
    'positive_share',
    'top_label_share',
  ),
  'Prototypes': ('top_prototype_share',),
}
NAMES = {
  'loss': 'total',
  'loss/augmentation': 'augmentation positives',
  'loss/semantic': 'semantic positives',
  'loss/classifier': 'classifier, cross-entropy',
  'loss/regression': "regression of the target's or teacher's embedding",
  'loss/mean_shift': 'regression of the nearest neighbours',
  'loss/head': 'head that gives pseudo-labels, cross-entropy',
  'loss/contrastive': 'contrastive, both views',
  'loss/distillation': 'cross-entropy with the teacher',
  'loss/labelled': 'labelled images, cross-entropy',
  'loss/swapped': "swapped prediction, another view's assignment",
  'loss/consistency': "another view's soft label, cross-entropy",
  'invariance/augmentation': 'invariance, augmentation positives',
  'invariance/semantic': 'invariance, semantic positives',
  'embedding_std': 'embedding spread',
  'assignment_entropy': "entropy of an image's assignment",
  'marginal_entropy': 'entropy of their mean',
  'mean_entropy': 'entropy of their mean',
  'pseudo_label_accuracy': 'pseudo-labels, unlabelled images',
  'labelled_vote_accuracy': 'votes, labelled images',
  'labelled_accuracy': 'nearest prototype, labelled images beside the batch',
  'contrastive_accuracy': 'other view found, all images',
  'classifier_accuracy': 'classifier, labelled images',
  'teacher_agreement': 'student chooses as its teacher',
  'neighbour_purity': 'those that the loss has',
  'free_neighbour_purity': 'those of any label',
  'vote_share': 'vote share of the winner',
  'queue_fill': 'queue fill',
  'memory_fill': 'fill of the memory of all images',
  'positive_share': 'images with a positive',
  'top_label_share': 'most frequent pseudo-label',
  'prototypes_used': 'nearest of some image',
  'top_prototype_share': 'most frequent prototype',
  'false_negatives': 'mean number',
  'false_negative_precision': 'false negatives of the same label',
  'validation_knn_top1': 'validation images',
  'leave_one_out_knn_top1': 'labelled images, each by the others',
  'rankme': 'RankMe',
}


def numbers(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
  """Losses and the like: {title: {metric: its name in the legend}}.

  Args:
    rows: of metrics.jsonl. Metrics without any value are left out, and so are
      panels without metrics.
  """
  return _panels(rows, _NUMBERS)


def shares(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
  """Likewise of what is drawn from 0 to 100%."""
  return _panels(rows, _SHARES)


def series(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
  """[2, n] steps and values; what is no finite number is a gap, NaN.

  Steps whose line does not have the metric are left out: it was not their turn.
  """
  rows = [row for row in rows if key in row]
  values = np.full(len(rows), np.nan)
  for i, row in enumerate(rows):
    value = row.get(key)
    if isinstance(value, (int, float)) and math.isfinite(value):
      values[i] = value
  return np.array([[row['step'] for row in rows], values])


def _panels(rows, wanted):
  known = dict.fromkeys(
    key for row in rows for key, value in row.items() if value is not None
  )
  # Those with a name first, in its order: their colours stay.
  order = [key for key in NAMES if key in known]
  order += [key for key in known if key not in NAMES]
  panels = {
    title: {
      key: NAMES.get(key, key.rpartition('/')[2])
      for key in order
      if any(key == w or w.endswith('/') and key.startswith(w) for w in which)
    }
    for title, which in wanted.items()
  }
  return {title: series for title, series in panels.items() if series}
