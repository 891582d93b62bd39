"""Weights from any file: DeepMind's pickles, safetensors, our own runs.

`load_checkpoint` finds out the architecture from a file's tree, and checks
every name, shape, dtype and value. Trees are Haiku's, {module: {name: array}},
under the names of DeepMind's release.
"""

import os
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.models import heads as heads_lib
from semppl_jax.models import networks
from semppl_jax.models.encoders import Architecture
from semppl_jax.weights import (
  architecture as architecture_lib,
)
from semppl_jax.weights import (
  files as files_lib,
)
from semppl_jax.weights import (
  haiku_trees,
  match_names,
  releases,
)


class Checkpoint(NamedTuple):
  """A trained network. str() of it says in a line what it is."""

  params: haiku_trees.Tree  # float32 NumPy arrays, without device axis
  state: haiku_trees.Tree  # BatchNorm's running averages; counters are int32
  architecture: Architecture
  step: int | None  # of its training; None: the file does not say
  kind: str = 'run'  # or pre-training, linear evaluation, safetensors
  mapping: Mapping[str, str] = {}  # their names -> ours, if they were matched
  bn_eps: float = 1e-5  # of BatchNorm, as it was trained
  bn_decay: float = 0.9
  image_size: int | None = None  # what it was trained to see; None: not said
  center: float | None = None  # side of that / shorter side of an image
  note: str = ''  # what else is to be known: that an alarm stopped the run
  class_names: tuple[str, ...] = ()  # of the classifier; empty: not said
  # (params, state) of the target network, if the file has it
  target: tuple[haiku_trees.Tree, haiku_trees.Tree] | None = None
  says_padding: bool = True  # False: the architecture's is a guess
  # What the classifier is on, one of architecture.layers; of a projector the
  # layers after it are not there.
  classifier_on: str = architecture_lib.ENCODER
  # Whose weights `params` and `state` are: online or target
  weights_of: str = 'online'
  # What divides the scores of prototypes that are the classifier; None: they
  # are not, or there are none
  prototype_temperature: float | None = None

  @property
  def classifier(self) -> str:
    """What predicts: 'prototypes', a 'linear' classifier; '': nothing."""
    if self.prototype_temperature is not None:
      return 'prototypes'
    return 'linear' if self.num_classes else ''

  @property
  def num_classes(self) -> int:
    """K of the classifier; 0: there is none.

    Of prototypes the first are the classes, as many as have names; all, if
    nobody named them.
    """
    if self.prototype_temperature is None:
      return architecture_lib.head_sizes(self.params)['num_classes']
    return len(self.class_names) or architecture_lib.num_prototypes(self.params)

  def __str__(self) -> str:
    has = {haiku_trees.root(module) for module in self.params}
    words = {head: 'yes' if head in has else 'no' for head in haiku_trees.HEADS}
    if 'prototypes' not in has:
      del words['prototypes']  # few methods have them
    if self.classifier_on != architecture_lib.ENCODER:
      words['classifier'] = f'on {self.classifier_on}'
    if self.classifier == 'prototypes':
      words['classifier'] = self.classifier
    heads = ', '.join(f'{head} {word}' for head, word in words.items())
    if self.weights_of == 'target':
      heads += ', of the target network'
    elif self.target:
      heads += ', target network yes'
    step = 'unknown' if self.step is None else f'{self.step:,}'
    kind = f'{self.kind}, {self.note}' if self.note else self.kind
    return f'{self.architecture}, step {step}, {heads} ({kind})'

  def network(self, precision: str = 'float32') -> networks.Networks:
    """The functions that take `params` and `state`, with all their heads.

    Where the prototypes are the classifier, 'logits' are theirs, and one that
    trained along has none.

    Args:
      precision: of activations, see networks.build.
    """
    heads = architecture_lib.head_sizes(self.params, self.classifier_on)
    if 'projector' not in {haiku_trees.root(module) for module in self.params}:
      heads['heads'] = heads_lib.no_heads
    if self.prototype_temperature is not None:
      heads['num_classes'] = 0
      heads['heads'] = heads_lib.PrototypeClassifier(
        heads['heads'], self.num_classes, self.prototype_temperature
      )
    return networks.build(
      **self.architecture._asdict(),
      **heads,
      bn_eps=self.bn_eps,
      bn_decay=self.bn_decay,
      precision=precision,
    )


def load_checkpoint(
  path: str | os.PathLike,
  *,
  step: int | None = None,
  padding: str | None = None,
  mapping: str | os.PathLike | None = None,
  target: bool = False,
  network: str | None = None,
  or_other: bool = False,
) -> Checkpoint:
  """Reads a checkpoint of whatever kind, and checks all of it.

  Args:
    path: a pickle of DeepMind's releases (SemPPL, ReLICv2, BYOL; pre-training
      or linear evaluation), a safetensors file of ours, the folder of a run of
      ours, or the name of a file in `releases.folders`. What a file is does not
      depend on its name.
    step: which checkpoint of a run; None: the newest, of a run that an alarm
      stopped the newest good one.
    padding: of strided convolutions, 'same' or 'symmetric'. No tree shows it;
      None: as the file says, or else 'same', as the release pads.
    mapping: a JSON file {their module: our module} for a checkpoint with
      selective kernels whose names cannot be matched without it.
    target: also reads the target network of a run, twice as much.
    network: whose weights are `params` and `state`, 'online' or 'target', where
      both are there; None: of a run those that its method reports, see the
      setting evaluation.network, of a file the online network's.
    or_other: what holds the other network alone is taken, too; `weights_of`
      says so.

  Returns:
    A Checkpoint.

  Raises:
    CheckpointError: one line that says what is wrong, such as a network that is
      not there. No file makes it run code of the file's.
    UserError: an unknown network.
  """
  if network not in (None, *files_lib.NETWORKS):
    raise UserError(
      f'network is {network!r}; known: {", ".join(files_lib.NETWORKS)}.'
    )
  path = releases.find(path)
  try:
    found = files_lib.read(path, step, target, network)
    there = found.settings.network
    if network not in (None, there) and not or_other:
      raise CheckpointError(
        f'holds the {there} network alone, but network is {network!r}: set it '
        f'to {there}.'
      )
    return _check(found, padding, mapping)
  except CheckpointError as error:
    text = str(error)
    if str(path) in text:
      raise
    raise CheckpointError(f'{path}: {text}') from error


def save_safetensors(path: str | os.PathLike, weights: Checkpoint) -> None:
  """Writes a file that `load_checkpoint` and safetensors' own readers read.

  Of the network whose weights `params` and `state` are, and of no other.
  """
  files_lib.write_safetensors(path, _contents(weights))


def save_release(path: str | os.PathLike, weights: Checkpoint) -> None:
  """Writes DeepMind's pretrain.pkl, which its own evaluation code reads.

  Of the network whose weights `params` and `state` are, and of no other.
  """
  files_lib.write_release(path, _contents(weights))


def settings(weights: Checkpoint) -> files_lib.Settings:
  """What the trees do not show."""
  return files_lib.Settings(
    weights.architecture.encoder,
    weights.architecture.padding,
    weights.bn_eps,
    weights.bn_decay,
    weights.image_size,
    weights.center,
    weights.classifier_on,
    weights.weights_of,
    weights.prototype_temperature,
  )


def digest(weights: Checkpoint) -> str:
  """A short number for these very weights, whatever file they came from."""
  crc = 0
  for tree in (weights.params, weights.state):
    for module in sorted(tree):
      for name in sorted(tree[module]):
        leaf = np.asarray(tree[module][name], order='C')
        crc = zlib.crc32(f'{module}/{name}{leaf.shape}'.encode(), crc)
        crc = zlib.crc32(leaf.reshape(-1).view(np.uint8), crc)
  return f'{crc:08x}'


def _contents(weights: Checkpoint) -> files_lib.Contents:
  return files_lib.Contents(
    weights.params, weights.state, weights.step, weights.kind,
    settings(weights), class_names=weights.class_names,
  )  # fmt: skip


def _check(
  found: files_lib.Contents,
  padding: str | None,
  mapping_file: str | os.PathLike | None,
) -> Checkpoint:
  """Names, shapes, dtypes, values; and names that are not the release's."""
  params, state, said = found.params, found.state, found.settings
  haiku_trees.check_arrays(params)
  haiku_trees.check_arrays(state)
  architecture = architecture_lib.architecture(params)
  if said.encoder not in (None, architecture.encoder):
    raise CheckpointError(
      f'says that it is a {said.encoder}, but its tree is a {architecture}.'
    )
  known_padding = padding or said.padding
  architecture = architecture._replace(
    padding=known_padding or architecture.padding
  )
  names = found.class_names
  if said.prototype_temperature is not None:
    _check_prototypes(params, names)
  sizes = architecture_lib.head_sizes(
    params, said.classifier_on or architecture_lib.ENCODER
  )
  expected = architecture_lib.expected(architecture, sizes)
  mapping = _match(params, expected, architecture, mapping_file)
  fitting = _fitting((params, state), mapping, expected)
  checked = Checkpoint(*fitting, architecture, found.step, found.kind, mapping)
  number = sizes['num_classes']
  if names and number not in (0, len(names)):
    raise CheckpointError(
      f'names {len(names)} classes, but its classifier has {number}.'
    )
  checked = checked._replace(
    note=found.note,
    class_names=names,
    target=found.target and _target(found.target, mapping, expected),
    says_padding=known_padding is not None,
    weights_of=said.network or 'online',
  )
  told = (
    'bn_eps', 'bn_decay', 'image_size', 'center', 'classifier_on',
    'prototype_temperature',
  )  # fmt: skip
  values = {key: getattr(said, key) for key in told}
  return checked._replace(**{k: v for k, v in values.items() if v is not None})


def _check_prototypes(params: haiku_trees.Tree, names: tuple[str, ...]) -> None:
  """Refuses prototypes that cannot be the classifier of these classes."""
  number = architecture_lib.num_prototypes(params)
  has_projector = any(haiku_trees.root(m) == 'projector' for m in params)
  if not number or not has_projector:
    lacking = 'projector' if number else 'prototypes'
    raise CheckpointError(
      f'says that its prototypes are its classifier, but has no {lacking}.'
    )
  if len(names) > number:
    raise CheckpointError(
      f'names {len(names)} classes, but has {number} prototypes.'
    )


def _fitting(
  trees: tuple[haiku_trees.Tree, haiku_trees.Tree],
  mapping: Mapping[str, str],
  expected: architecture_lib.Expected,
) -> architecture_lib.Expected:
  params, state = (haiku_trees.rename(tree, mapping) for tree in trees)
  return architecture_lib.check_fits(params, state, expected)


def _target(
  trees: tuple[haiku_trees.Tree, haiku_trees.Tree],
  mapping: Mapping[str, str],
  expected: architecture_lib.Expected,
) -> tuple[haiku_trees.Tree, haiku_trees.Tree]:
  """Checked as the online network's trees are."""
  try:
    for tree in trees:
      haiku_trees.check_arrays(tree)
    return tuple(_fitting(trees, mapping, expected))
  except CheckpointError as error:
    raise CheckpointError(f'target network: {error}') from error


def _match(
  params: haiku_trees.Tree,
  expected: architecture_lib.Expected,
  architecture: Architecture,
  mapping_file: str | os.PathLike | None,
) -> dict[str, str]:
  """Their names -> ours; empty where they are ours."""
  if not architecture.selective_kernels:
    if mapping_file is not None:
      raise CheckpointError(
        f'is a {architecture}, whose names are known: leave the mapping out.'
      )
    return {}
  theirs = haiku_trees.shapes(haiku_trees.encoder_part(params))
  ours = haiku_trees.shapes(haiku_trees.encoder_part(expected.params))
  if mapping_file is not None:
    return match_names.from_file(mapping_file, theirs, ours)
  return {} if set(theirs) == set(ours) else match_names.match(theirs, ours)
