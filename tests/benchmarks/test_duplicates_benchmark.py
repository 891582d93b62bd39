"""benchmarks.duplicates: what is planted is a copy, and the noise has none."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import duplicates as benchmark
from semppl_jax.data import duplicates, sources
from tests.helpers.photos import photo


def test_copies_and_others_are_counted():
  train = sources.Records(np.zeros(12), lambda i: photo(i))
  data = sources.Dataset(train, None, 1, ('a',), (96, 96, 3), '')
  found = benchmark.planted(data)
  assert found.keys() == benchmark.CHANGES.keys()
  *single, everything = found.values()
  for counts in single:
    assert counts['planted'] == counts['found'] == 12
    assert counts['others'] == 0
  assert everything['found'] >= 10  # some are 38 pixels, of quality 30


@pytest.mark.parametrize(
  'change, size',
  [('cropped by 5% on each side', (180, 90)), ('flipped', (200, 100))],
)
def test_changes(change, size):
  image = Image.fromarray(photo(0, 200)[:100])
  changed = benchmark.CHANGES[change](np.random.default_rng(0), image)
  assert changed.size == size


def test_the_noise_has_no_copies():
  made = benchmark.noise(300)
  assert made.pixels.std() > 20 and len(set(made.digests)) == 300
  assert duplicates.find(made, None) == []
