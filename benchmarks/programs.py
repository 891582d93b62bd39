"""The step and parts of it as programs of their own, on noise.

What the other benchmarks count, compile or time. Shapes are those of
`train/step.py`; labels: every tenth image has one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments import imagenet
from semppl_jax import types
from semppl_jax.distributed import parallel
from semppl_jax.memory import label_queue
from semppl_jax.models import multicrop
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.train import step as step_lib

TENTH = 10


class Program(NamedTuple):
  """A function of (state, batch, key), and what it is called with."""

  step: Callable[..., tuple]  # to be mapped over devices
  state: Any  # leaves [D, ...]
  batch: Any  # leaves [D, ...]


def settings(
  encoder: str, batch_size: int, sizes: Sequence[int], capacity: int, **others
) -> ml_collections.ConfigDict:
  """The ImageNet experiment with another network and other sizes.

  Args:
    encoder: a key of encoders.ENCODERS.
    batch_size: B, on one device.
    sizes: of the canvas, of large and of small views, pixels.
    capacity: C, of one device's part of the queue.
    **others: settings by their names, with __ for a dot.
  """
  cfg = imagenet.get_config()
  cfg.batch_size, cfg.encoder.name = batch_size, encoder
  cfg.dataset.image_size, cfg.views.large_size, cfg.views.small_size = sizes
  cfg.queue.capacity = capacity
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in others.items()}
  )
  return cfg


def prepare(cfg: ml_collections.ConfigDict) -> run_lib.TrainRun:
  """A run of these settings on noise, for one device to begin with."""
  cfg = cfg.copy_and_resolve_references()
  cfg.num_devices = 1
  cfg.dataset.update(name='synthetic', num_examples=64, num_classes=1000)
  cfg.labels.update(subset='', per_class=0, fraction=1 / TENTH)
  if 'support' in cfg:  # which shows all classes
    each = max(cfg.support.images_per_class, 1)
    cfg.dataset.num_examples = TENTH * each * cfg.dataset.num_classes
  return run_lib.prepare(cfg)


def batch_of(run: run_lib.TrainRun) -> types.Batch:
  """Whole images of 3 to 4, as ImageNet's lie on their canvas."""
  batch = _noise(run, run.cfg.batch_size, 0)
  if run.support is None:
    return batch
  size = run.support.size
  labels = run.labels[[run.support.row(0, place) for place in range(size)]]
  return batch._replace(support=_noise(run, size, 1)._replace(labels=labels))


def _noise(run: run_lib.TrainRun, count: int, seed: int) -> types.Batch:
  height, width, _ = run.data.image_shape
  random = np.random.RandomState(seed)
  images = random.randint(0, 256, (count, height, width, 3)).astype(np.uint8)
  ids = np.arange(count, dtype=np.int32)
  classes = run.data.num_classes
  labels = np.where(ids % TENTH == TENTH - 1, ids % classes, -1)
  sizes = np.tile(np.array([3 * height // 4, width], np.int32), (count, 1))
  return types.Batch(images, labels.astype(np.int32), ids, sizes)


def full_queue(run: run_lib.TrainRun) -> label_queue.LabelQueue:
  """A queue as it is in most steps of a run, one device's.

  Labels are drawn from all classes, ids are none of the batch's.
  """
  cfg, random = run.cfg, np.random.RandomState(1)
  capacity = cfg.queue.capacity
  shape = (cfg.views.num_large, capacity, cfg.projector.size)
  embeddings = multicrop.l2_normalize(
    jax.random.normal(jax.random.key(1), shape)
  )
  labels = random.randint(0, run.data.num_classes, capacity)
  return label_queue.LabelQueue(
    embeddings=embeddings,
    labels=jnp.asarray(labels, jnp.int32),
    ids=jnp.arange(10**6, 10**6 + capacity, dtype=jnp.int32),
    count=jnp.asarray(capacity, jnp.int32),
  )


def whole(run: run_lib.TrainRun) -> Program:
  """The training step on one device, its queue full."""
  state = run_lib.initial_state(run)
  queue = jax.tree.map(lambda x: x[None], full_queue(run))
  batch = parallel.shard(batch_of(run), 1)
  step = functools.partial(step_lib.train_step, setup=run.setup)
  return Program(step, state._replace(memory=queue), batch)


def described(run: run_lib.TrainRun) -> Program:
  """The same as shapes: nothing is allocated, however large the networks."""
  state = jax.eval_shape(lambda: run_lib.initial_state(run))
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1,) + x.shape, x.dtype), batch_of(run)
  )
  step = functools.partial(step_lib.train_step, setup=run.setup)
  return Program(step, state, batch)


def bare(run: run_lib.TrainRun) -> Program:
  """Both networks on views that are there, and gradients; no update.

  The loss is minus the mean inner product of every online view with the mean of
  the target views: as good as none.
  """
  cfg = run.cfg
  state = run_lib.initial_state(run)

  def views_of(sizes):
    count, size = sizes
    shape = (1, count, cfg.batch_size, size, size, 3)
    return jax.random.uniform(jax.random.key(size), shape)

  views = types.Views(
    *map(
      views_of,
      [
        (cfg.views.num_large, cfg.views.large_size),
        (cfg.views.num_small, cfg.views.small_size),
      ],
    )
  )
  step = functools.partial(bare_step, setup=run.setup)
  return Program(step, state._replace(memory=None, opt_state=None), views)


def bare_step(
  state: state_lib.TrainState,
  views: types.Views,
  unused_key: jax.Array,
  *,
  setup: step_lib.StepSetup,
) -> tuple[state_lib.TrainState, jax.Array, Any]:
  """See `bare`: (state with BatchNorm's moved, loss, gradients)."""
  encode = functools.partial(
    multicrop.forward_views, one_pass=setup.cfg.views.one_pass
  )
  target, target_state = encode(
    setup.nets.target, state.target_params, state.target_state, (views.large,)
  )
  targets = multicrop.l2_normalize(target['projection'])  # [V_L, b, d]
  mean_target = targets.mean(axis=0)  # [b, d]

  def loss_fn(params):
    online, bn_state = encode(
      setup.nets.online, params, state.online_state, views
    )
    same = multicrop.l2_normalize(online['prediction']) * mean_target
    return -same.sum(axis=-1).mean(), bn_state

  (loss, online_state), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    state.online_params
  )
  grads, loss = parallel.pmean((grads, loss))
  moved = state._replace(online_state=online_state, target_state=target_state)
  return moved, loss, grads


def supervised(run: run_lib.TrainRun) -> Program:
  """What a plain supervised ResNet costs: one large view an image, LARS.

  The heads are there but get no gradient; the classifier trains the encoder.
  """
  cfg = ml_collections.ConfigDict(run.cfg.to_dict())
  cfg.classifier.detached = False
  run = run_lib.prepare(cfg)
  cfg, setup = run.cfg, run.setup
  state = run_lib.initial_state(run)
  size = cfg.views.large_size
  images = jax.random.uniform(
    jax.random.key(0), (1, cfg.batch_size, size, size, 3)
  )
  labels = jnp.arange(cfg.batch_size)[None] % run.data.num_classes

  def step(state, batch, unused_key):
    images, labels = batch

    def loss_fn(params):
      outputs, bn_state = setup.nets.online(
        params, state.online_state, images, True
      )
      error = optax.softmax_cross_entropy_with_integer_labels
      return error(outputs['logits'], labels).mean(), bn_state

    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, bn_state), grads = value_and_grad(state.online_params)
    grads, loss = parallel.pmean((grads, loss))
    new, _ = step_lib.apply_gradients(state, grads, setup)
    return new._replace(online_state=bn_state), loss, ()

  return Program(step, state._replace(memory=None), (images, labels))


def embed(run: run_lib.TrainRun) -> Program:
  """The online encoder in evaluation mode, on one large view an image."""
  cfg, encode = run.cfg, run.setup.nets.encode
  size = cfg.views.large_size
  images = jax.random.uniform(
    jax.random.key(0), (1, cfg.batch_size, size, size, 3)
  )

  def step(state, images, unused_key):
    found, _ = encode(state.online_params, state.online_state, images, False)
    return state, found

  state = run_lib.initial_state(run)._replace(memory=None, opt_state=None)
  return Program(step, state, images)


def abstract(program: Program, num_devices: int) -> Program:
  """The same for D devices, as shapes: nothing is allocated.

  The batch per device stays, and so does a device's part of the queue.

  Args:
    program: of one device.
    num_devices: D.
  """

  def shapes(x):
    return jax.ShapeDtypeStruct((num_devices,) + x.shape[1:], x.dtype)

  state, batch = jax.tree.map(shapes, (program.state, program.batch))
  queue = getattr(state, 'memory', None)
  if queue is not None:
    capacity = num_devices * queue.embeddings.shape[2]
    whole_queue = jax.ShapeDtypeStruct((num_devices, capacity), jnp.int32)
    state = state._replace(
      memory=queue._replace(labels=whole_queue, ids=whole_queue)
    )
  return Program(program.step, state, batch)


def lower(
  program: Program, devices: Sequence[jax.Device], donate: bool = True
) -> jax.stages.Lowered:
  """The program as it is mapped over devices, not yet compiled."""
  program = abstract(program, len(devices))
  key = jax.eval_shape(lambda: jax.random.key(0))
  mapped = parallel.map_step(program.step, devices, donate=donate)
  return mapped.lower(program.state, program.batch, key)


def step_flops(cfg: ml_collections.ConfigDict, batch_size: int = 16) -> float:
  """Operations of a step, per image, before XLA optimises.

  The kNN's share goes with the queue and is left out: a queue of B slots.
  """
  cfg = cfg.copy_and_resolve_references()
  cfg.batch_size = cfg.queue.capacity = batch_size
  run = prepare(cfg)
  return flops(lower(described(run), run.devices, donate=False)) / batch_size


def flops(stage: jax.stages.Lowered | jax.stages.Compiled) -> float:
  """XLA's count, on one device; a loop's body counts once."""
  found = stage.cost_analysis()
  return (found[0] if isinstance(found, list) else found)['flops']
