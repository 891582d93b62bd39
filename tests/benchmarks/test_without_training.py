"""The rows of a table that need no training."""

import numpy as np
from PIL import Image

from benchmarks import without_training
from experiments import digits, folder
from semppl_jax.train import recipe
from semppl_jax.train import run as run_lib


def test_pixels_know_their_neighbours():
  """A test image that is a labelled one has that one's label."""
  run = run_lib.prepare(digits.get_config())
  labelled = np.flatnonzero(run.labels >= 0)
  test = [run.data.train[i] for i in labelled]
  found = without_training.pixels(
    run._replace(data=run.data._replace(test=_Rows(test)))
  )
  assert found['knn_top1'] == found['linear_labelled_top1'] == 1
  assert without_training.pixels(run)['knn_top1'] < 0.9


class _Rows(list):
  @property
  def labels(self):
    return np.array([record['label'] for record in self])


def test_pixels_of_files_of_several_sizes_are_kept(tmp_path, monkeypatch):
  for split, sides in (('train', (20, 30, 40)), ('test', (24, 50))):
    for name, place in (('left', 0), ('right', 1)):
      path = tmp_path / 'data' / split / name
      path.mkdir(parents=True)
      for side in sides:
        image = Image.new('RGB', (side, side))
        half = (place * side // 2, 0, (place + 1) * side // 2, side)
        image.paste((100 + side,) * 3, half)
        image.save(path / f'{side}.png')
  cfg = folder.get_config()
  cfg.dataset.path = str(tmp_path / 'data')
  cfg.labels.per_class = 1
  cfg.num_epochs = 1.0
  cfg = recipe.complete(cfg, None)
  make = lambda: without_training.results(
    without_training.PIXELS, cfg, str(tmp_path)
  )
  found = make()
  assert found == {
    'knn_top1': 1.0,
    'linear_labelled_top1': 1.0,
    'linear_all_top1': 1.0,
  }
  monkeypatch.setattr(without_training, 'pixels', None)
  assert make() == found
