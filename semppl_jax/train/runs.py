"""A config made ready to run: data, labels, networks, optimiser, devices."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from semppl_jax import config
from semppl_jax.data import datasets, pipeline, sources, subsets
from semppl_jax.distributed import hosts, parallel
from semppl_jax.errors import UserError
from semppl_jax.models import networks as networks_lib
from semppl_jax.train import optimizers, pretrain_step, schedules
from semppl_jax.workdir import run_log


class Run(NamedTuple):
  """What a run is made of, ready to take its first step."""

  cfg: ml_collections.FrozenConfigDict
  data: sources.Dataset
  labels: np.ndarray  # [N] int32 labels that training sees, -1: none
  images: pipeline.Images  # how training images become arrays
  setup: pretrain_step.Setup
  devices: list[jax.Device]


def prepare(cfg: ml_collections.ConfigDict) -> Run:
  """Checks the config, reads the data set, builds networks and optimiser."""
  devices = parallel.some_devices(cfg.num_devices)
  config.validate(cfg, len(devices))
  if cfg.precision == 'bfloat16' and not parallel.has_bfloat16(devices[0]):
    run_log.say(
      f'Warning: {devices[0].device_kind} does not compute in bfloat16 but '
      'imitates it: precision=float32 is faster there.'
    )
  frozen = _with_negatives_that_exist(cfg)
  data = datasets.load(frozen.dataset)
  labels = subsets.visible_labels(cfg.labels, data, cfg.dataset.path)
  if config.uses_labels(cfg) and not np.any(labels >= 0):
    raise UserError(
      f'dataset {cfg.dataset.name!r} {cfg.dataset.path} has no labelled '
      'training image, but labels.per_class, .fraction, .file or .subset is '
      'set.'
    )
  _check_labels(cfg, labels, data.num_classes)
  to_steps = functools.partial(
    schedules.to_steps,
    num_examples=len(data.train),
    batch_size=cfg.batch_size,
  )
  setup = pretrain_step.Setup(
    cfg=frozen,
    nets=networks_lib.build(
      encoder=cfg.encoder.name,
      width=cfg.encoder.width,
      stem=cfg.encoder.stem,
      selective_kernels=cfg.encoder.selective_kernels,
      padding=cfg.encoder.padding,
      projector_hidden=cfg.encoder.projector_hidden,
      embedding_size=cfg.encoder.embedding_size,
      num_classes=data.num_classes if config.uses_labels(cfg) else 0,
      classifier_detached=cfg.classifier.detached,
      bn_decay=cfg.encoder.bn_decay,
      bn_eps=cfg.encoder.bn_eps,
      precision=cfg.precision,
      remat=cfg.remat,
    ),
    optimizer=build_optimizer(frozen),
    total_steps=to_steps(cfg.num_epochs),
    warmup_steps=to_steps(cfg.optimizer.warmup_epochs),
    target_query_steps=to_steps(cfg.queue.target_query_epochs),
    exclude_after_steps=to_steps(cfg.loss.exclude_after_epochs),
    class_share=subsets.class_share(labels, data.num_classes),
  )
  images = pipeline.whole(frozen.dataset, data)
  return Run(frozen, data, labels, images, setup, devices)


def _with_negatives_that_exist(
  cfg: ml_collections.ConfigDict,
) -> ml_collections.FrozenConfigDict:
  """The settings; in a small batch all other images are negatives."""
  others = cfg.batch_size - 1
  if cfg.loss.num_negatives > others:
    run_log.say(
      f'Note: batch_size {cfg.batch_size} has {others} negatives for an image, '
      f'not loss.num_negatives {cfg.loss.num_negatives}: all of them are taken.'
    )
    cfg = cfg.copy_and_resolve_references()
    cfg.loss.num_negatives = others
  return ml_collections.FrozenConfigDict(cfg)


def _check_labels(
  cfg: ml_collections.ConfigDict, labels: np.ndarray, num_classes: int
) -> None:
  """What is wrong with how many images of which class have labels."""
  if not config.uses_semantic_positives(cfg):
    return
  if (
    np.count_nonzero(subsets.class_share(labels, num_classes))
    <= 1
    < (num_classes)
  ):
    run_log.say('Warning: all labelled images are of one class.')
  natural = min(cfg.batch_size, int(np.sum(labels >= 0)))
  most = round(cfg.labels.share * cfg.batch_size) or natural
  if cfg.accumulate > 1 and most > cfg.queue.capacity:
    raise UserError(
      f'accumulate is {cfg.accumulate}, but of up to {most} labelled images in '
      f'a batch only queue.capacity {cfg.queue.capacity} find a place, and the '
      'semantic terms are means over the whole batch: set one of them back.'
    )


def build_optimizer(
  cfg: ml_collections.FrozenConfigDict,
) -> optax.GradientTransformation:
  """The optimiser of the config, without its learning rate."""
  opt = cfg.optimizer
  decay = {'weight_decay': opt.weight_decay}
  momentum = {'momentum': opt.momentum}
  own = {
    'lars': decay | momentum | {'trust_coefficient': opt.trust_coefficient},
    'adamw': decay | {'b1': opt.b1, 'b2': opt.b2},
    'sgd': momentum,
  }
  return optimizers.build(opt.name, **own.get(opt.name, {}))


def input_batches(
  run: Run,
  start: int,
  on_unreadable: pipeline.OnUnreadable | None = None,
  skipped: int = 0,
) -> Iterator[tuple[Any, np.ndarray]]:
  """This host's part of the batches from step `start` on.

  A pure function of seed and step.

  Args:
    run: data and settings.
    start: the number of steps done.
    on_unreadable: see `pipeline.batches`.
    skipped: so many batches before these were left out.
  """
  return pipeline.batches(
    run.data.train,
    run.labels,
    seed=run.cfg.seed,
    batch_size=run.cfg.batch_size,
    start_step=start + skipped,
    num_steps=run.setup.total_steps - start,
    host_index=hosts.index(),
    host_count=hosts.count(),
    parts=run.cfg.accumulate,
    labelled_share=run.cfg.labels.share,
    workers=run.cfg.dataset.workers,
    images=run.images,
    on_unreadable=on_unreadable,
  )
