"""Rows of a table that need no training: an untrained encoder, and pixels."""

import os
from typing import Any

import numpy as np

from semppl_jax import pretraining
from semppl_jax.data import sources
from semppl_jax.evaluation import baselines, features, final_scores
from semppl_jax.train import resume
from semppl_jax.train import run as run_lib
from semppl_jax.workdir import metrics

UNTRAINED = 'untrained encoder'
PIXELS = 'pixels'
NAMES = (UNTRAINED, PIXELS)
_SCORES = ('knn_top1', 'linear_labelled_top1', 'linear_all_top1')


def results(name: str, cfg: Any, workdir: str) -> dict[str, float | None]:
  """kNN and linear scores of one row and seed, made or found.

  Args:
    name: UNTRAINED or PIXELS.
    cfg: of a run with the same seed, data and labels, and so the same encoder.
    workdir: of the table; they lie in a folder there.
  """
  folder = os.path.join(workdir, f'{name}-{cfg.seed}'.replace(' ', '_'))
  path = os.path.join(folder, pretraining.RESULTS)
  found = metrics.read_json(path)
  if found is None:
    os.makedirs(folder, exist_ok=True)
    run = run_lib.prepare(cfg)
    if name == UNTRAINED:
      state = run_lib.initial_state(run)
      found = pretraining.finish(run, state, folder, resume.History())
    else:
      found = pixels(run)
      metrics.write_json(path, found)
  return {key: found[key] for key in _SCORES}


def pixels(run: run_lib.TrainRun) -> dict[str, float | None]:
  """kNN and linear scores with an image's pixels as its embedding.

  All pixels of arrays; of files, which may be of several sizes, 16 x 16.
  """
  found = final_scores.scores(
    *map(_pixels, (run.data.train, run.data.test)),
    labels=run.labels,
    truth=run.data.train.labels,
    test_truth=run.data.test.labels,
    cfg=run.cfg,
  )
  return {key: found[key] for key in _SCORES}


def _pixels(source: sources.Source) -> features.Features:
  if isinstance(source[0]['image'], np.ndarray):
    images = np.stack([source[i]['image'] for i in range(len(source))])
    values = images.reshape(len(images), -1) / np.float32(255)
    readable = np.ones(len(images), bool)
  else:
    values, readable = baselines.pixels(source)
  nothing = np.full(len(values), -1, np.int32)
  return features.Features(values, nothing, nothing, readable)
