"""A trained network for people who explore: images in, arrays out.

  model = semppl_jax.load_pretrained('digits')
  embeddings = model.embed(images)  # [N, model.embedding_size]

Images are seen as evaluation sees them: the middle of each, resized by the
release's bicubic rule. The pure function underneath is `model.apply`.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.data import pipeline, python_objects, sources
from semppl_jax.distributed import parallel, processes
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.evaluation import features as features_lib
from semppl_jax.evaluation import knn
from semppl_jax.memory import pseudo_labels
from semppl_jax.models import encoders
from semppl_jax.weights import haiku_trees
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import run_log

_IMAGENET = 224, 0.875  # size of the crop, its side / the shorter side
_BATCHES = 8, 64  # images at a time: few, many
_MOST = np.iinfo(np.int32).max  # of labels


class _PseudoLabels(NamedTuple):
  labels: np.ndarray  # [N] int32, the vote's winner; str, if such were given
  share: np.ndarray  # [N] float32, its share of the k votes
  neighbours: np.ndarray  # [N, k] int, rows of the support, nearest first
  similarity: np.ndarray  # [N, k] float32, cosine


class PseudoLabels(_PseudoLabels):
  """What the nearest labelled images say of N images: a tuple of four arrays.

  Attributes:
    paths: [N], if the images were files; beside the four, which unpack.
  """

  paths: list[str] | None = None


class FileEmbeddings(NamedTuple):
  """Embeddings of n image files, and which file each is of."""

  paths: list[str]  # n
  embeddings: np.ndarray  # [n, e] float32
  unreadable: dict[str, str]  # path -> reason, of the files left out


class Model:
  """A checkpoint that embeds and classifies images.

  Attributes:
    checkpoint: what was loaded; str() of it is a line.
    image_size: side of the square that the network sees, in pixels.
    center: side of that square / shorter side of the image, before resizing.
  """

  def __init__(
    self,
    checkpoint: load_lib.Checkpoint,
    *,
    image_size: int | None = None,
    center: float | None = None,
  ):
    """Wraps a checkpoint.

    Args:
      checkpoint: of any kind.
      image_size: None: as the checkpoint says, or else ImageNet's 224.
      center: None: as the checkpoint says, or else ImageNet's 0.875.

    Raises:
      UserError: a size below 1, a share out of range, or a job of several
        processes.
    """
    processes.require_single('A model')
    self.checkpoint = checkpoint
    said = checkpoint.image_size, checkpoint.center
    given_, usual = (image_size, center), _IMAGENET
    self.image_size, self.center = (
      next(x for x in options if x is not None)
      for options in zip(given_, said, usual, strict=True)
    )
    whole = isinstance(self.image_size, (int, np.integer))
    if not whole or self.image_size < 1 or not 0 < self.center <= 1:
      raise UserError(
        f'image_size is {self.image_size} and center {self.center}; they must '
        'be a whole number from 1 on, and above 0 and at most 1.'
      )
    self._nets = checkpoint.network()

  def __repr__(self) -> str:
    return f'Model({self.checkpoint}; sees {self.image_size} px)'

  @property
  def params(self) -> haiku_trees.Tree:
    """Weights, {module: {name: float32 array}}, under the release's names."""
    return self.checkpoint.params

  @property
  def state(self) -> haiku_trees.Tree:
    """BatchNorm's running averages."""
    return self.checkpoint.state

  @property
  def embedding_size(self) -> int:
    """e, the size of the encoder's output."""
    return encoders.output_size(self.checkpoint.architecture)

  @functools.cached_property
  def projection_size(self) -> int:
    """d, the size of the projector's output; 0: there is no projector."""
    size = self.image_size
    views = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    passed = functools.partial(self._nets.target, is_training=False)
    outputs, _ = jax.eval_shape(passed, self.params, self.state, views)
    found = outputs.get('projection')
    return 0 if found is None else found.shape[-1]

  @property
  def num_classes(self) -> int:
    """K of the classifier; 0: there is none."""
    return self.checkpoint.num_classes

  @property
  def classifier(self) -> str:
    """What predicts: 'linear', 'prototypes' (Suave, Daino); '': nothing."""
    return self.checkpoint.classifier

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of the classifier's classes, in their order; empty: nobody said."""
    return self.checkpoint.class_names

  def apply(self, params: Any, state: Any, images: jax.Array) -> jax.Array:
    """The encoder in evaluation mode: pure, to be jitted, mapped, derived.

    Args:
      params: like `model.params`.
      state: like `model.state`.
      images: [n, S, S, 3] floats in [0, 1], see `preprocess`.

    Returns:
      [n, e] float32.
    """
    return self._nets.encode(params, state, images, False)[0]

  def preprocess(self, images: Any) -> np.ndarray:
    """Images as the network sees them.

    Args:
      images: see `embed`.

    Returns:
      [N, image_size, image_size, 3] float32 in [0, 1].
    """
    parts = pipeline.in_order(
      python_objects.source(images),
      batch_size=_BATCHES[-1],
      images=self._crops,
      on_unreadable=_refuse,
    )
    return np.concatenate([arrays for arrays, _ in parts])

  def embed(self, images: Any) -> np.ndarray:
    """The encoder's embeddings of images of any number and size.

    On all devices, in batches. Files are decoded by threads meanwhile.

    Args:
      images: an array [N, H, W, 3] (or [H, W, 3]: one image), uint8 or floats
        in [0, 1]; a PIL image; the bytes of an encoded file; the path of a
        file, or of a folder (all images below it, sorted by path:
        `embed_files` gives the paths, too); or a sequence of these, of any
        sizes.

    Returns:
      [N, e] float32, not normalised.

    Raises:
      UserError: no image, a wrong rank, type or range of values, or a file that
        cannot be read or decoded; the line names it.
    """
    return self._run(self._embed, images)

  def project(self, images: Any) -> np.ndarray:
    """The projector's outputs, [N, d] float32, not normalised; see `embed`.

    What the contrastive losses compare, and `semppl_jax.select` looks at.

    Raises:
      CheckpointError: the checkpoint has no projector.
      UserError: see `embed`.
    """
    if not self.projection_size:
      raise CheckpointError(
        f'{self.checkpoint} has no projector: use embed, or a checkpoint of '
        'pre-training.'
      )
    return self._run(self._project, images)

  def features(
    self,
    source: sources.Source,
    output: str = 'embedding',
    on_unreadable: pipeline.OnUnreadable = lambda name, reason: None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Features of a data set's images, and which of them could be read.

    Args:
      source: N records, such as `datasets.load(...).train`.
      output: 'embedding', see `embed`, or 'projection', see `project`.
      on_unreadable: told name and reason of each image that cannot be decoded.

    Returns:
      [N, e] or [N, d] float32, of a black image where there is none; and
      [N] bool.
    """
    forward = {'embedding': self._embed, 'projection': self._project}[output]
    return self._over(forward, source, on_unreadable)

  def embed_files(
    self, files: Any, *, skip_unreadable: bool = False
  ) -> FileEmbeddings:
    """Embeddings of image files, with their paths.

    Args:
      files: the path of a file, or of a folder (all images below it, sorted by
        path), or a sequence of paths.
      skip_unreadable: leaves out files that cannot be read or decoded, and
        lists them; else the first one is an error.

    Raises:
      UserError: see `embed`; what is no path.
    """
    paths = python_objects.files(files)
    unreadable: dict[str, str] = {}
    tell = unreadable.__setitem__ if skip_unreadable else _refuse
    embeddings, readable = self.features(
      python_objects.source(paths), on_unreadable=tell
    )
    kept = np.flatnonzero(readable)
    return FileEmbeddings(
      [paths[i] for i in kept], embeddings[kept], unreadable
    )

  def logits(self, images: Any) -> np.ndarray:
    """The classifier's outputs, [N, K] float32; see `embed`.

    Where the prototypes are the classifier, their scores / temperature.

    Raises:
      CheckpointError: the checkpoint has no classifier.
      UserError: see `embed`.
    """
    if not self.num_classes:
      raise CheckpointError(
        f'{self.checkpoint} has no classifier to predict with: use '
        'pseudo_label with some labelled images, or train one '
        '(experiments/eval_linear.py).'
      )
    return self._run(self._classify, images)

  def predict(self, images: Any) -> np.ndarray:
    """The classifier's choice for each image, [N] int32; see `logits`."""
    return self.logits(images).argmax(axis=1).astype(np.int32)

  def predict_names(self, images: Any) -> list[str]:
    """The same by the classes' names, [N]; see `class_names`.

    Raises:
      CheckpointError: the checkpoint does not name its classes, or see
        `logits`.
    """
    if not self.class_names:
      raise CheckpointError(
        f'{self.checkpoint} does not name its classes: use predict.'
      )
    return [self.class_names[label] for label in self.predict(images)]

  def pseudo_label(
    self, images: Any, support_images: Any, support_labels: Any, *, k: int = 1
  ) -> PseudoLabels:
    """The vote of the k nearest labelled images.

    Neighbours by the cosine of the encoder's embeddings (in pre-training the
    method looks up predictions among projections, of several views); the vote
    is the method's: the most frequent label, then the larger summed similarity,
    then the smaller label.

    Args:
      images: see `embed`.
      support_images: M labelled images.
      support_labels: [M] int, at least 0, or [M] names of classes.
      k: neighbours, at most M.

    Returns:
      Labels, shares of the votes, and who the neighbours are; of files the
      paths, too. Names count as numbers in their alphabetical order.

    Raises:
      UserError: labels that do not fit, k out of range, or see `embed`.
    """
    names, labels = _support(support_labels)
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= len(labels):
      raise UserError(
        f'k is {k}; it must be a whole number from 1 to {len(labels)}, the '
        'number of support labels.'
      )
    keys = self.embed(support_images)
    if len(keys) != len(labels):
      raise UserError(
        f'{len(keys)} support images, but {len(labels)} support labels.'
      )
    paths = (
      python_objects.files(images) if python_objects.are_files(images) else None
    )
    queries = self.embed(images if paths is None else paths)
    nearest, similarity = knn.neighbours(queries, keys, k)
    voted, share = map(
      np.asarray, jax.jit(pseudo_labels.vote)(labels[nearest], similarity)
    )
    if names is not None:
      voted = names[voted]
    found = PseudoLabels(voted, share, nearest, similarity)
    found.paths = paths
    return found

  @property
  def _crops(self) -> pipeline.Images:
    return pipeline.Images(crop=(self.image_size, self.center))

  @functools.cached_property
  def _embed(self) -> Callable[..., tuple[jax.Array]]:
    # Kept: another function would be compiled anew.
    return lambda state, views: (self.apply(*state, views),)

  @functools.cached_property
  def _project(self) -> Callable[..., tuple[jax.Array]]:
    # The heads of a target network are the projector without what follows it.
    target = self._nets.target
    return lambda state, views: (target(*state, views, False)[0]['projection'],)

  @functools.cached_property
  def _classify(self) -> Callable[..., tuple[jax.Array]]:
    online = self._nets.online
    return lambda state, views: (online(*state, views, False)[0]['logits'],)

  @functools.cached_property
  def _on_devices(self) -> Any:
    devices = jax.local_devices()
    copies = parallel.replicate((self.params, self.state), len(devices))
    return parallel.put_sharded(copies, devices)

  def _run(self, forward: Callable[..., Any], images: Any) -> np.ndarray:
    return self._over(forward, python_objects.source(images), _refuse)[0]

  def _over(
    self,
    forward: Callable[..., Any],
    source: sources.Source,
    on_unreadable: pipeline.OnUnreadable,
  ) -> tuple[np.ndarray, np.ndarray]:
    """An output of all images, and which of them could be read."""
    few, many = _BATCHES
    (found,), readable = features_lib.over_images(
      forward, self._on_devices, source, jax.local_devices(),
      few if len(source) <= few else many, images=self._crops,
      on_unreadable=on_unreadable,
    )  # fmt: skip
    return found, readable


def load_pretrained(
  name: str | os.PathLike,
  *,
  image_size: int | None = None,
  center: float | None = None,
  **options: Any,
) -> Model:
  """Loads a checkpoint for exploring.

  Args:
    name: 'digits', which comes along; one of DeepMind's released ones after its
      download, such as 'resnet_50_1x_10_pct' ('10pct' is the same); or the path
      of a pickle, a safetensors file or a run.
    image_size: side of what the network sees; None: as the checkpoint says.
    center: share of the shorter side that it sees; None: likewise.
    **options: see `load_checkpoint`, such as network='target'.

  Raises:
    CheckpointError: an unknown name (the line has the nearest ones, and what is
      here), one that is not downloaded (its address), or a file that cannot be
      used.
    UserError: see Model.
  """
  found = load_lib.load_checkpoint(name, **options)
  if found.note or found.classifier == 'prototypes':  # what nobody expects
    run_log.info(f'{name}: {found}')
  return Model(found, image_size=image_size, center=center)


def _refuse(name: str, reason: str) -> None:
  """A row that stands for no image would be taken for one."""
  raise UserError(f'{name} cannot be decoded: {reason}.')


def _support(labels: Any) -> tuple[np.ndarray | None, np.ndarray]:
  """Names [K] of classes, if such were given, and numbers [M] int32."""
  wanted = 'they must be integers or names [M].'
  try:
    labels = np.asarray(labels)
  except ValueError:  # lists of several lengths
    raise UserError(f'support_labels: {wanted}') from None
  if not labels.size:
    raise UserError('There is no support label: give at least one.')
  if labels.ndim == 1 and labels.dtype.kind in 'US':
    names, labels = np.unique(labels.astype(str), return_inverse=True)
    return names, labels.astype(np.int32)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f'support_labels are {labels.dtype}{list(labels.shape)}; {wanted}'
    )
  if labels.min() < 0 or labels.max() > _MOST:
    raise UserError(
      f'support_labels go from {labels.min()} to {labels.max()}; they must lie '
      f'between 0 and {_MOST}.'
    )
  return None, labels.astype(np.int32)
