"""Baselines without a network, by hand."""

import numpy as np
import pytest

from semppl_jax.data import sources
from semppl_jax.evaluation import baselines

RED, DARK_RED, BLUE = (255, 0, 0), (100, 0, 0), (0, 0, 255)


def flat(*colours):
  """Records of images of one colour each, 20 x 30 pixels."""
  images = np.stack([np.full((20, 30, 3), c, np.uint8) for c in colours])
  return sources.Records(np.zeros(len(images), np.int32), images.__getitem__)


def test_histogram_counts_hue_saturation_and_value():
  image = np.zeros((2, 2, 3), np.float32)
  image[0, 0] = (1, 0, 0)  # hue 0, saturation 1, value 1
  image[0, 1] = image[1, 0] = (0, 0, 0.3)  # hue 2/3, saturation 1, value 0.3
  image[1, 1] = (0.6, 0.6, 0.6)  # hue 0, saturation 0, value 0.6
  found = baselines.histogram(image).reshape(8, 4, 4)
  assert found[0, 3, 3] == pytest.approx(0.5)
  assert found[5, 3, 1] == pytest.approx(0.5**0.5)
  assert found[0, 0, 2] == pytest.approx(0.5)
  assert np.sum(found**2) == pytest.approx(1)


def test_colours_that_tell_classes_apart():
  train, test = flat(RED, BLUE, DARK_RED, RED), flat(BLUE, RED, BLUE)
  found = baselines.scores(
    train, np.array([0, 1, -1, 0]), test, np.array([1, 0, -1])
  )
  assert found == {'baseline_pixels_top1': 1.0, 'baseline_histogram_top1': 1.0}


def test_hidden_labels_are_not_seen():
  # The unlabelled image, of the test image's colour, says nothing.
  train, test = flat(RED, BLUE, DARK_RED), flat(DARK_RED)
  hidden = baselines.scores(train, np.array([0, 1, -1]), test, np.array([0]))
  shown = baselines.scores(train, np.array([0, 1, 1]), test, np.array([0]))
  assert hidden['baseline_pixels_top1'] == 1.0
  assert shown['baseline_histogram_top1'] == 0.0


@pytest.mark.parametrize('labels', ([-1, -1], []))
def test_nothing_to_learn_from(labels):
  found = baselines.scores(
    flat(RED, BLUE), np.array(labels, int), flat(RED), np.array([0])
  )
  assert set(found.values()) == {None}


def test_broken_files_are_left_out():
  train = flat(RED, BLUE)
  files = [b'no image', np.full((4, 4, 3), BLUE, np.uint8)]
  test = sources.Records(np.zeros(2, np.int32), files.__getitem__)
  found = baselines.scores(train, np.array([0, 1]), test, np.array([0, 1]))
  assert found['baseline_pixels_top1'] == 1.0


def test_a_broken_training_image_teaches_nothing():
  files = [np.full((4, 4, 3), c, np.uint8) for c in (RED, BLUE)] + [b'no']
  train = sources.Records(np.zeros(3, np.int32), files.__getitem__)
  # Broken, it is black; as an image of class 1 it would claim the dark one.
  dark = flat((1, 0, 0))
  found = baselines.scores(train, np.array([0, 2, 1]), dark, np.array([1]))
  assert set(found.values()) == {0.0}
