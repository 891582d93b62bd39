"""How long a step takes, from one measured pass of its network."""

import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from semppl_jax import config, methods, types
from semppl_jax.methods import base
from semppl_jax.train import run as run_lib

OVERHEAD = 1.3  # a step's time over that of its networks' passes
ELSEWHERE = 90.0  # seconds that compiling and the evaluation at the end take
_TIMES = 5  # that a pass is measured


def seconds_of_passes(
  cfg: ml_collections.ConfigDict,
  facts: base.RunFacts,
  batch_size: int,
  device: jax.Device,
) -> float:
  """Seconds of the passes that a step makes, from one that is measured.

  Args:
    cfg: settings; of views, networks and method none is open.
    facts: of the data set.
    batch_size: images on the device.
    device: where it is measured.
  """
  method = methods.build(cfg, facts)
  nets = run_lib.build_networks(
    cfg, method, facts.num_classes, cross_replica=False
  )
  size = cfg.views.large_size
  images = jnp.zeros((batch_size, size, size, 3), jnp.float32)
  with jax.default_device(device):
    params, state = nets.init(jax.random.key(0), images)
    total = lambda tree: sum(map(jnp.sum, jax.tree.leaves(tree)))
    loss = lambda p: total(nets.online(p, state, images, True)[0])
    passed = jax.jit(jax.grad(loss))
    jax.block_until_ready(passed(params))  # compiles
    times = []
    for _ in range(_TIMES):
      begun = time.monotonic()
      jax.block_until_ready(passed(params))
      times.append(time.monotonic() - begun)
  return float(np.median(times)) * _passes(method, cfg)


def view_shapes(section: ml_collections.ConfigDict) -> types.Views:
  """The views of one image, without pixels.

  Args:
    section: the config's `views`.
  """
  shape = lambda views, size: jax.ShapeDtypeStruct(
    (views, 1, size, size, 3), jnp.float32
  )
  return types.Views(
    shape(section.num_large, section.large_size),
    shape(section.num_small, section.small_size),
  )


def _passes(method: base.Method, cfg: ml_collections.ConfigDict) -> float:
  """A step's passes, in those of a large view, forwards and backwards."""
  section = cfg.views
  views = view_shapes(section)
  count = _large_views(method.online_views(views), section.large_size)
  if method.target_views:  # no backward pass: a third of the work
    count += _large_views(method.target_views(views), section.large_size) / 3
  if method.teacher:  # likewise, as if it was as large as the student
    count += _large_views(method.online_views(views), section.large_size) / 3
  if support := config.support_size(cfg):
    count += cfg.support.views * support / cfg.batch_size
  return count


def _large_views(groups: Iterable[jax.ShapeDtypeStruct], size: int) -> float:
  """How many large views have as many pixels."""
  return sum(group.shape[0] * (group.shape[2] / size) ** 2 for group in groups)
