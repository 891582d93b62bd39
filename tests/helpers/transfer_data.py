"""The 11 data sets of transfer, small: real names, features and splits."""

import pathlib

import numpy as np

from semppl_jax.data.transfer_sets import SETS
from tests.helpers import tfds_data

CLASSES = 3  # of each data set's many
PER_CLASS = 8  # training images
TEST_PER_CLASS = 4
OWN = ('dtd', 'flowers', 'aircraft')  # have validation images
OWN_PER_CLASS = 5


def labels(per_class):
  return np.arange(per_class * CLASSES) % CLASSES


def write(path, names=tuple(SETS)):
  """Writes data sets below a folder, those of tfds and those of images."""
  for seed, name in enumerate(names):
    splits = {'train': PER_CLASS, SETS[name].test_split: TEST_PER_CLASS}
    if name in OWN:
      splits['validation'] = OWN_PER_CLASS
    if SETS[name].tfds:
      _tfds(path, SETS[name].tfds, splits, 10 * seed)
    else:
      _folder(pathlib.Path(path, name), splits, 10 * seed)


def _tfds(path, name, splits, seed):
  rows = {
    split: tfds_data.examples(name, labels(count), seed + i, split)
    for i, (split, count) in enumerate(splits.items())
  }
  tfds_data.write(path, name, rows)


def _folder(folder, splits, seed):
  for i, (split, count) in enumerate(splits.items()):
    for number, image in enumerate(tfds_data.photos(labels(count), seed + i)):
      file = folder / split / f'class_{number % CLASSES}' / f'{number}.jpg'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(tfds_data.jpeg(image))
