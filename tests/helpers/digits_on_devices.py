"""20 steps of the digits on 1, 2, 4 and 8 devices; fails if they differ.

A script, so that it compiles at XLA's default level, unlike the tests. Near
ties of the vote are a matter of rounding.
"""

import functools
import itertools

import jax
import numpy as np

jax.config.update('jax_num_cpu_devices', 8)

from experiments import digits  # noqa: E402
from semppl_jax.train import run as run_lib  # noqa: E402
from semppl_jax.train import step as step_lib  # noqa: E402
from tests.helpers import tiny  # noqa: E402


def main():
  """Losses at rtol 1e-3, pseudo-labels all but equal."""
  cfg = digits.get_config()
  cfg.num_devices = 1
  run = run_lib.prepare(cfg)
  step = functools.partial(step_lib.train_step, setup=run.setup)
  stream = itertools.islice(run_lib.input_batches(run, 0), 20)
  batches = [batch for batch, _ in stream]
  seen = {}
  for num_devices in (1, 2, 4, 8):
    state = tiny.first_state(run, num_devices)
    mapped = tiny.map_step(step, num_devices)
    _, seen[num_devices] = tiny.run_steps(mapped, state, batches, num_devices)
  labels_1 = np.concatenate([labels for _, labels in seen[1]])
  for num_devices in (2, 4, 8):
    for (one, _), (many, _) in zip(seen[1], seen[num_devices]):
      # (A flipped near-tie moves the semantic term alone by about 1e-3.)
      for name in ('loss', 'loss/augmentation'):
        np.testing.assert_allclose(many[name][0], one[name][0], rtol=1e-3)
    labels = np.concatenate([labels for _, labels in seen[num_devices]])
    # Of 2,560 pseudo-labels 5, 0 and 16 differed on one CPU, at most 4 on
    # another. Votes are balanced: one that flips may take others with it.
    assert np.mean(labels != labels_1) <= 1e-2


if __name__ == '__main__':
  main()
