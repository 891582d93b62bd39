"""The tiny experiment as a config file, for `kills`.

A config file is a program that runs inside the training process: this one lets
itself be watched if $KILLS_MARKS names a file. With $KILLS_LIGHT the step is
one that compiles at once: each life of a run makes its program anew.
"""

import os

import jax
import jax.numpy as jnp

from semppl_jax import pretrain_step
from tests import kills_marks, tiny


def get_config():
  if path := os.environ.get('KILLS_MARKS'):
    kills_marks.watch(path)
  if os.environ.get('KILLS_LIGHT'):
    pretrain_step.train_step = light_step
  cfg = tiny.make_config(num_epochs=16.0, num_devices=1)  # 40 steps
  cfg.checkpoint_every_steps = 4
  cfg.keep_checkpoints = 2
  # What makes the program smaller.
  cfg.views.update(num_small=0, one_pass=True, blur=(0.0, 0.0))
  return cfg


def light_step(state, batch, key, *, setup):
  """Every array of the state then tells of all batches and their order."""
  noise = jax.random.normal(jax.random.fold_in(key, state.step))
  pixels = jnp.mean(batch.images * (batch.ids % 7)[:, None, None, None] / 255.0)

  def changed(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return (0.9 * x + 0.1 * pixels + 1e-3 * noise).astype(x.dtype)

  new = jax.tree.map(changed, state)._replace(step=state.step + 1)
  scalars = {'loss': pixels, 'grad_norm': noise, 'queue_fill': pixels}
  healthy = {'embedding_std': jnp.ones(()), 'top_label_share': jnp.zeros(())}
  return new, scalars | healthy, batch.labels
