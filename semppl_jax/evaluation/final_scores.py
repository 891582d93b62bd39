"""The scores of results.json at the end of pre-training.

Of pseudo-labels, the classifier that trained along, kNN and linear probes, on
the test images of the data set (or on its validation part). Embeddings and
pseudo-labels are those of the network that evaluation.network names.
"""

import ml_collections
import numpy as np

from semppl_jax.evaluation import knn, logistic
from semppl_jax.evaluation.features import Features
from semppl_jax.evaluation.measures import accuracy


def rows_to_judge(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
  """Rows of the training images that are looked at in the end.

  Args:
    labels: [N] labels that training saw, -1: none.
    most: so many images without a label at most, at random; 0: all.
    seed: of the choice.

  Returns:
    Sorted rows: all labelled images, and those.
  """
  hidden = np.flatnonzero(labels < 0)
  if most and len(hidden) > most:
    hidden = np.random.RandomState(seed % 2**32).permutation(hidden)[:most]
  return np.sort(np.concatenate([np.flatnonzero(labels >= 0), hidden]))


def pseudo_labels_of(
  features: Features, cfg: ml_collections.FrozenConfigDict
) -> np.ndarray:
  """[N] int32 labels for unlabelled images, -1: none.

  What the objective predicts; of the classifier, where the objective does not
  predict, or where the classifier trains the encoder.
  """
  detached = 'classifier' not in cfg or cfg.classifier.detached
  predicts = detached and np.any(features.votes >= 0)
  return features.votes if predicts else features.guesses


def scores(
  train: Features,
  test: Features | None,
  *,
  labels: np.ndarray,
  truth: np.ndarray,
  test_truth: np.ndarray | None,
  cfg: ml_collections.FrozenConfigDict,
  kept_back: np.ndarray | bool = False,
) -> dict[str, float | None]:
  """The numbers of results.json; None where there is nothing to measure.

  Args:
    train: features of N training images: `rows_to_judge`.
    test: features of the test images, or None without a test split.
    labels: [N] labels that training saw, -1: none.
    truth: [N] true labels, -1: unknown.
    test_truth: true labels of the test images.
    cfg: settings.
    kept_back: [N] bool, images whose truth no probe learns from.

  Returns:
    pseudo_label_accuracy: on unlabelled training images, see
      `pseudo_labels_of` (SemPPL's is the vote in the final queue).
    classifier_top1: the classifier that trained along, on the online network.
    prediction_top1: what the objective itself predicts (SemPPL: the vote,
      Suave: the nearest prototype); absent if it predicts nothing.
    knn_top1: encoder features against the labelled training images.
    linear_labelled_top1, linear_all_top1: logistic regression on the features
      of the labelled images, of all N but those kept back.
  """
  labels, truth = (np.where(train.readable, x, -1) for x in (labels, truth))
  if test is not None:
    test_truth = np.where(test.readable, test_truth, -1)
  labelled = labels >= 0
  taught = np.where(kept_back, -1, truth)
  guesses = pseudo_labels_of(train, cfg)
  names = ('classifier_top1', 'knn_top1') + (
      'linear_labelled_top1', 'linear_all_top1',
  )  # fmt: skip
  result = dict.fromkeys(('pseudo_label_accuracy',) + names)
  if not any(labelled):
    return result | _all_labels_probe(train, test, taught, test_truth, cfg)
  result['pseudo_label_accuracy'] = accuracy(
    guesses, np.where(labelled, -1, truth)
  )
  if test is None:
    return result
  result['classifier_top1'] = accuracy(test.guesses, test_truth)
  if np.any(test.votes >= 0):
    result['prediction_top1'] = accuracy(test.votes, test_truth)
  result['knn_top1'] = accuracy(
    knn.predict(test.embeddings, train.embeddings, labels, cfg.evaluation.k),
    test_truth,
  )
  if cfg.evaluation.probes:
    predicted = logistic.linear_probe(
      train.embeddings[labelled],
      labels[labelled],
      test.embeddings,
      cfg.evaluation.probe_c,
    )
    result['linear_labelled_top1'] = accuracy(predicted, test_truth)
  return result | _all_labels_probe(train, test, taught, test_truth, cfg)


def _all_labels_probe(train, test, truth, test_truth, cfg):
  known = truth >= 0
  if test is None or not cfg.evaluation.probes or not any(known):
    return {}
  predicted = logistic.linear_probe(
    train.embeddings[known],
    truth[known],
    test.embeddings,
    cfg.evaluation.probe_c,
  )
  return {'linear_all_top1': accuracy(predicted, test_truth)}
