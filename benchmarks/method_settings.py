"""Settings of the runs of a table: what a row's config is on other data.

On the digits a row's own, with epochs of its own (those without small views
take more steps at equal cost). On a folder of images all rows have the same
encoder, sizes and changes of views, batch and number of steps: sizes, encoder
and colours are what experiments/folder.py would choose (`recipe`), once for
all rows; the rest is the digits'. So nothing is mirrored: signs must not be.
Methods without small views have none.
"""

import contextlib
import functools
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.method_rows import Row, Trial
from experiments import folder
from semppl_jax import config
from semppl_jax.data import datasets
from semppl_jax.distributed import parallel
from semppl_jax.train import recipe

DIGITS = 'digits'
BATCH = 128  # images, of all rows on a folder
STEPS = 400  # of all rows on a folder, unless --steps says otherwise
_DIGITS_HELD_OUT = 300
_MOST_HELD_OUT = 1000
_MOST_SUPPORT = 128  # labelled images beside a batch on a folder, about
_WITHOUT_SMALL_VIEWS = ('simclr', 'supervised')
# Of the config that the recipe has completed, what all rows have.
_SHARED = (
  'dataset.name', 'dataset.path', 'dataset.image_size', 'batch_size',
  'encoder.name', 'encoder.stem',
  *(
    f'views.{name}'
    for name in (
      'num_large', 'num_small', 'large_size', 'small_size', 'large_area',
      'small_area', 'aspect', 'flip', 'jitter', 'brightness', 'brightness_mode',
      'contrast', 'saturation', 'hue', 'grayscale', 'blur', 'solarize',
    )
  ),
  'watchdog.chance_patience',
)  # fmt: skip
# Of it, what depends on the images.
_CHOSEN = (
  'batch_size',
  'encoder.name',
  'encoder.stem',
  'views.large_size',
  'views.small_size',
  'views.large_area',
  'views.small_area',
  'views.brightness',
  'views.contrast',
  'views.saturation',
  'views.hue',
  'views.grayscale',
)
_AS_VIEWS = ('brightness', 'contrast', 'saturation', 'hue', 'grayscale', 'blur')


class Table(NamedTuple):
  """What all runs of a table have in common.

  Attributes:
    workdir: where they lie.
    labels: '2': so many a class; '10%': a share of all.
    data: DIGITS, or a folder as experiments/folder.py takes it.
    steps: of every run; 0: the rows' own epochs.
  """

  workdir: str
  labels: str = '2'
  data: str = DIGITS
  steps: int = 0

  @property
  def is_digits(self) -> bool:
    """Whether the data are scikit-learn's."""
    return self.data == DIGITS


def trials(row: Row, table: Table) -> Sequence[Trial]:
  """What is tried of a row on the table's data."""
  return row.trials if table.is_digits else row.elsewhere or row.trials


def config_of(row: Row, trial: int, seed: int, table: Table, test: bool) -> Any:
  """Settings of one run, on one device, without its init.

  Args:
    row: of the table.
    trial: place in `trials`.
    seed: of weights, batches and which images have labels.
    table: what all runs have in common.
    test: the test images are looked at; False: held-out training images.
  """
  cfg = row.experiment()
  cfg.seed = cfg.labels.seed = seed
  cfg.num_devices = 1
  cfg.progress = False
  if not table.is_digits:
    _carry_over(cfg, table)
  _set_labels(cfg, table)
  if not test:
    cfg.dataset.validation = held_out(table)
  cfg.update_from_flattened_dict(trials(row, table)[trial])
  if table.steps:
    _set_steps(cfg, table.steps)
  return cfg


def _set_labels(cfg: Any, table: Table) -> None:
  cfg.labels.update(per_class=0, fraction=0.0)
  if not table.labels.endswith('%'):
    cfg.labels.per_class = int(table.labels)
    return
  cfg.labels.fraction = float(table.labels[:-1]) / 100
  if table.is_digits and 'balance' in cfg.get('queue', {}):
    cfg.queue.capacity = 256  # labelled images of 20 batches, as with 2


def held_out(table: Table) -> int:
  """Training images that stand in for the test where settings are chosen."""
  if table.is_digits:
    return _DIGITS_HELD_OUT
  return min(_chosen(table).seen.images // 5, _MOST_HELD_OUT)


class _Chosen(NamedTuple):
  """What is chosen for a folder, once for all rows."""

  cfg: Any
  seen: recipe.Look


@functools.cache
def _chosen(table: Table) -> _Chosen:
  cfg = folder.get_config()
  cfg.dataset.path = table.data
  _set_labels(cfg, table)
  cfg.num_devices, cfg.batch_size, cfg.num_epochs = 1, BATCH, 1.0
  cfg.views.flip = 0.0
  seen = recipe.inspect(cfg, parallel.some_devices(1))
  # It tells of what is SemPPL's alone, too; `told` does not.
  with contextlib.redirect_stderr(io.StringIO()):
    return _Chosen(recipe.complete(cfg, None), seen)


def told(table: Table) -> str:
  """What is the same for all rows on a folder, in a line."""
  chosen, seen = _chosen(table)
  values = ', '.join(
    f'{key}={config.find(chosen.to_dict(), key)}' for key in _CHOSEN
  )
  return (
    f'{seen.images:,} training images of {seen.side} px, {seen.classes} '
    f'classes, {seen.labelled:,} labels. All rows: {values}.'
  )


def _carry_over(cfg: Any, table: Table) -> None:
  """Makes a config of the digits one of the table's folder."""
  chosen, seen = _chosen(table)
  shared = {key: config.find(chosen.to_dict(), key) for key in _SHARED}
  cfg.update_from_flattened_dict(shared)
  cfg.views.update(small_blur=0.0, small_solarize=0.0)
  if cfg.method in _WITHOUT_SMALL_VIEWS:
    cfg.views.num_small = 0
  if 'balance' in cfg.get('queue', {}) and _votes(cfg):
    cfg.queue.capacity = chosen.queue.capacity
    cfg.labels.share = chosen.labels.share
  if 'memory' in cfg:  # of all images: of 16 batches, as each is there once
    most = min(seen.images - held_out(table), 16 * BATCH)
    cfg.memory.capacity = max(most, BATCH)
  if 'support' in cfg:
    cfg.support.update({key: chosen.views[key] for key in _AS_VIEWS})
    cfg.support.area = chosen.views.large_area
    if cfg.support.classes:
      few = min(seen.classes, _MOST_SUPPORT // cfg.support.images_per_class)
      cfg.support.classes = few
    else:
      cfg.support.images = min(seen.labelled, _MOST_SUPPORT)


def _votes(cfg: Any) -> bool:
  """Whether labelled images of the batches vote: not in MSF."""
  return cfg.loss.get('pseudo_labels') != 'none'


def _set_steps(cfg: Any, steps: int) -> None:
  """So many steps, with phases of the same shares of the training."""
  images = len(datasets.load(cfg.dataset).train)
  factor = steps * cfg.batch_size / images / cfg.num_epochs
  for key, value in config.flat(cfg):
    if 'epoch' in key.rpartition('.')[2]:
      scaled = type(value)(round(value * factor, 9))
      cfg.update_from_flattened_dict({key: scaled})
  cfg.checkpoint_every_steps = max(steps // 8, 1)
