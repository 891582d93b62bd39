"""An evaluation made ready: checkpoint, data, labels, devices; and features."""

from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from semppl_jax import (
  config,
  crops,
  encoders,
  eval_config,
  inference,
  networks,
  parallel,
  weights,
)
from semppl_jax.data import sources, subsets
from semppl_jax.errors import CheckpointError, UserError


class EvalRun(NamedTuple):
  """What an evaluation is made of."""

  cfg: ml_collections.FrozenConfigDict
  data: sources.Dataset
  labels: np.ndarray  # [N] int32 labels of training images that may be used
  weights: weights.Checkpoint
  nets: networks.Networks
  devices: list[jax.Device]


def prepare(cfg: ml_collections.ConfigDict, step: int | None = None) -> EvalRun:
  """Checks the config, reads the checkpoint and the data set.

  Args:
    cfg: the resolved config.
    step: of a run's checkpoint; None: the newest.
  """
  devices = parallel.some_devices(cfg.num_devices)
  eval_config.validate(cfg, len(devices))
  loaded = weights.load_checkpoint(
    cfg.checkpoint,
    step=step,
    padding=cfg.encoder.padding or None,
    mapping=cfg.mapping or None,
  )
  _check_architecture(cfg, loaded)
  data = sources.load(cfg.dataset)
  if data.test is None or not np.any(data.test.labels >= 0):
    raise UserError(
      f'dataset {cfg.dataset.name!r} {cfg.dataset.path} has no test image '
      'with a label: there is nothing to evaluate on.'
    )
  frozen = ml_collections.FrozenConfigDict(cfg)
  labels = _labels(cfg, data)
  return EvalRun(frozen, data, labels, loaded, loaded.network(), devices)


def _check_architecture(
  cfg: ml_collections.ConfigDict, loaded: weights.Checkpoint
) -> None:
  found = loaded.architecture
  for key, value in (('name', found.encoder), ('width', found.width)):
    wanted = cfg.encoder[key]
    if wanted and wanted != value:
      raise CheckpointError(
        f'{cfg.checkpoint} is a {found}, but encoder.{key} is {wanted!r}.'
      )


def _labels(
  cfg: ml_collections.ConfigDict, data: sources.Dataset
) -> np.ndarray:
  labels = np.asarray(data.train.labels, np.int32)
  if config.uses_labels(cfg):
    labels = subsets.visible_labels(cfg.labels, data)
  if cfg.task != 'classifier' and not np.any(labels >= 0):
    raise UserError(
      f'dataset {cfg.dataset.name!r} {cfg.dataset.path} has no labelled '
      'training image to learn from.'
    )
  return labels


def output_size(run: EvalRun) -> int:
  """e, the size of the encoder's embedding."""
  return encoders.output_size(run.weights.architecture)


def on_devices(run: EvalRun, tree: Any) -> Any:
  """Copies of a tree on all devices: leaves [D, ...]."""
  copies = parallel.replicate(tree, len(run.devices))
  return parallel.place(copies, run.devices)


def embed(
  run: EvalRun, source: Any, params: Any, bn_state: Any, of: str = 'embedding'
) -> np.ndarray:
  """What the network makes of the middle of every image.

  Args:
    run: networks and settings.
    source: N records with 'image', by index.
    params: leaves [D, ...].
    bn_state: leaves [D, ...].
    of: 'embedding' (the encoder's), 'projection' or 'prediction'.

  Returns:
    [N, e] float32.
  """

  def forward(state, images):
    params, bn_state = state
    views = crops.center_crops(
      images, size=run.cfg.crops.size, share=run.cfg.crops.center
    )
    if of == 'embedding':
      return (run.nets.encode(params, bn_state, views, False)[0],)
    if of == 'projection':
      params, bn_state = map(networks.target_tree, (params, bn_state))
      return (run.nets.target(params, bn_state, views, False)[0].projection,)
    return (run.nets.online(params, bn_state, views, False)[0].prediction,)

  return inference.over_images(
    forward, (params, bn_state), source, run.devices,
    run.cfg.evaluation.batch_size,
  )[0]  # fmt: skip
