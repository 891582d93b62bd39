"""An objective that learns with a support, for tests; it is not registered."""

import sys

import jax
import jax.numpy as jnp
import ml_collections

from semppl_jax import methods
from semppl_jax.config import defaults
from semppl_jax.distributed import parallel
from semppl_jax.methods import base
from semppl_jax.models import heads
from semppl_jax.models.multicrop import l2_normalize

NAME = 'toy_support'
RANGES = {}


def default():
  """Its sections."""
  cfg = ml_collections.ConfigDict()
  cfg.support = defaults.support()
  cfg.views = {'one_pass': True}
  return cfg


def build(cfg, facts):
  """As PAWS: soft labels by similarity; and a term of this device's support."""

  def loss(inputs, memory):
    del memory
    support = inputs.support
    gather = lambda x, axis: parallel.all_gather(x, axis=axis)
    near = gather(l2_normalize(support.online['projection']), 1)  # [V_s, S, d]
    place, count = support.labels, facts.num_classes
    if support.place is not None:
      place, count = support.place, len(support.classes)
    classes = jax.nn.one_hot(gather(place, 0), count)  # [S, C]
    z = l2_normalize(inputs.online['projection'])  # [V, b, d]
    weights = jax.nn.softmax(10 * jnp.einsum('vbd,wsd->wvbs', z, near))
    soft = (weights @ classes).mean(axis=0)  # [V, b, C]
    share = jnp.log(soft + 1e-3)
    consistency = -(jax.lax.stop_gradient(soft[0]) * share[1:]).sum(-1).mean()
    scores = support.online['scores']  # [V_s, s, K]
    known = jax.nn.one_hot(support.labels, facts.num_classes)
    supervised = -(jax.nn.log_softmax(scores) * known).sum(-1).mean()
    guess = soft.mean(axis=0).argmax(axis=-1)  # [b]
    if support.classes is not None:
      guess = support.classes[guess]
    labels = jnp.where(inputs.labels >= 0, inputs.labels, guess)
    return base.Result(
      consistency + supervised,
      {'loss/supervised': supervised},
      labels=labels.astype(jnp.int32),
    )

  return base.Method(
    heads=heads.PrototypeHead(2, 16, 8, facts.num_classes),
    loss=loss,
    accumulates=False,
  )


def register():
  """As methods/__init__ does; a test takes it back."""
  methods.METHODS[NAME] = sys.modules[__name__]
