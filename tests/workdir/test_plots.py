import json
import time

import numpy as np
import pytest
from matplotlib import colors, image
from sklearn import datasets

from semppl_jax.workdir import panels, plots


def log(workdir, rows) -> None:
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (workdir / 'metrics.jsonl').write_text(text)


def rows(count: int, **constant) -> list[dict]:
  values = {key: 0.06 * i for i, key in enumerate(panels.NAMES)} | constant
  return [{'step': 10 * (i + 1)} | values for i in range(count)]


def pictures(
  workdir, embeddings=None, labels=None, class_names=None
) -> set[str]:
  """The names of the pictures; each must be a picture with something in it."""
  plots.plots(
    str(workdir),
    embeddings=embeddings,
    labels=labels,
    class_names=class_names,
  )
  paths = list((workdir / 'plots').iterdir())
  for path in paths:
    assert np.ptp(image.imread(path)[..., :3]) > 0.5
  return {path.name for path in paths}


def curves(found: list[dict], shares=False) -> dict[str, list]:
  """{panel: its legend} of the figure."""
  wanted = (panels.shares if shares else panels.numbers)(found)
  figure = plots._curves(found, 'x', wanted, shares=shares)
  if figure is None:
    return {}
  return {
    ax.get_title(): [t.get_text() for t in ax.get_legend().get_texts()]
    if ax.get_legend()
    else []
    for ax in figure.axes
  }


def test_all_pictures(tmp_path):
  log(tmp_path, rows(12))
  digits = datasets.load_digits()
  names = [f'digit {i}' for i in range(10)]
  begun = time.process_time()
  assert pictures(tmp_path, digits.data[:300], digits.target[:300], names) == {
    'losses.png',
    'pseudo_labels.png',
    'tsne.png',
  }
  assert time.process_time() - begun < 6


def test_all_panels_and_legends():
  assert curves(rows(3)) == {
    'Total loss': [],
    'Loss terms': [
      'augmentation positives',
      'semantic positives',
      'classifier, cross-entropy',
      "regression of the target's or teacher's embedding",
      'regression of the nearest neighbours',
      'head that gives pseudo-labels, cross-entropy',
      'contrastive, both views',
      'cross-entropy with the teacher',
      'labelled images, cross-entropy',
      "swapped prediction, another view's assignment",
      "another view's soft label, cross-entropy",
    ],
    'Invariance terms': [
      'invariance, augmentation positives',
      'invariance, semantic positives',
    ],
    'Embedding spread': [],
    'Assignments to prototypes': [
      "entropy of an image's assignment",
      'entropy of their mean',
    ],
    'Entropy of the mean soft label': [],
    'Prototypes in use': [],
    'False negatives of an image': [],
    'Effective rank of the embeddings': [],
  }
  found = curves(rows(3), shares=True)
  assert [len(legend) for legend in found.values()] == [7, 2, 2, 5, 0]


def test_terms_of_any_objective_are_drawn():
  found = [{'step': 1, 'loss': 1.0, 'loss/other': 2.0, 'entropy': 3.0}]
  assert panels.numbers(found) == {
    'Total loss': {'loss': 'total'},
    'Loss terms': {'loss/other': 'other'},
  }
  assert panels.shares(found) == {}


def test_missing_and_null_series_are_left_out():
  found = rows(3, **{'loss/semantic': None}, pseudo_label_accuracy=None)
  for row in found:
    del row['invariance/augmentation'], row['invariance/semantic']
  drawn = curves(found)
  assert set(drawn) == {
    'Total loss',
    'Loss terms',
    'Embedding spread',
    'Assignments to prototypes',
    'Entropy of the mean soft label',
    'Prototypes in use',
    'False negatives of an image',
    'Effective rank of the embeddings',
  }
  assert 'semantic positives' not in drawn['Loss terms']
  drawn = curves(found, shares=True)
  assert drawn['Accuracy during training'] == [
    'votes, labelled images',
    'nearest prototype, labelled images beside the batch',
    'other view found, all images',
    'classifier, labelled images',
    'student chooses as its teacher',
    'false negatives of the same label',
  ]


def test_a_gap_stays_a_gap():
  found = rows(4)
  found[1]['loss'] = None
  steps, values = panels.series(found, 'loss')
  assert steps.tolist() == [10, 20, 30, 40]
  assert np.isnan(values).tolist() == [False, True, False, False]


def test_what_is_measured_now_and_then_is_a_line():
  found = rows(300)
  for i, row in enumerate(found):
    if i % 10 != 9:
      del row['rankme']
  steps, values = panels.series(found, 'rankme')
  assert steps.tolist() == list(range(100, 3001, 100))
  assert np.isfinite(values).all()
  figure = plots._curves(found, 'x', panels.numbers(found), shares=False)
  [ax] = [a for a in figure.axes if 'rank' in a.get_title()]
  [line] = ax.lines  # thirty values: not smoothed, as the three hundred are
  assert np.asarray(line.get_ydata()).tolist() == values.tolist()
  assert ax.get_ylabel() == '' and figure.axes[0].get_ylabel() == 'nats'


@pytest.mark.parametrize('found', [None, [], [{'step': 1}], rows(1)])
def test_little_or_nothing_logged(tmp_path, found):
  if found is not None:
    log(tmp_path, found)
  drawn = {'losses.png', 'pseudo_labels.png'} if found == rows(1) else set()
  assert pictures(tmp_path) == drawn


def test_smooth_by_hand():
  values = np.array([1.0, 2.0, np.nan, 4.0, np.nan, np.nan, np.nan, 8.0])
  wanted = [1.5, 1.5, np.nan, 4.0, np.nan, np.nan, np.nan, 8.0]
  np.testing.assert_allclose(plots._smooth(values, 3), wanted)
  np.testing.assert_array_equal(plots._smooth(values, 1), values)


def test_a_long_run_is_smoothed_and_says_so():
  figure = plots._curves(rows(300), 'x', panels.numbers(rows(1)), shares=False)
  assert 'mean over 7 logged steps' in figure.get_suptitle()
  assert len(figure.axes[0].lines) == 2  # every step, and the mean


def blobs(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
  labels = np.arange(count) % 2
  noise = np.random.default_rng(0).standard_normal((count, 5))
  return 20.0 * labels[:, None] + noise, labels


@pytest.mark.parametrize('embeddings', [blobs()[0], blobs()[0][:, :1]])
def test_tsne_is_seeded(embeddings):
  """Starts from PCA, or from random numbers where there is no plane."""
  points = plots.project(embeddings)
  np.testing.assert_array_equal(points, plots.project(embeddings))


def test_tsne_separates_classes():
  embeddings, labels = blobs()
  points = plots.project(embeddings)
  distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
  np.fill_diagonal(distance, np.inf)
  np.testing.assert_array_equal(labels[distance.argmin(axis=1)], labels)


def scatter(embeddings, labels, names=None):
  """{name: [points, colour]} of the t-SNE, and the axes."""
  ax = plots._scatter(embeddings, labels, names).axes[0]
  found = {
    c.get_label(): (len(c.get_offsets()), colors.to_hex(c.get_facecolor()[0]))
    for c in ax.collections
  }
  return found, ax


def test_tsne_legend_counts_and_colours():
  embeddings, labels = blobs()
  labels = np.where(np.arange(40) < 10, -1, labels)
  found, ax = scatter(embeddings, labels, ['cat', 'dog'])
  assert {name: n for name, (n, _) in found.items()} == {
    'unknown': 10,
    'cat': 15,
    'dog': 15,
  }
  assert len({colour for _, colour in found.values()}) == 3
  assert [t.get_text() for t in ax.get_legend().get_texts()] == list(found)


def test_tsne_of_many_classes_has_no_legend():
  embeddings, _ = blobs(60)
  found, ax = scatter(embeddings, np.arange(60) % 30)
  assert ax.get_legend() is None
  assert len({colour for _, colour in found.values()}) == 30
  assert '30 classes' in ax.get_xlabel()


def test_tsne_leaves_out_what_is_not_finite():
  embeddings, labels = blobs()
  embeddings[3, 4], embeddings[7, 0] = np.nan, np.inf
  found, ax = scatter(embeddings, labels)
  assert (found['0'][0], found['1'][0]) == (20, 18)
  assert '38 of 40 test images' in ax.get_title()


def test_tsne_takes_a_part_of_many_images(monkeypatch):
  monkeypatch.setattr(plots, '_MAX_POINTS', 30)
  found, ax = scatter(*blobs(50))
  assert sum(n for n, _ in found.values()) == 30
  assert '30 of 50 test images' in ax.get_title()


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
  'embeddings, drawn',
  [
    (np.ones((30, 5)), True),  # the network has collapsed
    (np.random.default_rng(0).standard_normal((30, 1)), True),
    (np.eye(5), True),
    (np.eye(4), False),
    (np.full((30, 5), np.nan), False),
    (np.zeros((0, 5)), False),
  ],
)
def test_tsne_of_odd_embeddings(tmp_path, embeddings, drawn):
  assert pictures(tmp_path, embeddings) == ({'tsne.png'} if drawn else set())


def test_table():
  results = {
    'step': 12345,
    'knn_top1': 0.92345,
    'linear_all_top1': np.float32(1.0),
    'pseudo_label_accuracy': None,
    'seconds': 1234.56,
    'rate': 0.000123,
    'devices': '8 x cpu',
    'ok': True,
  }
  assert plots.table(results).split('\n') == [
    'step                     12,345',
    'knn_top1                  92.3%',
    'linear_all_top1          100.0%',
    'pseudo_label_accuracy         -',
    'seconds                 1,234.6',
    'rate                   0.000123',
    'devices                 8 x cpu',
    'ok                         True',
  ]
  assert plots.table({}) == ''


def test_class_names_in_any_script_warn_of_nothing(tmp_path, recwarn):
  log(tmp_path, rows(3))
  random = np.random.RandomState(0)
  found = pictures(
    tmp_path, random.randn(20, 4), np.arange(20) % 2, ['猫', '강아지']
  )
  assert 'tsne.png' in found
  assert not [w for w in recwarn if 'Glyph' in str(w.message)]
