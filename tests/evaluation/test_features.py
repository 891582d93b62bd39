"""Features in order for any number of devices, in memory or in a file."""

import os

import jax
import ml_collections
import numpy as np
import pytest

from semppl_jax import errors
from semppl_jax.data import pipeline, sources
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


def test_features_of_the_target_network():
  """Its embedding and its heads' votes; the classifier stays the online's."""
  run = tiny.prepare()
  whole = tiny.portable(run)
  turned = {
    module: {
      name: leaf[..., ::-1] if name == 'w' else leaf
      for name, leaf in leaves.items()
    }
    for module, leaves in whole.target_params.items()
  }
  whole = whole._replace(target_params=turned)
  devices = jax.devices()[:1]
  state = state_lib.from_host(whole, run.setup.method, devices)
  seen = []

  def predict(outputs, memory):
    seen.append(set(outputs))
    return outputs['projection'][0].argmax(axis=-1).astype(np.int32)

  method = run.setup.method._replace(predict=predict)
  of = lambda cfg: features_lib.features(
    state, method, run.setup.nets, cfg, run.data.train, devices
  )
  online = of(run.cfg)
  cfg = run.cfg.to_dict()
  cfg['evaluation']['network'] = 'target'
  found = of(tiny.frozen(ml_collections.ConfigDict(cfg)))
  images = pipeline.Images(crop=(8, 1.0))
  batch, _ = next(
    pipeline.in_order(run.data.train, batch_size=40, images=images)
  )
  outputs, _ = run.setup.nets.target(
    whole.target_params, whole.target_state, batch, False
  )
  embedding, _ = run.setup.nets.encode(
    whole.target_params, whole.target_state, batch, False
  )
  np.testing.assert_allclose(found.embeddings, embedding, atol=1e-5)
  np.testing.assert_array_equal(
    found.votes, outputs['projection'].argmax(axis=-1)
  )
  assert seen == [
    {'embedding', 'projection', 'prediction', 'logits'},
    {'embedding', 'projection'},
  ]
  np.testing.assert_array_equal(found.guesses, online.guesses)
  assert np.abs(found.embeddings - online.embeddings).max() > 1e-2
  assert (found.votes != online.votes).any()


def test_one_pass_of_the_target_network_alone():
  """Without a classifier nothing of the online network is computed."""
  run = tiny.prepare('byol', labels__per_class=0)
  method, nets = run.setup.method, run.setup.nets
  state = jax.tree.map(lambda x: x[0], tiny.first_state(run, 1))
  images = np.ones((4, 8, 8, 3), np.float32)

  def flops(network):
    forward = features_lib.make_forward(method, nets, network)
    costs = jax.jit(forward).lower(state, images).compile().cost_analysis()
    return costs['flops']

  assert flops('target') < 1.05 * flops('online')


def test_the_target_network_looks_up_in_the_queue_by_its_projections():
  """SemPPL's target network has no prediction: each image finds its own key."""
  run = tiny.prepare(queue__capacity=40, queue__k=1)
  whole = tiny.portable(run)
  images = pipeline.Images(crop=(8, 1.0))
  batch, _ = next(
    pipeline.in_order(run.data.train, batch_size=40, images=images)
  )
  keys, _ = run.setup.nets.target(
    whole.target_params, whole.target_state, batch, False
  )
  keys = multicrop.l2_normalize(keys['projection'])  # [40, d]
  queue = whole.memory._replace(
    embeddings=np.tile(keys, (len(whole.memory.embeddings), 1, 1)),
    labels=np.arange(40, dtype=np.int32),
    ids=np.arange(40, dtype=np.int32),
    count=np.int32(40),
  )
  devices = jax.devices()[:1]
  state = state_lib.from_host(
    whole._replace(memory=queue), run.setup.method, devices
  )
  cfg = run.cfg.to_dict()
  cfg['evaluation']['network'] = 'target'
  found = features_lib.features(
    state, run.setup.method, run.setup.nets,
    tiny.frozen(ml_collections.ConfigDict(cfg)), run.data.train, devices,
  )  # fmt: skip
  np.testing.assert_array_equal(found.votes, np.arange(40))
