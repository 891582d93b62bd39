"""The smallest whole setting: what the tests of the step and the loop train."""

import jax
import jax.experimental
import jax.numpy as jnp
import ml_collections
import numpy as np

from semppl_jax import config, types
from semppl_jax.distributed import parallel
from semppl_jax.models import encoders, networks
from semppl_jax.train import loop
from semppl_jax.train import run as run_lib
from semppl_jax.train import state as state_lib
from semppl_jax.weights import files as files_lib

NUM_CLASSES = 3
# Where JAX 0.7 has it, and where it is now.
enable_x64 = (
  jax if hasattr(jax, 'enable_x64') else jax.experimental
).enable_x64
BATCH = 16
# Half of what the smallest of the package's encoders takes to compile.
ENCODER = 'one_block'
encoders.ENCODERS[ENCODER] = encoders.Encoder(
  'one_block_res_net', (1,), (16,), bottleneck=False, strides=(2,),
  stem_channels=8,
)  # fmt: skip


def make_config(method='semppl', **changes):
  """A config that compiles and runs in seconds; changes by `loss__alpha=0.`."""
  cfg = config.default(method)
  cfg.batch_size = BATCH
  cfg.num_epochs = 2.0
  cfg.progress = False
  cfg.log_every_steps = 1
  cfg.checkpoint_every_steps = 3
  cfg.dataset.update(name='synthetic', num_examples=40, image_size=8)
  cfg.dataset.num_classes = NUM_CLASSES
  cfg.labels.per_class = 4
  cfg.encoder.update(name=ENCODER, stem='small')
  if 'projector' in cfg:
    cfg.projector.update(hidden=16, size=8)
  if 'predictor' in cfg:
    cfg.predictor.hidden = 16
  cfg.views.update(
    num_large=2, num_small=1, large_size=8, small_size=6, jitter=0.0,
    grayscale=0.0, solarize=(0.0, 0.0),
  )  # fmt: skip
  if method == 'simclr':
    cfg.views.num_small = 0  # it takes two views
    cfg.optimizer.scaling = 'linear'  # of the rate for AdamW below
  if 'prototypes' in cfg:
    cfg.prototypes.number = 12
  if method in ('swav', 'dino', 'mira'):
    cfg.prototypes.freeze_epochs = 0.5
  if 'teacher' in cfg:
    cfg.teacher.checkpoint = 'FILE'  # `prepare` does not read it
  if method == 'semppl':
    cfg.loss.update(num_negatives=4, num_semantic_positives=2)
    cfg.queue.update(capacity=16, block_size=3)
  if method == 'mean_shift':  # all that it can do
    cfg.loss.update(same_label=True, pseudo_labels='vote')
    cfg.memory.update(capacity=24, block_size=3, k=3)
    cfg.queue.capacity = 16
  if method in ('swav', 'suave'):
    cfg.queue.update(capacity=BATCH, start_epoch=0.0)
  if method in ('suave', 'daino'):
    cfg.support.update(images=8, jitter=0.0, grayscale=0.0)
  if method == 'paws':
    cfg.support.update(classes=2, images_per_class=4)
    cfg.support.update(jitter=0.0, grayscale=0.0)
    cfg.optimizer.update(start_learning_rate=0.0, final_learning_rate=0.0)
  cfg.optimizer.update(name='adamw', learning_rate=0.02, warmup_epochs=0.5)
  # Pixels and colours: test_recipe and test_baselines look at them.
  cfg.evaluation.update(
    batch_size=16, center=1.0, baseline_images=0, labels_csv=False
  )
  cfg.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return cfg


def write_checkpoint(path, num_classes, image_size=8):
  """A checkpoint of random weights, for evaluations; it is of step 5."""
  nets = networks.build(
    encoder=ENCODER, stem='small', projector_hidden=16, embedding_size=8,
    num_classes=num_classes,
  )  # fmt: skip
  images = jnp.zeros((2, image_size, image_size, 3))
  random = np.random.RandomState(0)

  def draw(path, like):
    if path[-1].key == 'w':
      return random.normal(0, like.size**-0.25, like.shape).astype(like.dtype)
    return np.ones(like.shape, like.dtype)

  shapes = jax.eval_shape(nets.init, jax.random.key(0), images)
  params, state = jax.tree_util.tree_map_with_path(draw, shapes)
  contents = files_lib.Contents(params, state, 5, 'safetensors')
  files_lib.write_safetensors(path, contents)
  return str(path)


def make_batch(labels, seed=0):
  """Random images with the given labels, [B] each; ids are 100, 101, ..."""
  random = np.random.RandomState(seed)
  count = len(labels)
  return types.Batch(
    images=random.randint(0, 256, (count, 8, 8, 3)).astype(np.uint8),
    labels=np.asarray(labels, np.int32),
    ids=np.arange(100, 100 + count, dtype=np.int32),
  )


def frozen(cfg):
  return ml_collections.FrozenConfigDict(cfg)


def first_state(run, num_devices):
  devices = jax.devices()[:num_devices]
  return run_lib.initial_state(run._replace(devices=devices))


def portable(run):
  """The state before the first step, as a checkpoint has it."""
  devices = jax.devices()[:1]
  return state_lib.to_host(first_state(run, 1), run.setup.method, devices)


def map_step(step_fn, num_devices):
  return parallel.map_step(step_fn, jax.devices()[:num_devices], donate=False)


def run_steps(mapped, state, batches, num_devices, seed=0, parts=1):
  """Takes steps; returns the last state, and metrics and labels of each."""
  state = parallel.put_sharded(state, jax.devices()[:num_devices])
  seen = []
  for batch in batches:
    state, scalars, labels, *_ = mapped(
      state, parallel.shard(batch, num_devices, parts), jax.random.key(seed)
    )
    scalars = {k: np.asarray(v) for k, v in scalars.items()}
    seen.append((scalars, parallel.unshard(labels, parts)))
  return jax.tree.map(np.asarray, state), seen


def prepare(method='semppl', **changes):
  return run_lib.prepare(make_config(method, num_devices=1, **changes))


def remember_steps(monkeypatch):
  """Runs with the same settings share one traced step, as its tests allow."""
  make, made = loop.mapped, {}

  def mapped(job, step, *constants):
    setup = step.keywords['setup']
    key = (step.func, str(setup.cfg), tuple(job.devices))
    if key not in made:
      made[key] = make(job, step, *constants)
    return made[key]

  monkeypatch.setattr(loop, 'mapped', mapped)


def light_step(state, batch, key, *constants, setup):
  """In place of the step, where it does not matter: it compiles at once.

  Every array of the state then tells of all batches and their order.
  """
  noise = jax.random.normal(jax.random.fold_in(key, state.step))
  pixels = jnp.mean(batch.images * (batch.ids % 7)[:, None, None, None] / 255.0)

  def changed(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return (0.9 * x + 0.1 * pixels + 1e-3 * noise).astype(x.dtype)

  new = jax.tree.map(changed, state)._replace(step=state.step + 1)
  scalars = {'loss': pixels, 'grad_norm': noise, 'queue_fill': pixels}
  nothing = jnp.zeros(())
  healthy = {'embedding_std': jnp.ones(()), 'top_label_share': nothing}
  healthy |= {'loss/augmentation': nothing, 'pseudo_label_share': nothing}
  return new, scalars | healthy, batch.labels
