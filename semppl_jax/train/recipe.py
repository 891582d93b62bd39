"""Settings that a config leaves open, chosen for the images and the computer.

`config.leave_open` (experiments/folder.py) sets a key to None; whatever the
user gives on the command line is no longer open. What is chosen is told, a line
for each thing with its reason, and written to WORKDIR/config.json, where the
same command finds it when it goes on. The rules are ours; what they were tried
on is in docs/trials.md.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from semppl_jax import config, methods, storage
from semppl_jax.config import upgrade
from semppl_jax.data import datasets
from semppl_jax.data import images as images_lib
from semppl_jax.data import labels as labels_lib
from semppl_jax.data import masks as masks_lib
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import UserError
from semppl_jax.methods import base
from semppl_jax.train import initial_weights, pass_time
from semppl_jax.weights import architecture as architecture_lib
from semppl_jax.workdir import config_file, run_log

MASKS = 'masks'  # DIR/masks, where `python -m semppl_jax.saliency` may write
_LOOKED_AT = 64  # images
_COLOUR = 0.02  # mean spread of an image's channels, above which it has colour
_FEWEST_STEPS, _MOST_STEPS = 200, 20_000


class Look(NamedTuple):
  """What is chosen for."""

  images: int  # training images
  labelled: int  # of them
  classes: int
  side: int  # pixels, the median of the images' shorter sides
  colour: bool
  masks: str  # a folder of foreground masks, or ''
  devices: int
  accelerator: bool  # a GPU or TPU


class Choice(NamedTuple):
  """Values of settings, with one reason for all of them."""

  values: Mapping[str, Any]
  reason: str


def complete(
  cfg: ml_collections.ConfigDict, workdir: str | None
) -> ml_collections.ConfigDict:
  """The settings with a value for each that is open.

  In a work directory that has settings, theirs; else chosen anew. All processes
  of a job call this, and go by what process 0 finds.

  Args:
    cfg: nothing happens if no setting is open.
    workdir: of the run; None: there is none.

  Raises:
    UserError: a data set that cannot be read, or no time to plan for.
  """
  cfg = upgrade.renamed(cfg)
  methods.check_sections(cfg)
  wanted = config.open_keys(cfg)
  if not wanted:
    return cfg
  chosen = processes.broadcast_from_first(
    processes.run_on_all(lambda: _find(cfg, workdir, wanted))
  )
  return _filled(cfg, chosen)


def _filled(
  cfg: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A copy with these values."""
  cfg = cfg.copy_and_resolve_references()
  for key, value in values.items():
    value = tuple(value) if isinstance(value, list) else value
    cfg.update_from_flattened_dict({key: value})
  return cfg


def _find(
  cfg: ml_collections.ConfigDict, workdir: str | None, wanted: list[str]
) -> dict[str, Any]:
  if not processes.is_first():
    return {}
  begun = workdir and config_file.read(workdir)
  if begun:
    found = {key: config.find(begun, key) for key in wanted}
    if all(value is not None for value in found.values()):
      return found
  return _choose(cfg, wanted)


def _choose(
  cfg: ml_collections.ConfigDict, wanted: list[str]
) -> dict[str, Any]:
  devices = parallel.some_devices(cfg.num_devices)
  seen = inspect(cfg, devices)
  known = {key: value for key, value in config.flat(cfg) if key not in wanted}
  colours = 'in colour' if seen.colour else 'in grey'
  run_log.info(
    f'Chosen for {seen.images:,} training images {colours}, {seen.side} px, '
    f'{seen.labelled:,} of them with a label, of {seen.classes:,} classes '
    '(what is given as --config.KEY=VALUE stays):'
  )
  chosen: dict[str, Any] = {}
  fraction, told = 0.0, 'no image has a label'
  if seen.labelled:
    fraction = _fraction(cfg)
    told = 'all labels, unless labels.per_class, .file or .subset is set'
  _take(Choice({'labels.fraction': fraction}, told), wanted, chosen)
  for choose in (_views, _colours, _encoder, _batch):
    _take(choose(seen, known | chosen), wanted, chosen)
  if 'num_epochs' in wanted:
    _take(_duration(cfg, seen, known | chosen, devices), wanted, chosen)
  _take(_phases(seen, known | chosen), wanted, chosen)
  missing = [key for key in wanted if key not in chosen]
  if missing:
    raise UserError(f'{missing[0]} has no value; set --config.{missing[0]}.')
  return chosen


def _take(choice: Choice, wanted: list[str], chosen: dict[str, Any]) -> None:
  """Adds what is open of a choice, and tells it."""
  new = {key: x for key, x in choice.values.items() if key in wanted}
  if new:
    chosen |= new
    told = ', '.join(f'{key}={value}' for key, value in new.items())
    run_log.info(f'  {told}: {choice.reason}')


def inspect(cfg: ml_collections.ConfigDict, devices: list[jax.Device]) -> Look:
  """What the images and the computer are like.

  Args:
    cfg: its dataset and labels; they may be open.
    devices: that the run will have.
  """
  dataset, labels = cfg.dataset.to_dict(), cfg.labels.to_dict()
  dataset['image_size'] = dataset['image_size'] or 1  # of no account here
  data = datasets.load(ml_collections.ConfigDict(dataset))
  if labels['fraction'] is None:
    labels['fraction'] = _fraction(cfg)
  labels['share'] = labels['share'] or 0.0
  data, visible, _ = labels_lib.known(
    ml_collections.ConfigDict(labels), data, cfg.dataset.path
  )
  side, colour = _sample(data.train)
  return Look(
    images=len(data.train),
    labelled=int(np.sum(visible >= 0)),
    classes=data.num_classes,
    side=side,
    colour=colour,
    masks=_masks(cfg.dataset.path, data.fingerprint),
    devices=len(devices),
    accelerator=devices[0].platform != 'cpu',
  )


def _fraction(cfg: ml_collections.ConfigDict) -> float:
  """Of the labels in train/: all, unless the user names some."""
  labels = cfg.labels
  named = labels.per_class or labels.file or labels.subset
  return 0.0 if named else 1.0


def _masks(path: str, fingerprint: str) -> str:
  """DIR/masks, if it has masks of these images."""
  folder = storage.path(path) / MASKS
  if not path or not folder.is_dir():
    return ''
  try:
    masks_lib.Masks(str(folder), fingerprint)
  except UserError as error:
    run_log.info(f'Note: {error} Trained without masks.')
    return ''
  return str(folder)


def _sample(source: Any) -> tuple[int, bool]:
  """Median shorter side in pixels, and whether images have colour."""
  sides, spreads = [], []
  rows = np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(int))
  for row in rows:
    try:
      image = images_lib.decode(source[int(row)]['image'])
    except images_lib.Unreadable:
      continue
    sides.append(min(image.shape[:2]))
    pixels = image.reshape(-1, 3).astype(np.float32) / 255
    spreads.append(float(np.mean(np.ptp(pixels, axis=1))))
  if not sides:
    raise UserError(f'None of {len(rows)} training images could be decoded.')
  return int(np.median(sides)), float(np.mean(spreads)) > _COLOUR


def _views(seen: Look, known: Mapping[str, Any]) -> Choice:
  """Sizes: as large as the images, as small as the computer is slow."""
  most = 96 if seen.accelerator else 32
  large = max(8, min(seen.side, most) // 2 * 2)
  large = known.get('views.large_size') or large
  small = max(6, (large * 3 // 4 if large <= 16 else large // 2) // 2 * 2)
  # Small views are cut from a tenth of the image: twice a large view is enough.
  canvas = min(-(-seen.side // 8) * 8, 2 * large)
  areas = {'views.large_area': (0.3, 1.0), 'views.small_area': (0.1, 0.3)}
  if large <= 16:
    areas = {'views.large_area': (0.4, 1.0), 'views.small_area': (0.2, 0.4)}
  where = 'a GPU or TPU' if seen.accelerator else 'a CPU'
  return Choice(
    {
      'views.large_size': large,
      'views.small_size': small,
      'dataset.image_size': max(canvas, 8),
    }
    | areas,
    f'images of {seen.side} px; on {where} views of at most {most} px',
  )


# Brightness, contrast, saturation, hue; and the share of grey views.
_NO_COLOURS = (0.4, 0.4, 0.0, 0.0, 0.0)
_WEAK = (0.2, 0.2, 0.1, 0.02, 0.0)
_MODERATE = (0.4, 0.4, 0.4, 0.1, 0.2)


def _colours(seen: Look, known: Mapping[str, Any]) -> Choice:
  """Changes of colour, flips and foregrounds."""
  masks = known.get('dataset.masks', seen.masks)
  if not seen.colour:
    changes = _NO_COLOURS
    reason = 'images in grey: no colours to change; signs must not be mirrored'
  elif masks:
    changes = _WEAK
    reason = (
      'masks are there: other backgrounds in most views, so that colours left '
      'are those of objects; left and right mean the same'
    )
  else:
    changes = _MODERATE
    reason = (
      'images in colour, which may tell classes apart or not (if they do, '
      'weaker changes may be better); left and right mean the same. Objects on '
      f'busy backgrounds gain from masks in DIR/{MASKS}: '
      'python -m semppl_jax.saliency'
    )
  names = ('brightness', 'contrast', 'saturation', 'hue', 'grayscale')
  values = {f'views.{name}': x for name, x in zip(names, changes, strict=True)}
  values |= {
    'views.flip': 0.5 if seen.colour else 0.0,
    'dataset.masks': masks,
    'views.saliency': 0.7 if masks else 0.0,
  }
  return Choice(values, reason)


def _encoder(seen: Look, known: Mapping[str, Any]) -> Choice:
  """Encoder and heads: for the views, or those of the checkpoint `init`."""
  large = known['views.large_size']
  values = {
    'encoder.name': 'resnet18' if large > 48 else 'digits',
    'encoder.stem': 'small' if large <= 16 else 'imagenet',
  }
  hidden, size = (1024, 128) if large > 48 else (256, 64)
  reason = f'views of {large} px'
  if init := known['init']:
    found = initial_weights.read(init)
    sizes = architecture_lib.head_sizes(found.params)
    values = {
      'encoder.name': found.architecture.encoder,
      'encoder.stem': found.architecture.stem,
    }
    if 'projector_hidden' in sizes and 'projector/linear_1' in found.params:
      hidden, size = sizes['projector_hidden'], sizes['embedding_size']
    reason = f'{init} is a {found.architecture}'
  heads = {
    'projector.hidden': hidden,
    'projector.size': size,
    'predictor.hidden': hidden,
  }
  return Choice(values | heads, reason)


def _batch(seen: Look, known: Mapping[str, Any]) -> Choice:
  """Batch, share of labelled images, negatives, queue."""
  most = 256 if seen.accelerator else 64
  share = known.get('labels.share')
  pool = seen.labelled if share == 1 else seen.images
  batch = known.get('batch_size')
  if batch is None:
    batch = 2 ** int(math.log2(max(2, min(most, pool // 2))))
    batch = max(batch // seen.devices, 1) * seen.devices
  natural = seen.labelled / seen.images
  if share is None:
    share = 0.0 if natural > 0.25 or not seen.labelled else 0.25
  # Three times all labels, so that votes do not hang on a single view; and no
  # more than comes by in a few batches, or keys are of an older network.
  slots = 2 ** math.ceil(math.log2(max(32, 3 * seen.labelled)))
  slots = min(slots, 2 ** math.ceil(math.log2(20 * batch)))
  slots = -(-slots // seen.devices) * seen.devices
  return Choice(
    {
      'batch_size': batch,
      'labels.share': share,
      'loss.num_negatives': min(40, batch - 1),
      'queue.capacity': slots,
    },
    f'{seen.images:,} images, {seen.labelled:,} labels ({natural:.1%})',
  )


def _duration(
  cfg: ml_collections.ConfigDict,
  seen: Look,
  values: Mapping[str, Any],
  devices: list[jax.Device],
) -> Choice:
  """Epochs that fit into the minutes, by a measured pass of the network."""
  if not cfg.minutes > 0:
    raise UserError(
      f'minutes is {cfg.minutes:g} and num_epochs is open: set one of them.'
    )
  # On a CPU devices share the cores; others have a part of the batch each.
  part = values['batch_size'] // (len(devices) if seen.accelerator else 1)
  facts = base.RunFacts(
    num_classes=seen.classes,
    num_images=seen.images,
    class_share=np.zeros(seen.classes, np.float32),
    num_labels=seen.labelled,
    total_steps=0,  # nobody knows yet
    steps=lambda epochs: 0,
  )
  seconds = pass_time.OVERHEAD * pass_time.seconds_of_passes(
    _filled(cfg, values), facts, part, devices[0]
  )
  steps = (60 * cfg.minutes - pass_time.ELSEWHERE) / seconds
  steps = int(min(max(steps, _FEWEST_STEPS), _MOST_STEPS))
  epochs = round(steps * values['batch_size'] / seen.images, 2)
  return Choice(
    {'num_epochs': epochs},
    f'about {steps:,} steps of {seconds:.2f} s, as minutes={cfg.minutes:g} '
    'allow on this computer',
  )


def _phases(seen: Look, values: Mapping[str, Any]) -> Choice:
  """Parts of the training, as shares of it."""
  epochs = values['num_epochs']
  steps = int(epochs * seen.images / values['batch_size'])
  part = lambda share: round(share * epochs, 2)
  return Choice(
    {
      'optimizer.warmup_epochs': part(0.03),
      'queue.target_query_epochs': part(0.06),
      'negatives.cancel_after_epochs': part(0.25),
      'checkpoint_every_steps': max(steps // 8, 1),
    },
    f'3, 6, 25 and 12% of {epochs:g} epochs',
  )
