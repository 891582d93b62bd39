"""USL, unsupervised selective labelling: which images to label.

Dense images are typical of many others; one of each cluster, and not too near
the other choices, together stand for all. Wang, Lian, Yu, ECCV 2022,
arXiv 2110.03006; its release TonyLianLong/UnsupervisedSelectiveLabeling. No
label is used.
"""

from typing import Any, NamedTuple

import numpy as np

from semppl_jax.errors import UserError
from semppl_jax.selection import density as density_lib
from semppl_jax.selection import k_means
from semppl_jax.selection import rounds as rounds_lib
from semppl_jax.utils.text import nearest_name


class Settings(NamedTuple):
  """What a choice depends on, beside features, budget and seed."""

  k: int  # neighbours of the density; at most all images
  iterations: int  # of k-means, at most
  rounds: int  # of the choice; 1: the densest image of each cluster
  weight: float  # of what pushes choices apart
  momentum: float  # of that, from round to round
  power: float  # of 1 / squared distance
  horizon: float  # squared distance from which choices do not count; 0: none
  nearest: int  # choices that count; 0: all
  own_cluster: bool  # whether the choice of the same cluster counts


_CIFAR10 = Settings(400, 200, 10, 0.5, 0.9, 0.5, 4.0, 0, False)
# Of the release's configs; `small` is CIFAR-10's with fewer neighbours [ours].
PRESETS = {
  'small': _CIFAR10._replace(k=20),
  'cifar10': _CIFAR10,
  'cifar100': _CIFAR10._replace(weight=1.0, power=1.0, horizon=1.0),
  'imagenet': Settings(20, 100, 2, 1.5, 0.0, 0.5, 0.0, 128, True),
}
# Of each number the least value, the largest one (None: any), and whether the
# least one is allowed.
_RANGES = {
  'k': (1, None, True),
  'iterations': (1, None, True),
  'rounds': (1, None, True),
  'weight': (0, None, True),
  'momentum': (0, 1, True),
  'power': (0, None, False),
  'horizon': (0, None, True),
  'nearest': (0, None, True),
}


class Selection(NamedTuple):
  """The images to label, cluster by cluster, and why these."""

  rows: np.ndarray  # [C] int, of the features
  scores: np.ndarray  # [C] float32, density less what pushed them apart
  density: np.ndarray  # [N] float32, 1 / mean squared distance to k nearest
  clusters: np.ndarray  # [N] int32, 0 .. C - 1, by k-means
  settings: Settings


def select(
  features: Any,
  budget: int,
  *,
  preset: str = 'small',
  seed: int = 0,
  progress: bool = False,
  **changes: Any,
) -> Selection:
  """Chooses which images to label, by USL.

  A pure function of its arguments. It takes about 2 N^2 d and 2 N C d
  operations an iteration of k-means, for C images of N; memory beside the
  features is bounded.

  Args:
    features: [N, d] float, one row for each image, from a network that was
      trained without labels, such as `Model.project`'s; their length does not
      matter.
    budget: C, how many images are to be labelled, from 1 to N.
    preset: small, or cifar10, cifar100, imagenet, the settings of the release.
    seed: of the images that k-means begins with.
    progress: bars on the terminal.
    **changes: of the preset's settings, see `Settings`.

  Returns:
    A Selection.

  Raises:
    UserError: one line: a budget or a setting out of range, or features that
      are no finite rows.
  """
  settings = resolve(preset, changes)
  features = _unit_rows(features)
  count = len(features)
  check_budget(budget, count)
  if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
    raise UserError(f'seed is {seed!r}; it must be a whole number.')
  settings = settings._replace(k=min(settings.k, count))
  hide = None if progress else True  # None: where nobody looks at it
  apart = density_lib.mean_squared_distances(features, settings.k, hide=hide)
  density = 1 / np.maximum(apart, rounds_lib.NEAREST)
  # RandomState's numbers are frozen for ever, as a choice must be.
  random = np.random.RandomState(int(seed) % 2**32)
  start = random.permutation(count)[:budget]
  clusters, _ = k_means.cluster(features, start, settings.iterations, hide=hide)
  of_rounds = settings._asdict()
  del of_rounds['k'], of_rounds['iterations']
  rows, scores = rounds_lib.choose(
    features, density, clusters, **of_rounds, hide=hide
  )
  return Selection(rows, scores, density, clusters, settings)


def resolve(preset: str, changes: dict[str, Any]) -> Settings:
  """A preset's settings with some changed.

  Raises:
    UserError: an unknown preset or setting, or a value out of range.
  """
  if preset not in PRESETS:
    hint = nearest_name(str(preset), PRESETS)
    raise UserError(f'preset is {preset!r}; known: {", ".join(PRESETS)}{hint}')
  unknown = changes.keys() - set(Settings._fields)
  if unknown:
    name = min(unknown)
    hint = nearest_name(name, Settings._fields)
    raise UserError(
      f'{name} is no setting of select; known: '
      f'{", ".join(Settings._fields)}{hint}'
    )
  settings = PRESETS[preset]._replace(**changes)
  for name, (low, high, least) in _RANGES.items():
    value = getattr(settings, name)
    whole = isinstance(getattr(_CIFAR10, name), int)
    kinds = (int, np.integer) if whole else (int, float, np.number)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    fits = fits and (low <= value if least else low < value)
    if not (fits and value <= (1e9 if high is None else high)):
      wanted = f'at least {low}' if least else f'above {low}'
      wanted += '' if high is None else f' and at most {high}'
      kind = 'a whole number' if whole else 'a number'
      raise UserError(f'{name} is {value!r}; it must be {kind} {wanted}.')
  if not isinstance(settings.own_cluster, bool):
    raise UserError(
      f'own_cluster is {settings.own_cluster!r}; it must be True or False.'
    )
  return settings


def check_budget(budget: int, count: int) -> None:
  """Refuses a budget that so many images cannot give.

  Raises:
    UserError: one line.
  """
  if count < 2:
    images = 'is 1 image' if count else 'is no image'
    raise UserError(f'There {images}: a choice takes at least 2.')
  whole = isinstance(budget, (int, np.integer)) and not isinstance(budget, bool)
  if not whole or not 1 <= budget <= count:
    raise UserError(
      f'budget is {budget!r}; it must be a whole number from 1 to {count:,}, '
      'the number of images.'
    )


def _unit_rows(features: Any) -> np.ndarray:
  """[N, d] float32 of length 1."""
  array = np.asarray(features)
  if array.ndim != 2 or array.dtype.kind not in 'fiu':
    raise UserError(
      f'features are {array.dtype}{list(array.shape)}; they must be numbers '
      '[N, d].'
    )
  array = array.astype(np.float32)
  lengths = np.linalg.norm(array, axis=1, keepdims=True)
  odd = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
  if len(odd):
    raise UserError(
      f'features of image {odd[0]} have the length {lengths[odd[0], 0]}; it '
      f'must be finite and above 0 ({len(odd):,} such rows).'
    )
  array /= lengths  # our copy
  return array
