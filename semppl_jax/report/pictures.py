"""Images of the page: views, and queries beside their nearest neighbours."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from PIL import Image

from semppl_jax import types
from semppl_jax.augment import views
from semppl_jax.data import images as images_lib
from semppl_jax.data import pipeline, sources
from semppl_jax.evaluation.labelling import Labelling
from semppl_jax.report import markup, predictions
from semppl_jax.report.markup import Html, tag
from semppl_jax.train.run import TrainRun

_SMALL = 48  # pixels of a side; below, pixels are shown as squares
_LARGEST = 112  # larger images are shrunk to that
_VIEWED = 4  # training images whose views are shown
_EACH = 9  # queries that are right, and that are wrong
_DOUBTFUL = 12


def picture(pixels: np.ndarray, alt: str) -> Html:
  """An image [S, S, 3], float in [0, 1] or uint8, as part of the page."""
  if pixels.dtype != np.uint8:
    pixels = np.uint8(np.round(255 * np.clip(pixels, 0, 1)))
  image = Image.fromarray(pixels)
  image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
  small = max(image.size) < _SMALL
  file = io.BytesIO()
  # Photographs are ten times smaller as JPEG.
  kind, options = ('png', {}) if small else ('jpeg', {'quality': 85})
  image.save(file, kind, **options)
  data = base64.b64encode(file.getvalue()).decode()
  return tag(
    'img', src=f'data:image/{kind};base64,{data}', alt=alt,
    class_='pixels' if small else None,
  )  # fmt: skip


def views_of(run: TrainRun) -> Html:
  """The first training images, and what the networks see of each."""
  cfg, source = run.cfg, run.data.train
  count = min(_VIEWED, len(source))
  batch, truth = next(
    pipeline.batches(
      source, run.labels, seed=cfg.seed, batch_size=count, start_step=0,
      num_steps=1, images=run.images, on_unreadable=lambda name, why: None,
    )
  )  # fmt: skip
  drawn = _draw(batch, cfg.views, cfg.seed)
  groups = [('large', drawn.large), ('small', drawn.small)]
  masked = None
  if batch.masks is not None:
    section = ml_collections.ConfigDict(cfg.views)
    section.saliency = 1.0
    foreground = _draw(batch, section, cfg.seed).large[:1]
    groups.append(('masked', foreground))
    masked = markup.note(
      f'With probability {cfg.views.saliency:g} a large view sees the '
      'foreground alone; “masked” shows one that does.'
    )
  strips = []
  for i in range(count):
    size = batch.images.shape[1:3] if batch.sizes is None else batch.sizes[i]
    whole = batch.images[i][: size[0], : size[1]]
    strips.append(_strip(whole, _name(run, truth[i]), groups, i))
  sizes = f'{cfg.views.large_size} and {cfg.views.small_size} pixels'
  return markup.join(
    tag('div', *strips, class_='views'),
    markup.note(
      f'The first images of the run, seen with its settings: '
      f'{cfg.views.num_large} large and {cfg.views.num_small} small views of '
      f'each, {sizes} a side.'
    ),
    masked,
  )


def _draw(batch: types.Batch, section: Any, seed: int) -> types.Views:
  """Views of a batch, as arrays on the host."""
  keys = jax.random.split(jax.random.key(seed), len(batch.images))
  draw = lambda k, b: views.make_views(k, b.images, section, b.sizes, b.masks)
  return jax.tree.map(np.asarray, jax.jit(draw)(keys, batch))


def _strip(
  whole: np.ndarray,
  label: str,
  groups: Sequence[tuple[str, np.ndarray]],
  i: int,
) -> Html:
  """An image and its views, side by side."""
  cells = [
    _figure(picture(whole, f'Image: {label}'), tag('b', label, title=label))
  ]
  for kind, array in groups:
    cells += [
      _figure(picture(view[i], f'{kind} view of {label}'), kind, kind=kind)
      for view in array
    ]
  return tag('div', *cells, class_='strip')


def gallery(run: TrainRun, said: predictions.Predictions) -> Html:
  """Unlabelled images, their nearest labelled ones, and what is predicted."""
  predicted = said.labels >= 0
  if not predicted.any():
    raise markup.Absent('Nothing predicts labels: no image has one.')
  known = predicted & (said.truth >= 0)
  right = said.labels == said.truth
  groups = (
    ('wrong', '✗', 'Wrong', np.flatnonzero(known & ~right)),
    ('right', '✓', 'Right', np.flatnonzero(known & right)),
    ('unknown', '?', 'True class unknown', np.flatnonzero(predicted & ~known)),
  )
  parts = []
  for kind, mark, title, which in groups:
    if not len(which):
      continue
    shown = predictions.some(which, _EACH, run.cfg.seed)
    cards = [_card(run, said, int(i), kind, mark) for i in shown]
    head = f'{mark} {title}: {len(shown)} of {len(which):,}, at random'
    parts += [tag('h3', head), tag('div', *cards, class_='cards')]
  return markup.join(*parts)


def _card(
  run: TrainRun, said: predictions.Predictions, i: int, kind: str, mark: str
) -> Html:
  label = _name(run, said.labels[i])
  query = _figure(
    _thumbnail(run, int(said.rows[i]), 'Query'),
    'true: ',
    _class(run, said.truth[i]),
  )
  verdict = tag(
    'p',
    tag('span', mark, aria_hidden='true', class_='mark'),
    tag('b', f' predicted {label} '),
    tag('span', kind, class_='unseen'),
    class_='verdict',
  )
  nearest = tag('div', *_nearest(run, said, i), class_='strip')
  return tag('div', query, tag('div', verdict, nearest), class_=f'card {kind}')


def _nearest(
  run: TrainRun, said: predictions.Predictions, i: int
) -> list[Html]:
  """Labelled neighbours, nearest first."""
  return [
    _figure(
      _thumbnail(run, int(row), 'Labelled neighbour'),
      _class(run, run.labels[row]),
      f'cos {similarity:.2f}',
    )
    for row, similarity in zip(said.neighbours[i], said.similarity[i])
  ]


def doubtful(run: TrainRun, found: Labelling) -> Html:
  """The unlabelled images whose pseudo-labels are least sure."""
  cards = [_doubtful(run, found, i) for i in range(len(found.rows))[:_DOUBTFUL]]
  return tag('div', *cards, class_='cards')


def _doubtful(run: TrainRun, found: Labelling, i: int) -> Html:
  row, votes = int(found.rows[i]), found.votes
  called = sources.name(run.data.train, row)
  query = _figure(_thumbnail(run, row, 'Image'), tag('b', called, title=called))
  sure = f'{votes.share[i]:.0%} of the votes'
  if found.probability is not None:
    sure += f', right with {found.probability[i]:.0%}'
  other = ''
  if votes.runner_up[i] >= 0:
    name_ = _name(run, votes.runner_up[i])
    other = f'; {name_} {votes.runner_up_share[i]:.0%}'
  verdict = tag(
    'p', tag('b', _name(run, votes.labels[i])), f': {sure}{other}',
    class_='verdict',
  )  # fmt: skip
  nearest = [
    _figure(
      _thumbnail(run, int(near), 'Labelled neighbour'),
      _class(run, run.labels[near]),
      f'cos {similarity:.2f}',
    )
    for near, similarity in zip(votes.neighbours[i], votes.similarity[i])
  ]
  strip = tag('div', *nearest, class_='strip')
  return tag('div', query, tag('div', verdict, strip), class_='card unknown')


def _thumbnail(run: TrainRun, row: int, what: str) -> Html:
  """A training image as the network sees it in evaluation."""
  label = _name(run, run.data.train.labels[row])
  try:
    pixels = predictions.crops(run).array(run.data.train[row]['image'])
  except images_lib.Unreadable:
    return tag('span', 'cannot be decoded')
  return picture(pixels, f'{what}: {label}')


def _figure(image: Html, *caption: Any, kind: str | None = None) -> Html:
  return tag('figure', image, tag('figcaption', *caption), class_=kind)


def _class(run: TrainRun, label: int) -> Html:
  """A class's name below an image; a long one is cut off, and in its title."""
  return tag('b', _name(run, label), title=_name(run, label))


def _name(run: TrainRun, label: int) -> str:
  return name(run.data.class_names, label)


def name(names: Sequence[str], label: int) -> str:
  """A class's name; -1: unknown."""
  return str(names[int(label)]) if 0 <= label < len(names) else 'unknown'
