"""The tiny experiment as a config file, for `kills`.

A config file is a program that runs inside the training process: this one lets
itself be watched if $KILLS_MARKS names a file. With $KILLS_LIGHT the step is
one that compiles at once: each life of a run makes its program anew.
"""

import os

from semppl_jax.train import step as step_lib
from tests.helpers import tiny
from tests.resilience import kills_marks


def get_config():
  if path := os.environ.get('KILLS_MARKS'):
    kills_marks.watch(path)
  if os.environ.get('KILLS_LIGHT'):
    step_lib.train_step = tiny.light_step
  cfg = tiny.make_config(num_epochs=16.0, num_devices=1)  # 40 steps
  cfg.checkpoint_every_steps = 4
  cfg.keep_checkpoints = 2
  # What makes the program smaller.
  cfg.views.update(num_small=0, one_pass=True, blur=(0.0, 0.0))
  return cfg
