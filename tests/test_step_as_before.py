"""The shared step with methods/semppl.py is the step that it replaces.

Labels, slots and ids of the queue exactly; floats to 1e-6 relative to the
largest of each array (on the digits' networks: bit for bit). Left out are
biases before a BatchNorm: it takes them away, so that their gradient is
rounding and nothing else, and Adam makes it as large as any other.
"""

import functools

import jax
import ml_collections
import numpy as np
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.train import runs
from semppl_jax.train import step as step_lib
from tests import tiny
from tests.before import networks, pretrain_step, train_state

_TREES = (
  'online_params', 'online_state', 'target_params', 'target_state', 'opt_state',
)  # fmt: skip


def _old_setup(run):
  cfg = ml_collections.ConfigDict(run.cfg.to_dict())
  cfg.encoder.projector_hidden = cfg.projector.hidden
  cfg.encoder.embedding_size = cfg.projector.size
  nets = networks.build(
    encoder=cfg.encoder.name,
    stem=cfg.encoder.stem,
    projector_hidden=cfg.projector.hidden,
    embedding_size=cfg.projector.size,
    num_classes=run.facts.num_classes,
    classifier_detached=cfg.classifier.detached,
  )
  return pretrain_step.Setup(
    tiny.frozen(cfg), nets, run.setup.optimizer, run.setup.total_steps,
    run.setup.warmup_steps, run.facts.steps(cfg.queue.target_query_epochs),
    run.facts.steps(cfg.loss.exclude_after_epochs), run.facts.class_share,
  )  # fmt: skip


def _leaves(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _is_rounding_alone(name):
  return "linear'" in name and "['b']" in name


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('number', [1, 4])
def test_three_steps_are_those_of_before(number, parts):
  changes = {'loss__exclude_same_label': True} if parts == 1 else {}
  cfg = tiny.make_config(
    num_devices=number, accumulate=parts, num_epochs=3.0,
    queue__target_query_epochs=0.8, **changes,
  )  # fmt: skip
  run = runs.prepare(cfg)
  old_setup = _old_setup(run)
  new = runs.initial_state(run)
  old = train_state.init(
    old_setup.cfg, old_setup.nets, old_setup.optimizer, run.devices
  )
  new_step, old_step = (
    tiny.map_step(functools.partial(step, setup=setup), number)
    for step, setup in (
      (step_lib.train_step, run.setup),
      (pretrain_step.train_step, old_setup),
    )
  )
  batches = [b for (b, _), _ in zip(runs.input_batches(run, 0), range(3))]
  for batch in batches:
    shards = parallel.place(parallel.shard(batch, number, parts), run.devices)
    new, scalars, labels = new_step(new, shards, jax.random.key(0))
    old, wanted, old_labels = old_step(old, shards, jax.random.key(0))
    np.testing.assert_array_equal(labels, old_labels)
    for name in ('labels', 'ids', 'count'):
      np.testing.assert_array_equal(
        getattr(new.memory, name), getattr(old.queue, name)
      )
    assert scalars.keys() == wanted.keys()
    found, expected = (
      {'queue': state_queue.embeddings, 'metrics': metrics}
      | {name: getattr(state, name) for name in _TREES}
      for state, state_queue, metrics in (
        (new, new.memory, scalars),
        (old, old.queue, wanted),
      )
    )
    for name, leaf in _leaves(expected).items():
      if not _is_rounding_alone(name):
        error = np.abs(_leaves(found)[name] - leaf).max()
        assert error <= 1e-6 * max(np.abs(leaf).max(), 1e-3), name
