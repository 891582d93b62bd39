"""Settings that can run but can hardly be meant are told, and only those."""

import functools

import numpy as np
import pytest
from PIL import Image

from semppl_jax import preflight, pretraining
from semppl_jax.train import plausibility
from semppl_jax.train import step as step_lib
from tests.helpers import tiny


def test_nothing_is_told_of_what_makes_sense():
  assert plausibility.doubts(tiny.prepare()) == []


# 40 images, 12 of them labelled, of 8 pixels; 5 steps of 16 images.
@pytest.mark.parametrize(
  'changes, words',
  [
    ({'batch_size': 64}, 'batch_size 64 is larger than the 40 training images'),
    (
      {'queue__capacity': 32},
      'queue.capacity 32 can never fill: about 24 labelled images come by in '
      'all 5 steps',
    ),
    (
      {'queue__capacity': 32, 'labels__share': 0.25},
      'can never fill: about 20 labelled',
    ),
    (
      {'views__large_size': 12},
      'views.large_size 12 is larger than the images',
    ),
    ({'evaluation__k': 13}, 'evaluation.k is 13, but only 12 images have'),
  ],
)
def test_doubts(changes, words):
  (line,) = plausibility.doubts(tiny.prepare(**changes))
  assert words in line


def test_a_queue_that_nobody_asks_may_stay_empty():
  nothing = {'loss__alpha': 0.0, 'loss__semantic_invariance_weight': 0.0}
  assert not plausibility.doubts(tiny.prepare(queue__capacity=32, **nothing))


def test_files_are_looked_at(tmp_path):
  for i in range(20):
    image = np.full((9, 30, 3), i, np.uint8)
    (tmp_path / 'train/a').mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(tmp_path / f'train/a/{i}.png')
  (tmp_path / 'train/a/0.png').write_bytes(b'broken')
  folder = {'dataset__name': 'folder', 'dataset__path': str(tmp_path)}
  folder['queue__capacity'] = 4
  (line,) = plausibility.doubts(
    tiny.prepare(**folder, dataset__image_size=40, views__large_size=16)
  )
  assert 'have 9 pixels on their shorter side' in line
  assert not plausibility.doubts(tiny.prepare(**folder, dataset__image_size=40))


def test_a_small_batch_takes_all_its_negatives(capsys):
  run = tiny.prepare(
    batch_size=4, loss__num_negatives=9, queue__capacity=4, queue__block_size=4
  )
  plausibility.tell(run)
  assert 'batch_size 4 has 3 negatives' in capsys.readouterr().err
  # By chance a view is one of them and its own image's.
  assert run.setup.method.chance == {
    'loss/augmentation': pytest.approx(np.log(4))
  }
  step = functools.partial(step_lib.train_step, setup=run.setup)
  batch = tiny.make_batch([0, -1, 1, -1])
  _, [(scalars, _)] = tiny.run_steps(
    tiny.map_step(step, 1), tiny.first_state(run, 1), [batch], 1
  )
  assert np.isfinite(scalars['loss'][0])


@pytest.mark.parametrize('where', ['check', 'run'])
def test_check_and_run_tell_the_same(where, tmp_path, monkeypatch, capsys):
  cfg = tiny.make_config(num_devices=1, evaluation__k=13)
  if where == 'check':
    preflight.check_run(cfg, str(tmp_path))
  else:
    monkeypatch.setattr(pretraining, 'train', lambda *_: (None, None))
    monkeypatch.setattr(pretraining, 'finish', lambda *_: {})
    pretraining.pretrain(cfg, str(tmp_path))
  assert 'Warning: evaluation.k is 13' in capsys.readouterr().err
