"""Pictures and tables of a finished run.

Reads WORKDIR/metrics.jsonl, writes WORKDIR/plots/*.png. Draws what there is: a
series that is missing or null is left out, and so is a plot without any.
Figures are made without pyplot, hence without a display and global state.
"""

import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import threadpoolctl
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import manifold

from semppl_jax import storage
from semppl_jax.utils import files
from semppl_jax.workdir import metrics, panels

# Colour-blind eyes tell the colours apart; of equal curves both stay visible.
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7')
_STYLES = ('-', '--', ':', '-.')
_MAX_POINTS = 1000  # of the t-SNE
_MAX_LEGEND = 20  # classes, as many as tab20 has colours
# Panels of numbers that are not in nats.
_COUNTS = (
  'Prototypes in use',
  'False negatives of an image',
  'Effective rank of the embeddings',
)
_PERCENT = ('accuracy', 'top1', 'top5', '_share', '_fill')


def plots(
  workdir: str,
  *,
  embeddings: np.ndarray | None,
  labels: np.ndarray | None,
  class_names: Sequence[str] | None,
) -> None:
  """Writes plots/losses.png, plots/pseudo_labels.png and plots/tsne.png.

  Args:
    workdir: the run's folder.
    embeddings: [n, e] float, of the test images; None: no t-SNE.
    labels: [n] int, their classes, -1: unknown; None: all unknown.
    class_names: the K names; None: the numbers.
  """
  folder = storage.path(workdir) / 'plots'
  folder.mkdir(parents=True, exist_ok=True)
  try:
    rows = metrics.read(workdir)
  except FileNotFoundError:
    rows = []
  losses = panels.numbers(rows)
  losses.pop('Embedding spread', None)  # has no unit
  figures = {
    'losses': _curves(rows, 'Losses', losses, shares=False),
    'pseudo_labels': _curves(
      rows, 'Pseudo-labels', panels.shares(rows), shares=True
    ),
  }
  if embeddings is not None:
    labels = np.full(len(embeddings), -1) if labels is None else labels
    figures['tsne'] = _scatter(
      np.asarray(embeddings, np.float32), np.asarray(labels), class_names
    )
  for name, figure in figures.items():
    if figure is not None:
      with warnings.catch_warnings():
        # Class names in any script; what the font lacks is drawn as a box.
        warnings.filterwarnings('ignore', message='Glyph .* missing from')
        _save(figure, folder / f'{name}.png')


def _save(figure: Figure, path: pathlib.Path | storage.RemotePath) -> None:
  if not storage.is_remote(path):
    figure.savefig(path, dpi=120)
    return
  with files.atomic(path) as part:
    figure.savefig(part, dpi=120)


def table(results: Mapping[str, Any]) -> str:
  """results.json for the terminal: a name and a value per line, aligned."""
  texts = {name: number_text(name, value) for name, value in results.items()}
  left = max(map(len, texts), default=0)
  right = max(map(len, texts.values()), default=0)
  lines = (f'{name:<{left}}  {text:>{right}}' for name, text in texts.items())
  return '\n'.join(lines)


def number_text(name: str, value: Any) -> str:
  """A number of results.json for people, by what it is called."""
  if value is None:
    return '-'
  if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
    return str(value)
  if name.endswith(_PERCENT):
    return f'{value:.1%}'
  if isinstance(value, (int, np.integer)):
    return f'{value:,}'
  return f'{value:,.1f}' if abs(value) >= 10 else f'{value:.3g}'


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
  """Centred mean of the known values in `window`; a gap (NaN) stays one."""
  known = np.isfinite(values)
  sums, counts = (
    np.convolve(np.pad(x, window // 2), np.ones(window), 'valid')
    for x in (np.where(known, values, 0.0), known.astype(np.float64))
  )
  return np.where(known, sums / np.maximum(counts, 1), np.nan)


def _curves(
  rows: Sequence[Mapping[str, Any]],
  title: str,
  wanted: Mapping[str, Mapping[str, str]],
  *,
  shares: bool,
) -> Figure | None:
  """One panel for each group of series; shares are drawn from 0 to 100%."""
  if not wanted:
    return None
  columns = 1 if shares or len(wanted) == 1 else 2
  height = -(-len(wanted) // columns)
  size = (9 if columns == 1 else 11, 1.2 + 3 * height)
  figure = Figure(figsize=size, layout='constrained')
  figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)  # inches
  axes = figure.subplots(height, columns, squeeze=False).ravel()
  window = _window(len(rows))
  for ax, (name, keys) in zip(axes, wanted.items()):
    lines = {text: panels.series(rows, key) for key, text in keys.items()}
    _panel(ax, name, lines)
    ax.set_ylabel('share' if shares else '' if name in _COUNTS else 'nats')
    if shares:
      ax.set_ylim(-0.03, 1.03)
      ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
  for ax in axes[len(wanted) :]:
    ax.remove()
  note = f'\nbold: mean over {window} logged steps' if window > 1 else ''
  figure.suptitle(f'{title} over training{note}', fontsize=12)
  return figure


def _window(count: int) -> int:
  """Steps of a smoothed line's mean, odd; a short run is shown as it is."""
  return 2 * (count // 100) + 1


def _panel(ax: Axes, title: str, lines: Mapping[str, np.ndarray]) -> None:
  for i, (name, (steps, values)) in enumerate(lines.items()):
    window = _window(len(steps))
    # A single value between gaps makes no line; a marker shows it.
    few = np.isfinite(values).sum() <= 20
    colour, style = (x[i % len(x)] for x in (_COLOURS, _STYLES))
    look = {'color': colour, 'marker': 'o' if few else None, 'ms': 3}
    if window > 1:
      ax.plot(steps, values, color=colour, alpha=0.25, lw=0.7)
    ax.plot(steps, _smooth(values, window), style, label=name, **look)
  ax.set_title(title, fontsize=11)
  ax.set_xlabel('training step')
  ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  ax.grid(alpha=0.3)
  ax.spines[['top', 'right']].set_visible(False)
  if len(lines) > 1:
    ax.legend(frameon=False, fontsize=9)


def project(embeddings: np.ndarray) -> np.ndarray:
  """[n, e] -> [n, 2] by a seeded t-SNE."""
  # PCA divides by the spread, which is 0 when the network has collapsed.
  spread = np.ptp(embeddings, axis=0).max() > 1e-6 and embeddings.shape[1] > 1
  tsne = manifold.TSNE(
    perplexity=min(30.0, (len(embeddings) - 1) / 3),
    init='pca' if spread else 'random',
    max_iter=500,  # half of sklearn's: looks the same at 1000 points
    random_state=0,
  )
  # One thread: sklearn's wait for each other, so that on a busy machine several
  # can take far longer than one; and the picture is the same everywhere.
  with threadpoolctl.threadpool_limits(1):
    return tsne.fit_transform(embeddings)


def _scatter(
  embeddings: np.ndarray, labels: np.ndarray, names: Sequence[str] | None
) -> Figure | None:
  """The t-SNE of at most _MAX_POINTS images, coloured by class."""
  usable = np.flatnonzero(np.isfinite(embeddings).all(axis=-1))
  if len(usable) < 5:
    return None
  order = np.random.default_rng(0).permutation(usable)[:_MAX_POINTS]
  points, labels = project(embeddings[order]), labels[order]
  classes = np.unique(labels[labels >= 0])
  figure = Figure(figsize=(8.5, 7), layout='constrained')
  ax = figure.subplots()
  few = len(classes) <= _MAX_LEGEND
  colours = matplotlib.colormaps[
    'tab10' if len(classes) <= 10 else 'tab20' if few else 'turbo'
  ]
  unknown = points[labels < 0]
  if len(unknown):
    ax.scatter(*unknown.T, s=14, color='#bbbbbb', label='unknown')
  for i, label in enumerate(classes):
    colour = colours(i) if few else colours(i / (len(classes) - 1))
    name = str(names[label]) if names is not None else str(label)
    ax.scatter(*points[labels == label].T, s=14, color=colour, label=name)
  count = f'{len(order):,} of {len(embeddings):,}'
  ax.set_title(f't-SNE of the encoder output, {count} test images')
  ax.set_xlabel(f'{len(classes)} classes; the axes have no unit')
  ax.set_xticks([])
  ax.set_yticks([])
  if few:
    ax.legend(loc='center left', bbox_to_anchor=(1, 0.5), markerscale=1.6)
  return figure
