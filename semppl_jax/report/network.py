"""What a run's network says of its images. Reads the run, writes nothing."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from semppl_jax import checkpoint, config
from semppl_jax.data import pipeline, sources
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.evaluation import encoder_scores, inference
from semppl_jax.memory import pseudo_labels
from semppl_jax.train import runs, train_state
from semppl_jax.workdir import stop_file


class Said(NamedTuple):
  """Of n images of a source."""

  rows: np.ndarray  # [n] int, of the source
  truth: np.ndarray  # [n] int32, -1: unknown
  embeddings: np.ndarray  # [n, e] float32
  votes: np.ndarray  # [n] int32, pseudo-label by the queue's vote, -1: none
  share: np.ndarray  # [n] float32, the winner's share of the votes
  guesses: np.ndarray  # [n] int32, the classifier's choice, -1: none
  neighbours: np.ndarray  # [n, V_L * k] int, training rows, -1: no vote
  similarity: np.ndarray  # [n, V_L * k] float32, cosine


class Network(NamedTuple):
  """A run whose data set is at hand, with the newest checkpoint's network."""

  run: runs.Run
  state: train_state.TrainState
  step: int


def prepare(settings: Mapping[str, Any]) -> runs.Run:
  """Data, labels and networks of a run's settings, on one device.

  Raises:
    UserError: settings of another version, or a data set that is gone.
  """
  cfg = config.default().lock()
  try:
    cfg.update(settings)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    reason = str(error).strip('\'"').splitlines()[0]
    raise UserError(
      f'config.json has settings of another version: {reason}'
    ) from error
  # The run may have had devices that are not here; nothing depends on them.
  cfg.num_devices = cfg.accumulate = 1
  cfg.dataset.workers = 0
  return runs.prepare(cfg)


def restore(run: runs.Run, folder: pathlib.Path) -> Network:
  """The newest good checkpoint that can be read; nothing is set aside.

  Of a run that an alarm stopped, one of before; if there is none, the newest.

  Raises:
    CheckpointError: none can.
  """
  steps = checkpoint.steps(str(folder))
  if not steps:
    raise CheckpointError('There is no checkpoint yet.')
  if stop := stop_file.read(folder):
    steps = [n for n in steps if n <= stop.good] or steps
  fresh = train_state.init(
    run.cfg, run.setup.nets, run.setup.optimizer, run.devices
  )
  reason: CheckpointError | None = None
  for step in reversed(steps):
    try:
      return Network(run, _state(run, fresh, folder, step), step)
    except CheckpointError as error:
      reason = reason or error
  raise reason


def _state(run, fresh, folder, step):
  """With what evaluation needs; the rest is as before the first step."""
  like = train_state.like(run.cfg, fresh)
  leaves, tree = jax.tree_util.tree_flatten_with_path(like)
  wanted = ('state.step', 'state.online_', 'state.queue')
  found = checkpoint.read(str(folder), step, wanted)
  portable = []
  for path, kind in leaves:
    name = 'state' + jax.tree_util.keystr(path)
    if not name.startswith(wanted):
      portable.append(np.zeros(kind.shape, kind.dtype))
      continue
    if name not in found or found[name].shape != kind.shape:
      raise CheckpointError(
        f'The checkpoint of step {step} does not fit config.json: {name}.'
      )
    portable.append(found[name])
  state = jax.tree.unflatten(tree, portable)
  return train_state.from_portable(state, run.devices)


def ask(network: Network, source: Any, rows: np.ndarray) -> Said:
  """Runs some images of a source through the network.

  Images that cannot be decoded are left out.
  """
  run, state, _ = network
  cfg = run.cfg

  def forward(state, views):
    outputs, found = encoder_scores.look_up(state, run.setup.nets, cfg, views)
    voted = pseudo_labels.vote(found.labels, found.similarity)
    guesses = encoder_scores.choices(outputs.logits, voted[0])
    return outputs.embedding, *voted, guesses, found.slots, found.similarity

  chosen = sources.Rows(source, rows)
  said, readable = inference.over_images(
    forward, state, chosen, run.devices, cfg.evaluation.batch_size,
    images=crops(run), on_unreadable=lambda name, reason: None,
  )  # fmt: skip
  embeddings, votes, share, guesses, slots, similarity = (
    x[readable] for x in said
  )
  neighbours = _training_rows(network, slots)
  return Said(
      rows[readable], chosen.labels[readable], embeddings, votes, share,
      guesses, neighbours, similarity,
  )  # fmt: skip


def _training_rows(network: Network, slots: np.ndarray) -> np.ndarray:
  """Slots of the queue -> rows of the training images, -1: none."""
  run, state, _ = network
  train = run.data.train
  row_of = {
    sources.number(train, int(row)): int(row)
    for row in np.flatnonzero(run.labels >= 0)
  }
  ids = np.asarray(state.queue.ids)[0]  # [C]
  rows = np.array([row_of.get(int(i), -1) for i in ids])
  return np.where(slots < 0, -1, rows[slots])


def crops(run: runs.Run) -> pipeline.Images:
  """Images as evaluation sees them."""
  return pipeline.Images(
    crop=(run.cfg.views.large_size, run.cfg.evaluation.center)
  )


def some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
  """At most so many of them, at random, in their order."""
  random = np.random.RandomState(seed % 2**32)
  return np.sort(random.permutation(rows)[:most])
