"""What is wrong with how many images of which class have labels."""

import numpy as np
import pytest

from semppl_jax.data import labels as labels_lib
from semppl_jax.errors import UserError
from semppl_jax.train import plausibility
from semppl_jax.train import run as run_lib
from tests.helpers import tiny


@pytest.mark.parametrize(
  'changes, most',
  [
    ({'labels__share': 0.5, 'queue__capacity': 4}, 8),
    ({'queue__capacity': 8}, 12),  # 4 of each of 3 classes
  ],
)
def test_a_queue_too_small_for_a_batch_in_parts(changes, most):
  with pytest.raises(UserError, match=f'up to {most} labelled images'):
    tiny.prepare(accumulate=2, **changes)
  tiny.prepare(**changes)  # the whole batch's means are its own
  without = {'loss__alpha': 0.0, 'loss__semantic_invariance_weight': 0.0}
  tiny.prepare(accumulate=2, **changes, **without)
  tiny.prepare(accumulate=2, **changes | {'queue__capacity': 12})


def test_labels_of_one_class_are_told(monkeypatch, capsys):
  run = tiny.prepare()
  np.testing.assert_allclose(run.facts.class_share, [1 / 3] * 3)
  plausibility.tell(run)
  assert 'Warning' not in capsys.readouterr().err
  labels = np.where(run.labels >= 0, 1, -1)
  monkeypatch.setattr(labels_lib, 'visible_labels', lambda *_: labels)
  run = tiny.prepare()
  np.testing.assert_array_equal(run.facts.class_share, [0, 1, 0])
  plausibility.tell(run)
  told = capsys.readouterr().err
  assert 'Warning: all labelled images are of one class' in told


def test_durations_become_steps():
  # 40 images in batches of 16: 2.5 steps an epoch, rounded down.
  run = tiny.prepare()
  assert [run.facts.steps(epochs) for epochs in (0.0, 1.0, 1.8)] == [0, 2, 4]
  assert (run.facts.num_images, run.facts.num_labels) == (40, 12)
  assert isinstance(run, run_lib.TrainRun)
