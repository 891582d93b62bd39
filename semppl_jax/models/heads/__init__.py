"""Heads on an encoder: perceptrons, projector, predictor, prototypes.

One file for each family of methods; all are at hand here.
"""

from semppl_jax.models.heads.byol import MLP, ProjectorPredictor
from semppl_jax.models.heads.classifiers import (
  Classifier,
  ProjectorLayer,
  no_heads,
)
from semppl_jax.models.heads.common import Outputs
from semppl_jax.models.heads.paws import PAWSMLP, PAWSHead, PAWSPredictor
from semppl_jax.models.heads.prototypes import (
  PrototypeClassifier,
  PrototypeHead,
  PrototypeMLP,
  Prototypes,
  prototype_scores,
)
from semppl_jax.models.heads.simclr import SimCLRMLP, SimCLRProjector
from semppl_jax.models.heads.simreg import SimRegMLP, SimRegProjector

__all__ = [
  'Classifier',
  'MLP',
  'Outputs',
  'PAWSHead',
  'PAWSMLP',
  'PAWSPredictor',
  'ProjectorLayer',
  'ProjectorPredictor',
  'PrototypeClassifier',
  'PrototypeHead',
  'PrototypeMLP',
  'Prototypes',
  'SimCLRMLP',
  'SimCLRProjector',
  'SimRegMLP',
  'SimRegProjector',
  'no_heads',
  'prototype_scores',
]
