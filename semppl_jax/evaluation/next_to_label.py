"""Which images to label next: the most doubtful ones, and not all alike."""

import numpy as np

from semppl_jax.evaluation import labelling

# So many doubtful images for each that is chosen; as the source.
_DOUBTFUL = 10


def choose(
  job: labelling.Job, found: labelling.Labelling, count: int
) -> np.ndarray:
  """Diverse mini-batch active learning (Zhdanov, arXiv 1901.05954).

  The 10 * count most doubtful images fall into `count` clusters by k-means on
  their embeddings, each weighted by its doubt; of each cluster the image next
  to its centre is chosen. Images with a calibration label are left out.

  Args:
    job: the images.
    found: their pseudo-labels, the most doubtful first.
    count: of the images to choose, at most as many as have no label.

  Returns:
    [count] int rows, the most doubtful first.
  """
  from sklearn import cluster  # late: a second that others save

  unlabelled = np.flatnonzero(job.calibration[found.rows] < 0)
  doubtful = unlabelled[: _DOUBTFUL * count]
  if len(doubtful) <= count:
    return found.rows[doubtful]
  # Sure of the same thing, all weights would be 0.
  weights = np.maximum(1 - found.votes.share[doubtful], 1e-3)
  embeddings = labelling.embeddings(job, found.rows[doubtful])
  means = cluster.KMeans(count, n_init=1, random_state=0)
  place = means.fit_predict(embeddings, sample_weight=weights)
  distance = np.linalg.norm(embeddings - means.cluster_centers_[place], axis=1)
  first = np.lexsort((distance, place))
  _, at = np.unique(place[first], return_index=True)
  chosen = first[at]
  # Of images that are all alike there are fewer clusters.
  rest = np.setdiff1d(np.arange(len(doubtful)), chosen)
  chosen = np.concatenate([chosen, rest[: count - len(chosen)]])
  return found.rows[doubtful[np.sort(chosen)]]
