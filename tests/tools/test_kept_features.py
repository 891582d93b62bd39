"""Features kept part by part: what is read again, and what is refused."""

import numpy as np
import pytest

from semppl_jax.data import sources
from semppl_jax.errors import UserError
from semppl_jax.tools import kept_features

_SOURCE = sources.Records(
  [-1] * 5, lambda i: i, names=[f'{i}.png' for i in range(5)]
)


class _Model:
  """An image's feature is its number; the fourth cannot be decoded."""

  def __init__(self):
    self.seen = []

  def features(self, source, output, tell):
    numbers = [source[i]['image'] for i in range(len(source))]
    self.seen += numbers
    if 3 in numbers:
      tell('3.png', 'no image')
    return np.float32([numbers]).T, np.array(numbers) != 3


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(kept_features, 'PART', 2)


def test_parts_are_computed_once_and_read_as_they_were(tmp_path):
  folder, model = tmp_path / 'x', _Model()
  kept_features.begin(folder, {'a': 1.5})
  first = next(kept_features.parts(model, _SOURCE, folder))
  assert model.seen == [0, 1] and first.is_new
  kept_features.begin(folder, {'a': 1.5})  # the same command again
  found = list(kept_features.parts(model, _SOURCE, folder))
  assert model.seen == [0, 1, 2, 3, 4]
  assert [part.is_new for part in found] == [False, True, True]
  again = list(kept_features.parts(model, _SOURCE, folder))
  assert model.seen == [0, 1, 2, 3, 4]
  for part, other in zip(found, again, strict=True):
    np.testing.assert_array_equal(part.features, other.features)
    np.testing.assert_array_equal(part.readable, other.readable)
    np.testing.assert_array_equal(part.rows, part.features[:, 0])
    assert part.unreadable == other.unreadable
  assert again[1].unreadable == {'3.png': 'no image'}
  assert again[1].readable.tolist() == [True, False]


def test_a_part_that_does_not_say_why_images_are_unreadable(tmp_path):
  kept_features.begin(tmp_path, {})
  np.savez(tmp_path / '00000.npz', features=np.ones((2, 1)), readable=[1, 0])
  (first, *_) = kept_features.parts(_Model(), _SOURCE, tmp_path)
  assert not first.is_new and first.unreadable == {}


def test_features_of_others_are_refused(tmp_path):
  kept_features.begin(tmp_path / 'x', {'images': 5})
  with pytest.raises(UserError, match='x is of other images or of another'):
    kept_features.begin(tmp_path / 'x', {'images': 6})
  (tmp_path / 'y').write_bytes(b'')
  with pytest.raises(UserError, match='y is of other images or of another'):
    kept_features.begin(tmp_path / 'y', {'images': 5})
  (tmp_path / 'z').mkdir()  # stopped before the first part
  kept_features.begin(tmp_path / 'z', {'images': 5})
