"""benchmarks.knn: the form of before ranks as the present one does."""

import numpy as np

from benchmarks import knn as benchmark
from semppl_jax.evaluation import knn


def test_both_forms_rank_alike():
  rng = np.random.default_rng(0)
  keys = rng.normal(size=(60, 8)).astype(np.float32)
  queries = rng.normal(size=(20, 8)).astype(np.float32)
  labels = rng.integers(0, 5, 60)
  settings = {'k': 7, 'num_classes': 5}
  np.testing.assert_array_equal(
    benchmark.before(queries, keys, labels, **settings),
    knn.ranks(queries, keys, labels, **settings),
  )
