"""SemPPL with true labels in the vote's place: what better votes would give.

A method of benchmarks alone, for it looks at labels that training does not see:
`semppl_true_labels`. Semantic positives still are the labelled images of the
queue, and negatives of the same class are left out from where SemPPL leaves out
those of the same pseudo-label.
"""

import functools
import types
from typing import Any

import jax.numpy as jnp
import numpy as np

from semppl_jax import methods
from semppl_jax.data import datasets, sources
from semppl_jax.distributed import parallel
from semppl_jax.methods import base, semppl

NAME = 'semppl_true_labels'


def register() -> None:
  """Makes the method known to configs of this process."""
  methods.METHODS[NAME] = types.ModuleType(NAME)
  vars(methods.METHODS[NAME]).update(vars(semppl) | {'build': _build})


def _build(cfg: Any, facts: base.RunFacts) -> base.Method:
  truth = jnp.asarray(_by_id(datasets.load(cfg.dataset).train))
  return semppl.build(cfg, facts, assign=functools.partial(_assign, truth))


def _by_id(images: sources.Source) -> np.ndarray:
  """[largest id + 1] int32 labels of images by their ids, -1: unknown."""
  ids = [sources.number(images, i) for i in range(len(images))]
  labels = np.full(max(ids) + 1, -1, np.int32)
  labels[ids] = images.labels
  return labels


def _assign(truth, queries, inputs, queue, cfg, facts):
  """True labels [b]; and what the vote, which nobody asks, would have said."""
  _, votes = semppl.assign_labels(queries, inputs, queue, cfg, facts)
  return parallel.local_slice(truth[inputs.ids]), votes
