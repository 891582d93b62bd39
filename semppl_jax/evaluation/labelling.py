"""Labels for all the rest: pseudo-labels of a run, and how sure they are.

Where a run has a queue of labelled images, they choose the label, as in
training: the online network's predictions of several views are compared with
the target projections in the queue. How sure it is, the encoder says: its
embeddings are compared with those of the labelled images. Training confirms
what the queue voted, so that of itself the queue is sure of everything. Without
a queue the encoder does both.
"""

import collections
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from semppl_jax.data import pipeline, sources
from semppl_jax.errors import UserError
from semppl_jax.evaluation import calibration as calibration_lib
from semppl_jax.evaluation import features, run_network
from semppl_jax.evaluation import votes as votes_lib
from semppl_jax.evaluation.measures import accuracy
from semppl_jax.models.multicrop import l2_normalize
from semppl_jax.train import state as state_lib

# Of the side that evaluation sees: views of the middle [ours].
_CENTERS = (1.0, 0.85, 0.7)
_AT_ONCE = 2048  # images whose views and votes are in memory [ours]


class Network(NamedTuple):
  """What embeds images, on some devices."""

  # (state, crops) -> embeddings [b, F, e] and, where there is a queue, queries
  # [b, F, d], unit vectors; F: the image and, where views are, its mirror image
  forward: features.Forward
  state: Any  # leaves [D, ...]
  devices: list[jax.Device]
  batch_size: int
  size: int  # of the square that it sees, in pixels
  center: float  # side of that square / shorter side, before resizing
  on_corrupt: str = 'replace'
  workers: int = 0


class Job(NamedTuple):
  """Images to label, and who says what they are."""

  source: sources.Source
  labels: np.ndarray  # [N] int32 labels that votes go by, -1: none
  calibration: np.ndarray  # [N] int32 labels that are compared with, -1: none
  class_names: Sequence[str]  # K
  network: Network
  voters: votes_lib.Voters  # by the encoder
  queue: votes_lib.Voters | None = None  # who chooses; None: the encoder


class Labelling(NamedTuple):
  """Pseudo-labels of n images, the most doubtful first."""

  rows: np.ndarray  # [n] int, of the source
  votes: votes_lib.Votes  # of them, in this order
  probability: np.ndarray | None  # [n] float32 of being right; None: not known
  summary: dict[str, Any]  # what it is, and how good, for JSON


def of_run(found: run_network.Network, most: int = 0) -> Job:
  """All images of a run.

  Args:
    found: the run.
    most: so many labelled images say how sure a label is, at random; 0: all.

  Raises:
    UserError: the run has no labelled image, or none in its queue.
  """
  run, cfg = found.run, found.run.cfg
  if not np.any(run.labels >= 0):
    raise UserError(
      'The run has no labelled image, so that nothing can vote: train with '
      'labels.per_class, .fraction or .file.'
    )
  queue = run.setup.method.queue
  forward = _forward_of_run(
    run.setup.nets,
    cfg.evaluation.network,
    queue is not None,
    cfg.views.flip > 0,
  )
  network = Network(
    forward, found.state, run.devices, cfg.evaluation.batch_size,
    cfg.views.large_size, cfg.evaluation.center, cfg.dataset.on_corrupt,
    cfg.dataset.workers,
  )  # fmt: skip
  train = run.data.train
  job = of_images(
    network, train, run.labels, run.data.class_names, run.calibration, most
  )
  if queue is None:
    return job
  labelled = map(int, np.flatnonzero(run.labels >= 0))
  row_of = {sources.number(train, row): row for row in labelled}
  state = state_lib.to_host(found.state, run.setup.method, run.devices)
  entries = votes_lib.of_queue(queue(state.memory), row_of)
  if not len(entries.rows):
    raise UserError('The queue of the run has no labelled image yet.')
  return job._replace(queue=entries)


def of_images(
  network: Network,
  source: sources.Source,
  labels: np.ndarray,
  class_names: Sequence[str],
  calibration: np.ndarray | None = None,
  most: int = 0,
) -> Job:
  """All images of a source, by the encoder alone.

  Args:
    network: whose first output is the encoder's embedding.
    source: N images.
    labels: [N] int32, -1: none.
    class_names: K.
    calibration: [N] int32 labels that do not vote, -1: none; None: no image has
      one.
    most: so many labelled images vote, at random; 0: all.

  Raises:
    UserError: no labelled image, or none that can be decoded.
  """
  if calibration is None:
    calibration = np.full(len(labels), -1, np.int32)
  rows = np.flatnonzero(labels >= 0)
  if not len(rows):
    raise UserError('There is no labelled image: nothing can vote.')
  if most and len(rows) > most:
    rows = np.sort(np.random.RandomState(0).permutation(rows)[:most])
  views, readable = _embed(network, sources.Rows(source, rows), (1.0,))
  rows = rows[readable]
  if not len(rows):
    raise UserError('None of the labelled images can be decoded.')
  voters = votes_lib.Voters(views[0][:1, readable], labels[rows], rows)
  return Job(source, labels, calibration, class_names, network, voters)


# One function for all images: JAX compiles anew for every other one.
@functools.lru_cache(maxsize=4)
def _forward_of_run(
  nets: Any, network: str, with_queue: bool, mirrored: bool
) -> features.Forward:
  """See `Network`; queries are what `methods.semppl.predict` looks up by."""

  def embed(state, views):
    trees = state.online_params, state.online_state
    apply = nets.online
    if network == 'target':
      trees = state.target_params, state.target_state
      apply = nets.target
    embedding = nets.encode(*trees, views, False)[0]
    if not with_queue:
      return (embedding,)
    outputs = apply(*trees, views, False)[0]
    return embedding, outputs.get('prediction', outputs['projection'])

  return with_mirror_image(embed) if mirrored else one_view(embed)


def with_mirror_image(
  embed: Callable[[Any, jax.Array], tuple[jax.Array, ...]],
) -> features.Forward:
  """(state, images [b, S, S, 3]) -> unit vectors [b, 2, ..] of [b, ..]."""

  def forward(state, views):
    pairs = zip(embed(state, views), embed(state, views[:, :, ::-1]))
    return tuple(l2_normalize(jnp.stack(pair, axis=1)) for pair in pairs)

  return forward


def one_view(
  embed: Callable[[Any, jax.Array], tuple[jax.Array, ...]],
) -> features.Forward:
  """The same of the images alone: [b, 1, ..]."""

  def forward(state, views):
    return tuple(l2_normalize(x)[:, None] for x in embed(state, views))

  return forward


def _embed(
  network: Network, source: Any, centers: Sequence[float]
) -> tuple[list[np.ndarray], np.ndarray]:
  """Each output, [V, n, ..] views of n images; and which could be decoded."""
  found, readable = [], np.ones(len(source), bool)
  for share in centers:
    images = pipeline.Images(
      crop=(network.size, network.center * share),
      on_corrupt=network.on_corrupt,
    )
    outputs, known = features.over_images(
      network.forward, network.state, source, network.devices,
      network.batch_size, images=images, workers=network.workers,
      on_unreadable=lambda name, reason: None,
    )  # fmt: skip
    found.append([np.moveaxis(x, 1, 0) for x in outputs])
    readable &= known
  return [np.concatenate(views) for views in zip(*found)], readable


def embeddings(job: Job, rows: np.ndarray) -> np.ndarray:
  """[n, e] the encoder's, unit vectors, of images as evaluation sees them."""
  (views, *_), _ = _embed(job.network, sources.Rows(job.source, rows), (1.0,))
  return views[0]


def label(
  job: Job, rows: np.ndarray | None = None, *, progress: bool = False
) -> Labelling:
  """Pseudo-labels with their shares, and what these are worth.

  Memory is bounded: so many images are looked at together. With enough
  calibration labels the shares become probabilities.

  Args:
    job: the images.
    rows: which of them; None: all that have no label. Calibration images are
      looked at in any case.
    progress: whether a bar is shown.
  """
  if rows is None:
    rows = np.flatnonzero(job.labels < 0)
  rows = np.union1d(rows, np.flatnonzero(job.calibration >= 0)).astype(int)
  parts, kept = [], []
  bar = tqdm.tqdm(
    total=len(rows),
    unit='image',
    disable=not progress,
    mininterval=0.5 if sys.stderr.isatty() else 30.0,  # as run_log's
  )
  with bar:
    # At least once, so that of no image there are empty arrays.
    for start in range(0, max(len(rows), 1), _AT_ONCE):
      part = rows[start : start + _AT_ONCE]
      votes, readable = _vote(job, part)
      parts.append(votes)
      kept.append(part[readable])
      bar.update(len(part))
  votes = votes_lib.Votes(*map(np.concatenate, zip(*parts)))
  left = np.concatenate(kept)
  order = np.lexsort((left, votes.share - votes.runner_up_share, votes.share))
  votes = votes_lib.Votes(*(x[order] for x in votes))
  return _judged(job, left[order], votes, len(rows) - len(left))


def _vote(job: Job, rows: np.ndarray) -> tuple[votes_lib.Votes, np.ndarray]:
  if not len(rows):
    empty = np.zeros((1, 0, job.voters.keys.shape[-1]), np.float32)
    none = votes_lib.vote(empty, job.voters, len(job.class_names))
    return none, np.zeros(0, bool)
  source = sources.Rows(job.source, rows)
  outputs, readable = _embed(job.network, source, _CENTERS)
  outputs = [views[:, readable] for views in outputs]
  chosen_by = None
  if job.queue is not None:
    chosen_by = votes_lib.shares(outputs[1], job.queue, len(job.class_names))
  return (
    votes_lib.vote(outputs[0], job.voters, len(job.class_names), chosen_by),
    readable,
  )


def _judged(
  job: Job, rows: np.ndarray, votes: votes_lib.Votes, unreadable: int
) -> Labelling:
  """What the votes are worth, by calibration labels and by the truth."""
  kept = job.calibration[rows] >= 0
  right = votes.labels == job.calibration[rows]
  probability, calibrated = None, {'calibration_images': int(kept.sum())}
  if kept.sum() >= calibration_lib.FEWEST:
    share, right = votes.share[kept], right[kept]
    platt = calibration_lib.fit(share, right)
    probability = platt(votes.share)
    error = calibration_lib.expected_calibration_error
    held_out = calibration_lib.cross_validated(share, right)
    calibrated |= {
      'platt': platt._asdict(),
      'ece_of_share': error(share, right),
      'ece_of_probability': error(held_out, right),
    }
  truth = np.asarray(job.source.labels)[rows]
  known = truth >= 0
  tenths = calibration_lib.tenths(
    votes.share[known], (votes.labels == truth)[known]
  )
  summary = {
    'images': len(rows),
    'labelled_images': len(job.voters.rows),
    'unreadable_images': unreadable,
    'images_of_shared_names': _of_shared_names(job.source),
    'chosen_by': 'encoder' if job.queue is None else 'queue',
    'views': list(_CENTERS),
    'accuracy': accuracy(votes.labels, truth),
    'images_of_known_class': int(known.sum()),
    'tenths_by_share': [part._asdict() for part in tenths],
  }
  return Labelling(rows, votes, probability, summary | calibrated)


def _of_shared_names(source: sources.Source) -> int:
  """Images that no list can name, since others are called the same."""
  counts = collections.Counter(source.names or ())
  return sum(count for count in counts.values() if count > 1)
