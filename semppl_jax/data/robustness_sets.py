"""Test sets of ImageNet's classes other than its own: finding and opening."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from semppl_jax.data import label_maps, listing, sources, tfds_files
from semppl_jax.errors import UserError
from semppl_jax.utils.text import nearest_name

# AlexNet's top-1 errors on the published ImageNet-C, means over the severities:
# google-research/augmix, imagenet.py @202cf4c8, after hendrycks/robustness.
ALEXNET_ERRORS = {
  'gaussian_noise': 0.886428, 'shot_noise': 0.894468,
  'impulse_noise': 0.922640, 'defocus_blur': 0.819880, 'glass_blur': 0.826268,
  'motion_blur': 0.785948, 'zoom_blur': 0.798360, 'snow': 0.866816,
  'frost': 0.826572, 'fog': 0.819324, 'brightness': 0.564592,
  'contrast': 0.853204, 'elastic_transform': 0.646056, 'pixelate': 0.717840,
  'jpeg_compression': 0.606500,
}  # fmt: skip
CORRUPTIONS = tuple(ALEXNET_ERRORS)  # the benchmark's; tfds has four more
SEVERITIES = (1, 2, 3, 4, 5)

ALL_CLASSES = np.arange(label_maps.NUM_CLASSES)


class TestSet(NamedTuple):
  """A test set, opened; its labels number C classes of its own."""

  source: sources.Source
  meanings: np.ndarray  # [C, 1000] bool: which answers are right for a label
  among: np.ndarray  # [m] int, rising: the classes to choose from
  share: float | None  # of an image that counts; None: as the config says


class Part(NamedTuple):
  """A part of a test set, with scores of its own, among tfds's data sets."""

  dataset: str  # tfds's name for it; '': tfds does not have it
  split: str


class Found(NamedTuple):
  """What of the test sets is there."""

  openers: dict[str, Callable[[], TestSet]]
  missing: dict[str, str]  # why, in a line; with how to prepare it


def parts(test_sets: Sequence[str]) -> dict[str, Part]:
  """What test sets are made of, by name: imagenet_v2/topimages, ...

  Args:
    test_sets: such as imagenet_v2.

  Raises:
    UserError: an unknown one, or none.
  """
  known = {
    'imagenet': {'imagenet': Part('imagenet2012', 'validation')},
    'imagenet_v2': {
      f'imagenet_v2/{variant}': Part(f'imagenet_v2/{variant}', 'test')
      for variant in ('matched-frequency', 'threshold-0.7', 'topimages')
    },
    'imagenet_c': {
      corrupted(c, s): Part(f'imagenet2012_corrupted/{c}_{s}', 'validation')
      for c in CORRUPTIONS
      for s in SEVERITIES
    },
    'imagenet_r': {'imagenet_r': Part('imagenet_r', 'test')},
    'imagenet_sketch': {'imagenet_sketch': Part('imagenet_sketch', 'test')},
    'objectnet': {'objectnet': Part('', '')},
  }
  for name in test_sets:
    if name not in known:
      raise UserError(
        f'robustness.sets has {name!r}; known: {", ".join(known)}'
        f'{nearest_name(name, known)}'
      )
  if not test_sets:
    raise UserError(f'robustness.sets is empty; known: {", ".join(known)}.')
  return {k: v for name in test_sets for k, v in known[name].items()}


def corrupted(corruption: str, severity: int) -> str:
  """The name of a part of ImageNet-C."""
  return f'imagenet_c/{corruption}/{severity}'


def mean_corruption_error(errors: Mapping[str, float]) -> float:
  """mCE in percent; AlexNet's is 100. Hendrycks and Dietterich, ICLR 2019.

  Args:
    errors: top-1 error of each corruption, mean over the severities.
  """
  relative = [error / ALEXNET_ERRORS[name] for name, error in errors.items()]
  return 100 * float(np.mean(relative))


def find(wanted: Mapping[str, Part], path: str, objectnet: str) -> Found:
  """Looks for all parts; reads no more than what says that they are whole.

  Args:
    wanted: see `parts`.
    path: as for `tfds_files.find`.
    objectnet: the folder of ObjectNet, see `label_maps.objectnet`.

  Raises:
    UserError: one that is there, but cannot be read.
  """
  data_dir = tfds_files.data_dir(path)
  found = Found({}, {})
  for name, part in wanted.items():
    if not part.dataset:
      _find_objectnet(found, name, objectnet)
      continue
    try:
      folder = tfds_files.locate(part.dataset, data_dir)
    except UserError as e:
      found.missing[name] = str(e)
      continue
    prepared = tfds_files.Prepared(folder)
    if not prepared.first_of(part.split):
      prepared.open(part.split)  # it says what is wrong
    found.openers[name] = functools.partial(_open, name, prepared, part.split)
  return found


def _find_objectnet(found: Found, name: str, path: str) -> None:
  folder = os.path.expanduser(path)
  if not listing.is_folder(folder):
    found.missing[name] = (
      f'There is no ObjectNet in {folder!r}: set robustness.objectnet to its '
      'folder, with images/ and mappings/ (https://objectnet.dev).'
    )
    return
  data = label_maps.objectnet(folder)
  among = np.flatnonzero(data.meanings.any(axis=0))
  opened = TestSet(data.source, data.meanings, among, None)
  found.openers[name] = lambda: opened


def _open(name: str, prepared: tfds_files.Prepared, split: str) -> TestSet:
  source, class_names = prepared.open(split)
  if len(class_names) != label_maps.NUM_CLASSES:
    raise UserError(
      f'{prepared} has {len(class_names)} classes, not those of ImageNet.'
    )
  among = ALL_CLASSES
  if name == 'imagenet_r':
    among = label_maps.imagenet_r(class_names)
  return TestSet(
    source,
    np.eye(label_maps.NUM_CLASSES, dtype=bool),
    among,
    # Corrupted images are crops of the middle already.
    1.0 if name.startswith('imagenet_c/') else None,
  )
