"""Which pair of learning rates is taken; nothing is trained here.

test_protocols and test_transfer search with trainings.
"""

import json
import types

import numpy as np
import pytest

from semppl_jax import errors
from semppl_jax.data import sources
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation import grid_search
from semppl_jax.train import watchdog

LABELS = np.array([0, 1] * 10)
PAIRS = [(0.1, 0.0), (0.1, 0.01), (0.2, 0.0), (0.2, 0.01)]


class Hyperparameters(types.SimpleNamespace):
  def _replace(self, **changes):
    return Hyperparameters(**(vars(self) | changes))


@pytest.fixture
def faked(monkeypatch):
  """Trainings that end in given logits; and what they were asked for."""
  fake = types.SimpleNamespace(logits={}, asked=[], readable=None)

  def hyperparameters(run, labels, encode, rate, encoder_rate):
    del run, encode
    return Hyperparameters(
      labels=labels, rates=(rate, encoder_rate), total_steps=100
    )

  def fit(run, hparams, source, labels, workdir):
    del run, source, workdir
    fake.asked.append((hparams, labels))
    if fake.logits[hparams.rates] is None:
      raise watchdog.NotFiniteError(3, 1, 'not finite')
    return hparams.rates, 1.0

  def predict(run, state, source):
    del run
    logits = np.zeros((len(source), 2), np.float32)
    logits[:, 1] = fake.logits[state]
    readable = np.full(len(source), fake.readable is not False)
    return classifier_lib.Predictions(logits, readable)

  for name, function in (
    ('hyperparameters', hyperparameters),
    ('fit', fit),
    ('predict', predict),
  ):
    monkeypatch.setattr(classifier_lib, name, function)
  return fake


def make_run(pairs=PAIRS, **holdout):
  rates, encoder_rates = (tuple(dict.fromkeys(x)) for x in zip(*pairs))
  space = types.SimpleNamespace
  grid = space(
    learning_rates=rates,
    encoder_learning_rates=encoder_rates,
    **({'holdout': 0.2} | holdout),
  )
  optimizer = space(learning_rate=0.3, encoder_learning_rate=0.03)
  source = sources.Records(LABELS, lambda i: None)
  return space(
    cfg=space(grid=grid, optimizer=optimizer, seed=0),
    labels=LABELS,
    data=space(train=source),
    nets=space(features=None),
  )


def test_no_choice_takes_no_training(faked, tmp_path):
  run = make_run(PAIRS[:1])
  assert grid_search.search(run, str(tmp_path)) == ((0.1, 0.0), None)
  run.cfg.grid.learning_rates = run.cfg.grid.encoder_learning_rates = ()
  assert grid_search.search(run, str(tmp_path)) == ((0.3, 0.03), None)
  assert not faked.asked


def test_top1_decides_and_of_equals_the_loss(faked, tmp_path):
  # Logits of class 1; both classes are held out alike.
  faked.logits = dict(zip(PAIRS, (2.0, -0.5, 1.0, None)))
  best, score = grid_search.search(make_run(), str(tmp_path))
  assert (best, score) == ((0.1, 0.01), 0.5)
  for hparams, labels in faked.asked:
    assert hparams.total_steps == 100
    hidden = np.flatnonzero(labels < 0)
    assert np.bincount(LABELS[hidden]).tolist() == [2, 2]  # a fifth
    np.testing.assert_array_equal(np.delete(labels, hidden), hparams.labels[
      hparams.labels >= 0])  # fmt: skip
  lost = json.loads((tmp_path / '0.2_0.01' / 'results.json').read_text())
  assert lost == {'top1': 0.0, 'top5': 0.0, 'loss': None}
  # Again: all is read.
  assert grid_search.search(make_run(), str(tmp_path)) == (best, score)
  assert len(faked.asked) == 4


def test_given_rows_steps_and_measure(faked, tmp_path):
  faked.logits = dict(zip(PAIRS, (1.0, -1.0, 1.0, 1.0)))
  rows = np.array([0, 1, 3, 5])  # one of class 0, three of class 1
  seen = []

  def likes_0(predicted, truth):
    seen.append(truth.tolist())
    return float(np.mean(predicted == 0))

  found = grid_search.search(
    make_run(holdout=None), str(tmp_path), rows=rows, steps=7, measure=likes_0
  )
  assert found == ((0.1, 0.01), 1.0)  # with top-1, the other ones
  assert seen == [[0, 1, 1, 1]] * 4
  for hparams, labels in faked.asked:
    assert hparams.total_steps == 7
    np.testing.assert_array_equal(np.flatnonzero(labels < 0), rows)
  again = grid_search.search(make_run(), str(tmp_path), measure=likes_0)
  assert again == found and len(faked.asked) == 4


def test_no_pair_is_finite(faked, tmp_path):
  faked.logits = dict.fromkeys(PAIRS)
  with pytest.raises(errors.UserError, match='not finite with any pair'):
    grid_search.search(make_run(), str(tmp_path / 'none'))
  faked.logits, faked.readable = dict.fromkeys(PAIRS, 1.0), False
  with pytest.raises(errors.UserError, match='not finite with any pair'):
    grid_search.search(make_run(), str(tmp_path / 'unreadable'))


def test_all_images_held_out(faked, tmp_path):
  with pytest.raises(errors.UserError, match='grid.holdout 0.99 of 20'):
    grid_search.search(make_run(holdout=0.99), str(tmp_path))
  assert not faked.asked
