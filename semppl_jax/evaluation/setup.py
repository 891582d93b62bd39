"""An evaluation made ready: checkpoint, data, labels, devices; its features."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from semppl_jax import config
from semppl_jax.config import eval_config
from semppl_jax.data import datasets, pipeline, sources
from semppl_jax.data import labels as labels_lib
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.evaluation import features as features_lib
from semppl_jax.models import networks
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import lock, run_log


class EvalRun(NamedTuple):
  """What an evaluation is made of."""

  cfg: ml_collections.FrozenConfigDict
  data: sources.Dataset | None  # None: see `prepare_without_data`
  labels: np.ndarray  # [N] int32 labels of training images that may be used
  checkpoint: load_lib.Checkpoint
  nets: networks.Networks
  devices: list[jax.Device]
  unreadable: run_log.Unreadable


def prepare(cfg: ml_collections.ConfigDict, step: int | None = None) -> EvalRun:
  """Checks the config, reads the checkpoint and the data set.

  Args:
    cfg: the resolved config.
    step: of a run's checkpoint; None: the newest.
  """
  run = prepare_without_data(cfg, step)
  data = datasets.load(cfg.dataset)
  _tell(data.notes)
  if data.test is None or not np.any(data.test.labels >= 0):
    raise UserError(
      f'dataset {cfg.dataset.name!r} {cfg.dataset.path} has no test image '
      'with a label: there is nothing to evaluate on.'
    )
  told = len(data.notes)
  data, labels = _known(cfg, data)
  _tell(data.notes[told:])
  return run._replace(data=data, labels=labels)


def _tell(notes: Sequence[str]) -> None:
  for note in notes:
    run_log.info(f'Note: {note}.')


def prepare_without_data(
  cfg: ml_collections.ConfigDict, step: int | None = None
) -> EvalRun:
  """`prepare` but for the data set, for evaluations of many."""
  processes.require_single('Evaluation')
  devices = parallel.some_devices(cfg.num_devices)
  eval_config.validate(cfg, len(devices))
  loaded = load_lib.load_checkpoint(
    cfg.checkpoint,
    step=step,
    padding=cfg.encoder.padding or None,
    mapping=cfg.mapping or None,
    network=cfg.evaluation.network or None,
    or_other=True,  # for a line that names the setting
  )
  _check_network(cfg, loaded)
  _check_architecture(cfg, loaded)
  return EvalRun(
    cfg=ml_collections.FrozenConfigDict(cfg),
    data=None,
    labels=np.zeros(0, np.int32),
    checkpoint=loaded,
    nets=networks_of(cfg, loaded),
    devices=devices,
    unreadable=run_log.Unreadable(),
  )


def networks_of(
  cfg: ml_collections.ConfigDict, checkpoint: load_lib.Checkpoint
) -> networks.Networks:
  """The checkpoint's; with `features` of what the task trains a classifier on.

  Raises:
    UserError: classifier.on names a layer that the checkpoint does not have.
  """
  if cfg.task not in eval_config.TRAIN_A_CLASSIFIER:
    return checkpoint.network()
  wanted = cfg.classifier.on
  there = architecture_lib.layers(checkpoint.params)
  if wanted not in there:
    raise UserError(
      f'classifier.on is {wanted!r}, which {cfg.checkpoint} does not have; it '
      f'has {", ".join(there)}.'
    )
  return checkpoint._replace(classifier_on=wanted).network()


def _check_network(
  cfg: ml_collections.ConfigDict, loaded: load_lib.Checkpoint
) -> None:
  wanted = cfg.evaluation.network
  if wanted not in ('', loaded.weights_of):
    raise CheckpointError(
      f'{cfg.checkpoint} holds the {loaded.weights_of} network alone, but '
      f'evaluation.network is {wanted!r}: set it to {loaded.weights_of}.'
    )


def no_classifier(run: EvalRun) -> CheckpointError:
  """What to raise where a task needs the checkpoint's classifier."""
  if run.checkpoint.weights_of == 'target':
    return CheckpointError(
      f'the target network of {run.cfg.checkpoint} has no classifier: '
      'evaluation.network=online has it, if one was trained.'
    )
  return CheckpointError(f'{run.cfg.checkpoint} has no classifier.')


def _check_architecture(
  cfg: ml_collections.ConfigDict, loaded: load_lib.Checkpoint
) -> None:
  found = loaded.architecture
  for key, value in (('name', found.encoder), ('width', found.width)):
    wanted = cfg.encoder[key]
    if wanted and wanted != value:
      raise CheckpointError(
        f'{cfg.checkpoint} is a {found}, but encoder.{key} is {wanted!r}.'
      )


def _known(
  cfg: ml_collections.ConfigDict, data: sources.Dataset
) -> tuple[sources.Dataset, np.ndarray]:
  labels = np.asarray(data.train.labels, np.int32)
  if config.uses_labels(cfg):
    data, labels, _ = labels_lib.known(cfg.labels, data, cfg.dataset.path)
  if cfg.task != 'classifier' and not np.any(labels >= 0):
    raise UserError(
      f'dataset {cfg.dataset.name!r} {cfg.dataset.path} has no labelled '
      'training image to learn from.'
    )
  return data, labels


def claimed_workdir(
  run: EvalRun, workdir: str
) -> contextlib.AbstractContextManager[None]:
  """Refuses a folder of another evaluation, of other weights, or in use."""
  identity = {'digest': load_lib.digest(run.checkpoint)}
  identity |= load_lib.settings(run.checkpoint)._asdict()
  settings = run.cfg.to_dict() | {'weights': identity}
  return lock.claimed(workdir, settings, ignore=eval_config.COSMETIC)


def features_size(run: EvalRun) -> int:
  """The size of what the classifier sees."""
  forward = functools.partial(run.nets.features, is_training=False)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  features, _ = jax.eval_shape(
    forward, run.checkpoint.params, run.checkpoint.state, images
  )
  return features.shape[-1]


def replicated(run: EvalRun, tree: Any) -> Any:
  """Copies of a tree on all devices: leaves [D, ...]."""
  copies = parallel.replicate(tree, len(run.devices))
  return parallel.put_sharded(copies, run.devices)


def embed(
  run: EvalRun, source: Any, params: Any, bn_state: Any, of: str = 'embedding'
) -> tuple[np.ndarray, np.ndarray]:
  """What the network makes of the middle of every image.

  Args:
    run: networks and settings.
    source: N records, by index.
    params: leaves [D, ...].
    bn_state: leaves [D, ...].
    of: 'embedding' (the encoder's), 'features' (what the classifier sees),
      'projection', 'prediction', or 'logits' of the checkpoint's classifier.

  Returns:
    [N, e] float32, and which images could be decoded, [N] bool.
  """
  (found,), readable = features_lib.over_images(
    _forward(run.nets, of), (params, bn_state), source, run.devices,
    run.cfg.evaluation.batch_size, images=center_crops(run.cfg),
    workers=run.cfg.dataset.workers, on_unreadable=run.unreadable,
  )  # fmt: skip
  return found, readable


# One function for all data sets: JAX compiles anew for every other one.
@functools.lru_cache(maxsize=4)
def _forward(
  nets: networks.Networks, of: str
) -> Callable[..., tuple[jax.Array]]:
  """((params, bn_state), images) -> the output that is asked for."""

  def forward(state, views):
    params, bn_state = state
    if of == 'embedding':
      return (nets.encode(params, bn_state, views, False)[0],)
    if of == 'features':
      return (nets.features(params, bn_state, views, False)[0],)
    if of == 'projection':
      params, bn_state = map(nets.target_tree, (params, bn_state))
      return (nets.target(params, bn_state, views, False)[0]['projection'],)
    return (nets.online(params, bn_state, views, False)[0][of],)

  return forward


def center_crops(cfg: ml_collections.FrozenConfigDict) -> pipeline.Images:
  """Crops of the middle, as the release's evaluation sees an image."""
  return pipeline.Images(
    crop=(cfg.crops.size, cfg.crops.center), on_corrupt=cfg.dataset.on_corrupt
  )
