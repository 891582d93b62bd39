"""Features in order for any number of devices, in memory or in a file."""

import os

import jax
import numpy as np
import pytest

from semppl_jax import errors
from semppl_jax.data import sources
from semppl_jax.evaluation import features as features_lib
from semppl_jax.models import multicrop
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from tests.helpers import tiny


def test_features_are_in_order_for_any_number_of_devices():
  """40 images in batches of 16: the last one is short."""
  run = tiny.prepare(evaluation__batch_size=15)
  whole = tiny.portable(run)
  random = np.random.RandomState(0)
  rows = random.randn(2, 16, 8).astype(np.float32)
  queue = whole.memory._replace(
    embeddings=np.asarray(multicrop.l2_normalize(rows)),
    labels=np.r_[np.arange(12) % 3, [-1] * 4].astype(np.int32),
    ids=np.arange(16, dtype=np.int32),
    count=np.int32(12),
  )
  whole = whole._replace(memory=queue)
  found = []
  for num_devices in (1, 4):
    state = state_lib.from_host(
      whole, run.setup.method, jax.devices()[:num_devices]
    )
    devices = jax.devices()[:num_devices]
    found.append(
      features_lib.features(
        state,
        run.setup.method,
        run.setup.nets,
        run.cfg,
        run.data.train,
        devices,
      )
    )
  one, four = found
  assert one.embeddings.shape == (40, 16) and one.votes.shape == (40,)
  np.testing.assert_allclose(one.embeddings, four.embeddings, atol=1e-5)
  np.testing.assert_array_equal(one.votes, four.votes)
  np.testing.assert_array_equal(one.guesses, four.guesses)
  assert set(one.votes) <= {0, 1, 2} and len(set(one.votes)) > 1
  # In the source's order: the third image on its own.
  images = np.stack([run.data.train[i]['image'] for i in range(40)])
  assert len(np.unique(images.reshape(40, -1), axis=0)) == 40
  alone = features_lib.features(
    state_lib.from_host(whole, run.setup.method, jax.devices()[:1]),
    run.setup.method, run.setup.nets, run.cfg,
    sources.Rows(run.data.train, np.array([2])), jax.devices()[:1],
  )  # fmt: skip
  np.testing.assert_allclose(alone.embeddings[0], one.embeddings[2], atol=1e-5)
  assert isinstance(run, run_lib.TrainRun)


def test_a_mapped_file_holds_what_memory_holds(tmp_path, monkeypatch):
  """And nothing of it is left behind, not even while it is there."""
  monkeypatch.setattr(features_lib.tempfile, 'tempdir', str(tmp_path))
  run = tiny.prepare(evaluation__batch_size=15)
  devices = jax.devices()[:1]
  state = state_lib.from_host(tiny.portable(run), run.setup.method, devices)
  of = lambda: features_lib.features(
    state, run.setup.method, run.setup.nets, run.cfg, run.data.train, devices
  )
  in_memory = of()
  monkeypatch.setattr(features_lib, 'IN_MEMORY', 1000)
  in_file = of()
  kinds = [type(x) for x in in_file]
  # 40 x 16 x 4 bytes, and three of 40 numbers.
  assert kinds == [np.memmap, np.ndarray, np.ndarray, np.ndarray]
  assert not isinstance(in_memory.embeddings, np.memmap)
  for one, other in zip(in_memory, in_file):
    np.testing.assert_array_equal(one, other)
    assert one.dtype == other.dtype
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(monkeypatch):
  def full(file, offset, size):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full)
  monkeypatch.setattr(features_lib, 'IN_MEMORY', 0)
  with pytest.raises(errors.UserError, match='no room for 4.0 GB.*TMPDIR'):
    features_lib.allocate((10**6, 1000), np.float32)
