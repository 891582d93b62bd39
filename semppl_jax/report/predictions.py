"""What a run's network says of its images. Reads the run, writes nothing."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from semppl_jax import checkpoint, config
from semppl_jax.data import pipeline, sources
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.evaluation import features as features_lib
from semppl_jax.evaluation import final_scores, knn
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.utils.text import first_line
from semppl_jax.workdir import stop_file

NEIGHBOURS = 4  # of an image
_MOST_LABELLED = 2000


class Predictions(NamedTuple):
  """Of n images of a source."""

  rows: np.ndarray  # [n] int, of the source
  truth: np.ndarray  # [n] int32, -1: unknown
  embeddings: np.ndarray  # [n, e] float32, the encoder's
  labels: np.ndarray  # [n] int32 predicted, -1: none
  neighbours: np.ndarray  # [n, k] int, labelled training rows, nearest first
  similarity: np.ndarray  # [n, k] float32, cosine of embeddings


class Labelled(NamedTuple):
  """Labelled training images, among which neighbours are looked up."""

  rows: np.ndarray  # [M] int
  embeddings: np.ndarray  # [M, e] float32


class Network(NamedTuple):
  """A run whose data set is at hand, with the newest checkpoint's network."""

  run: run_lib.TrainRun
  state: state_lib.TrainState
  step: int


def prepare(settings: Mapping[str, Any]) -> run_lib.TrainRun:
  """Data, labels and networks of a run's settings, on one device.

  Raises:
    UserError: settings of another version, or a data set that is gone.
  """
  cfg = config.default(settings.get('method', 'semppl')).lock()
  try:
    cfg.update(settings)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    reason = first_line(error).strip('\'"')
    raise UserError(
      f'config.json has settings of another version: {reason}'
    ) from error
  # The run may have had devices that are not here; nothing depends on them.
  cfg.num_devices = cfg.accumulate = 1
  cfg.dataset.workers = 0
  return run_lib.prepare(cfg)


def restore(run: run_lib.TrainRun, folder: pathlib.Path) -> Network:
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
  fresh = run_lib.initial_state(run)
  reason: CheckpointError | None = None
  for step in reversed(steps):
    try:
      return Network(run, _state(run, fresh, folder, step), step)
    except CheckpointError as error:
      reason = reason or error
  raise reason


def _state(run, fresh, folder, step):
  """With what evaluation needs; the rest is as before the first step."""
  method = run.setup.method
  like = state_lib.abstract_state(fresh, method, len(run.devices))
  wanted = ('state.step', 'state.online_', 'state.memory')
  if run.cfg.evaluation.network == 'target':
    wanted += ('state.target_',)
  found = checkpoint.read(str(folder), step, wanted)

  def leaf(path, kind):
    name = 'state' + jax.tree_util.keystr(path)
    if not name.startswith(wanted):
      return np.zeros(kind.shape, kind.dtype)
    if name not in found or found[name].shape != kind.shape:
      raise CheckpointError(
        f'The checkpoint of step {step} does not fit config.json: {name}.'
      )
    return found[name]

  state = jax.tree_util.tree_map_with_path(leaf, like)
  return state_lib.from_host(state, method, run.devices)


def labelled(network: Network) -> Labelled:
  """Embeddings of the labelled training images, of some if there are many."""
  run = network.run
  rows = some(np.flatnonzero(run.labels >= 0), _MOST_LABELLED, run.cfg.seed)
  if not len(rows):
    return Labelled(rows, np.zeros((0, 1), np.float32))
  found = _features(network, sources.Rows(run.data.train, rows))
  return Labelled(rows[found.readable], found.embeddings[found.readable])


def predict(
  network: Network, source: Any, rows: np.ndarray, support: Labelled
) -> Predictions:
  """Runs some images of a source through the network.

  Images that cannot be decoded are left out.

  Args:
    network: of a run.
    source: of images.
    rows: which of them.
    support: the images that may be neighbours.
  """
  chosen = sources.Rows(source, rows)
  found = _features(network, chosen)
  labels = final_scores.pseudo_labels_of(found, network.run.cfg)
  readable = found.readable
  embeddings = found.embeddings[readable]
  nearest = np.zeros((len(embeddings), 0), int)
  similarity = nearest.astype(np.float32)
  if len(support.rows) and len(embeddings):
    nearest, similarity = knn.neighbours(
      embeddings, support.embeddings, NEIGHBOURS
    )
    nearest = support.rows[nearest]
  return Predictions(
    rows[readable],
    chosen.labels[readable],
    embeddings,
    labels[readable],
    nearest,
    similarity,
  )


def _features(network: Network, source: Any) -> features_lib.Features:
  run = network.run
  return features_lib.features(
    network.state,
    run.setup.method,
    run.setup.nets,
    run.cfg,
    source,
    run.devices,
    on_unreadable=lambda name, reason: None,
  )


def crops(run: run_lib.TrainRun) -> pipeline.Images:
  """Images as evaluation sees them."""
  return pipeline.Images(
    crop=(run.cfg.views.large_size, run.cfg.evaluation.center)
  )


def some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
  """At most so many of them, at random, in their order."""
  random = np.random.RandomState(seed % 2**32)
  return np.sort(random.permutation(rows)[:most])
