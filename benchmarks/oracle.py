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
  images = datasets.load(cfg.dataset).train
  truth = jnp.asarray(sources.labels_by_id(images))
  return semppl.build(cfg, facts, assign=functools.partial(_assign, truth))


def _assign(truth, queries, inputs, queue, cfg, facts):
  """True labels [b]; and what the vote, which nobody asks, would have said."""
  _, votes = semppl.assign_labels(queries, inputs, queue, cfg, facts)
  return parallel.local_slice(truth[inputs.ids]), votes
