"""A config made ready to run: data, labels, networks, optimiser, devices."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from semppl_jax import config, methods
from semppl_jax.config import upgrade
from semppl_jax.data import datasets, pipeline, sources
from semppl_jax.data import labels as labels_lib
from semppl_jax.data import support as support_lib
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from semppl_jax.models import networks as networks_lib
from semppl_jax.train import (
  device_memory,
  initial_weights,
  optimizers,
  schedules,
  state,
  step,
)
from semppl_jax.workdir import run_log


class TrainRun(NamedTuple):
  """What a run is made of, ready to take its first step."""

  cfg: ml_collections.FrozenConfigDict
  data: sources.Dataset
  labels: np.ndarray  # [N] int32 labels that training sees, -1: none
  images: pipeline.Images  # how training images become arrays
  setup: step.StepSetup
  facts: base.RunFacts
  devices: list[jax.Device]
  # Which labelled images come with every batch; None: the method asks for none
  support: support_lib.Support | None = None
  # [N] int32 labels kept back from training and from scores, -1: none
  calibration: np.ndarray | None = None


def prepare(cfg: ml_collections.ConfigDict) -> TrainRun:
  """Checks the config, reads the data set, builds networks and optimiser."""
  cfg = upgrade.renamed(cfg)
  methods.check_kinds(cfg)  # before any setting is of use
  devices = parallel.some_devices(cfg.num_devices)
  config.validate(cfg, len(devices))
  if cfg.precision == 'bfloat16' and not parallel.has_bfloat16(devices[0]):
    run_log.info(
      f'Warning: {devices[0].device_kind} does not compute in bfloat16 but '
      'imitates it: precision=float32 is faster there.'
    )
  frozen = ml_collections.FrozenConfigDict(cfg)
  data, labels, calibration = labels_lib.known(
    cfg.labels, datasets.load(frozen.dataset), cfg.dataset.path
  )
  if config.uses_labels(cfg) and not np.any(labels >= 0):
    raise UserError(
      f'dataset {cfg.dataset.name!r} {cfg.dataset.path} has no labelled '
      'training image, but labels.per_class, .fraction, .file or .subset is '
      'set.'
    )
  support = None
  if 'support' in cfg:
    support = support_lib.make_support(
      cfg.support, labels, data.class_names, seed=cfg.seed
    )
  facts = _facts(frozen, data, labels)
  method = methods.build(frozen, facts)
  _check_scratch(frozen, method, devices[0])
  setup = step.StepSetup(
    cfg=frozen,
    method=method,
    nets=build_networks(frozen, method, data.num_classes),
    optimizer=build_optimizer(frozen),
    total_steps=facts.total_steps,
    warmup_steps=facts.steps(cfg.optimizer.warmup_epochs),
  )
  images = pipeline.whole(frozen.dataset, data)
  return TrainRun(
    frozen, data, labels, images, setup, facts, devices, support, calibration
  )


def _check_scratch(
  cfg: ml_collections.FrozenConfigDict, method: base.Method, device: jax.Device
) -> None:
  """Refuses a loss that would not fit, whatever the networks take."""
  there, scratch = device_memory.capacity(device), method.scratch
  if not there or scratch is None:
    return
  usable = device_memory.USABLE * there
  if scratch.size > usable:
    raise UserError(
      f'{scratch.setting} is {config.look_up(cfg, scratch.setting)}, but the '
      f'loss of {scratch.images} images takes {scratch.size / 1e9:.2f} GB of '
      f'{there / 1e9:.2f} on each device: set it to '
      f'{max(1, int(usable / scratch.each))} or less, or batch_size lower.'
    )


def _facts(
  cfg: ml_collections.FrozenConfigDict,
  data: sources.Dataset,
  labels: np.ndarray,
) -> base.RunFacts:
  to_steps = functools.partial(
    schedules.to_steps,
    num_examples=len(data.train),
    batch_size=cfg.batch_size,
  )
  return base.RunFacts(
    num_classes=data.num_classes,
    num_images=len(data.train),
    class_share=labels_lib.class_share(labels, data.num_classes),
    num_labels=int(np.sum(labels >= 0)),
    total_steps=to_steps(cfg.num_epochs),
    steps=to_steps,
  )


def build_networks(
  cfg: ml_collections.FrozenConfigDict,
  method: base.Method,
  num_classes: int,
  cross_replica: bool = True,
) -> networks_lib.Networks:
  """Encoder, the objective's heads and the monitoring classifier."""
  encoder = cfg.encoder
  monitored = 'classifier' in cfg and config.uses_labels(cfg)
  return networks_lib.build(
    encoder=encoder.name,
    width=encoder.width,
    stem=encoder.stem,
    selective_kernels=encoder.selective_kernels,
    padding=encoder.padding,
    heads=method.heads,
    num_classes=num_classes if monitored else 0,
    classifier_detached=not monitored or cfg.classifier.detached,
    bn_decay=encoder.bn_decay,
    bn_eps=encoder.bn_eps,
    cross_replica=cross_replica,
    precision=cfg.precision,
    remat=cfg.remat,
    zero_init_residual=encoder.zero_init_residual,
  )


def build_optimizer(
  cfg: ml_collections.FrozenConfigDict,
) -> optax.GradientTransformationExtraArgs:
  """The optimiser of the config, which takes the learning rate of a step."""
  opt = cfg.optimizer
  decay = {'weight_decay': opt.weight_decay}
  momentum = {'momentum': opt.momentum}
  own = {
    'lars': decay
    | momentum
    | {
      'trust_coefficient': opt.trust_coefficient,
      'rate_in_momentum': opt.rate_in_momentum,
    },
    'adamw': decay | {'b1': opt.b1, 'b2': opt.b2},
    'sgd': momentum,
    'sgd_l2': decay | momentum,
    'larc': decay | momentum | {'trust_coefficient': opt.trust_coefficient},
  }
  return optimizers.build(opt.name, **own.get(opt.name, {}))


def initial_state(
  run: TrainRun, start: initial_weights.Start | None = None
) -> state.TrainState:
  """The state before the first step, leaves [D, ...].

  Args:
    run: networks and settings.
    start: weights in place of random ones, see `initial_weights.load`.
  """
  setup = run.setup
  return state.init(
    setup.cfg, setup.method, setup.nets, setup.optimizer, run.devices, start
  )


def input_batches(
  run: TrainRun,
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
    host_index=processes.index(),
    host_count=processes.count(),
    parts=run.cfg.accumulate,
    labelled_share=run.cfg.labels.share,
    support=run.support,
    workers=run.cfg.dataset.workers,
    images=run.images,
    on_unreadable=on_unreadable,
  )
